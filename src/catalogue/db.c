/*
 * One connection for each database, used under a mutex: what is asked here takes
 * microseconds, a commit as long as the disk's sync, and SQLite writes one at a time anyway.
 *
 * The lock file (PATH.lock, flock()) keeps a second hub out.  SQLite's own locks would
 * let both work, each with its own idea of which jobs run.
 */
#include "db.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

static enum err_code code_of(int result, int sys_errno)
{
	switch (result & 0xff) {
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return ERR_CORRUPT;
	case SQLITE_FULL:
		return ERR_NO_SPACE;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return ERR_BUSY;
	case SQLITE_NOMEM:
		return ERR_NO_MEMORY;
	case SQLITE_READONLY:
	case SQLITE_PERM:
		return ERR_DENIED;
	case SQLITE_IOERR:
	case SQLITE_CANTOPEN:
		return sys_errno ? err_code_from_errno(sys_errno) : ERR_IO;
	default:
		return ERR_IO;
	}
}

int db_fail_other(sqlite3 *sqlite, const char *name, struct err *err)
{
	int result = sqlite ? sqlite3_extended_errcode(sqlite) : SQLITE_NOMEM;
	int sys_errno = sqlite ? sqlite3_system_errno(sqlite) : 0;
	const char *text = sqlite ? sqlite3_errmsg(sqlite) : sqlite3_errstr(result);
	bool told = sys_errno &&
		    ((result & 0xff) == SQLITE_IOERR || (result & 0xff) == SQLITE_CANTOPEN);
	if (told)
		return err_errno(err, sys_errno, "%s: %s", name, text);
	return err_set(err, code_of(result, sys_errno), "%s: %s", name, text);
}

int db_fail(const struct db *db, struct err *err)
{
	struct err why = ERR_INIT;
	char name[4096 + 64];
	snprintf(name, sizeof name, "%s %s", db->what, db->path);
	db_fail_other(db->sqlite, name, &why);
	if (why.code == ERR_CORRUPT && db->hint)
		db->hint(db, &why);
	return err_copy(err, &why);
}

/* --- opening --------------------------------------------------------------------------- */

/* Who holds it writes his pid into it, for the message alone. */
static int take_lock(struct db *db, struct err *err)
{
	char *AUTO_FREE name = NULL;
	char pid[32] = "";
	if (asprintf(&name, "%s.lock", db->path) < 0)
		return err_errno(err, ENOMEM, "cannot open %s", db->path);
	int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_errno(err, errno, "cannot open %s", name);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		int why = errno;
		ssize_t length = pread(fd, pid, sizeof pid - 1, 0);
		close(fd);
		if (why != EWOULDBLOCK)
			return err_errno(err, why, "cannot lock %s", name);
		pid[length > 0 ? strspn(pid, "0123456789") : 0] = '\0';
		return err_set(err, ERR_BUSY, "%s %s is in use by another process%s%s", db->what,
			db->path, pid[0] ? ", pid " : "", pid);
	}
	int length = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
	if (ftruncate(fd, 0) < 0 || pwrite(fd, pid, (size_t)length, 0) != length)
		log_warning("cannot write %s", name); /* a full disk; the lock holds all the same */
	db->lock = fd;
	return 0;
}

/* SQLite would make it readable for others. */
static int make_file(const char *path, struct err *err)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return errno == EEXIST ? 0 : err_errno(err, errno, "cannot make %s", path);
	close(fd);
	return 0;
}

static int connect_to(struct db *db, enum db_sync sync, struct err *err)
{
	if (!db->in_memory && make_file(db->path, err) < 0)
		return -1;
	if (sqlite3_open_v2(db->path, &db->sqlite,
		    SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
		    NULL) != SQLITE_OK)
		return db_fail(db, err);
	sqlite3_busy_timeout(db->sqlite, DB_BUSY_MS);
	sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
	sqlite3_db_config(db->sqlite, SQLITE_DBCONFIG_DQS_DML, 0, NULL);
	return db_exec(db,
		sync == DB_SYNC_FULL
			? "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
			  "PRAGMA cell_size_check = ON; PRAGMA journal_size_limit = 4194304"
			: "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
			  "PRAGMA cell_size_check = ON; PRAGMA journal_size_limit = 4194304",
		err);
}

