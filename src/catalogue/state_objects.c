/* Objects: JSON documents of a kind; tokens among them. */
#include "state_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

void state_object_clear(struct state_object *object)
{
	free(object->id);
	json_decref(object->value);
	memset(object, 0, sizeof *object);
}

static int check_names(const char *kind, const char *id, struct err *err)
{
	return state_check_text(kind, "an object's kind", err) < 0
		       ? -1
		       : state_check_text(id, kind, err);
}

/* Columns id, version, value. */
static int read_object(
	struct state *state, sqlite3_stmt *row, struct state_object *object, struct err *err)
{
	bool bad = false;
	memset(object, 0, sizeof *object);
	object->id = db_text(row, 0, &bad);
	object->version = (uint64_t)sqlite3_column_int64(row, 1);
	object->value = db_json(&state->db, row, 2, err);
	if (object->id && object->value)
		return 0;
	if (bad)
		err_errno(err, ENOMEM, "cannot read the state");
	state_object_clear(object);
	return -1;
}

/* Whether it may be replaced or deleted, with the caller's wish.  -1: no. */
static int check_version(struct state *state, const char *kind, const char *id, uint64_t version,
	bool *is_there, struct err *err)
{
	sqlite3_stmt *find = db_statement(
		&state->db, "SELECT version FROM object WHERE kind = ? AND id = ?", err);
	if (!find)
		return -1;
	db_bind(find, 1, kind);
	db_bind(find, 2, id);
	int rc = db_step(&state->db, find, err);
	if (rc < 0)
		return -1;
	*is_there = rc > 0;
	uint64_t found = *is_there ? (uint64_t)sqlite3_column_int64(find, 0) : 0;
	if (*is_there)
		db_reset(find);
	if (version == STATE_ANY || version == found)
		return 0;
	if (version == 0)
		return err_set(err, ERR_EXISTS, "%s \"%s\" exists already", kind, id);
	if (!*is_there)
		return err_set(err, ERR_NOT_FOUND, "there is no %s \"%s\"", kind, id);
	return err_set(err, ERR_RANGE,
		"%s \"%s\" was changed meanwhile: it has version %" PRIu64 ", not %" PRIu64, kind,
		id, found, version);
}

static int next_version(struct state *state, uint64_t *version, struct err *err)
{
	sqlite3_stmt *count = db_statement(&state->db,
		"UPDATE counter SET value = value + 1 WHERE name = 'version' RETURNING value", err);
	int rc = count ? db_step(&state->db, count, err) : -1;
	if (rc == 0)
		return err_set(
			err, ERR_CORRUPT, "the state %s has lost its counter", state->db.path);
	if (rc < 0)
		return -1;
	*version = (uint64_t)sqlite3_column_int64(count, 0);
	db_reset(count);
	return 0;
}

static int put(struct state *state, const char *kind, const char *id, const char *text,
	uint64_t version, uint64_t *now, struct err *err)
{
	bool is_there;
	if (check_version(state, kind, id, version, &is_there, err) < 0 ||
		next_version(state, now, err) < 0)
		return -1;
	sqlite3_stmt *store = db_statement(&state->db,
		"INSERT INTO object (kind, id, version, value) VALUES (?, ?, ?, ?)"
		" ON CONFLICT DO UPDATE SET version = excluded.version, value = excluded.value",
		err);
	if (!store)
		return -1;
	db_bind(store, 1, kind);
	db_bind(store, 2, id);
	db_bind_number(store, 3, (int64_t)*now);
	db_bind(store, 4, text);
	return db_run(&state->db, store, err);
}

int state_put(struct state *state, const char *kind, const char *id, const json_t *value,
	uint64_t version, uint64_t *now, struct err *err)
{
	uint64_t got = 0;
	if (check_names(kind, id, err) < 0)
		return -1;
	if (!json_is_object(value))
		return err_set(err, ERR_USAGE, "%s \"%s\" is no JSON object", kind, id);
	char *AUTO_FREE text = db_json_text(value, kind, err);
	if (!text)
		return -1;
	WITH_LOCK(&state->db.mutex);
	if (db_begin(&state->db, err) < 0)
		return -1;
	int rc = put(state, kind, id, text, version, &got, err);
	rc = state_end(state, rc, err);
	if (rc == 0 && now)
		*now = got;
	return rc;
}

int state_get(struct state *state, const char *kind, const char *id, struct state_object *object,
	struct err *err)
{
	memset(object, 0, sizeof *object);
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *find = db_statement(
		&state->db, "SELECT id, version, value FROM object WHERE kind = ? AND id = ?", err);
	if (!find)
		return -1;
	db_bind(find, 1, kind);
	db_bind(find, 2, id);
	int rc = db_step(&state->db, find, err);
	if (rc < 0)
		return -1;
	if (rc == 0)
		return err_set(err, ERR_NOT_FOUND, "there is no %s \"%s\"", kind, id);
	rc = read_object(state, find, object, err);
	db_reset(find);
	return rc;
}

