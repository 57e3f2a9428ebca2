/* What is asked of the index. */
#include "index_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define SQL_BYTES 2048

/* --- cursors ------------------------------------------------------------------------------ */

/* A cursor is hexadecimal for "TIME\nREPOSITORY\nVM\nID". */
struct cursor_place {
	int64_t time;
	char text[INDEX_CURSOR_BYTES / 2];
	const char *repository, *vm, *id; /* in text */
};

static void make_cursor(const struct index_point *point, char cursor[INDEX_CURSOR_BYTES])
{
	char text[INDEX_CURSOR_BYTES / 2];
	int length = snprintf(text, sizeof text, "%" PRId64 "\n%s\n%s\n%s", point->time,
		point->repository, point->vm, point->id);
	if (length >= (int)sizeof text)
		length = (int)sizeof text - 1; /* of names that index_put() was never given */
	digest_hex((const uint8_t *)text, (size_t)length, cursor);
}

/* Ends the next line of *text, and goes behind it; NULL when there is none. */
static char *next_line(char **text)
{
	char *line = *text, *end = line ? strchr(line, '\n') : NULL;
	if (!end)
		return NULL;
	*end = '\0';
	*text = end + 1;
	return line;
}

static int parse_cursor(const char *cursor, struct cursor_place *place, struct err *err)
{
	size_t length = strlen(cursor);
	bool bad = length / 2 >= sizeof place->text ||
		   !digest_unhex(cursor, (uint8_t *)place->text, length / 2) ||
		   memchr(place->text, '\0', length / 2);
	if (!bad) {
		place->text[length / 2] = '\0';
		char *rest = place->text, *end = NULL;
		const char *time = next_line(&rest);
		place->repository = time ? next_line(&rest) : NULL;
		place->vm = place->repository ? next_line(&rest) : NULL;
		place->id = rest;
		errno = 0;
		place->time = time ? strtoll(time, &end, 10) : 0;
		bad = !place->vm || end == time || *end || errno;
	}
	return bad ? err_set(err, ERR_USAGE, "\"%.32s\" is not where a list went on", cursor) : 0;
}

/* --- queries -------------------------------------------------------------------------------- */

/* SQL that grows by pieces, and what its parameters will be. */
struct query {
	char sql[SQL_BYTES];
	size_t length;
	struct {
		const char *text; /* NULL: the number */
		int64_t number;
	} bound[16];
	int nr_bound;
	char glob[4 * 256];
};

static void add(struct query *query, const char *sql)
{
	size_t length = strlen(sql);
	if (query->length + length < sizeof query->sql)
		memcpy(query->sql + query->length, sql, length + 1);
	query->length += length;
}

static void add_text(struct query *query, const char *sql, const char *text)
{
	if (!text)
		return;
	add(query, sql);
	query->bound[query->nr_bound++].text = text;
}

static void add_number(struct query *query, const char *sql, int64_t number)
{
	add(query, sql);
	query->bound[query->nr_bound++].number = number;
}

/* SQLite's GLOB knows [...] as well, which here is no more than a bracket. */
static void add_glob(struct query *query, const char *sql, const char *glob)
{
	char *out = query->glob;
	if (!glob)
		return;
	for (size_t i = 0; glob[i] && out < query->glob + sizeof query->glob - 4; i++) {
		if (glob[i] == '[')
			out = stpcpy(out, "[[]");
		else
			*out++ = glob[i];
	}
	*out = '\0';
	add_text(query, sql, query->glob);
}

static sqlite3_stmt *prepare(struct index *index, const struct query *query, struct err *err)
{
	sqlite3_stmt *statement;
	if (query->length >= sizeof query->sql) {
		err_set(err, ERR_USAGE, "the query is too long");
		return NULL;
	}
	if (sqlite3_prepare_v2(index->db.sqlite, query->sql, -1, &statement, NULL) != SQLITE_OK) {
		db_fail(&index->db, err);
		return NULL;
	}
	for (int i = 0; i < query->nr_bound; i++) {
		if (query->bound[i].text)
			db_bind(statement, i + 1, query->bound[i].text);
		else
			db_bind_number(statement, i + 1, query->bound[i].number);
	}
	return statement;
}

