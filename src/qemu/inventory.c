/* The machine's disks; see inventory.h. */
#include "inventory.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define NO_UUID "00000000-0000-0000-0000-000000000000"
#define IOTHREADS_FROM 80203u
#define AGENT_PORT "org.qemu.guest_agent.0"

static const char *text_of(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));
	return text ? text : "";
}

static bool starts_with(const char *text, const char *start)
{
	return strncmp(text, start, strlen(start)) == 0;
}

/* --- keys ------------------------------------------------------------------------------ */

/* "/machine/peripheral/vd0/virtio-backend" is known as vd0, which its maker chose; a device
 * without an id goes by its drive, or by its place among those. */
static void device_name(
	const char *qdev, const char *device, const char *node, char *name, size_t name_bytes)
{
	static const char named[] = "/machine/peripheral/";
	const char *id = !qdev ? "" : starts_with(qdev, named) ? qdev + strlen(named) : qdev;
	if (*id && *id != '/')
		snprintf(name, name_bytes, "%.*s", (int)strcspn(id, "/"), id);
	else if (device && *device)
		snprintf(name, name_bytes, "%s", device);
	else if (strstr(id, "/device["))
		snprintf(name, name_bytes, "device-%d", atoi(strstr(id, "/device[") + 8));
	else
		snprintf(name, name_bytes, "%s", node);
}

void inventory_key(const char *qdev, const char *device, const char *node, char key[QEMU_KEY_BYTES])
{
	char name[1024];
	device_name(qdev, device, node, name, sizeof name);
	size_t length = 0;
	for (const char *c = name; *c && length < QEMU_KEY_BYTES; c++) {
		bool good = isalnum((unsigned char)*c) || *c == '_' || *c == '-';
		if (length < QEMU_KEY_BYTES - 1)
			key[length] = *c;
		if (!good && length < QEMU_KEY_BYTES - 1)
			key[length] = '-';
		length++;
	}
	if (length < QEMU_KEY_BYTES) {
		key[length] = '\0';
		if (length == 0)
			snprintf(key, QEMU_KEY_BYTES, "disk");
		return;
	}
	/* Too long: what it begins with, and a digest of all of it. */
	uint8_t digest[DIGEST_ROOT_BYTES];
	char hex[9];
	digest_sha256(name, strlen(name), digest);
	digest_hex(digest, 4, hex);
	snprintf(key + QEMU_KEY_BYTES - 10, 10, "-%s", hex);
}

static bool has_key(const struct qemu_session *session, const char *key)
{
	for (size_t i = 0; i < session->nr_disks; i++)
		if (strcmp(session->disks[i].key, key) == 0)
			return true;
	return false;
}

/* Another disk of the same name: -2 and so on, in QEMU's order. */
static void make_distinct(const struct qemu_session *session, char key[QEMU_KEY_BYTES])
{
	char plain[QEMU_KEY_BYTES - 11];
	snprintf(plain, sizeof plain, "%.*s", (int)sizeof plain - 1, key);
	for (unsigned n = 2; has_key(session, key); n++)
		snprintf(key, QEMU_KEY_BYTES, "%s-%u", plain, n);
}

/* --- disks ----------------------------------------------------------------------------- */

/* Why this one is no disk to back up; NULL: it is one. */
static const char *why_not(const json_t *block, const json_t *inserted)
{
	const char *qdev = text_of(block, "qdev");
	if (!inserted)
		return "it has no medium";
	if (!*qdev)
		return "no device of the machine uses it";
	if (json_is_true(json_object_get(block, "removable")))
		return "it is a CD-ROM, a floppy disk or another removable one";
	if (json_is_true(json_object_get(inserted, "ro")))
		return "it is read-only";
	if (starts_with(qdev, "/machine/system.flash"))
		return "it holds the firmware";
	return NULL;
}

/* Whether the one word that the user has for it is one of its names. */
static bool is_called(const json_t *block, const json_t *inserted, const char *word)
{
	char key[QEMU_KEY_BYTES];
	const char *node = text_of(inserted, "node-name");
	inventory_key(text_of(block, "qdev"), text_of(block, "device"), node, key);
	return strcmp(word, key) == 0 || strcmp(word, node) == 0 ||
	       strcmp(word, text_of(block, "qdev")) == 0 ||
	       strcmp(word, text_of(block, "device")) == 0;
}

/* While a job of QEMU's works on a disk, its filter stands in the disk's place, and bitmaps
 * and backups would go to that. */
static int check_free(const json_t *inserted, const char *key, struct err *err)
{
	static const char *const filters[] = {
		"copy-before-write", "mirror_top", "commit_top", "backup-top"};
	const char *driver = text_of(inserted, "drv");
	for (size_t i = 0; i < ARRAY_LENGTH(filters); i++)
		if (strcmp(driver, filters[i]) == 0)
			return err_set(err, ERR_BUSY,
				"disk %s: a job of another program works on it (query-block-jobs "
				"names it)",
				key);
	return 0;
}

