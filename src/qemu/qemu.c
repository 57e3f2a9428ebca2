/* The session; see qemu.h. */
#include "qemu.h"

#include "bitmaps.h"
#include "inventory.h"
#include "recovery.h"
#include "space.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define SCRATCH_DEFAULT "/var/tmp"
#define TIMEOUT_MS 30000u
#define FREEZE_TIMEOUT_MS 10000u
#define RESERVE_BYTES (256 * MIB)

/* --- open ----------------------------------------------------------------------------------- */

static int open_session(
	struct qemu_session *session, const struct qemu_options *options, struct err *err)
{
	const char *base = options->scratch ? options->scratch : SCRATCH_DEFAULT;
	unsigned timeout_ms = options->timeout_ms ? options->timeout_ms : TIMEOUT_MS;
	if (options->agent) {
		session->agent_socket = strdup(options->agent);
		if (!session->agent_socket)
			return err_errno(err, ENOMEM, "cannot note %s", options->agent);
	}
	if (recovery_check(base, options->socket, err) < 0 ||
		qmp_open(&session->qmp, options->socket, timeout_ms, options->cancel, err) < 0 ||
		scratch_open(&session->scratch, base, options->socket, err) < 0 ||
		recovery_run(session, base, options->socket, err) < 0)
		return -1;
	return inventory_load(session, options->node, err);
}

struct qemu_session *qemu_open(const struct qemu_options *options, struct err *err)
{
	struct qemu_session *session = calloc(1, sizeof *session);
	if (!session) {
		err_errno(err, ENOMEM, "cannot open QMP socket %s", options->socket);
		return NULL;
	}
	session->qmp.wire.fd = -1;
	session->scratch = (struct scratch){.dir_fd = -1, .owner_fd = -1};
	session->listener.fd = -1;
	session->bitmaps = options->bitmaps ? options->bitmaps : QEMU_BITMAPS;
	session->no_freeze = options->no_freeze;
	session->freeze_timeout_ms =
		options->freeze_timeout_ms ? options->freeze_timeout_ms : FREEZE_TIMEOUT_MS;
	session->reserve_bytes = options->reserve_bytes ? options->reserve_bytes : RESERVE_BYTES;
	pthread_mutex_init(&session->mutex, NULL);
	if (open_session(session, options, err) < 0) {
		qemu_end(session, NULL);
		return NULL;
	}
	return session;
}

size_t qemu_nr_disks(const struct qemu_session *session)
{
	return session->nr_disks;
}

const struct qemu_disk *qemu_disk(const struct qemu_session *session, size_t i)
{
	assert(i < session->nr_disks);
	return &session->disks[i].facts;
}

const char *qemu_vm_uuid(const struct qemu_session *session)
{
	return session->uuid;
}

const char *qemu_vm_name(const struct qemu_session *session)
{
	return session->name;
}

int qemu_is_running(struct qemu_session *session, bool *running, struct err *err)
{
	WITH_LOCK(&session->mutex);
	json_t *status = qmp_call(&session->qmp, "query-status", NULL, -1, err);
	*running = json_is_true(json_object_get(status, "running"));
	json_decref(status);
	return status ? 0 : -1;
}

int qemu_plan_bitmap(struct qemu_session *session, size_t disk, const char *bitmap, struct err *err)
{
	assert(disk < session->nr_disks && !session->began && !session->disks[disk].settled);
	return bitmaps_settle(session, &session->disks[disk], bitmap, err);
}

/* --- begin: scratch nodes ----------------------------------------------------------------------
 */

/* The image's header and tables are QEMU's own work, on a file that only it has. */
static int create_image(
	struct qmp *qmp, const char *job, const char *file, uint64_t size_bytes, struct err *err)
{
	struct deadline until = deadline_after_ms(qmp->timeout_ms);
	if (qmp_do(qmp, "blockdev-create",
		    json_pack("{s:s, s:{s:s, s:s, s:I}}", "job-id", job, "options", "driver",
			    "qcow2", "file", file, "size", (json_int_t)size_bytes),
		    err) < 0)
		return -1;
	for (;;) {
		json_t *list = qmp_call(qmp, "query-jobs", NULL, -1, err);
		if (!list)
			return -1;
		const char *status = NULL, *text = NULL;
		size_t at;
		json_t *item;
		json_array_foreach(list, at, item)
		{
			const char *id = json_string_value(json_object_get(item, "id"));
			if (!id || strcmp(id, job) != 0)
				continue;
			status = json_string_value(json_object_get(item, "status"));
			text = json_string_value(json_object_get(item, "error"));
		}
		bool concluded = !status || strcmp(status, "concluded") == 0;
		int rc = concluded && text ? err_set(err, ERR_REFUSED, "%s: %s", job, text) : 0;
		json_decref(list);
		if (concluded)
			return rc < 0 ? -1
				      : qmp_do(qmp, "job-dismiss", json_pack("{s:s}", "id", job),
						err);
		if (qmp_wait_event(qmp, until, "making a scratch image", err) < 0)
			return -1;
	}
}

