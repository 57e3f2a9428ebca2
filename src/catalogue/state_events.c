/* The audit log, and the answers that are kept for calls that are made again. */
#include "state_internal.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define KEPT_S 86400 /* 24 hours */
#define KEPT_MOST 10000

/* --- audit log --------------------------------------------------------------------------- */

int state_event_add(
	struct state *state, const struct state_event *event, uint64_t *id, struct err *err)
{
	if (!event->actor || !event->action || !event->object)
		return err_set(err, ERR_USAGE, "an event lacks who, what or on what");
	char *AUTO_FREE text = event->detail ? db_json_text(event->detail, "an event", err) : NULL;
	if (event->detail && !text)
		return -1;
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *add = db_statement(&state->db,
		"INSERT INTO event (time, actor, action, object, detail) VALUES (?, ?, ?, ?, ?)",
		err);
	if (!add)
		return -1;
	db_bind_number(add, 1, event->time);
	db_bind(add, 2, event->actor);
	db_bind(add, 3, event->action);
	db_bind(add, 4, event->object);
	db_bind(add, 5, text);
	int rc = state_run(state, add, err);
	if (rc == 0 && id)
		*id = (uint64_t)sqlite3_last_insert_rowid(state->db.sqlite);
	return rc;
}

struct row {
	struct state_event event;
	char *actor, *action, *object;
	json_t *detail;
};

static void row_clear(struct row *row)
{
	free(row->actor);
	free(row->action);
	free(row->object);
	json_decref(row->detail);
}

static int row_read(struct state *state, sqlite3_stmt *from, struct row *row, struct err *err)
{
	bool bad = false;
	memset(row, 0, sizeof *row);
	row->event.id = (uint64_t)sqlite3_column_int64(from, 0);
	row->event.time = sqlite3_column_int64(from, 1);
	row->event.actor = row->actor = db_text(from, 2, &bad);
	row->event.action = row->action = db_text(from, 3, &bad);
	row->event.object = row->object = db_text(from, 4, &bad);
	if (bad)
		err_errno(err, ENOMEM, "cannot read the state");
	else if (sqlite3_column_type(from, 5) != SQLITE_NULL)
		bad = !(row->detail = db_json(&state->db, from, 5, err));
	row->event.detail = row->detail;
	if (bad)
		row_clear(row);
	return bad ? -1 : 0;
}

static int read_portion(struct state *state, const struct state_event_filter *filter,
	uint64_t after, struct row *rows, size_t *nr, struct err *err)
{
	int rc;
	*nr = 0;
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *list = db_statement(&state->db,
		"SELECT id, time, actor, action, object, detail FROM event WHERE id > ?1"
		" AND time >= ?2 AND (?3 IS NULL OR actor = ?3) AND (?4 IS NULL OR object = ?4)"
		" ORDER BY id LIMIT ?5",
		err);
	if (!list)
		return -1;
	db_bind_number(list, 1, (int64_t)after);
	db_bind_number(list, 2, filter->since);
	db_bind(list, 3, filter->actor);
	db_bind(list, 4, filter->object);
	db_bind_number(list, 5, STATE_PORTION);
	for (; (rc = db_step(&state->db, list, err)) > 0; ++*nr)
		if (row_read(state, list, &rows[*nr], err) < 0) {
			db_reset(list);
			return -1;
		}
	return rc;
}

int state_events(struct state *state, const struct state_event_filter *filter,
	int (*callback)(void *context, const struct state_event *event), void *context,
	struct err *err)
{
	struct row rows[STATE_PORTION];
	uint64_t after = filter->after;
	size_t nr;
	int rc;
	bool stop = false;
	if (after > INT64_MAX)
		return 0;
	do {
		rc = read_portion(state, filter, after, rows, &nr, err);
		for (size_t i = 0; i < nr; i++) {
			if (rc == 0 && !stop)
				stop = callback(context, &rows[i].event) != 0;
			after = rows[i].event.id;
			row_clear(&rows[i]);
		}
	} while (rc == 0 && !stop && nr == STATE_PORTION);
	return rc;
}

