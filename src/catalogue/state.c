/*
 * Opening the state: lock, soundness, version, migration.
 *
 *   PATH         the database (WAL)
 *   PATH.lock    held while it is open
 *   PATH.vN      what it was before a newer program brought it from version N up to date
 *   PATH.copies  where copies lie (JSON, the newest last)
 */
#include "state_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* An object's version is drawn from one counter for all, so that one that was deleted and
 * made anew never has a version that it had before. */
static const char version_1[] =
	"CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;"
	"INSERT INTO counter VALUES ('version', 0);"
	"CREATE TABLE object (kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL,"
	" value TEXT NOT NULL, PRIMARY KEY (kind, id)) STRICT;"
	"CREATE TABLE job (id TEXT PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL,"
	" repository TEXT, vm TEXT, created INTEGER NOT NULL, started INTEGER NOT NULL,"
	" ended INTEGER NOT NULL, value TEXT NOT NULL) STRICT;"
	"CREATE INDEX job_open ON job (id) WHERE state NOT IN ('done', 'failed', 'cancelled');"
	"CREATE INDEX job_vm ON job (vm, id);"
	"CREATE TABLE take (job TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT,"
	" PRIMARY KEY (job, kind, name)) STRICT;"
	"CREATE TABLE event (id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL,"
	" actor TEXT NOT NULL, action TEXT NOT NULL, object TEXT NOT NULL, detail TEXT) STRICT;"
	"CREATE TRIGGER event_stays BEFORE UPDATE ON event BEGIN"
	" SELECT RAISE (ABORT, 'what the audit log says stays'); END;"
	"CREATE TABLE idempotency (actor TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL,"
	" status INTEGER NOT NULL, body TEXT, time INTEGER NOT NULL,"
	" PRIMARY KEY (actor, key)) STRICT;"
	"CREATE INDEX idempotency_time ON idempotency (time);";

/* Jobs that the hub's nodes do.  An older hub would never end them, and keep their machines
 * waiting: it must not open a state that may hold some. */
static const char version_2[] =
	"ALTER TABLE job ADD COLUMN node TEXT;"
	"CREATE INDEX job_node ON job (node, id)"
	" WHERE node IS NOT NULL AND state NOT IN ('done', 'failed', 'cancelled');";

static const char *const steps[] = {version_1, version_2};
const struct state_schema state_schema = {steps, ARRAY_LENGTH(steps)};

/* --- versions ---------------------------------------------------------------------------- */

static int refuse_newer(const struct db *db, int64_t version, int known, struct err *err)
{
	char *AUTO_FREE kept = NULL;
	err_set(err, ERR_UNSUPPORTED,
		"the state %s has version %" PRId64 ", this program knows versions up to %d",
		db->path, version, known);
	for (int older = known; older > 0; older--) {
		free(kept);
		if (asprintf(&kept, "%s.v%d", db->path, older) < 0)
			kept = NULL;
		if (kept && access(kept, F_OK) == 0)
			return err_hint(err,
				"a newer Sendense wrote it: run that one; or bring back %s, which "
				"it kept when it took over, and lose what was changed since",
				kept);
	}
	return err_hint(err, "a newer Sendense wrote it: run that one");
}

static int keep_older(const struct db *db, int version, struct err *err)
{
	char *AUTO_FREE kept = NULL;
	if (asprintf(&kept, "%s.v%d", db->path, version) < 0)
		return err_errno(err, ENOMEM, "cannot keep version %d of %s", version, db->path);
	/* Of a migration that failed, or of a copy that was brought back. */
	if (unlink(kept) < 0 && errno != ENOENT)
		return err_errno(err, errno, "cannot replace %s", kept);
	if (state_copy(db->path, kept, err) < 0)
		return err_context(err, "cannot keep version %d of %s", version, db->path);
	log_info("the state %s: version %d is kept as %s", db->path, version, kept);
	return 0;
}

static int migrate(struct db *db, const struct state_schema *schema, int version, struct err *err)
{
	char pragma[64];
	if (db_begin(db, err) < 0)
		return -1;
	int rc = 0;
	for (int i = version; rc == 0 && i < schema->version; i++) {
		rc = db_exec(db, schema->steps[i], err);
		if (rc < 0)
			err_context(err, "cannot bring it from version %d to %d", i, i + 1);
	}
	snprintf(pragma, sizeof pragma, "PRAGMA application_id = %d; PRAGMA user_version = %d",
		STATE_APPLICATION, schema->version);
	if (rc == 0)
		rc = db_exec(db, pragma, err);
	return db_end(db, rc, err);
}

