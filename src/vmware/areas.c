/*
 * What changed on a disk, as a list that the changes room reads.
 *
 * The answers come in pieces, of any number; the list goes to a file without a name in the state
 * folder, so that memory is bounded and a killed session leaves nothing.
 */
#include "vmware_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

struct spool {
	FILE *file;
	uint64_t count, bytes;
};

static int open_spool(struct spool *spool, const char *folder, struct err *err)
{
	*spool = (struct spool){.file = NULL};
	int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
		char path[STATEDIR_BYTES + 16];
		snprintf(path, sizeof path, "%s/areas-XXXXXX", folder);
		fd = mkostemp(path, O_CLOEXEC);
		if (fd >= 0)
			unlink(path);
	}
	spool->file = fd < 0 ? NULL : fdopen(fd, "w");
	if (spool->file)
		return 0;
	err_errno(err, errno, "cannot make a temporary file in %s", folder);
	if (fd >= 0)
		close(fd);
	return -1;
}

static int wrote(int rc, struct err *err)
{
	return rc < 0 ? err_errno(err, errno, "cannot write the list of changed areas") : 0;
}

static int take_area(void *context, uint64_t offset, uint64_t length, struct err *err)
{
	struct spool *spool = context;
	spool->count++;
	spool->bytes += length;
	return wrote(fprintf(spool->file, "{\"offset\":%" PRIu64 ",\"length\":%" PRIu64 "}\n",
			     offset, length),
		err);
}

static int write_head(
	struct spool *spool, const struct session_disk *disk, const char *from, struct err *err)
{
	json_t *head = json_pack("{s:i, s:s, s:I, s:s, s:s}", "sendense-extents", 1, "key",
		disk->facts.key, "size", (json_int_t)disk->facts.size_bytes, "from", from, "to",
		disk->change_id);
	char *AUTO_FREE text = head ? json_dumps(head, JSON_COMPACT) : NULL;
	json_decref(head);
	if (!text)
		return err_errno(err, ENOMEM, "cannot write the list of changed areas");
	return wrote(fprintf(spool->file, "%s\n", text), err);
}

static int write_end(struct spool *spool, struct err *err)
{
	int rc =
		fprintf(spool->file, "{\"end\":true,\"count\":%" PRIu64 ",\"bytes\":%" PRIu64 "}\n",
			spool->count, spool->bytes);
	return wrote(rc < 0 ? rc : fflush(spool->file), err);
}

/* changes->gone: as of vsphere_changed_areas(). */
static int load(struct vmware_session *session, const struct session_disk *disk, const char *from,
	struct changes **list, struct vsphere_changes *changes, struct err *err)
{
	struct spool spool;
	char name[64];
	int64_t began_ns = clock_now_ns();
	*changes = (struct vsphere_changes){.gone = false};
	if (open_spool(&spool, session->folder, err) < 0)
		return -1;
	int rc = write_head(&spool, disk, from, err);
	if (rc == 0)
		rc = vsphere_changed_areas(session->vsphere, session->vm->moref,
			session->taken.moref, disk->key, from, disk->facts.size_bytes, take_area,
			&spool, changes, err);
	if (rc == 0)
		rc = write_end(&spool, err);
	if (rc == 0) {
		snprintf(name, sizeof name, "of disk %s", disk->facts.key);
		*list = changes_open_own(fileno(spool.file), name, session->cancel, err);
		rc = *list ? 0 : -1;
		log_info("disk %s: %u answers tell of %" PRIu64 " areas, %" PRIu64
			 " bytes, since %s, in %.1f s",
			disk->facts.key, changes->nr_calls, spool.count, spool.bytes, from,
			vmware_seconds_since(began_ns));
	}
	fclose(spool.file);
	return rc;
}

/* What is allocated only saves reading: without it all is read. */
static int load_allocated(
	struct vmware_session *session, struct session_disk *disk, struct err *err)
{
	struct vsphere_changes changes;
	struct err why = ERR_INIT;
	if (!disk->change_id || load(session, disk, "*", &disk->list, &changes, &why) == 0)
		return 0;
	if (!changes.gone)
		return err_copy(err, &why);
	log_info("disk %s: all of it is read, because the server does not tell what is "
		 "allocated: %s",
		disk->facts.key, why.text);
	return 0;
}

__attribute__((format(printf, 2, 3))) static void unusable(
	struct session_disk *disk, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(disk->unusable, sizeof disk->unusable, format, args);
	va_end(args);
	disk->facts.unusable = disk->unusable;
}

int areas_load(struct vmware_session *session, struct session_disk *disk, struct err *err)
{
	struct vsphere_changes changes;
	struct err why = ERR_INIT;
	if (!disk->change_id)
		unusable(disk, "change tracking is off: %s",
			session->untracked ? session->untracked
					   : "the server gives no change id for this disk");
	else if (!disk->since)
		unusable(disk, "the latest restore point has no change id of it");
	else if (!vsphere_same_epoch(disk->since, disk->change_id))
		unusable(disk,
			"change tracking began anew since then: its change id was %s, and "
			"is %s now",
			disk->since, disk->change_id);
	else if (load(session, disk, disk->since, &disk->list, &changes, &why) == 0)
		return 0;
	else if (changes.gone)
		unusable(disk, "%s", why.text);
	else
		return err_copy(err, &why);
	return load_allocated(session, disk, err);
}

/* --- since what an interrupted backup read ---------------------------------------------------- */

void areas_drop_since(struct session_disk *disk)
{
	block_close(disk->since_map, NULL);
	block_close(disk->nothing, NULL);
	changes_close(disk->since_list);
	disk->since_map = disk->nothing = NULL;
	disk->since_list = NULL;
}

int areas_load_since(struct vmware_session *session, struct session_disk *disk,
	const char *change_id, struct err *err)
{
	struct vsphere_changes changes;
	struct err why = ERR_INIT;
	areas_drop_since(disk);
	if (!disk->change_id)
		err_set(&why, ERR_NOT_FOUND, "change tracking is off");
	else if (!vsphere_same_epoch(change_id, disk->change_id))
		err_set(&why, ERR_NOT_FOUND,
			"change tracking began anew: its change id was %s, and is %s now",
			change_id, disk->change_id);
	else if (load(session, disk, change_id, &disk->since_list, &changes, &why) == 0)
		disk->nothing = block_null_open(disk->facts.size_bytes, err);
	else if (!changes.gone)
		return err_copy(err, &why);
	if (!disk->since_list) {
		log_info("disk %s: what changed since the interrupted backup is not known: %s",
			disk->facts.key, why.text);
		return 0;
	}
	disk->since_map =
		disk->nothing ? changes_apply(disk->since_list, disk->nothing, err) : NULL;
	return disk->since_map ? 1 : -1;
}
