/* The session's disks; see vmware_internal.h. */
#include "vmware_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* --- choosing ----------------------------------------------------------------------------------
 */

static void key_text(const struct vsphere_disk *disk, char key[VMWARE_KEY_BYTES])
{
	snprintf(key, VMWARE_KEY_BYTES, "%" PRId32, disk->key);
}

static bool is_named(const struct vmware_options *options, const char *key)
{
	for (size_t i = 0; i < options->nr_skip; i++)
		if (strcmp(options->skip[i], key) == 0)
			return true;
	return false;
}

static int check_named(
	const struct vsphere_config *config, const struct vmware_options *options, struct err *err)
{
	for (size_t i = 0; i < options->nr_skip; i++) {
		bool found = false;
		for (size_t k = 0; k < config->nr_disks && !found; k++) {
			char key[VMWARE_KEY_BYTES];
			key_text(&config->disks[k], key);
			found = strcmp(key, options->skip[i]) == 0;
		}
		if (!found)
			return err_set(err, ERR_USAGE, "%s has no disk %s, which is to be left out",
				config->name, options->skip[i]);
	}
	return 0;
}

static int add_disk(
	struct vmware_session *session, const struct vsphere_disk *from, struct err *err)
{
	struct session_disk *disk = &session->disks[session->nr_disks++];
	disk->key = from->key;
	key_text(from, disk->facts.key);
	disk->facts.label = from->label;
	disk->facts.uuid = from->uuid;
	disk->facts.size_bytes = from->capacity_bytes;
	if (asprintf(&disk->name, "vmware://%s%s/%s", session->host, session->vm->path,
		    disk->facts.key) < 0) {
		disk->name = NULL;
		return err_errno(err, ENOMEM, "cannot note the disks of %s", session->vm->path);
	}
	disk->facts.name = disk->name;
	return 0;
}

static int refuse(
	const struct vsphere_config *config, const struct vmware_options *options, struct err *err)
{
	char text[ERR_TEXT_BYTES / 2] = "";
	size_t length = 0;
	for (size_t i = 0; i < config->nr_disks; i++) {
		const struct vsphere_disk *disk = &config->disks[i];
		char key[VMWARE_KEY_BYTES];
		key_text(disk, key);
		if (!disk->unsupported || is_named(options, key) || length >= sizeof text)
			continue;
		int n = snprintf(text + length, sizeof text - length, "%sdisk %s (%s): %s",
			length ? "; " : "", key, disk->label, disk->unsupported);
		length += n > 0 ? (size_t)n : 0;
	}
	err_set(err, ERR_REFUSED, "%s", text);
	return err_hint(err, "--skip-unsupported leaves such disks out, and says so in the restore "
			     "point");
}

static int choose(
	struct vmware_session *session, const struct vmware_options *options, struct err *err)
{
	const struct vsphere_config *config = session->vm->config;
	for (size_t i = 0; i < config->nr_disks; i++) {
		const struct vsphere_disk *disk = &config->disks[i];
		struct vmware_skipped *skipped = &session->skipped[session->nr_skipped];
		key_text(disk, skipped->key);
		bool named = is_named(options, skipped->key);
		if (disk->unsupported && !named && !options->skip_unsupported)
			return refuse(config, options, err);
		if (!disk->unsupported && !named) {
			if (add_disk(session, disk, err) < 0)
				return -1;
			continue;
		}
		skipped->label = disk->label;
		skipped->why = disk->unsupported ? disk->unsupported : "it was to be left out";
		session->nr_skipped++;
	}
	if (session->nr_disks == 0)
		return err_set(
			err, ERR_REFUSED, "%s has no disk to be backed up", session->vm->path);
	return 0;
}

int disks_choose(
	struct vmware_session *session, const struct vmware_options *options, struct err *err)
{
	const struct vsphere_config *config = session->vm->config;
	session->disks = calloc(config->nr_disks + 1, sizeof *session->disks);
	session->skipped = calloc(config->nr_disks + 1, sizeof *session->skipped);
	if (!session->disks || !session->skipped)
		return err_errno(err, ENOMEM, "cannot note the disks of %s", session->vm->path);
	if (check_named(config, options, err) < 0 || choose(session, options, err) < 0)
		return -1;
	return 0;
}

/* --- the snapshot's ----------------------------------------------------------------------------
 */

static int changed(
	const struct vmware_session *session, const char *key, const char *how, struct err *err)
{
	err_set(err, ERR_BUSY, "disk %s of %s was %s while the backup began", key,
		session->vm->path, how);
	return err_hint(err, "begin again");
}

static int check_added(struct vmware_session *session, struct err *err)
{
	for (size_t i = 0; i < session->config->nr_disks; i++) {
		const struct vsphere_disk *disk = &session->config->disks[i];
		char key[VMWARE_KEY_BYTES];
		key_text(disk, key);
		if (!vsphere_config_disk(session->vm->config, disk->key))
			return changed(session, key, "added", err);
	}
	return 0;
}