static int pass_file(struct qemu_session *session, struct disk *disk, struct err *err)
{
	char opaque[PATH_MAX + SCRATCH_ID_BYTES];
	snprintf(opaque, sizeof opaque, "%s %s", session->scratch.id, session->scratch.folder);
	disk->scratch_fd = scratch_file(&session->scratch, err);
	if (disk->scratch_fd < 0)
		return -1;
	json_t *passed = qmp_call(&session->qmp, "add-fd", json_pack("{s:s}", "opaque", opaque),
		disk->scratch_fd, err);
	disk->fdset = json_integer_value(json_object_get(passed, "fdset-id"));
	json_decref(passed);
	return passed ? 0 : -1;
}

static int make_scratch(struct qemu_session *session, size_t i, struct err *err)
{
	struct disk *disk = &session->disks[i];
	const char *id = session->scratch.id;
	char file[64], image[64], job[64], path[64];
	if (pass_file(session, disk, err) < 0)
		return -1;
	snprintf(file, sizeof file, "%s-%zu-f", id, i);
	snprintf(image, sizeof image, "%s-%zu-s", id, i);
	snprintf(job, sizeof job, "%s-%zu-c", id, i);
	snprintf(path, sizeof path, "/dev/fdset/%" JSON_INTEGER_FORMAT, disk->fdset);
	/* What is in it need not outlast a power cut. */
	if (qmp_do(&session->qmp, "blockdev-add",
		    json_pack("{s:s, s:s, s:s, s:{s:b}}", "driver", "file", "node-name", file,
			    "filename", path, "cache", "no-flush", 1),
		    err) < 0 ||
		create_image(&session->qmp, job, file, disk->facts.size_bytes, err) < 0)
		return -1;
	return qmp_do(&session->qmp, "blockdev-add",
		json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "driver", "qcow2", "node-name", image,
			"file", file, "backing", disk->node, "discard", "unmap", "detect-zeroes",
			"unmap"),
		err);
}

/* --- begin: the NBD server
 * ------------------------------------------------------------------------ */

/* The socket is made here and handed over: nobody else can reach it, and QEMU need not be
 * able to write to the folder. */
static int start_server(struct qemu_session *session, struct err *err)
{
	char path[PATH_MAX + sizeof SCRATCH_SOCKET + 1];
	const char *id = session->scratch.id;
	snprintf(path, sizeof path, "%s/" SCRATCH_SOCKET, session->scratch.folder);
	if (transport_listen_unix(&session->listener, path, err) < 0)
		return -1;
	json_t *passed = qmp_call(&session->qmp, "getfd", json_pack("{s:s}", "fdname", id),
		session->listener.fd, err);
	json_decref(passed);
	close(session->listener.fd);
	session->listener.fd = -1;
	if (!passed)
		return -1;
	json_t *arguments = json_pack("{s:{s:s, s:{s:s}}, s:i}", "addr", "type", "fd", "data",
		"str", id, "max-connections", 0);
	if (qmp_do(&session->qmp, "nbd-server-start", arguments, err) == 0) {
		session->listening = true;
		return 0;
	}
	qmp_do(&session->qmp, "closefd", json_pack("{s:s}", "fdname", id), NULL);
	if (err && strstr(err->text, "already running")) {
		err->code = ERR_BUSY;
		err_hint(err,
			"QEMU has one NBD server, and another program started it: a migration, or "
			"another backup; query-block-exports tells what it exports, "
			"nbd-server-stop ends it");
	}
	return -1;
}

