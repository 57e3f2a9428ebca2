/* Copies of the state, and the note beside it that tells where they lie. */
#include "state_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define COPIES_MOST 16
#define COPIES_BYTES (256u << 10)

/* --- where copies lie ------------------------------------------------------------------------ */

/* An array of {"where", "at"}; empty when there is no note, or none that can be read. */
static json_t *load_copies(const char *path)
{
	char *AUTO_FREE name = NULL, *AUTO_FREE text = NULL;
	size_t length;
	json_t *copies = NULL;
	if (asprintf(&name, "%s.copies", path) >= 0 &&
		file_load(AT_FDCWD, name, COPIES_BYTES, &text, &length, NULL) == 0)
		copies = json_loadb(text, length, 0, NULL);
	if (json_is_array(copies))
		return copies;
	json_decref(copies);
	return json_array();
}

static const char *member(const json_t *copy, const char *name)
{
	return json_string_value(json_object_get(copy, name));
}

int state_copied(struct state *state, const char *where, struct err *err)
{
	char *AUTO_FREE name = NULL, *AUTO_FREE text = NULL, *AUTO_FREE lines = NULL;
	char now[CLOCK_UTC_BYTES];
	const char *path = state->db.path;
	WITH_LOCK(&state->db.mutex);
	json_t *copies = load_copies(path);
	for (size_t i = json_array_size(copies); i-- > 0;) {
		const char *other = member(json_array_get(copies, i), "where");
		if (!other || strcmp(other, where) == 0)
			json_array_remove(copies, i);
	}
	while (json_array_size(copies) >= COPIES_MOST)
		json_array_remove(copies, 0);
	clock_utc_text(time(NULL), now);
	json_array_append_new(copies, json_pack("{s:s, s:s}", "where", where, "at", now));
	text = json_dumps(copies, JSON_INDENT(1));
	json_decref(copies);
	if (!text || asprintf(&lines, "%s\n", text) < 0 || asprintf(&name, "%s.copies", path) < 0)
		return err_errno(err, ENOMEM, "cannot note where a copy of %s lies", path);
	return file_replace(AT_FDCWD, name, lines, strlen(lines), 0600, err);
}

void state_hint(const char *path, struct err *err)
{
	json_t *copies = load_copies(path);
	const json_t *newest = NULL;
	for (size_t i = json_array_size(copies); i-- > 0 && !newest;) {
		const char *where = member(json_array_get(copies, i), "where");
		if (where && access(where, R_OK) == 0)
			newest = json_array_get(copies, i);
	}
	if (newest)
		err_hint(err,
			"stop the hub, move %s and its -wal away, and copy %s, made at %s, to its "
			"place",
			path, member(newest, "where"),
			member(newest, "at") ? member(newest, "at") : "an unknown time");
	else
		err_hint(err,
			"stop the hub or node, move %s and its -wal away, and copy the newest "
			"hub/NAME/state.db of the repositories to its place; of a node there are "
			"none: move admin.token away as well, and \"sendense node init\" begins "
			"anew",
			path);
	json_decref(copies);
}

/* --- making one --------------------------------------------------------------------------------
 */

static int sync_copy(const char *path, struct err *err)
{
	char *AUTO_FREE folder = strdup(path);
	int AUTO_CLOSE fd = open(path, O_RDONLY | O_CLOEXEC);
	if (!folder || fd < 0 || fsync(fd) < 0)
		return err_errno(err, errno, "cannot sync %s", path);
	return file_sync_dir(AT_FDCWD, dirname(folder), err);
}

static int vacuum_into(sqlite3 *sqlite, const char *from, const char *path, struct err *err)
{
	sqlite3_stmt *statement = NULL;
	int rc = 0;
	if (sqlite3_prepare_v2(sqlite, "VACUUM INTO ?", -1, &statement, NULL) != SQLITE_OK ||
		sqlite3_bind_text(statement, 1, path, -1, SQLITE_TRANSIENT) != SQLITE_OK ||
		sqlite3_step(statement) != SQLITE_DONE) {
		rc = db_fail_other(sqlite, from, err);
		if (err && err->code == ERR_CORRUPT)
			state_hint(from, err);
	}
	sqlite3_finalize(statement);
	return rc;
}

int state_copy(const char *from, const char *path, struct err *err)
{
	/* Empty: SQLite fills it, and leaves its mode. */
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_errno(err, errno, "cannot make %s", path);
	close(fd);
	sqlite3 *sqlite = db_open_other(from, false, err);
	int rc = sqlite ? vacuum_into(sqlite, from, path, err) : -1;
	sqlite3_close(sqlite);
	if (rc == 0)
		rc = sync_copy(path, err);
	if (rc < 0) {
		unlink(path);
		err_context(err, "cannot copy the state to %s", path);
	}
	return rc;
}

int state_backup(struct state *state, const char *path, struct err *err)
{
	return state_copy(state->db.path, path, err);
}