int disks_take_snapshot(struct vmware_session *session, struct err *err)
{
	if (check_added(session, err) < 0)
		return -1;
	for (size_t i = 0; i < session->nr_disks; i++) {
		struct session_disk *disk = &session->disks[i];
		const struct vsphere_disk *now = vsphere_config_disk(session->config, disk->key);
		if (!now)
			return changed(session, disk->facts.key, "removed", err);
		if (now->capacity_bytes != disk->facts.size_bytes)
			return changed(session, disk->facts.key, "resized", err);
		if (strcmp(now->uuid, disk->facts.uuid) != 0)
			return changed(session, disk->facts.key, "replaced", err);
		disk->change_id = now->change_id[0] ? strdup(now->change_id) : NULL;
		if (now->change_id[0] && !disk->change_id)
			return err_errno(err, ENOMEM, "cannot note the snapshot's disks");
		disk->facts.change_id = disk->change_id;
	}
	return 0;
}

/* --- opening -----------------------------------------------------------------------------------
 */

/* An ESXi host has 48 MiB for all that is read from it: open disks share a part of that. */
#define NFC_KIB (32u << 10)
#define NFC_BUFFERS 4u
#define NFC_UNIT_KIB 64u
#define NFC_MOST_KIB 1024u
/* nbdkit's plugin connects for each lane of a copy, and once more. */
#define NBDKIT_CONNECTIONS 5u

static unsigned nfc_buffer_kib(size_t nr_connections)
{
	uint64_t kib = round_down(NFC_KIB / NFC_BUFFERS / nr_connections, NFC_UNIT_KIB);
	return (unsigned)min_u64(max_u64(kib, NFC_UNIT_KIB), NFC_MOST_KIB);
}

/* Through nbdkit, or by our own helper. */
static struct block *open_block(const struct vmware_session *session,
	const struct session_disk *disk, const struct vddk_options *options, struct err *err)
{
	if (session->nbdkit) {
		struct block *block = nbdkit_open(session->nbdkit, options, err);
		if (block)
			log_info("disk %s: %s and its vddk plugin read it", disk->facts.key,
				session->nbdkit);
		return block;
	}
	struct block *block = vddk_open(options, err);
	if (!block)
		return NULL;
	struct vddk_facts facts;
	vddk_facts(block, &facts);
	log_info("disk %s: VMware's library %u reads it by %s, %s", disk->facts.key, facts.major,
		facts.transport,
		facts.asynchronous ? "several reads at once" : "one read at a time");
	return block;
}

static int open_disk(struct vmware_session *session, size_t i, struct err *err)
{
	struct session_disk *disk = &session->disks[i];
	const struct vddk_options options = {
		.helper = session->vddk_helper,
		.folder = session->vddk_folder,
		.server = session->host,
		.port = (uint16_t)session->port,
		.thumbprint = vsphere_about(session->vsphere)->sha1,
		.user = session->user,
		.password = session->password,
		.vm = session->vm->moref,
		.snapshot = session->taken.moref,
		.path = vsphere_config_disk(session->config, disk->key)->file,
		.size_bytes = disk->facts.size_bytes,
		.modes = session->vddk_modes,
		.compression = session->vddk_compression,
		.nfc_buffer_kib = nfc_buffer_kib(
			session->nr_disks * (session->nbdkit ? NBDKIT_CONNECTIONS : 1)),
		.nfc_buffers = NFC_BUFFERS,
		.hold_access = i == 0,
		.cancel = session->cancel,
	};
	disk->opened = open_block(session, disk, &options, err);
	if (!disk->opened)
		return -1;
	if (!disk->list)
		disk->facts.block = disk->opened;
	else if (disk->facts.unusable)
		disk->facts.block = changes_allocated(disk->list, disk->opened, err);
	else
		disk->facts.block = changes_apply(disk->list, disk->opened, err);
	return disk->facts.block ? 0 : -1;
}

int disks_open(struct vmware_session *session, struct err *err)
{
	for (size_t i = 0; i < session->nr_disks; i++)
		if (open_disk(session, i, err) < 0)
			return err_context(err, "disk %s", session->disks[i].facts.key);
	return 0;
}

static void *close_disk(void *context)
{
	struct session_disk *disk = context;
	struct err err = ERR_INIT;
	if (disk->facts.block != disk->opened)
		block_close(disk->facts.block, NULL);
	if (block_close(disk->opened, &err) < 0)
		log_warning("%s", err.text);
	changes_close(disk->list);
	areas_drop_since(disk);
	disk->facts.block = disk->opened = NULL;
	disk->list = NULL;
	return NULL;
}

/* Side by side: one whose library hangs is waited for before it is killed. */
void disks_close(struct vmware_session *session)
{
	for (size_t i = 1; i < session->nr_disks; i++) {
		struct session_disk *disk = &session->disks[i];
		disk->closes = disk->opened &&
			       thread_start(&disk->closer, "close", close_disk, disk, NULL) == 0;
		if (!disk->closes)
			close_disk(disk);
	}
	for (size_t i = 1; i < session->nr_disks; i++)
		if (session->disks[i].closes) {
			pthread_join(session->disks[i].closer, NULL);
			session->disks[i].closes = false;
		}
	/* It holds off migration for all of them. */
	if (session->nr_disks > 0)
		close_disk(&session->disks[0]);
}

void disks_free(struct vmware_session *session)
{
	for (size_t i = 0; i < session->nr_disks; i++) {
		struct session_disk *disk = &session->disks[i];
		free(disk->name);
		free(disk->since);
		free(disk->change_id);
	}
	free(session->disks);
	free(session->skipped);
}