/* --- restore points ----------------------------------------------------------------------------
 */

#define COLUMNS                                                                           \
	"p.repository, p.vm, p.id, p.mark, p.time, p.verified, p.verified_at, p.damaged," \
	" p.protected AND (p.protected_until = 0 OR p.protected_until > unixepoch()),"    \
	" p.protected_until, p.size, p.stored, p.value"

static const char *text_of(sqlite3_stmt *row, int column)
{
	const char *text = (const char *)sqlite3_column_text(row, column);
	return text ? text : "";
}

/* A protection that has ended is none. */
static void set_protection(json_t *value, const struct index_point *point)
{
	if (point->is_protected || !json_is_true(json_object_get(value, "protected")))
		return;
	json_object_set_new(value, "protected", json_false());
	json_object_del(value, "protected_until");
}

/* *value is the caller's. */
static int read_point(struct index *index, sqlite3_stmt *row, bool with_value,
	struct index_point *point, json_t **value, struct err *err)
{
	*value = NULL;
	*point = (struct index_point){
		.repository = text_of(row, 0),
		.vm = text_of(row, 1),
		.id = text_of(row, 2),
		.mark = text_of(row, 3),
		.time = sqlite3_column_int64(row, 4),
		.verified = (enum index_verified)sqlite3_column_int(row, 5),
		.verified_at = sqlite3_column_int64(row, 6),
		.is_damaged = sqlite3_column_int(row, 7) != 0,
		.is_protected = sqlite3_column_int(row, 8) != 0,
		.size_bytes = (uint64_t)sqlite3_column_int64(row, 10),
		.stored_bytes = (uint64_t)sqlite3_column_int64(row, 11),
	};
	if (point->is_protected)
		point->protected_until = sqlite3_column_int64(row, 9);
	if (!with_value)
		return 0;
	*value = db_json(&index->db, row, 12, err);
	if (!*value)
		return -1;
	set_protection(*value, point);
	point->value = *value;
	return 0;
}

static void add_choice(
	struct query *query, enum index_choice choice, const char *yes, const char *no)
{
	if (choice != INDEX_ANY)
		add(query, choice == INDEX_YES ? yes : no);
}

static int make_query(const struct index_filter *filter, struct cursor_place *place,
	struct query *query, struct err *err)
{
	memset(query, 0, offsetof(struct query, glob));
	add(query, "SELECT " COLUMNS);
	if (filter->newest_only)
		add(query, " FROM vm v CROSS JOIN point p ON p.repository = v.repository"
			   " AND p.vm = v.name AND p.id = (SELECT max(q.id) FROM point q"
			   " WHERE q.repository = v.repository AND q.vm = v.name) WHERE 1");
	else
		add(query, " FROM point p WHERE 1");
	add_text(query, " AND p.repository = ?", filter->repository);
	add_text(query, " AND p.vm = ?", filter->vm);
	add_glob(query, " AND p.vm GLOB ?", filter->vm_glob);
	if (filter->since)
		add_number(query, " AND p.time >= ?", filter->since);
	if (filter->before)
		add_number(query, " AND p.time < ?", filter->before);
	add_choice(query, filter->is_protected,
		" AND p.protected AND (p.protected_until = 0 OR p.protected_until > unixepoch())",
		" AND NOT (p.protected AND (p.protected_until = 0"
		" OR p.protected_until > unixepoch()))");
	add_choice(query, filter->is_good, " AND p.verified = 1", " AND p.verified <> 1");
	add_choice(query, filter->is_damaged, " AND (p.damaged OR p.verified = 2)",
		" AND NOT (p.damaged OR p.verified = 2)");
	if (filter->after) {
		if (parse_cursor(filter->after, place, err) < 0)
			return -1;
		add_number(query,
			filter->oldest_first ? " AND (p.time, p.repository, p.vm, p.id) > (?,"
					     : " AND (p.time, p.repository, p.vm, p.id) < (?,",
			place->time);
		add_text(query, "?,", place->repository);
		add_text(query, "?,", place->vm);
		add_text(query, "?)", place->id);
	}
	add(query, filter->oldest_first
			   ? " ORDER BY p.time, p.repository, p.vm, p.id"
			   : " ORDER BY p.time DESC, p.repository DESC, p.vm DESC, p.id DESC");
	if (filter->limit)
		add_number(query, " LIMIT ?", filter->limit);
	return 0;
}