static char *get_property(struct qmp *qmp, const char *path, const char *property)
{
	json_t *value = qmp_call(qmp, "qom-get",
		json_pack("{s:s, s:s}", "path", path, "property", property), -1, NULL);
	char *text = json_is_string(value) ? strdup(json_string_value(value)) : NULL;
	json_decref(value);
	return text;
}

static bool names_iothread(struct qmp *qmp, const char *path)
{
	char *iothread = get_property(qmp, path, "iothread");
	bool has = iothread && *iothread;
	free(iothread);
	return has;
}

/* The device itself, or the controller on whose bus it is. */
static bool has_iothread(struct qmp *qmp, const char *qdev)
{
	bool has = names_iothread(qmp, qdev);
	char *bus = get_property(qmp, qdev, "parent_bus");
	char *slash = bus ? strrchr(bus, '/') : NULL;
	if (slash)
		*slash = '\0';
	has = has || (slash && names_iothread(qmp, bus));
	free(bus);
	return has;
}

/*
 * QEMU before 8.2.3 (fixed by "nbd/server: only traverse NBDExport->clients from main loop
 * thread") ends with an assertion, and the machine with it, when an NBD client of a disk with an
 * iothread goes: nothing that we could do makes sure that ours never does.
 */
static int check_iothread(
	struct qemu_session *session, const json_t *block, const char *key, struct err *err)
{
	struct qmp *qmp = &session->qmp;
	if (qmp->version >= IOTHREADS_FROM || !has_iothread(qmp, text_of(block, "qdev")))
		return 0;
	return err_set(err, ERR_UNSUPPORTED,
		"disk %s has an iothread, and this QEMU (%u.%u.%u) ends, and the machine with it, "
		"when a reader of such a disk goes: a fault that QEMU 8.2.3 and 9.0 do not have "
		"(use one of those, or take the iothread from the device)",
		key, qmp->version / 10000, qmp->version / 100 % 100, qmp->version % 100);
}

static int add_disk(
	struct qemu_session *session, const json_t *block, const json_t *inserted, struct err *err)
{
	struct disk *disk = &session->disks[session->nr_disks];
	const char *node = text_of(inserted, "node-name");
	for (size_t i = 0; i < session->nr_disks; i++)
		if (strcmp(session->disks[i].node, node) == 0)
			return 0; /* one disk with two ways to it */
	json_int_t size = json_integer_value(
		json_object_get(json_object_get(inserted, "image"), "virtual-size"));
	*disk = (struct disk){.fdset = -1, .scratch_fd = -1};
	inventory_key(text_of(block, "qdev"), text_of(block, "device"), node, disk->key);
	make_distinct(session, disk->key);
	if (check_free(inserted, disk->key, err) < 0 ||
		check_iothread(session, block, disk->key, err) < 0)
		return -1;
	if (size <= 0) {
		log_warning("disk %s has no bytes and is left out", disk->key);
		return 0;
	}
	disk->node = strdup(node);
	if (asprintf(&disk->identity, "%s %s", text_of(block, "qdev"), text_of(inserted, "file")) <
		0)
		disk->identity = NULL;
	disk->persistent = strcmp(text_of(inserted, "drv"), "qcow2") == 0;
	session->nr_disks++;
	if (!disk->node || !disk->identity)
		return err_errno(err, ENOMEM, "cannot note disk %s", disk->key);
	snprintf(disk->no_bitmap, sizeof disk->no_bitmap, "no bitmap was asked for");
	disk->facts = (struct qemu_disk){
		.key = disk->key,
		.node = disk->node,
		.size_bytes = (uint64_t)size,
		.identity = disk->identity,
		.no_bitmap = disk->no_bitmap,
	};
	return 0;
}

static int add_disks(
	struct qemu_session *session, const json_t *blocks, const char *word, struct err *err)
{
	const char *reason = NULL;
	char names[512] = "";
	size_t at;
	json_t *block;
	json_array_foreach(blocks, at, block)
	{
		const json_t *inserted = json_object_get(block, "inserted");
		const char *no = why_not(block, inserted);
		bool named = word && is_called(block, inserted, word);
		char key[QEMU_KEY_BYTES];
		inventory_key(text_of(block, "qdev"), text_of(block, "device"),
			text_of(inserted, "node-name"), key);
		if (!no && strlen(names) + strlen(key) + 3 < sizeof names)
			snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s",
				*names ? ", " : "", key);
		if (named && no)
			reason = no;
		if (no || (word && !named))
			continue;
		if (session->nr_disks == QEMU_DISKS_MAX)
			return err_set(err, ERR_UNSUPPORTED, "more than %u disks", QEMU_DISKS_MAX);
		if (add_disk(session, block, inserted, err) < 0)
			return -1;
	}
	if (session->nr_disks > 0)
		return 0;
	if (reason)
		return err_set(err, ERR_DENIED, "disk %s cannot be backed up: %s", word, reason);
	if (word)
		return err_set(err, ERR_NOT_FOUND, "the machine has no disk %s (it has %s)", word,
			*names ? names : "none that can be written");
	return err_set(err, ERR_NOT_FOUND, "the machine has no disk that can be written");
}

