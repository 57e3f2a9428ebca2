/*
 * Opening and filling the index; what is asked of it is in index_list.c.
 *
 * WAL without a sync at each commit: a power cut may take the last changes, never the
 * soundness, and a point's mark is stored with the point, so whoever walks the
 * repository finds what is missing.
 */
#include "index_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define APPLICATION 0x53644978 /* "SdIx" */
#define VERSION 1
#define REPOSITORY_BYTES 128

static const char schema[] =
	"CREATE TABLE repository (name TEXT PRIMARY KEY, id TEXT NOT NULL,"
	" indexed INTEGER NOT NULL DEFAULT 0) STRICT;"
	"CREATE TABLE vm (name TEXT NOT NULL, repository TEXT NOT NULL, mark TEXT NOT NULL,"
	" PRIMARY KEY (name, repository)) STRICT, WITHOUT ROWID;"
	"CREATE TABLE point (repository TEXT NOT NULL, vm TEXT NOT NULL, id TEXT NOT NULL,"
	" mark TEXT NOT NULL, time INTEGER NOT NULL, verified INTEGER NOT NULL,"
	" verified_at INTEGER NOT NULL, damaged INTEGER NOT NULL, protected INTEGER NOT NULL,"
	" protected_until INTEGER NOT NULL, size INTEGER NOT NULL, stored INTEGER NOT NULL,"
	" value TEXT NOT NULL, PRIMARY KEY (repository, vm, id)) STRICT;"
	"CREATE INDEX point_time ON point (time, repository, vm, id);"
	/* All that a VM's summary needs, without the documents. */
	"CREATE INDEX point_summary ON point"
	" (repository, vm, id, time, verified, damaged, size, stored);"
	"PRAGMA application_id = 1399081336; PRAGMA user_version = 1;";
_Static_assert(APPLICATION == 1399081336 && VERSION == 1, "the pragmas of the schema");

static int make(struct db *db, struct err *err)
{
	return db_begin(db, err) < 0 ? -1 : db_end(db, db_exec(db, schema, err), err);
}

/* Ours, of this version and sound. */
static bool is_good(struct db *db, struct err *err)
{
	int64_t application = 0, version = 0;
	if (db_pragma(db->sqlite, "PRAGMA application_id", &application) < 0 ||
		db_pragma(db->sqlite, "PRAGMA user_version", &version) < 0) {
		db_fail(db, err);
		return false;
	}
	if (application != APPLICATION || version != VERSION) {
		err_set(err, ERR_UNSUPPORTED, "%s has version %" PRId64 ", this program's has %d",
			db->path, version, VERSION);
		return false;
	}
	return db_check(db->sqlite, db->path, err) == 0;
}

static int open_db(struct db *db, const char *path, struct err *err)
{
	static const char what[] = "the index of the repositories";
	struct err why = ERR_INIT;
	if (db_open(db, path, what, DB_SYNC_NORMAL, NULL, &why) == 0)
		return 0;
	if (why.code != ERR_CORRUPT)
		return err_copy(err, &why);
	log_warning("%s: it is removed, and filled anew from the repositories", why.text);
	return db_remove(path, err) < 0 ? -1 : db_open(db, path, what, DB_SYNC_NORMAL, NULL, err);
}

struct index *index_open(const char *path, bool *is_new, struct err *err)
{
	struct err why = ERR_INIT;
	int64_t tables = 0;
	struct index *index = calloc(1, sizeof *index);
	if (!index || open_db(&index->db, path, &why) < 0) {
		if (!index)
			err_errno(&why, ENOMEM, "cannot open an index");
		free(index);
		err_copy(err, &why);
		return NULL;
	}
	bool empty =
		db_pragma(index->db.sqlite, "SELECT count(*) FROM sqlite_schema", &tables) == 0 &&
		tables == 0;
	bool good = !empty && is_good(&index->db, &why);
	if (is_new)
		*is_new = !good;
	if (empty)
		good = make(&index->db, err) == 0;
	else if (!good) {
		log_warning("%s: it is removed, and filled anew from the repositories", why.text);
		good = index_renew(index, err) == 0;
	}
	if (good)
		return index;
	index_close(index);
	return NULL;
}

int index_check(struct index *index, struct err *err)
{
	WITH_LOCK(&index->db.mutex);
	return db_check(index->db.sqlite, index->db.path, err);
}

int index_renew(struct index *index, struct err *err)
{
	WITH_LOCK(&index->db.mutex);
	return db_renew(&index->db, DB_SYNC_NORMAL, err) < 0 ? -1 : make(&index->db, err);
}

void index_close(struct index *index)
{
	if (!index)
		return;
	db_close(&index->db);
	free(index);
}

/* --- filling ---------------------------------------------------------------------------- */

static int forget(struct index *index, const char *repository, const char *vm, struct err *err)
{
	sqlite3_stmt *points = db_statement(&index->db,
		"DELETE FROM point WHERE repository = ?1 AND (?2 IS NULL OR vm = ?2)", err);
	sqlite3_stmt *vms = points ? db_statement(&index->db,
					     "DELETE FROM vm WHERE repository = ?1"
					     " AND (?2 IS NULL OR name = ?2)",
					     err)
				   : NULL;
	if (!vms)
		return -1;
	db_bind(points, 1, repository);
	db_bind(points, 2, vm);
	db_bind(vms, 1, repository);
	db_bind(vms, 2, vm);
	return db_run(&index->db, points, err) < 0 ? -1 : db_run(&index->db, vms, err);
}

static int forget_repository(struct index *index, const char *name, struct err *err)
{
	sqlite3_stmt *drop = db_statement(&index->db, "DELETE FROM repository WHERE name = ?", err);
	if (!drop || forget(index, name, NULL, err) < 0)
		return -1;
	db_bind(drop, 1, name);
	return db_run(&index->db, drop, err);
}