int state_events_forget(struct state *state, int64_t before, struct err *err)
{
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *drop = db_statement(&state->db, "DELETE FROM event WHERE time < ?", err);
	if (!drop)
		return -1;
	db_bind_number(drop, 1, before);
	return state_run(state, drop, err);
}

/* --- idempotency ---------------------------------------------------------------------------- */

static int check_key(const char *actor, const char *key, const char *digest, struct err *err)
{
	if (state_check_text(key, "an Idempotency-Key", err) < 0 ||
		state_check_text(digest, "a call's digest", err) < 0)
		return -1;
	return actor ? 0 : err_set(err, ERR_USAGE, "an Idempotency-Key without who uses it");
}

int state_remembered(struct state *state, const char *actor, const char *key, const char *digest,
	bool *found, unsigned *status, json_t **body, struct err *err)
{
	*found = false;
	*body = NULL;
	if (check_key(actor, key, digest, err) < 0)
		return -1;
	WITH_LOCK(&state->db.mutex);
	/* A time to come is of a clock that was wrong. */
	sqlite3_stmt *find = db_statement(&state->db,
		"SELECT digest, status, body FROM idempotency WHERE actor = ?1 AND key = ?2"
		" AND time BETWEEN ?3 - ?4 AND ?3 + ?4",
		err);
	if (!find)
		return -1;
	db_bind(find, 1, actor);
	db_bind(find, 2, key);
	db_bind_number(find, 3, time(NULL));
	db_bind_number(find, 4, KEPT_S);
	int rc = db_step(&state->db, find, err);
	if (rc <= 0)
		return rc;
	const char *stored = (const char *)sqlite3_column_text(find, 0);
	rc = 0;
	if (!stored || strcmp(stored, digest) != 0)
		rc = err_set(err, ERR_RANGE,
			"this Idempotency-Key was used for another call within 24 hours");
	else if (sqlite3_column_type(find, 2) != SQLITE_NULL)
		rc = (*body = db_json(&state->db, find, 2, err)) ? 0 : -1;
	*status = (unsigned)sqlite3_column_int64(find, 1);
	*found = rc == 0;
	db_reset(find);
	return rc;
}

static int forget_old(struct state *state, int64_t now, struct err *err)
{
	sqlite3_stmt *drop = db_statement(&state->db,
		"DELETE FROM idempotency WHERE time NOT BETWEEN ?1 - ?2 AND ?1 + ?2", err);
	if (!drop)
		return -1;
	db_bind_number(drop, 1, now);
	db_bind_number(drop, 2, KEPT_S);
	if (db_run(&state->db, drop, err) < 0)
		return -1;
	/* A client cannot fill the disk with them. */
	drop = db_statement(&state->db,
		"DELETE FROM idempotency WHERE rowid IN (SELECT rowid FROM idempotency"
		" ORDER BY time DESC, rowid DESC LIMIT -1 OFFSET ?1)",
		err);
	if (!drop)
		return -1;
	db_bind_number(drop, 1, KEPT_MOST);
	return db_run(&state->db, drop, err);
}

int state_remember(struct state *state, const char *actor, const char *key, const char *digest,
	unsigned status, const json_t *body, struct err *err)
{
	if (check_key(actor, key, digest, err) < 0)
		return -1;
	char *AUTO_FREE text = body ? db_json_text(body, "an answer", err) : NULL;
	if (body && !text)
		return -1;
	int64_t now = time(NULL);
	WITH_LOCK(&state->db.mutex);
	if (db_begin(&state->db, err) < 0)
		return -1;
	sqlite3_stmt *store = db_statement(&state->db,
		"INSERT OR REPLACE INTO idempotency (actor, key, digest, status, body, time)"
		" VALUES (?, ?, ?, ?, ?, ?)",
		err);
	int rc = -1;
	if (store) {
		db_bind(store, 1, actor);
		db_bind(store, 2, key);
		db_bind(store, 3, digest);
		db_bind_number(store, 4, status);
		db_bind(store, 5, text);
		db_bind_number(store, 6, now);
		rc = db_run(&state->db, store, err);
	}
	if (rc == 0)
		rc = forget_old(state, now, err);
	return state_end(state, rc, err);
}