static int drop_object(
	struct state *state, const char *kind, const char *id, uint64_t version, struct err *err)
{
	bool is_there;
	if (check_version(state, kind, id, version, &is_there, err) < 0)
		return -1;
	if (!is_there)
		return err_set(err, ERR_NOT_FOUND, "there is no %s \"%s\"", kind, id);
	sqlite3_stmt *drop =
		db_statement(&state->db, "DELETE FROM object WHERE kind = ? AND id = ?", err);
	if (!drop)
		return -1;
	db_bind(drop, 1, kind);
	db_bind(drop, 2, id);
	return db_run(&state->db, drop, err);
}

int state_delete(
	struct state *state, const char *kind, const char *id, uint64_t version, struct err *err)
{
	WITH_LOCK(&state->db.mutex);
	if (db_begin(&state->db, err) < 0)
		return -1;
	return state_end(state, drop_object(state, kind, id, version, err), err);
}

/* --- lists ----------------------------------------------------------------------------------- */

static int read_portion(struct state *state, const char *kind, const char *after,
	struct state_object *objects, size_t *nr, struct err *err)
{
	int rc;
	*nr = 0;
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *list = db_statement(&state->db,
		"SELECT id, version, value FROM object WHERE kind = ?1 AND id > ?2"
		" ORDER BY id LIMIT ?3",
		err);
	if (!list)
		return -1;
	db_bind(list, 1, kind);
	db_bind(list, 2, after ? after : "");
	db_bind_number(list, 3, STATE_PORTION);
	for (; (rc = db_step(&state->db, list, err)) > 0; ++*nr)
		if (read_object(state, list, &objects[*nr], err) < 0) {
			db_reset(list);
			return -1;
		}
	return rc;
}

int state_list(struct state *state, const char *kind, const char *after,
	int (*callback)(void *context, const struct state_object *object), void *context,
	struct err *err)
{
	struct state_object objects[STATE_PORTION];
	char *AUTO_FREE last = NULL;
	size_t nr;
	int rc;
	bool stop = false;
	do {
		rc = read_portion(state, kind, last ? last : after, objects, &nr, err);
		for (size_t i = 0; i < nr; i++) {
			if (rc == 0 && !stop)
				stop = callback(context, &objects[i]) != 0;
			if (i + 1 == nr) {
				free(last);
				last = objects[i].id;
				objects[i].id = NULL;
			}
			state_object_clear(&objects[i]);
		}
	} while (rc == 0 && !stop && nr == STATE_PORTION);
	return rc;
}

int state_list_ids(struct state *state, const char *kind, const char *member, const char *text,
	json_t *ids, struct err *err)
{
	int rc;
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *list = db_statement(&state->db,
		"SELECT id FROM object WHERE kind = ?1 AND json_extract(value, '$.' || ?2) = ?3"
		" ORDER BY id",
		err);
	if (!list)
		return -1;
	db_bind(list, 1, kind);
	db_bind(list, 2, member);
	db_bind(list, 3, text);
	bool failed = false;
	while ((rc = db_step(&state->db, list, err)) > 0)
		failed |= json_array_append_new(
				  ids, json_string((const char *)sqlite3_column_text(list, 0))) < 0;
	return rc == 0 && failed ? err_errno(err, ENOMEM, "cannot read the state") : rc;
}

/* --- tokens ------------------------------------------------------------------------------------
 */

/* All of both is looked at, wherever they differ. */
static bool is_same(const char *a, const char *b)
{
	size_t length = strlen(a);
	unsigned char differs = 0;
	if (strlen(b) != length)
		return false;
	for (size_t i = 0; i < length; i++)
		differs |= (unsigned char)(a[i] ^ b[i]);
	return differs == 0;
}

int state_token(struct state *state, const char *hash, struct state_object *object, struct err *err)
{
	int rc;
	memset(object, 0, sizeof *object);
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *list = db_statement(&state->db,
		"SELECT id, version, value, json_extract(value, '$.hash') FROM object"
		" WHERE kind = 'token'",
		err);
	if (!list)
		return -1;
	bool failed = false;
	while ((rc = db_step(&state->db, list, err)) > 0) {
		const char *stored = (const char *)sqlite3_column_text(list, 3);
		if (!stored || !stored[0] || !is_same(stored, hash) || object->id)
			continue;
		failed |= read_object(state, list, object, err) < 0;
	}
	if (rc < 0)
		state_object_clear(object);
	if (rc < 0 || failed)
		return -1;
	return object->id ? 0 : err_set(err, ERR_NOT_FOUND, "no such token");
}