int index_forget(struct index *index, const char *repository, const char *vm, struct err *err)
{
	WITH_LOCK(&index->db.mutex);
	if (db_begin(&index->db, err) < 0)
		return -1;
	int rc =
		vm ? forget(index, repository, vm, err) : forget_repository(index, repository, err);
	return db_end(&index->db, rc, err);
}

static int is_known_as(
	struct index *index, const char *name, const char *id, bool *same, struct err *err)
{
	sqlite3_stmt *find =
		db_statement(&index->db, "SELECT id FROM repository WHERE name = ?", err);
	if (!find)
		return -1;
	db_bind(find, 1, name);
	int rc = db_step(&index->db, find, err);
	if (rc <= 0)
		return rc;
	const char *known = (const char *)sqlite3_column_text(find, 0);
	*same = known && strcmp(known, id) == 0;
	db_reset(find);
	return 0;
}

static int name_repository(struct index *index, const char *name, const char *id, struct err *err)
{
	bool same = false;
	if (is_known_as(index, name, id, &same, err) < 0)
		return -1;
	if (same)
		return 0;
	sqlite3_stmt *add =
		db_statement(&index->db, "INSERT INTO repository (name, id) VALUES (?, ?)", err);
	if (!add || forget_repository(index, name, err) < 0)
		return -1;
	db_bind(add, 1, name);
	db_bind(add, 2, id);
	return db_run(&index->db, add, err);
}

int index_repository_is(struct index *index, const char *name, const char *id, struct err *err)
{
	if (!name[0] || strlen(name) >= REPOSITORY_BYTES || strchr(name, '\n'))
		return err_set(err, ERR_USAGE, "a repository's name has 1 to %d bytes in one line",
			REPOSITORY_BYTES - 1);
	WITH_LOCK(&index->db.mutex);
	if (db_begin(&index->db, err) < 0)
		return -1;
	return db_end(&index->db, name_repository(index, name, id, err), err);
}

int64_t index_walked(struct index *index, const char *repository)
{
	WITH_LOCK(&index->db.mutex);
	sqlite3_stmt *find =
		db_statement(&index->db, "SELECT indexed FROM repository WHERE name = ?", NULL);
	if (!find)
		return 0;
	db_bind(find, 1, repository);
	int64_t walked = db_step(&index->db, find, NULL) > 0 ? sqlite3_column_int64(find, 0) : 0;
	db_reset(find);
	return walked;
}

int index_repository_walked(struct index *index, const char *name, int64_t now, struct err *err)
{
	WITH_LOCK(&index->db.mutex);
	sqlite3_stmt *note =
		db_statement(&index->db, "UPDATE repository SET indexed = ? WHERE name = ?", err);
	if (!note)
		return -1;
	db_bind_number(note, 1, now);
	db_bind(note, 2, name);
	return db_run(&index->db, note, err);
}

static int put_point(struct index *index, const char *repository, const char *vm,
	const struct index_point *point, struct err *err)
{
	char *AUTO_FREE text = db_json_text(point->value, "a restore point", err);
	sqlite3_stmt *store = text ? db_statement(&index->db,
					     "INSERT OR REPLACE INTO point (repository, vm, id,"
					     " mark, time, verified, verified_at, damaged,"
					     " protected, protected_until, size, stored, value)"
					     " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
					     err)
				   : NULL;
	if (!store)
		return -1;
	db_bind(store, 1, repository);
	db_bind(store, 2, vm);
	db_bind(store, 3, point->id);
	db_bind(store, 4, point->mark ? point->mark : "");
	db_bind_number(store, 5, point->time);
	db_bind_number(store, 6, point->verified);
	db_bind_number(store, 7, point->verified_at);
	db_bind_number(store, 8, point->is_damaged);
	db_bind_number(store, 9, point->is_protected);
	db_bind_number(store, 10, point->protected_until);
	db_bind_number(store, 11, (int64_t)min_u64(point->size_bytes, INT64_MAX));
	db_bind_number(store, 12, (int64_t)min_u64(point->stored_bytes, INT64_MAX));
	db_bind(store, 13, text);
	return db_run(&index->db, store, err);
}

static int drop_point(struct index *index, const char *repository, const char *vm, const char *id,
	struct err *err)
{
	sqlite3_stmt *drop = db_statement(
		&index->db, "DELETE FROM point WHERE repository = ? AND vm = ? AND id = ?", err);
	if (!drop)
		return -1;
	db_bind(drop, 1, repository);
	db_bind(drop, 2, vm);
	db_bind(drop, 3, id);
	return db_run(&index->db, drop, err);
}

static int put_vm(struct index *index, const char *repository, const char *vm, const char *mark,
	struct err *err)
{
	sqlite3_stmt *add = db_statement(&index->db,
		"INSERT OR REPLACE INTO vm (name, repository, mark) VALUES (?, ?, ?)", err);
	if (!add)
		return -1;
	db_bind(add, 1, vm);
	db_bind(add, 2, repository);
	db_bind(add, 3, mark);
	return db_run(&index->db, add, err);
}

int index_put(struct index *index, const char *repository, const char *vm, const char *mark,
	const struct index_point *points, size_t nr_points, const char *const *gone,
	struct err *err)
{
	WITH_LOCK(&index->db.mutex);
	if (db_begin(&index->db, err) < 0)
		return -1;
	int rc = put_vm(index, repository, vm, mark, err);
	for (size_t i = 0; rc == 0 && i < nr_points; i++)
		rc = put_point(index, repository, vm, &points[i], err);
	for (; rc == 0 && gone && *gone; gone++)
		rc = drop_point(index, repository, vm, *gone, err);
	return db_end(&index->db, rc, err);
}
