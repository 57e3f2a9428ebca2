/* points.log: what has become of each restore point of a VM, one line an event. */
#include "repository_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_MOST (64u << 10)

static void log_path(const char *vm, char path[NAME_PATH_BYTES])
{
	char folder[NAME_PATH_BYTES];
	path_vm(vm, folder);
	snprintf(path, NAME_PATH_BYTES, "%.400s/points.log", folder);
}

/* One line as an event, or why it is none. */
static int parse_line(const char *line, size_t length, const char *path,
	struct pointslog_event *event, struct err *err)
{
	json_t *object = record_parse(line, length, path, err);
	if (!object)
		return -1;
	char kind[16];
	int rc = record_text_into(object, "event", kind, sizeof kind, path, err);
	if (rc == 0)
		rc = record_text_into(
			object, "point", event->point, sizeof event->point, path, err);
	if (rc == 0 && json_object_get(object, "facts_sha256"))
		rc = record_text_into(object, "facts_sha256", event->facts_sha256,
			sizeof event->facts_sha256, path, err);
	json_decref(object);
	if (rc < 0)
		return -1;
	event->committed = strcmp(kind, "committed") == 0;
	event->pruned = strcmp(kind, "pruned") == 0;
	if (!repository_name_is_point(event->point))
		return err_set(err, ERR_FORMAT, "%s: \"point\" is not a restore point's id", path);
	return 0;
}

int pointslog_read(struct repository *repo, const char *vm, pointslog_callback *callback,
	void *context, struct err *err)
{
	char path[NAME_PATH_BYTES];
	log_path(vm, path);
	int fd = openat(repo->dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0 && errno == ENOENT)
		return 0;
	FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
	if (!file) {
		err_errno(err, errno, "cannot open %s", path);
		if (fd >= 0)
			close(fd);
		return -1;
	}
	char *AUTO_FREE line = malloc(LINE_MOST);
	int rc = line ? 0 : err_errno(err, ENOMEM, "cannot read %s", path);
	for (unsigned number = 1; rc == 0 && fgets(line, LINE_MOST, file); number++) {
		size_t length = strlen(line);
		struct pointslog_event event = {.line = number};
		struct err line_err = ERR_INIT;
		if (length == 0 || line[length - 1] != '\n') {
			if (feof(file))
				break; /* cut by a crash; its point's plan is still open */
			event.damage = "a line is too long or holds a zero byte";
			int c;
			while ((c = fgetc(file)) != EOF && c != '\n')
				;
		} else if (length == 1) {
			continue;
		} else if (parse_line(line, length, path, &event, &line_err) < 0) {
			event.damage = line_err.text;
		}
		rc = callback(context, &event);
	}
	if (rc == 0 && ferror(file))
		rc = err_errno(err, errno, "cannot read %s", path);
	fclose(file);
	return rc < 0 ? -1 : 0;
}

struct search {
	const char *point;
	bool found;
};

static int match(void *context, const struct pointslog_event *event)
{
	struct search *search = context;
	if (!event->damage && strcmp(event->point, search->point) == 0)
		search->found = true;
	return search->found;
}

int pointslog_has(
	struct repository *repo, const char *vm, const char *point, bool *found, struct err *err)
{
	struct search search = {.point = point};
	int rc = pointslog_read(repo, vm, match, &search, err);
	*found = search.found;
	return rc;
}

int pointslog_append(struct repository *repo, const char *vm, const char *event, const char *point,
	const char *job, const char *facts_sha256, struct err *err)
{
	char path[NAME_PATH_BYTES], folder[NAME_PATH_BYTES], now[CLOCK_UTC_BYTES], last = '\n';
	log_path(vm, path);
	path_vm(vm, folder);
	name_now(now);
	int AUTO_CLOSE fd = openat(repo->dir_fd, path,
		O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0)
		return err_errno(err, errno, "cannot open %s", path);
	if (st.st_size > 0 && file_pread(fd, &last, 1, (uint64_t)st.st_size - 1, path, err) < 0)
		return -1;
	json_t *object = json_pack("{s:s, s:s, s:s, s:s, s:s*}", "event", event, "point", point,
		"time", now, "job", job, "facts_sha256", facts_sha256);
	char *AUTO_FREE text = object ? record_canonical(object) : NULL;
	char *AUTO_FREE line = NULL;
	json_decref(object);
	/* A line that was cut is ended first, so that it harms no other. */
	if (!text || asprintf(&line, "%s%s\n", last == '\n' ? "" : "\n", text) < 0)
		return err_errno(err, ENOMEM, "cannot write %s", path);
	/* O_APPEND decides the place, whatever offset is given. */
	if (file_pwrite(fd, line, strlen(line), (uint64_t)st.st_size, path, err) < 0)
		return -1;
	if (fsync(fd) < 0)
		return err_errno(err, errno, "cannot sync %s", path);
	return st.st_size == 0 ? file_sync_dir(repo->dir_fd, folder, err) : 0;
}

int pointslog_sync(struct repository *repo, const char *vm, struct err *err)
{
	char path[NAME_PATH_BYTES];
	log_path(vm, path);
	int AUTO_CLOSE fd =
		openat(repo->dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0 || fsync(fd) < 0)
		return err_errno(err, errno, "cannot sync %s", path);
	return 0;
}
