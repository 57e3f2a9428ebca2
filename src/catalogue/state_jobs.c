/* Jobs, and what they take. */
#include "state_internal.h"

#include <errno.h>
#include <string.h>

#define ENDED "('done', 'failed', 'cancelled')"
#define COLUMNS "id, kind, state, repository, vm, created, started, ended, value"

static int check_job(const struct state_job *job, struct err *err)
{
	if (state_check_text(job->id, "a job's id", err) < 0 ||
		state_check_text(job->kind, "a job's kind", err) < 0 ||
		state_check_text(job->state, "a job's state", err) < 0 ||
		(job->repository &&
			state_check_text(job->repository, "a job's repository", err) < 0) ||
		(job->vm && state_check_text(job->vm, "a job's VM", err) < 0) ||
		(job->node && state_check_text(job->node, "a job's node", err) < 0))
		return -1;
	if (!json_is_object(job->value))
		return err_set(err, ERR_USAGE, "job %s is no JSON object", job->id);
	return 0;
}

int state_job_put(struct state *state, const struct state_job *job, struct err *err)
{
	if (check_job(job, err) < 0)
		return -1;
	char *AUTO_FREE text = db_json_text(job->value, "a job", err);
	if (!text)
		return -1;
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *store = db_statement(&state->db,
		"INSERT OR REPLACE INTO job (" COLUMNS ", node)"
		" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		err);
	if (!store)
		return -1;
	db_bind(store, 1, job->id);
	db_bind(store, 2, job->kind);
	db_bind(store, 3, job->state);
	db_bind(store, 4, job->repository);
	db_bind(store, 5, job->vm);
	db_bind_number(store, 6, job->created);
	db_bind_number(store, 7, job->started);
	db_bind_number(store, 8, job->ended);
	db_bind(store, 9, text);
	db_bind(store, 10, job->node);
	return state_run(state, store, err);
}

/* --- reading -------------------------------------------------------------------------------- */

/* A row whose texts are its own. */
struct row {
	struct state_job job;
	char *kind, *state, *repository, *vm;
	json_t *value;
};

static void row_clear(struct row *row)
{
	free(row->kind);
	free(row->state);
	free(row->repository);
	free(row->vm);
	json_decref(row->value);
}

static int row_read(struct state *state, sqlite3_stmt *from, struct row *row, struct err *err)
{
	bool bad = false;
	memset(row, 0, sizeof *row);
	const char *id = (const char *)sqlite3_column_text(from, 0);
	snprintf(row->job.id, sizeof row->job.id, "%s", id ? id : "");
	row->kind = db_text(from, 1, &bad);
	row->state = db_text(from, 2, &bad);
	row->repository = db_text(from, 3, &bad);
	row->vm = db_text(from, 4, &bad);
	row->value = db_json(&state->db, from, 8, err);
	row->job.kind = row->kind;
	row->job.state = row->state;
	row->job.repository = row->repository;
	row->job.vm = row->vm;
	row->job.created = sqlite3_column_int64(from, 5);
	row->job.started = sqlite3_column_int64(from, 6);
	row->job.ended = sqlite3_column_int64(from, 7);
	row->job.value = row->value;
	if (bad)
		err_errno(err, ENOMEM, "cannot read the state");
	if (!bad && row->value)
		return 0;
	row_clear(row);
	return -1;
}

static sqlite3_stmt *query(
	struct state *state, const struct state_job_filter *filter, struct err *err)
{
	/* "~" is behind all ids. */
	bool open = filter->state && strcmp(filter->state, "open") == 0;
	sqlite3_stmt *list = NULL;
	if (open && filter->node)
		list = db_statement(&state->db,
			"SELECT " COLUMNS " FROM job WHERE state NOT IN " ENDED
			" AND node = ?7 AND id < ?1"
			" AND ?2 IS NOT NULL AND (?3 IS NULL OR kind = ?3)"
			" AND (?4 IS NULL OR vm = ?4) AND (?5 IS NULL OR repository = ?5)"
			" ORDER BY id DESC LIMIT ?6",
			err);
	else if (open)
		list = db_statement(&state->db,
			"SELECT " COLUMNS " FROM job WHERE state NOT IN " ENDED " AND id < ?1"
			" AND ?2 IS NOT NULL AND (?3 IS NULL OR kind = ?3)"
			" AND (?4 IS NULL OR vm = ?4) AND (?5 IS NULL OR repository = ?5)"
			" ORDER BY id DESC LIMIT ?6",
			err);
	else if (filter->vm)
		list = db_statement(&state->db,
			"SELECT " COLUMNS " FROM job WHERE vm = ?4 AND id < ?1"
			" AND (?2 IS NULL OR state = ?2) AND (?3 IS NULL OR kind = ?3)"
			" AND (?5 IS NULL OR repository = ?5) ORDER BY id DESC LIMIT ?6",
			err);
	else
		list = db_statement(&state->db,
			"SELECT " COLUMNS " FROM job WHERE id < ?1"
			" AND (?2 IS NULL OR state = ?2) AND (?3 IS NULL OR kind = ?3)"
			" AND ?4 IS NULL AND (?5 IS NULL OR repository = ?5)"
			" ORDER BY id DESC LIMIT ?6",
			err);
	if (!list)
		return NULL;
	db_bind(list, 2, filter->state);
	db_bind(list, 3, filter->kind);
	db_bind(list, 4, filter->vm);
	db_bind(list, 5, filter->repository);
	db_bind_number(list, 6, STATE_PORTION);
	if (open && filter->node)
		db_bind(list, 7, filter->node);
	return list;
}

static int read_portion(struct state *state, const struct state_job_filter *filter,
	const char *before, struct row *rows, size_t *nr, struct err *err)
{
	int rc;
	*nr = 0;
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *list = query(state, filter, err);
	if (!list)
		return -1;
	db_bind(list, 1, before ? before : "~");
	for (; (rc = db_step(&state->db, list, err)) > 0; ++*nr)
		if (row_read(state, list, &rows[*nr], err) < 0) {
			db_reset(list);
			return -1;
		}
	return rc;
}

int state_jobs(struct state *state, const struct state_job_filter *filter,
	int (*callback)(void *context, const struct state_job *job), void *context, struct err *err)
{
	char before[STATE_ID_BYTES];
	struct row *AUTO_FREE rows = calloc(STATE_PORTION, sizeof *rows);
	size_t nr;
	int rc;
	bool stop = false;
	if (!rows)
		return err_errno(err, ENOMEM, "cannot list jobs");
	snprintf(before, sizeof before, "%s", filter->before ? filter->before : "");
	do {
		rc = read_portion(state, filter, before[0] ? before : NULL, rows, &nr, err);
		for (size_t i = 0; i < nr; i++) {
			if (rc == 0 && !stop)
				stop = callback(context, &rows[i].job) != 0;
			snprintf(before, sizeof before, "%s", rows[i].job.id);
			row_clear(&rows[i]);
		}
	} while (rc == 0 && !stop && nr == STATE_PORTION);
	return rc;
}

static int read_one(struct state *state, const char *id, struct row *row, struct err *err)
{
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *find =
		db_statement(&state->db, "SELECT " COLUMNS " FROM job WHERE id = ?", err);
	if (!find)
		return -1;
	db_bind(find, 1, id);
	int rc = db_step(&state->db, find, err);
	if (rc < 0)
		return -1;
	if (rc == 0)
		return err_set(err, ERR_NOT_FOUND, "there is no job \"%.64s\"", id);
	rc = row_read(state, find, row, err);
	db_reset(find);
	return rc;
}

int state_job(struct state *state, const char *id,
	int (*callback)(void *context, const struct state_job *job), void *context, struct err *err)
{
	struct row row;
	if (read_one(state, id, &row, err) < 0)
		return -1;
	callback(context, &row.job);
	row_clear(&row);
	return 0;
}

/* --- forgetting ----------------------------------------------------------------------------- */

static int forget_portion(struct state *state, int64_t ended_before, char (*ids)[STATE_JOB_BYTES],
	size_t *nr, struct err *err)
{
	int rc;
	*nr = 0;
	WITH_LOCK(&state->db.mutex);
	/* What it took and never gave back stays, until somebody gave it back. */
	sqlite3_stmt *drop = db_statement(&state->db,
		"DELETE FROM job WHERE id IN (SELECT id FROM job WHERE state IN " ENDED
		" AND ended < ?1 AND NOT EXISTS (SELECT 1 FROM take WHERE take.job = job.id)"
		" LIMIT ?2) RETURNING id",
		err);
	if (!drop)
		return -1;
	db_bind_number(drop, 1, ended_before);
	db_bind_number(drop, 2, STATE_PORTION);
	for (; (rc = db_step(&state->db, drop, err)) > 0; ++*nr) {
		const char *id = (const char *)sqlite3_column_text(drop, 0);
		snprintf(ids[*nr], STATE_JOB_BYTES, "%s", id ? id : "");
	}
	if (rc == 0 && *nr > 0)
		atomic_fetch_add(&state->changes, 1);
	return rc;
}

int state_jobs_forget(struct state *state, int64_t ended_before,
	void (*forgotten)(void *context, const char *id), void *context, struct err *err)
{
	char ids[STATE_PORTION][STATE_JOB_BYTES];
	size_t nr;
	int rc;
	do {
		rc = forget_portion(state, ended_before, ids, &nr, err);
		for (size_t i = 0; rc == 0 && i < nr && forgotten; i++)
			forgotten(context, ids[i]);
	} while (rc == 0 && nr == STATE_PORTION);
	return rc;
}

/* --- what jobs take --------------------------------------------------------------------------- */

int state_take(struct state *state, const char *job, const char *kind, const char *name,
	const json_t *value, struct err *err)
{
	if (state_check_text(job, "a job's id", err) < 0 ||
		state_check_text(kind, "the kind of what a job takes", err) < 0)
		return -1;
	if (!name || !name[0])
		return err_set(err, ERR_USAGE, "what a job takes has no name");
	char *AUTO_FREE text = value ? db_json_text(value, "what a job takes", err) : NULL;
	if (value && !text)
		return -1;
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *store = db_statement(&state->db,
		"INSERT OR REPLACE INTO take (job, kind, name, value) VALUES (?, ?, ?, ?)", err);
	if (!store)
		return -1;
	db_bind(store, 1, job);
	db_bind(store, 2, kind);
	db_bind(store, 3, name);
	db_bind(store, 4, text);
	return state_run(state, store, err);
}

int state_gave_back(
	struct state *state, const char *job, const char *kind, const char *name, struct err *err)
{
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *drop = db_statement(
		&state->db, "DELETE FROM take WHERE job = ? AND kind = ? AND name = ?", err);
	if (!drop)
		return -1;
	db_bind(drop, 1, job);
	db_bind(drop, 2, kind);
	db_bind(drop, 3, name);
	return state_run(state, drop, err);
}

struct take {
	char *job, *kind, *name;
	json_t *value;
};

static void take_clear(struct take *take)
{
	free(take->job);
	free(take->kind);
	free(take->name);
	json_decref(take->value);
}

static int take_read(struct state *state, sqlite3_stmt *row, struct take *take, struct err *err)
{
	bool bad = false;
	take->job = db_text(row, 0, &bad);
	take->kind = db_text(row, 1, &bad);
	take->name = db_text(row, 2, &bad);
	take->value = NULL;
	if (bad)
		err_errno(err, ENOMEM, "cannot read the state");
	else if (sqlite3_column_type(row, 3) != SQLITE_NULL)
		bad = !(take->value = db_json(&state->db, row, 3, err));
	if (bad)
		take_clear(take);
	return bad ? -1 : 0;
}

static int read_takes(struct state *state, const char *job, const struct take *after,
	struct take *takes, size_t *nr, struct err *err)
{
	int rc;
	*nr = 0;
	WITH_LOCK(&state->db.mutex);
	sqlite3_stmt *list = db_statement(&state->db,
		"SELECT job, kind, name, value FROM take WHERE (?1 IS NULL OR job = ?1)"
		" AND (job, kind, name) > (?2, ?3, ?4) ORDER BY job, kind, name LIMIT ?5",
		err);
	if (!list)
		return -1;
	db_bind(list, 1, job);
	db_bind(list, 2, after->job ? after->job : "");
	db_bind(list, 3, after->kind ? after->kind : "");
	db_bind(list, 4, after->name ? after->name : "");
	db_bind_number(list, 5, STATE_PORTION);
	for (; (rc = db_step(&state->db, list, err)) > 0; ++*nr)
		if (take_read(state, list, &takes[*nr], err) < 0) {
			db_reset(list);
			return -1;
		}
	return rc;
}

int state_takes(struct state *state, const char *job,
	int (*callback)(void *context, const char *job, const char *kind, const char *name,
		const json_t *value),
	void *context, struct err *err)
{
	struct take takes[STATE_PORTION], last = {0};
	size_t nr;
	int rc;
	bool stop = false;
	do {
		rc = read_takes(state, job, &last, takes, &nr, err);
		for (size_t i = 0; i < nr; i++) {
			const struct take *take = &takes[i];
			if (rc == 0 && !stop)
				stop = callback(context, take->job, take->kind, take->name,
					       take->value) != 0;
			take_clear(&last);
			last = *take;
		}
	} while (rc == 0 && !stop && nr == STATE_PORTION);
	take_clear(&last);
	return rc;
}
