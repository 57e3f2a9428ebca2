/* The hub's state: objects, tokens, jobs, takes, events, idempotency. */
#include "test_support.h"

#include <time.h>

/* --- objects ----------------------------------------------------------------------------- */

static void test_object_versions(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct state *state = support_state("s.db");
	struct state_object object;
	uint64_t first, second, third;
	json_t *value = json_pack("{s:s, s:i}", "cron", "0 2 * * *", "most", 3);
	SUPPORT_OK(state_put(state, "schedule", "nightly", value, 0, &first, &err), err);
	assert_int_equal(state_put(state, "schedule", "nightly", value, 0, NULL, &err), -1);
	support_expect(&err, ERR_EXISTS, "schedule \"nightly\" exists already");
	json_object_set_new(value, "most", json_integer(4));
	SUPPORT_OK(state_put(state, "schedule", "nightly", value, first, &second, &err), err);
	assert_true(second > first);
	/* Somebody else had read it before. */
	assert_int_equal(state_put(state, "schedule", "nightly", value, first, NULL, &err), -1);
	support_expect(&err, ERR_RANGE, "was changed meanwhile");
	assert_int_equal(state_put(state, "schedule", "weekly", value, first, NULL, &err), -1);
	support_expect(&err, ERR_NOT_FOUND, "there is no schedule \"weekly\"");
	assert_int_equal(state_delete(state, "schedule", "nightly", first, &err), -1);
	support_expect(&err, ERR_RANGE, "was changed meanwhile");
	SUPPORT_OK(state_get(state, "schedule", "nightly", &object, &err), err);
	assert_string_equal(object.id, "nightly");
	assert_int_equal(object.version, second);
	assert_true(json_equal(object.value, value));
	state_object_clear(&object);
	/* Of another kind it is another one. */
	assert_int_equal(state_get(state, "policy", "nightly", &object, &err), -1);
	support_expect(&err, ERR_NOT_FOUND, "there is no policy \"nightly\"");
	SUPPORT_OK(state_delete(state, "schedule", "nightly", second, &err), err);
	assert_int_equal(state_delete(state, "schedule", "nightly", STATE_ANY, &err), -1);
	support_expect(&err, ERR_NOT_FOUND, "there is no schedule");
	/* Made anew it has no version that it had before. */
	SUPPORT_OK(state_put(state, "schedule", "nightly", value, STATE_ANY, &third, &err), err);
	assert_true(third > second);
	support_sqlite("s.db", "SELECT json_extract(value, '$.most') FROM object", "4");
	json_decref(value);
	state_close(state);
	/* It is there after the next start, and for nobody else. */
	state = support_state("s.db");
	SUPPORT_OK(state_get(state, "schedule", "nightly", &object, &err), err);
	assert_int_equal(object.version, third);
	state_object_clear(&object);
	state_close(state);
	struct stat st;
	assert_int_equal(stat("s.db", &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
}

static void test_object_bounds(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct state *state = support_state("s.db");
	char id[300];
	json_t *value = json_object(), *array = json_array();
	memset(id, 'a', sizeof id);
	id[256] = '\0';
	assert_int_equal(state_put(state, "vm", id, value, 0, NULL, &err), -1);
	support_expect(&err, ERR_USAGE, "vm must be 1 to 255 bytes of UTF-8");
	id[255] = '\0';
	SUPPORT_OK(state_put(state, "vm", id, value, 0, NULL, &err), err);
	assert_int_equal(state_put(state, "vm", "", value, 0, NULL, &err), -1);
	support_expect(&err, ERR_USAGE, "1 to 255 bytes");
	assert_int_equal(state_put(state, "vm", "\xff", value, 0, NULL, &err), -1);
	support_expect(&err, ERR_USAGE, "UTF-8");
	assert_int_equal(state_put(state, "vm", "a", array, 0, NULL, &err), -1);
	support_expect(&err, ERR_USAGE, "is no JSON object");
	char *large = malloc(DB_DOCUMENT_BYTES + 2);
	assert_non_null(large);
	memset(large, 'x', DB_DOCUMENT_BYTES + 1);
	large[DB_DOCUMENT_BYTES + 1] = '\0';
	json_object_set_new(value, "text", json_string(large));
	free(large);
	assert_int_equal(state_put(state, "vm", "a", value, 0, NULL, &err), -1);
	support_expect(&err, ERR_USAGE, "more than");
	json_decref(value);
	json_decref(array);
	state_close(state);
}

struct names {
	struct state *state;
	unsigned nr, stop_at;
	char last[64];
};

static int note_name(void *context, const struct state_object *object)
{
	struct names *names = context;
	struct err err = ERR_INIT;
	assert_true(strcmp(names->last, object->id) < 0);
	snprintf(names->last, sizeof names->last, "%s", object->id);
	/* Callbacks may come back. */
	SUPPORT_OK(
		state_put(names->state, "seen", object->id, object->value, STATE_ANY, NULL, &err),
		err);
	return ++names->nr == names->stop_at;
}

static void test_object_lists(void **context)
{
	(void)context;
	enum { NR = 3 * STATE_PORTION };
	struct err err = ERR_INIT;
	struct state *state = support_state("s.db");
	json_t *value = json_pack("{s:s}", "a", "\xc3\xa4\xf0\x9f\x98\x80 '\"; DROP TABLE object");
	for (int i = 0; i < NR; i++) {
		char id[32];
		snprintf(id, sizeof id, "vm-%04d", i);
		SUPPORT_OK(state_put(state, "vm", id, value, 0, NULL, &err), err);
	}
	struct names all = {.state = state};
	SUPPORT_OK(state_list(state, "vm", NULL, note_name, &all, &err), err);
	assert_int_equal(all.nr, NR);
	struct names some = {.state = state, .stop_at = 70};
	SUPPORT_OK(state_list(state, "vm", "vm-0009", note_name, &some, &err), err);
	assert_int_equal(some.nr, 70);
	assert_string_equal(some.last, "vm-0079");
	struct names none = {.state = state};
	SUPPORT_OK(state_list(state, "policy", NULL, note_name, &none, &err), err);
	assert_int_equal(none.nr, 0);
	json_decref(value);
	state_close(state);
}

static void test_tokens(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct state *state = support_state("s.db");
	struct state_object object;
	for (int i = 0; i < 5; i++) {
		char id[16], hash[24];
		snprintf(id, sizeof id, "t%d", i);
		snprintf(hash, sizeof hash, "00c0ffee%d", i);
		json_t *value = json_pack("{s:s, s:i}", "hash", hash, "nr", i);
		SUPPORT_OK(state_put(state, "token", id, value, 0, NULL, &err), err);
		json_decref(value);
	}
	json_t *bare = json_object();
	SUPPORT_OK(state_put(state, "token", "no-hash", bare, 0, NULL, &err), err);
	json_decref(bare);
	SUPPORT_OK(state_token(state, "00c0ffee3", &object, &err), err);
	assert_string_equal(object.id, "t3");
	state_object_clear(&object);
	static const char *const wrong[] = {"00c0ffee", "00c0ffee31", "", "00c0ffee9"};
	for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
		assert_int_equal(state_token(state, wrong[i], &object, &err), -1);
		support_expect(&err, ERR_NOT_FOUND, "no such token");
	}
	SUPPORT_OK(state_delete(state, "token", "t3", STATE_ANY, &err), err);
	assert_int_equal(state_token(state, "00c0ffee3", &object, &err), -1);
	support_expect(&err, ERR_NOT_FOUND, "no such token");
	state_close(state);
}

/* --- jobs ------------------------------------------------------------------------------------ */

static void put_job(struct state *state, int nr, const char *kind, const char *word, const char *vm)
{
	struct err err = ERR_INIT;
	json_t *value = json_pack("{s:i}", "nr", nr);
	bool ended = strcmp(word, "done") == 0 || strcmp(word, "failed") == 0;
	struct state_job job = {.kind = kind, .state = word, .vm = vm, .created = 1000 + nr};
	job.ended = ended ? 2000 + nr : 0;
	job.value = value;
	snprintf(job.id, sizeof job.id, "20261122T%06uZ-00000000", (unsigned)nr % 1000000);
	SUPPORT_OK(state_job_put(state, &job, &err), err);
	json_decref(value);
}

struct jobs {
	int last; /* told last */
	unsigned nr, stop_at;
	struct state_job job;
	bool has_vm;
};

static int note_job(void *context, const struct state_job *job)
{
	struct jobs *jobs = context;
	int nr = (int)json_integer_value(json_object_get(job->value, "nr"));
	assert_true(jobs->nr == 0 || nr < jobs->last); /* the newest first */
	assert_int_equal(job->created, 1000 + nr);
	assert_null(job->repository);
	jobs->last = nr;
	jobs->job = *job;
	jobs->has_vm = job->vm != NULL;
	return ++jobs->nr == jobs->stop_at;
}

static unsigned count_jobs(struct state *state, const struct state_job_filter *filter, int *last)
{
	struct jobs jobs = {0};
	struct err err = ERR_INIT;
	SUPPORT_OK(state_jobs(state, filter, note_job, &jobs, &err), err);
	if (last)
		*last = jobs.last;
	return jobs.nr;
}

static void forgotten(void *context, const char *id)
{
	++*(unsigned *)context;
	assert_int_equal(strlen(id), STATE_JOB_BYTES - 1);
}

static void test_jobs(void **context)
{
	(void)context;
	enum { NR = 200 };
	struct err err = ERR_INIT;
	struct state *state = support_state("s.db");
	int last;
	for (int i = 0; i < NR; i++)
		put_job(state, i, i % 2 ? "backup" : "verify",
			i % 10 == 0 ? "running"
			: i % 3     ? "done"
				    : "failed",
			i % 4 ? "web" : NULL);
	assert_int_equal(count_jobs(state, &(struct state_job_filter){0}, NULL), NR);
	assert_int_equal(
		count_jobs(state, &(struct state_job_filter){.state = "open"}, &last), NR / 10);
	assert_int_equal(last, 0);
	assert_int_equal(
		count_jobs(state, &(struct state_job_filter){.state = "open", .vm = "web"}, NULL),
		10);
	assert_int_equal(
		count_jobs(state, &(struct state_job_filter){.vm = "web", .kind = "backup"}, NULL),
		NR / 2);
	assert_int_equal(
		count_jobs(state, &(struct state_job_filter){.before = "20261122T000100Z-"}, NULL),
		100);
	assert_int_equal(
		count_jobs(state, &(struct state_job_filter){.repository = "main"}, NULL), 0);
	struct jobs some = {.stop_at = 70};
	SUPPORT_OK(state_jobs(state, &(struct state_job_filter){0}, note_job, &some, &err), err);
	assert_int_equal(some.nr, 70);
	assert_int_equal(some.last, NR - 70);
	/* A second word about the same job replaces the first. */
	put_job(state, 10, "verify", "done", NULL);
	struct jobs one = {0};
	SUPPORT_OK(state_job(state, "20261122T000010Z-00000000", note_job, &one, &err), err);
	assert_int_equal(one.job.ended, 2010);
	assert_false(one.has_vm);
	assert_int_equal(state_job(state, "20261122T999999Z-00000000", note_job, &one, &err), -1);
	support_expect(&err, ERR_NOT_FOUND, "there is no job");
	/* Those that still hold something stay. */
	SUPPORT_OK(
		state_take(state, "20261122T000011Z-00000000", "port", "10101", NULL, &err), err);
	unsigned nr = 0;
	SUPPORT_OK(state_jobs_forget(state, 2000 + NR, forgotten, &nr, &err), err);
	assert_int_equal(nr, NR - 19 - 1);
	assert_int_equal(count_jobs(state, &(struct state_job_filter){0}, NULL), 20);
	support_sqlite("s.db", "SELECT count(*) FROM job WHERE state = 'running'", "19");
	state_close(state);
}

struct takes {
	unsigned nr;
	char names[256];
};

static int note_take(
	void *context, const char *job, const char *kind, const char *name, const json_t *value)
{
	struct takes *takes = context;
	size_t length = strlen(takes->names);
	snprintf(takes->names + length, sizeof takes->names - length, "%s/%s/%s%s ", job, kind,
		name, value ? "+" : "");
	takes->nr++;
	return 0;
}

static void test_takes(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct state *state = support_state("s.db");
	json_t *value = json_pack("{s:i}", "pid", 4711);
	SUPPORT_OK(state_take(state, "j1", "process", "worker", value, &err), err);
	SUPPORT_OK(state_take(state, "j1", "export", "0f", NULL, &err), err);
	SUPPORT_OK(state_take(state, "j2", "port", "10100", NULL, &err), err);
	SUPPORT_OK(state_take(state, "j2", "port", "10100", value, &err), err);
	assert_int_equal(state_take(state, "j2", "port", "", value, &err), -1);
	support_expect(&err, ERR_USAGE, "has no name");
	json_decref(value);
	state_close(state);
	state = support_state("s.db");
	struct takes all = {0};
	SUPPORT_OK(state_takes(state, NULL, note_take, &all, &err), err);
	assert_string_equal(all.names, "j1/export/0f j1/process/worker+ j2/port/10100+ ");
	SUPPORT_OK(state_gave_back(state, "j1", "export", "0f", &err), err);
	SUPPORT_OK(state_gave_back(state, "j1", "export", "0f", &err), err); /* twice is no harm */
	struct takes one = {0};
	SUPPORT_OK(state_takes(state, "j1", note_take, &one, &err), err);
	assert_string_equal(one.names, "j1/process/worker+ ");
	state_close(state);
}

/* --- events, idempotency ------------------------------------------------------------------------
 */

struct events {
	unsigned nr;
	uint64_t last;
};

static int note_event(void *context, const struct state_event *event)
{
	struct events *events = context;
	assert_true(event->id > events->last);
	assert_string_equal(event->action, "jobs.cancel");
	assert_int_equal(json_integer_value(json_object_get(event->detail, "nr")), event->time);
	events->last = event->id;
	events->nr++;
	return 0;
}

static void test_events(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct state *state = support_state("s.db");
	uint64_t id = 0, before = 0;
	for (int i = 0; i < 150; i++) {
		json_t *detail = json_pack("{s:i}", "nr", i);
		struct state_event event = {.time = i,
			.actor = i % 2 ? "token ops" : "schedule",
			.action = "jobs.cancel",
			.object = i % 5 ? "job 1" : "job 2",
			.detail = detail};
		SUPPORT_OK(state_event_add(state, &event, &id, &err), err);
		assert_true(id > before);
		before = id;
		json_decref(detail);
	}
	struct events all = {0}, some = {0}, late = {0}, rest = {0};
	SUPPORT_OK(
		state_events(state, &(struct state_event_filter){0}, note_event, &all, &err), err);
	assert_int_equal(all.nr, 150);
	SUPPORT_OK(state_events(state,
			   &(struct state_event_filter){.actor = "token ops", .object = "job 2"},
			   note_event, &some, &err),
		err);
	assert_int_equal(some.nr, 15);
	SUPPORT_OK(state_events(state, &(struct state_event_filter){.since = 100, .after = id - 10},
			   note_event, &late, &err),
		err);
	assert_int_equal(late.nr, 10);
	/* What was noted cannot be changed, and ids never come back. */
	sqlite3_exec(state->db.sqlite, "UPDATE event SET actor = 'nobody'", NULL, NULL, NULL);
	SUPPORT_OK(state_events_forget(state, 149, &err), err);
	SUPPORT_OK(state_events(state, &(struct state_event_filter){.actor = "token ops"},
			   note_event, &rest, &err),
		err);
	assert_int_equal(rest.nr, 1);
	SUPPORT_OK(state_events_forget(state, 1000, &err), err);
	struct state_event next = {.time = 1, .actor = "a", .action = "b", .object = "c"};
	SUPPORT_OK(state_event_add(state, &next, &before, &err), err);
	assert_true(before > id);
	state_close(state);
}

static void test_idempotency(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct state *state = support_state("s.db");
	bool found;
	unsigned status = 0;
	json_t *body, *answer = json_pack("{s:s}", "id", "job-1");
	SUPPORT_OK(state_remembered(state, "t1", "k", "d1", &found, &status, &body, &err), err);
	assert_false(found);
	SUPPORT_OK(state_remember(state, "t1", "k", "d1", 202, answer, &err), err);
	SUPPORT_OK(state_remember(state, "t1", "empty", "d2", 204, NULL, &err), err);
	SUPPORT_OK(state_remembered(state, "t1", "k", "d1", &found, &status, &body, &err), err);
	assert_true(found);
	assert_int_equal(status, 202);
	assert_true(json_equal(body, answer));
	json_decref(body);
	SUPPORT_OK(state_remembered(state, "t1", "empty", "d2", &found, &status, &body, &err), err);
	assert_true(found && !body && status == 204);
	assert_int_equal(
		state_remembered(state, "t1", "k", "other", &found, &status, &body, &err), -1);
	support_expect(&err, ERR_RANGE, "was used for another call");
	assert_false(found);
	/* Somebody else's keys are his own. */
	SUPPORT_OK(state_remembered(state, "t2", "k", "other", &found, &status, &body, &err), err);
	assert_false(found);
	/* A day later, or when the clock was a year ahead. */
	assert_int_equal(
		sqlite3_exec(state->db.sqlite,
			"UPDATE idempotency SET time = time - 86401 WHERE key = 'k';"
			"UPDATE idempotency SET time = time + 31536000 WHERE key = 'empty'",
			NULL, NULL, NULL),
		SQLITE_OK);
	SUPPORT_OK(state_remembered(state, "t1", "k", "other", &found, &status, &body, &err), err);
	assert_false(found);
	SUPPORT_OK(state_remembered(state, "t1", "empty", "d2", &found, &status, &body, &err), err);
	assert_false(found);
	SUPPORT_OK(state_remember(state, "t1", "new", "d", 201, answer, &err), err);
	support_sqlite("s.db", "SELECT group_concat(key) FROM idempotency", "new");
	json_decref(answer);
	state_close(state);
}

/* --- durable --------------------------------------------------------------------------------- */

/* What a kill cannot show: each commit waits for the disk. */
static void test_durable(void **context)
{
	(void)context;
	struct state *state = support_state("s.db");
	int64_t synchronous = 0;
	assert_int_equal(db_pragma(state->db.sqlite, "PRAGMA synchronous", &synchronous), 0);
	assert_int_equal(synchronous, 2); /* FULL */
	state_close(state);
	support_sqlite("s.db", "PRAGMA journal_mode", "wal");
}

/* --- many threads -------------------------------------------------------------------------------
 */

struct worker {
	struct state *state;
	int nr;
	pthread_t thread;
};

static void *work(void *context)
{
	struct worker *worker = context;
	json_t *value = json_pack("{s:i}", "nr", worker->nr);
	for (int i = 0; i < 20; i++) {
		struct state_object object;
		char id[32];
		snprintf(id, sizeof id, "%d-%d", worker->nr, i);
		if (state_put(worker->state, "vm", id, value, 0, NULL, NULL) < 0 ||
			state_get(worker->state, "vm", id, &object, NULL) < 0)
			abort();
		state_object_clear(&object);
	}
	json_decref(value);
	return NULL;
}

static void test_threads(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct state *state = support_state("s.db");
	struct worker workers[4];
	for (int i = 0; i < 4; i++) {
		workers[i] = (struct worker){.state = state, .nr = i};
		SUPPORT_OK(
			thread_start(&workers[i].thread, "worker", work, &workers[i], &err), err);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(workers[i].thread, NULL);
	assert_int_equal(state_changes(state), 80);
	state_close(state);
	support_sqlite("s.db", "SELECT count(DISTINCT version) FROM object", "80");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_object_versions),
		SUPPORT_TEST(test_object_bounds),
		SUPPORT_TEST(test_object_lists),
		SUPPORT_TEST(test_tokens),
		SUPPORT_TEST(test_jobs),
		SUPPORT_TEST(test_takes),
		SUPPORT_TEST(test_events),
		SUPPORT_TEST(test_idempotency),
		SUPPORT_TEST(test_durable),
		SUPPORT_TEST(test_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