static void disconnect(struct db *db)
{
	for (unsigned i = 0; i < db->nr_statements; i++)
		sqlite3_finalize(db->statements[i].prepared);
	db->nr_statements = 0;
	if (sqlite3_close(db->sqlite) != SQLITE_OK)
		log_error("%s %s was not closed cleanly", db->what, db->path);
	db->sqlite = NULL;
}

int db_open(struct db *db, const char *path, const char *what, enum db_sync sync,
	void (*hint)(const struct db *db, struct err *err), struct err *err)
{
	memset(db, 0, sizeof *db);
	db->lock = -1;
	db->what = what;
	db->hint = hint;
	pthread_mutex_init(&db->mutex, NULL);
	db->in_memory = !path;
	db->path = strdup(path ? path : ":memory:");
	if (!db->path) {
		err_errno(err, ENOMEM, "cannot open %s", what);
		goto fail;
	}
	if ((!db->in_memory && take_lock(db, err) < 0) || connect_to(db, sync, err) < 0)
		goto fail;
	return 0;
fail:
	db_close(db);
	return -1;
}

void db_close(struct db *db)
{
	disconnect(db);
	if (db->lock >= 0)
		close(db->lock);
	free(db->path);
	pthread_mutex_destroy(&db->mutex);
}

int db_remove(const char *path, struct err *err)
{
	static const char *const endings[] = {"-wal", "-shm", "-journal", ""};
	for (unsigned i = 0; i < ARRAY_LENGTH(endings); i++) {
		char *AUTO_FREE name = NULL;
		if (asprintf(&name, "%s%s", path, endings[i]) < 0)
			return err_errno(err, ENOMEM, "cannot remove %s", path);
		if (unlink(name) < 0 && errno != ENOENT)
			return err_errno(err, errno, "cannot remove %s", name);
	}
	return 0;
}

int db_renew(struct db *db, enum db_sync sync, struct err *err)
{
	disconnect(db);
	if (!db->in_memory && db_remove(db->path, err) < 0)
		return -1;
	return connect_to(db, sync, err);
}

/* As a URI's path: all but letters, digits and a few marks as %XX. */
static char *uri_of(const char *path, bool settled)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
				    "/._-";
	char *uri = malloc(3 * strlen(path) + 64);
	if (!uri)
		return NULL;
	char *end = stpcpy(uri, "file:");
	for (; *path; path++) {
		if (strchr(plain, *path))
			*end++ = *path;
		else
			end += sprintf(end, "%%%02X", (unsigned char)*path);
	}
	stpcpy(end, settled ? "?immutable=1" : "");
	return uri;
}