int index_points(struct index *index, const struct index_filter *filter,
	index_point_callback *callback, void *context, struct err *err)
{
	struct query query;
	struct cursor_place place;
	char cursor[INDEX_CURSOR_BYTES];
	int rc;
	bool stop = false;
	if (make_query(filter, &place, &query, err) < 0)
		return -1;
	WITH_LOCK(&index->db.mutex);
	sqlite3_stmt *list = prepare(index, &query, err);
	if (!list)
		return -1;
	while (!stop && (rc = db_step(&index->db, list, err)) > 0) {
		struct index_point point;
		json_t *value;
		rc = read_point(index, list, !filter->without_value, &point, &value, err);
		if (rc < 0)
			break;
		make_cursor(&point, cursor);
		stop = callback(context, &point, cursor) != 0;
		json_decref(value);
	}
	sqlite3_finalize(list);
	return rc < 0 ? -1 : 0;
}

json_t *index_point(struct index *index, const char *repository, const char *vm, const char *id,
	struct err *err)
{
	struct index_point point;
	json_t *value = NULL;
	WITH_LOCK(&index->db.mutex);
	sqlite3_stmt *find = db_statement(&index->db,
		"SELECT " COLUMNS " FROM point p WHERE p.repository = ?1 AND p.vm = ?2"
		" AND (?3 IS NULL OR p.id = ?3) ORDER BY p.id DESC LIMIT 1",
		err);
	if (!find)
		return NULL;
	db_bind(find, 1, repository);
	db_bind(find, 2, vm);
	db_bind(find, 3, id);
	int rc = db_step(&index->db, find, err);
	if (rc > 0) {
		read_point(index, find, true, &point, &value, err);
		db_reset(find);
	} else if (rc == 0) {
		err_set(err, ERR_NOT_FOUND, "repository %s: VM \"%s\" has no restore point%s%.64s",
			repository, vm, id ? " " : "", id ? id : "");
		if (strchr(vm, '@'))
			err_hint(err,
				"a restore point is named VM@POINT, with the point's whole id "
				"as sendense ls shows it");
	}
	return value;
}

/* --- VMs and repositories ------------------------------------------------------------------------
 */

