/* Machines as sources; see qemu_source.h. */
#include "qemu_source.h"

#include "locator.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

struct qemu_source {
	struct qemu_session *session;
	struct qemu_source_disk *disks;
	size_t nr_disks;
	char **names; /* nr_disks */
	char bitmap[64];
};

bool qemu_source_is(const char *name)
{
	enum locator_kind kind;
	const char *rest;
	return locator_parse(name, &kind, &rest, NULL) == 0 && kind == LOCATOR_QEMU;
}

/* --- opening --------------------------------------------------------------------------- */

static bool is_socket(const char *path)
{
	struct stat st;
	return stat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* SOCKET or SOCKET/DISK: *disk points into text, or is NULL.  Where no socket is, all of
 * it is the socket's path, for a message that names it. */
static void split(const char *text, char socket[PATH_MAX], const char **disk)
{
	const char *slash = strrchr(text, '/');
	*disk = NULL;
	snprintf(socket, PATH_MAX, "%s", text);
	if (is_socket(socket) || !slash || slash == text || !slash[1])
		return;
	snprintf(socket, PATH_MAX, "%.*s", (int)(slash - text), text);
	if (is_socket(socket))
		*disk = slash + 1;
	else
		snprintf(socket, PATH_MAX, "%s", text);
}

static int note_disks(struct qemu_source *source, const char *socket, struct err *err)
{
	size_t nr = qemu_nr_disks(source->session);
	source->disks = calloc(nr, sizeof *source->disks);
	source->names = calloc(nr, sizeof *source->names);
	if (!source->disks || !source->names)
		return err_errno(err, ENOMEM, "cannot note the machine's disks");
	source->nr_disks = nr;
	for (size_t i = 0; i < nr; i++) {
		const struct qemu_disk *disk = qemu_disk(source->session, i);
		if (asprintf(&source->names[i], "qemu:%s/%s", socket, disk->key) < 0) {
			source->names[i] = NULL;
			return err_errno(err, ENOMEM, "cannot note the machine's disks");
		}
		source->disks[i] = (struct qemu_source_disk){
			.key = disk->key,
			.name = source->names[i],
			.identity = disk->identity,
			.size_bytes = disk->size_bytes,
			.bitmap = source->bitmap,
		};
	}
	return 0;
}

/* Never the same again: by it the machine's bitmaps and restore points find each other. */
static int name_bitmap(struct qemu_source *source, const char *start, struct err *err)
{
	char utc[CLOCK_UTC_BYTES], plain[CLOCK_UTC_BYTES];
	uint32_t random;
	if (file_random(&random, sizeof random, err) < 0)
		return -1;
	clock_utc_text(time(NULL), utc);
	size_t length = 0;
	for (const char *c = utc; *c; c++)
		if (*c != '-' && *c != ':')
			plain[length++] = *c;
	plain[length] = '\0';
	snprintf(source->bitmap, sizeof source->bitmap, "%s%s-%08" PRIx32, start, plain, random);
	return 0;
}

struct qemu_source *qemu_source_open(const struct qemu_source_options *options, struct err *err)
{
	char socket[PATH_MAX];
	enum locator_kind kind;
	const char *rest, *disk;
	if (locator_parse(options->name, &kind, &rest, err) < 0)
		return NULL;
	struct qemu_source *source = calloc(1, sizeof *source);
	if (!source) {
		err_errno(err, ENOMEM, "cannot open %s", options->name);
		return NULL;
	}
	split(rest, socket, &disk);
	struct qemu_options qemu = {
		.socket = socket,
		.node = disk,
		.agent = options->agent,
		.bitmaps = options->bitmaps,
		.no_freeze = options->no_freeze,
		.scratch = options->scratch,
		.cancel = options->cancel,
	};
	source->session = qemu_open(&qemu, err);
	if (source->session && name_bitmap(source, options->bitmaps, err) == 0 &&
		note_disks(source, socket, err) == 0)
		return source;
	qemu_source_end(source);
	return NULL;
}

size_t qemu_source_nr_disks(const struct qemu_source *source)
{
	return source->nr_disks;
}

const struct qemu_source_disk *qemu_source_disk(const struct qemu_source *source, size_t i)
{
	return &source->disks[i];
}

const char *qemu_source_uuid(const struct qemu_source *source)
{
	return qemu_vm_uuid(source->session);
}

int qemu_source_is_running(struct qemu_source *source, bool *running, struct err *err)
{
	return qemu_is_running(source->session, running, err);
}

/* --- the moment -------------------------------------------------------------------------- */

int qemu_source_plan(struct qemu_source *source, size_t i, const char *since, struct err *err)
{
	return qemu_plan_bitmap(source->session, i, since, err);
}

int qemu_source_begin(struct qemu_source *source, struct err *err)
{
	if (qemu_begin(source->session, source->bitmap, err) < 0)
		return -1;
	for (size_t i = 0; i < source->nr_disks; i++) {
		const struct qemu_disk *disk = qemu_disk(source->session, i);
		source->disks[i].uri = disk->uri;
		source->disks[i].unusable = disk->has_bitmap ? NULL : disk->no_bitmap;
	}
	return 0;
}

const char *qemu_source_consistency(const struct qemu_source *source)
{
	return qemu_consistency(source->session);
}

const char *qemu_source_consistency_reason(const struct qemu_source *source)
{
	return qemu_no_freeze_reason(source->session);
}

int qemu_source_check(struct qemu_source *source, struct err *err)
{
	return qemu_check(source->session, err);
}

void qemu_source_commit(struct qemu_source *source)
{
	qemu_commit(source->session);
}

void qemu_source_end(struct qemu_source *source)
{
	struct err err = ERR_INIT;
	if (!source)
		return;
	if (qemu_end(source->session, &err) < 0 && err.code == ERR_DISCONNECTED)
		log_debug("nothing is given back: %s", err.text);
	else if (err.code != ERR_NONE)
		log_warning("not all could be given back to QEMU: %s", err.text);
	for (size_t i = 0; i < source->nr_disks; i++)
		free(source->names[i]);
	free(source->names);
	free(source->disks);
	free(source);
}