static int add_export(struct qemu_session *session, size_t i, struct err *err)
{
	struct disk *disk = &session->disks[i];
	uint8_t random[16];
	char id[64], node[64], name[2 * sizeof random + 1];
	if (file_random(random, sizeof random, err) < 0)
		return -1;
	digest_hex(random, sizeof random, name);
	snprintf(id, sizeof id, "%s-%zu", session->scratch.id, i);
	snprintf(node, sizeof node, "%s-%zu-s", session->scratch.id, i);
	json_t *arguments = json_pack("{s:s, s:s, s:s, s:s, s:b}", "type", "nbd", "id", id,
		"node-name", node, "name", name, "writable", 0);
	if (arguments && disk->old)
		json_object_set_new(arguments, "bitmaps",
			json_pack("[{s:s, s:s}]", "node", disk->node, "name", disk->old));
	if (qmp_do(&session->qmp, "block-export-add", arguments, err) < 0)
		return -1;
	if (asprintf(&disk->uri, "nbd+unix:///%s?socket=%s/" SCRATCH_SOCKET, name,
		    session->scratch.folder) < 0) {
		disk->uri = NULL;
		return err_errno(err, ENOMEM, "cannot note the export of disk %s", disk->key);
	}
	disk->facts.uri = disk->uri;
	return 0;
}

/* --- begin: the moment
 * ---------------------------------------------------------------------------- */

/*
 * A disk's copy comes first in the transaction: QEMU holds the disk's requests back from then
 * until all is done, so that the old bitmap stops, and the new one begins, at exactly that moment.
 */
static json_t *moment_actions(const struct qemu_session *session)
{
	json_t *actions = json_array();
	for (size_t i = 0; i < session->nr_disks; i++) {
		char job[64], target[64];
		snprintf(job, sizeof job, "%s-%zu", session->scratch.id, i);
		snprintf(target, sizeof target, "%s-%zu-s", session->scratch.id, i);
		json_array_append_new(
			actions, json_pack("{s:s, s:{s:s, s:s, s:s, s:s}}", "type",
					 "blockdev-backup", "data", "job-id", job, "device",
					 session->disks[i].node, "target", target, "sync", "none"));
	}
	for (size_t i = 0; i < session->nr_disks; i++)
		bitmaps_begin(session, &session->disks[i], actions);
	return actions;
}

static char *find_agent(struct qemu_session *session)
{
	char *reason = session->no_freeze_reason;
	if (session->no_freeze) {
		snprintf(reason, sizeof session->no_freeze_reason, "it was asked for");
		return NULL;
	}
	if (!session->agent_socket)
		return inventory_agent(&session->qmp, reason);
	char *path = strdup(session->agent_socket);
	if (!path)
		snprintf(reason, sizeof session->no_freeze_reason, "out of memory");
	return path;
}

static int take_moment(struct qemu_session *session, struct err *err)
{
	struct agent agent = {.wire = {.fd = -1}, .guard_fd = -1};
	char *socket = find_agent(session);
	json_t *actions = moment_actions(session);
	unsigned timeout_ms = session->qmp.timeout_ms;
	bool frozen = false;
	if (socket && scratch_mark_frozen(&session->scratch, socket, err) < 0) {
		json_decref(actions);
		free(socket);
		return -1;
	}
	if (socket)
		frozen = agent_freeze(
			&agent, socket, session->freeze_timeout_ms, session->qmp.cancel);
	if (frozen) {
		int left = deadline_left_ms(agent.until);
		session->qmp.timeout_ms = left > 0 ? (unsigned)left : 1;
	}
	int rc = qmp_do(&session->qmp, "transaction", json_pack("{s:o}", "actions", actions), err);
	session->qmp.timeout_ms = timeout_ms;
	if (socket) {
		session->is_frozen_state = agent_thaw(&agent);
		scratch_mark_frozen(&session->scratch, NULL, NULL);
		snprintf(session->no_freeze_reason, sizeof session->no_freeze_reason, "%s",
			agent.reason);
	}
	free(socket);
	return rc;
}