sqlite3 *db_open_other(const char *path, bool settled, struct err *err)
{
	sqlite3 *sqlite = NULL;
	char *AUTO_FREE uri = uri_of(path, settled);
	/* A database in WAL mode is read through files that readers may have to make. */
	int flags = settled ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
	if (access(path, R_OK) < 0) {
		err_errno(err, errno, "cannot open %s", path);
		return NULL;
	}
	if (!uri) {
		err_errno(err, ENOMEM, "cannot open %s", path);
		return NULL;
	}
	if (sqlite3_open_v2(uri, &sqlite, flags | SQLITE_OPEN_URI | SQLITE_OPEN_EXRESCODE, NULL) !=
		SQLITE_OK) {
		db_fail_other(sqlite, path, err);
		sqlite3_close(sqlite);
		return NULL;
	}
	sqlite3_busy_timeout(sqlite, DB_BUSY_MS);
	sqlite3_db_config(sqlite, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
	return sqlite;
}

int db_check(sqlite3 *sqlite, const char *name, struct err *err)
{
	sqlite3_stmt *statement;
	if (sqlite3_prepare_v2(sqlite, "PRAGMA quick_check(1)", -1, &statement, NULL) != SQLITE_OK)
		return db_fail_other(sqlite, name, err);
	int rc = 0;
	if (sqlite3_step(statement) != SQLITE_ROW) {
		rc = db_fail_other(sqlite, name, err);
	} else {
		const char *text = (const char *)sqlite3_column_text(statement, 0);
		if (!text || strcmp(text, "ok") != 0)
			rc = err_set(
				err, ERR_CORRUPT, "%s is damaged: %s", name, text ? text : "?");
	}
	sqlite3_finalize(statement);
	return rc;
}

int db_pragma(sqlite3 *sqlite, const char *sql, int64_t *value)
{
	sqlite3_stmt *statement;
	if (sqlite3_prepare_v2(sqlite, sql, -1, &statement, NULL) != SQLITE_OK)
		return -1;
	int rc = sqlite3_step(statement) == SQLITE_ROW ? 0 : -1;
	*value = rc == 0 ? sqlite3_column_int64(statement, 0) : 0;
	sqlite3_finalize(statement);
	return rc;
}

/* --- statements ------------------------------------------------------------------------- */

int db_exec(struct db *db, const char *sql, struct err *err)
{
	return sqlite3_exec(db->sqlite, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : db_fail(db, err);
}

int db_begin(struct db *db, struct err *err)
{
	return db_exec(db, "BEGIN IMMEDIATE", err);
}

int db_end(struct db *db, int rc, struct err *err)
{
	if (rc == 0)
		rc = db_exec(db, "COMMIT", err);
	/* A full disk may have rolled it back already. */
	if (rc < 0 && !sqlite3_get_autocommit(db->sqlite))
		sqlite3_exec(db->sqlite, "ROLLBACK", NULL, NULL, NULL);
	return rc < 0 ? -1 : 0;
}

sqlite3_stmt *db_statement(struct db *db, const char *sql, struct err *err)
{
	for (unsigned i = 0; i < db->nr_statements; i++)
		if (db->statements[i].sql == sql)
			return db->statements[i].prepared;
	sqlite3_stmt *prepared;
	if (sqlite3_prepare_v3(db->sqlite, sql, -1, SQLITE_PREPARE_PERSISTENT, &prepared, NULL) !=
		SQLITE_OK) {
		db_fail(db, err);
		return NULL;
	}
	assert(db->nr_statements < DB_STATEMENTS_MOST);
	db->statements[db->nr_statements++] = (struct db_statement){sql, prepared};
	return prepared;
}

void db_bind(sqlite3_stmt *statement, int at, const char *text)
{
	int rc = text ? sqlite3_bind_text(statement, at, text, -1, SQLITE_TRANSIENT)
		      : sqlite3_bind_null(statement, at);
	assert(rc == SQLITE_OK);
}

void db_bind_number(sqlite3_stmt *statement, int at, int64_t number)
{
	int rc = sqlite3_bind_int64(statement, at, number);
	assert(rc == SQLITE_OK);
}

void db_reset(sqlite3_stmt *statement)
{
	sqlite3_reset(statement);
	sqlite3_clear_bindings(statement);
}

int db_step(struct db *db, sqlite3_stmt *statement, struct err *err)
{
	int result = sqlite3_step(statement);
	if (result == SQLITE_ROW)
		return 1;
	int rc = result == SQLITE_DONE ? 0 : db_fail(db, err);
	db_reset(statement);
	return rc;
}

int db_run(struct db *db, sqlite3_stmt *statement, struct err *err)
{
	int rc = db_step(db, statement, err);
	if (rc > 0)
		db_reset(statement);
	return rc < 0 ? -1 : 0;
}

char *db_text(sqlite3_stmt *statement, int column, bool *bad)
{
	if (sqlite3_column_type(statement, column) == SQLITE_NULL)
		return NULL;
	const char *text = (const char *)sqlite3_column_text(statement, column);
	char *copy = text ? strdup(text) : NULL;
	*bad |= !copy;
	return copy;
}

json_t *db_json(const struct db *db, sqlite3_stmt *statement, int column, struct err *err)
{
	const char *text = (const char *)sqlite3_column_text(statement, column);
	int length = sqlite3_column_bytes(statement, column);
	json_error_t why = {.text = "it is none"};
	json_t *value = text ? json_loadb(text, (size_t)length, JSON_ALLOW_NUL, &why) : NULL;
	if (value)
		return value;
	struct err damage = ERR_INIT;
	err_set(&damage, ERR_CORRUPT, "%s %s holds a document that is no JSON: %s", db->what,
		db->path, why.text);
	if (db->hint)
		db->hint(db, &damage);
	err_copy(err, &damage);
	return NULL;
}

char *db_json_text(const json_t *value, const char *what, struct err *err)
{
	char *text = json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS);
	if (!text) {
		err_set(err, ERR_USAGE, "%s cannot be stored: it is no JSON document", what);
		return NULL;
	}
	if (strlen(text) > DB_DOCUMENT_BYTES) {
		err_set(err, ERR_USAGE,
			"%s cannot be stored: its document has %zu bytes, more than %u", what,
			strlen(text), DB_DOCUMENT_BYTES);
		free(text);
		return NULL;
	}
	return text;
}