static int look_at(
	sqlite3 *sqlite, const char *name, int64_t *version, bool *is_empty, struct err *err)
{
	int64_t application = 0, tables = 0;
	*version = 0;
	if (db_pragma(sqlite, "PRAGMA application_id", &application) < 0 ||
		db_pragma(sqlite, "PRAGMA user_version", version) < 0 ||
		db_pragma(sqlite, "SELECT count(*) FROM sqlite_schema", &tables) < 0)
		return db_fail_other(sqlite, name, err);
	*is_empty = tables == 0 && *version == 0;
	if (!*is_empty && (application != STATE_APPLICATION || *version < 1))
		return err_set(err, ERR_FORMAT, "%s is a database, but no state of ours", name);
	return 0;
}

static int make_current(struct db *db, const struct state_schema *schema, struct err *err)
{
	int64_t version = 0;
	bool is_empty = false;
	if (look_at(db->sqlite, db->path, &version, &is_empty, err) < 0)
		return -1;
	if (version > schema->version)
		return refuse_newer(db, version, schema->version, err);
	if (db_check(db->sqlite, db->path, err) < 0)
		return -1;
	if (version == schema->version)
		return 0;
	if (!is_empty && keep_older(db, (int)version, err) < 0)
		return -1;
	if (migrate(db, schema, (int)version, err) < 0)
		return -1;
	if (!is_empty)
		log_info("the state %s was brought from version %d to %d", db->path, (int)version,
			schema->version);
	return 0;
}

static void hint(const struct db *db, struct err *err)
{
	state_hint(db->path, err);
}

struct state *state_open_schema(
	const char *path, const struct state_schema *schema, struct err *err)
{
	struct err why = ERR_INIT;
	struct state *state = calloc(1, sizeof *state);
	if (!state) {
		err_errno(err, ENOMEM, "cannot open the state %s", path);
		return NULL;
	}
	if (db_open(&state->db, path, "the state", DB_SYNC_FULL, hint, &why) < 0) {
		free(state);
		err_copy(err, &why);
		return NULL;
	}
	if (make_current(&state->db, schema, &why) < 0) {
		/* db_check() and its like know nothing of copies. */
		if (why.code == ERR_CORRUPT && !strstr(why.text, "(stop the hub"))
			hint(&state->db, &why);
		state_close(state);
		err_copy(err, &why);
		err_context(err, "cannot open the state %s", path);
		return NULL;
	}
	return state;
}

struct state *state_open(const char *path, struct err *err)
{
	return state_open_schema(path, &state_schema, err);
}

void state_close(struct state *state)
{
	if (!state)
		return;
	db_close(&state->db);
	free(state);
}

int state_check(const char *path, struct err *err)
{
	int64_t version = 0;
	bool is_empty = false;
	sqlite3 *sqlite = db_open_other(path, true, err);
	if (!sqlite)
		return -1;
	int rc = look_at(sqlite, path, &version, &is_empty, err);
	if (rc == 0 && is_empty)
		rc = err_set(err, ERR_FORMAT, "%s is empty, and no state of ours", path);
	if (rc == 0 && version > state_schema.version)
		rc = err_set(err, ERR_UNSUPPORTED,
			"%s has version %" PRId64 ", this program knows versions up to %d (a newer "
			"Sendense wrote it: run that one)",
			path, version, state_schema.version);
	if (rc == 0)
		rc = db_check(sqlite, path, err);
	sqlite3_close(sqlite);
	return rc;
}

/* --- what all calls share ------------------------------------------------------------------- */

int state_check_text(const char *text, const char *what, struct err *err)
{
	size_t length = text ? strlen(text) : 0;
	json_t *utf8 = length > 0 && length < STATE_ID_BYTES ? json_string(text) : NULL;
	json_decref(utf8);
	if (!utf8)
		return err_set(err, ERR_USAGE, "%s must be 1 to %d bytes of UTF-8", what,
			STATE_ID_BYTES - 1);
	return 0;
}

int state_end(struct state *state, int rc, struct err *err)
{
	rc = db_end(&state->db, rc, err);
	if (rc == 0)
		atomic_fetch_add(&state->changes, 1);
	return rc;
}

int state_run(struct state *state, sqlite3_stmt *statement, struct err *err)
{
	int rc = db_run(&state->db, statement, err);
	if (rc == 0)
		atomic_fetch_add(&state->changes, 1);
	return rc;
}

uint64_t state_changes(struct state *state)
{
	return atomic_load(&state->changes);
}
