/* Inside of state: its schema, and reading lists in portions. */
#ifndef SENDENSE_CATALOGUE_STATE_INTERNAL_H
#define SENDENSE_CATALOGUE_STATE_INTERNAL_H

#include "db.h"
#include "state.h"

#include <stdatomic.h>

#define STATE_PORTION 64 /* rows read under the mutex at once, before they are told */
#define STATE_ID_BYTES 256
#define STATE_APPLICATION 0x53645374 /* "SdSt", SQLite's application_id */

struct state {
	struct db db;
	atomic_ullong changes;
};

/* Step i brings version i to i + 1. */
struct state_schema {
	const char *const *steps;
	int version; /* how many */
};
extern const struct state_schema state_schema;

/* state_open() with another schema, for the tests of migrations. */
struct state *state_open_schema(
	const char *path, const struct state_schema *schema, struct err *err);

/* Where the newest copy lies, behind an ERR_CORRUPT; of any state. */
void state_hint(const char *path, struct err *err);

/* 0, or ERR_USAGE: 1 to 255 bytes of UTF-8. */
int state_check_text(const char *text, const char *what, struct err *err);

/* The end of a call that changes: commits, counts. */
int state_end(struct state *state, int rc, struct err *err);
/* A statement that is a whole call: run, counted. */
int state_run(struct state *state, sqlite3_stmt *statement, struct err *err);

#endif