int index_vms(struct index *index, const struct index_vms_filter *filter,
	int (*callback)(void *context, const struct index_vm *vm), void *context, struct err *err)
{
	struct query query;
	int rc;
	bool stop = false;
	memset(&query, 0, offsetof(struct query, glob));
	add(&query,
		"SELECT v.repository, v.name, count(p.id), total(p.damaged OR p.verified = 2),"
		" total(p.stored), (SELECT q.size FROM point q WHERE q.repository = v.repository"
		" AND q.vm = v.name ORDER BY q.id DESC LIMIT 1),"
		" max(p.id), max(iif(p.damaged OR p.verified = 2, NULL, p.id)),"
		" max(iif(p.verified = 1 AND NOT p.damaged, p.id, NULL)), min(p.id),"
		" max(p.time), max(iif(p.damaged OR p.verified = 2, NULL, p.time)),"
		" max(iif(p.verified = 1 AND NOT p.damaged, p.time, NULL)), min(p.time)"
		" FROM vm v LEFT JOIN point p ON p.repository = v.repository AND p.vm = v.name"
		" WHERE 1");
	add_text(&query, " AND v.repository = ?", filter->repository);
	add_glob(&query, " AND v.name GLOB ?", filter->vm_glob);
	if (filter->after_vm) {
		add_text(&query, " AND (v.name, v.repository) > (?,", filter->after_vm);
		add_text(&query, "?)", filter->after_repository ? filter->after_repository : "");
	}
	add(&query, " GROUP BY v.name, v.repository ORDER BY v.name, v.repository");
	if (filter->limit)
		add_number(&query, " LIMIT ?", filter->limit);
	WITH_LOCK(&index->db.mutex);
	sqlite3_stmt *list = prepare(index, &query, err);
	if (!list)
		return -1;
	while (!stop && (rc = db_step(&index->db, list, err)) > 0) {
		struct index_vm vm = {
			.repository = text_of(list, 0),
			.vm = text_of(list, 1),
			.nr_points = (unsigned)sqlite3_column_int(list, 2),
			.nr_damaged = (unsigned)sqlite3_column_int(list, 3),
			.stored_bytes = (uint64_t)sqlite3_column_double(list, 4),
			.size_bytes = (uint64_t)sqlite3_column_int64(list, 5),
			.newest = (const char *)sqlite3_column_text(list, 6),
			.newest_usable = (const char *)sqlite3_column_text(list, 7),
			.newest_good = (const char *)sqlite3_column_text(list, 8),
			.oldest = (const char *)sqlite3_column_text(list, 9),
			.newest_time = sqlite3_column_int64(list, 10),
			.newest_usable_time = sqlite3_column_int64(list, 11),
			.newest_good_time = sqlite3_column_int64(list, 12),
			.oldest_time = sqlite3_column_int64(list, 13),
		};
		stop = callback(context, &vm) != 0;
	}
	sqlite3_finalize(list);
	return rc < 0 ? -1 : 0;
}

int index_marks(struct index *index, const char *repository,
	int (*callback)(void *context, const char *vm, const char *mark), void *context,
	struct err *err)
{
	int rc;
	WITH_LOCK(&index->db.mutex);
	sqlite3_stmt *list = db_statement(
		&index->db, "SELECT name, mark FROM vm WHERE repository = ? ORDER BY name", err);
	if (!list)
		return -1;
	db_bind(list, 1, repository);
	while ((rc = db_step(&index->db, list, err)) > 0)
		if (callback(context, text_of(list, 0), text_of(list, 1)) != 0) {
			db_reset(list);
			return 0;
		}
	return rc;
}

int index_repositories(struct index *index,
	int (*callback)(void *context, const struct index_repository *repository), void *context,
	struct err *err)
{
	int rc;
	WITH_LOCK(&index->db.mutex);
	sqlite3_stmt *list = db_statement(&index->db,
		"SELECT r.name, r.id, r.indexed,"
		" (SELECT count(*) FROM vm v WHERE v.repository = r.name),"
		" (SELECT count(*) FROM point p WHERE p.repository = r.name),"
		" (SELECT total(stored) FROM point p WHERE p.repository = r.name)"
		" FROM repository r ORDER BY r.name",
		err);
	if (!list)
		return -1;
	while ((rc = db_step(&index->db, list, err)) > 0) {
		struct index_repository repository = {
			.name = text_of(list, 0),
			.id = text_of(list, 1),
			.indexed = sqlite3_column_int64(list, 2),
			.nr_vms = (unsigned)sqlite3_column_int(list, 3),
			.nr_points = (unsigned)sqlite3_column_int(list, 4),
			.stored_bytes = (uint64_t)sqlite3_column_double(list, 5),
		};
		if (callback(context, &repository) != 0) {
			db_reset(list);
			return 0;
		}
	}
	return rc;
}
