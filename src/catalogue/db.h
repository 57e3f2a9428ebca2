/*
 * db: one SQLite database of this program: opened once (a lock file beside it), its
 * statements kept, its errors told as struct err.
 *
 * Thread rule: whoever uses a db between db_open() and db_close() holds its mutex.
 */
#ifndef SENDENSE_CATALOGUE_DB_H
#define SENDENSE_CATALOGUE_DB_H

#include "base.h"

#include <jansson.h>
#include <sqlite3.h>

#define DB_STATEMENTS_MOST 64
#define DB_BUSY_MS 10000
#define DB_DOCUMENT_BYTES (4u << 20) /* of one JSON document */

struct db {
	sqlite3 *sqlite;
	pthread_mutex_t mutex;
	char *path; /* ":memory:" for one that is in memory alone */
	bool in_memory;
	const char *what; /* "the state" */
	/* Says behind an ERR_CORRUPT what to do about it. */
	void (*hint)(const struct db *db, struct err *err);
	int lock;
	struct db_statement {
		const char *sql; /* a literal: known by its address */
		sqlite3_stmt *prepared;
	} statements[DB_STATEMENTS_MOST];
	unsigned nr_statements;
};

enum db_sync {
	DB_SYNC_FULL, /* what was committed survives a power cut */
	DB_SYNC_NORMAL, /* the database does, its last changes may not */
};

/* path is copied; NULL: in memory alone.  Makes it, mode 0600, when it is not there.  ERR_BUSY:
 * another process, or another db, has it open. */
int db_open(struct db *db, const char *path, const char *what, enum db_sync sync,
	void (*hint)(const struct db *db, struct err *err), struct err *err);
void db_close(struct db *db);
/* Removes the database of an open db and makes an empty one. */
int db_renew(struct db *db, enum db_sync sync, struct err *err);

/* The files of a database that nobody has open. */
int db_remove(const char *path, struct err *err);

/* Another one's database, or one that no db has open: read alone, without the lock file.
 * settled: nobody changes it, and no file is made beside it. */
sqlite3 *db_open_other(const char *path, bool settled, struct err *err);
/* ERR_CORRUPT unless the database is sound; of any connection. */
int db_check(sqlite3 *sqlite, const char *name, struct err *err);
/* "PRAGMA ..." with one number as its answer. */
int db_pragma(sqlite3 *sqlite, const char *sql, int64_t *value);

/* The error of the last call, with the code that belongs to it; -1. */
int db_fail(const struct db *db, struct err *err);
/* The same of a connection without a db. */
int db_fail_other(sqlite3 *sqlite, const char *name, struct err *err);
int db_exec(struct db *db, const char *sql, struct err *err);
int db_begin(struct db *db, struct err *err);
/* Commits when rc is 0, else rolls back; 0 or -1. */
int db_end(struct db *db, int rc, struct err *err);

/* Ready for binding; NULL: err says why.  sql: a literal. */
sqlite3_stmt *db_statement(struct db *db, const char *sql, struct err *err);
/* Parameters count from 1.  A NULL text is SQL's NULL.  Asserts that there is memory for it: a
 * statement that ran without its text would find, or remove, what nobody named. */
void db_bind(sqlite3_stmt *statement, int at, const char *text);
void db_bind_number(sqlite3_stmt *statement, int at, int64_t number);
/* 1: a row; 0: no more; -1.  The statement is reset but for a row. */
int db_step(struct db *db, sqlite3_stmt *statement, struct err *err);
/* Without rows; 0 or -1. */
int db_run(struct db *db, sqlite3_stmt *statement, struct err *err);
void db_reset(sqlite3_stmt *statement);

/* A copy of a column's text, NULL where it is NULL; *bad is set when there is no memory. */
char *db_text(sqlite3_stmt *statement, int column, bool *bad);
/* A JSON document: ERR_CORRUPT when it is none.  The caller's. */
json_t *db_json(const struct db *db, sqlite3_stmt *statement, int column, struct err *err);
/* ERR_USAGE when it is too large; the caller frees it. */
char *db_json_text(const json_t *value, const char *what, struct err *err);

#endif