static int begin(struct qemu_session *session, struct err *err)
{
	for (size_t i = 0; i < session->nr_disks; i++)
		if (!session->disks[i].settled && qemu_plan_bitmap(session, i, NULL, err) < 0)
			return -1;
	if (space_check(session, err) < 0)
		return -1;
	for (size_t i = 0; i < session->nr_disks; i++)
		if (make_scratch(session, i, err) < 0)
			return err_context(err, "cannot make scratch space for disk %s",
				session->disks[i].key);
	if (start_server(session, err) < 0)
		return err_context(err, "cannot start the NBD server");
	session->began = true;
	if (take_moment(session, err) < 0)
		return err_context(err, "cannot begin the backup of all disks at one moment");
	if (!session->is_frozen_state && !session->no_freeze)
		log_warning("the disks are as after a power cut: %s", session->no_freeze_reason);
	for (size_t i = 0; i < session->nr_disks; i++)
		if (add_export(session, i, err) < 0)
			return err_context(err, "cannot export disk %s", session->disks[i].key);
	session->space = space_watch(session, err);
	return session->space ? 0 : -1;
}

int qemu_begin(struct qemu_session *session, const char *bitmap, struct err *err)
{
	assert(!session->bitmap[0]);
	if (strncmp(bitmap, session->bitmaps, strlen(session->bitmaps)) != 0 ||
		strlen(bitmap) >= sizeof session->bitmap)
		return err_set(err, ERR_USAGE, "bitmap %s: its name must begin with %s", bitmap,
			session->bitmaps);
	snprintf(session->bitmap, sizeof session->bitmap, "%s", bitmap);
	return begin(session, err);
}

const char *qemu_consistency(const struct qemu_session *session)
{
	return session->is_frozen_state ? "application" : "crash";
}

const char *qemu_no_freeze_reason(const struct qemu_session *session)
{
	return session->is_frozen_state ? NULL : session->no_freeze_reason;
}

/* --- check, commit, end
 * ----------------------------------------------------------------------------- */

/* How many of ours stand in the answer. */
static int count_ours(struct qemu_session *session, const char *query, const char *member,
	size_t *nr, struct err *err)
{
	json_t *list = qmp_call(&session->qmp, query, NULL, -1, err);
	if (!list)
		return -1;
	const char *id = session->scratch.id;
	size_t at;
	json_t *item;
	*nr = 0;
	json_array_foreach(list, at, item)
	{
		const char *name = json_string_value(json_object_get(item, member));
		if (name && strncmp(name, id, strlen(id)) == 0)
			++*nr;
	}
	json_decref(list);
	return 0;
}

int qemu_check(struct qemu_session *session, struct err *err)
{
	size_t nr_jobs, nr_exports;
	WITH_LOCK(&session->mutex);
	if (session->broken.code != ERR_NONE)
		return err_copy(err, &session->broken);
	if (count_ours(session, "query-block-jobs", "device", &nr_jobs, err) < 0 ||
		count_ours(session, "query-block-exports", "id", &nr_exports, err) < 0)
		return -1;
	if (nr_jobs != session->nr_disks || nr_exports != session->nr_disks)
		return err_set(err, ERR_BUSY,
			"%s: of %zu disks %zu are still held at the backup's moment and %zu "
			"exported (another program, or an I/O error, ended the rest)",
			session->qmp.wire.peer, session->nr_disks, nr_jobs, nr_exports);
	return 0;
}

void qemu_commit(struct qemu_session *session)
{
	session->committed = true;
}

static void close_session(struct qemu_session *session)
{
	for (size_t i = 0; i < session->nr_disks; i++) {
		int fd = session->disks[i].scratch_fd;
		if (fd < 0)
			continue;
		/* QEMU may keep the file open for longer (a paused one does): not its bytes. */
		if (ftruncate(fd, 0) < 0)
			log_debug("cannot empty a scratch file: %s", strerror(errno));
		close(fd);
	}
	qmp_close(&session->qmp);
	listener_close(&session->listener);
	scratch_close(&session->scratch);
	inventory_free(session);
	pthread_mutex_destroy(&session->mutex);
	free(session->agent_socket);
	free(session);
}

int qemu_end(struct qemu_session *session, struct err *err)
{
	int rc = 0;
	if (!session)
		return 0;
	space_stop(session->space);
	session->qmp.cancel = NULL;
	if (session->bitmap[0]) {
		rc = recovery_clean(&session->qmp, session->scratch.id, session->listening, err);
		/* With an export left, its bitmap is busy, and the next session cleans up. */
		if (rc == 0 && session->began)
			rc = bitmaps_end(session, err);
		if (rc < 0)
			err_hint(err, "the next backup of this machine cleans it up");
	}
	close_session(session);
	return rc;
}