static int load_names(struct qemu_session *session, struct err *err)
{
	json_t *uuid = qmp_call(&session->qmp, "query-uuid", NULL, -1, err);
	if (!uuid)
		return -1;
	if (strcmp(text_of(uuid, "UUID"), NO_UUID) != 0)
		snprintf(session->uuid, sizeof session->uuid, "%s", text_of(uuid, "UUID"));
	json_decref(uuid);
	json_t *name = qmp_call(&session->qmp, "query-name", NULL, -1, err);
	if (!name)
		return -1;
	session->name = strdup(text_of(name, "name"));
	json_decref(name);
	return session->name ? 0 : err_errno(err, ENOMEM, "cannot note the machine's name");
}

int inventory_load(struct qemu_session *session, const char *node, struct err *err)
{
	if (load_names(session, err) < 0)
		return -1;
	session->nodes = qmp_call(
		&session->qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", 1), -1, err);
	if (!session->nodes)
		return -1;
	json_t *blocks = qmp_call(&session->qmp, "query-block", NULL, -1, err);
	if (!blocks)
		return -1;
	int rc = 0;
	session->disks = calloc(QEMU_DISKS_MAX, sizeof *session->disks);
	if (!session->disks)
		rc = err_errno(err, ENOMEM, "cannot list the disks");
	if (rc == 0)
		rc = add_disks(session, blocks, node, err);
	json_decref(blocks);
	return rc;
}

void inventory_free(struct qemu_session *session)
{
	for (size_t i = 0; i < session->nr_disks; i++) {
		free(session->disks[i].node);
		free(session->disks[i].identity);
		free(session->disks[i].uri);
		free(session->disks[i].old);
	}
	free(session->disks);
	free(session->name);
	json_decref(session->nodes);
}

/* --- the agent's channel ---------------------------------------------------------------- */

/* The chardev of the port that has the agent's name, among the devices below folder. */
static char *find_port(struct qmp *qmp, const char *folder)
{
	json_t *list = qmp_call(qmp, "qom-list", json_pack("{s:s}", "path", folder), -1, NULL);
	char *chardev = NULL;
	size_t at;
	json_t *item;
	json_array_foreach(list, at, item)
	{
		char path[256];
		if (chardev || strcmp(text_of(item, "type"), "child<virtserialport>") != 0)
			continue;
		snprintf(path, sizeof path, "%s/%s", folder, text_of(item, "name"));
		char *name = get_property(qmp, path, "name");
		if (name && strcmp(name, AGENT_PORT) == 0)
			chardev = get_property(qmp, path, "chardev");
		free(name);
	}
	json_decref(list);
	return chardev;
}

/* "disconnected:unix:/run/web01.qga,server=on": the path, when nobody else is connected. */
static char *socket_of(const json_t *chardev, char reason[AGENT_REASON_BYTES])
{
	static const char unused[] = "disconnected:unix:";
	const char *filename = text_of(chardev, "filename");
	const char *why = NULL;
	if (starts_with(filename, "unix:"))
		why = "another program is connected to the guest agent's channel";
	else if (!starts_with(filename, unused))
		why = "the guest agent's channel is no Unix socket";
	else if (!json_is_true(json_object_get(chardev, "frontend-open")))
		why = "the guest agent is not running in the guest";
	if (why) {
		snprintf(reason, AGENT_REASON_BYTES, "%s", why);
		return NULL;
	}
	const char *path = filename + strlen(unused), *end = NULL;
	for (const char *at = path; (at = strstr(at, ",server")); at++)
		end = at;
	return end ? strndup(path, (size_t)(end - path)) : strdup(path);
}

char *inventory_agent(struct qmp *qmp, char reason[AGENT_REASON_BYTES])
{
	char *path = NULL;
	char *label = find_port(qmp, "/machine/peripheral");
	if (!label)
		label = find_port(qmp, "/machine/peripheral-anon");
	snprintf(reason, AGENT_REASON_BYTES, "the machine has no channel to a guest agent");
	if (!label)
		return NULL;
	json_t *list = qmp_call(qmp, "query-chardev", NULL, -1, NULL);
	size_t at;
	json_t *chardev;
	json_array_foreach(list, at, chardev) if (strcmp(text_of(chardev, "label"), label) == 0)
		path = socket_of(chardev, reason);
	json_decref(list);
	free(label);
	return path;
}
