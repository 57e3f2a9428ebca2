/* Runs: what is begun when, against a clock and jobs of the test's own. */
#include "fixture.h"

#include <time.h>

#define JOBS_MOST 1000

/* --- a state.db that fails, as long as that is said ---------------------------------------- */

typedef int job_callback(void *context, const struct state_job *job);

static bool cannot_tell, cannot_take;

int __real_state_job(struct state *state, const char *id, job_callback *callback, void *context,
	struct err *err);
int __wrap_state_job(struct state *state, const char *id, job_callback *callback, void *context,
	struct err *err);
int __real_state_jobs(struct state *state, const struct state_job_filter *filter,
	job_callback *callback, void *context, struct err *err);
int __wrap_state_jobs(struct state *state, const struct state_job_filter *filter,
	job_callback *callback, void *context, struct err *err);
int __real_state_put(struct state *state, const char *kind, const char *id, const json_t *value,
	uint64_t version, uint64_t *now, struct err *err);
int __wrap_state_put(struct state *state, const char *kind, const char *id, const json_t *value,
	uint64_t version, uint64_t *now, struct err *err);

int __wrap_state_job(
	struct state *state, const char *id, job_callback *callback, void *context, struct err *err)
{
	if (cannot_tell)
		return err_set(err, ERR_IO, "state.db: the disk fails");
	return __real_state_job(state, id, callback, context, err);
}

/* Which jobs are open it tells all the same. */
int __wrap_state_jobs(struct state *state, const struct state_job_filter *filter,
	job_callback *callback, void *context, struct err *err)
{
	if (cannot_tell && !filter->state)
		return err_set(err, ERR_IO, "state.db: the disk fails");
	return __real_state_jobs(state, filter, callback, context, err);
}

int __wrap_state_put(struct state *state, const char *kind, const char *id, const json_t *value,
	uint64_t version, uint64_t *now, struct err *err)
{
	if (cannot_take)
		return err_set(err, ERR_NO_SPACE, "state.db: the disk is full");
	return __real_state_put(state, kind, id, value, version, now, err);
}

/* --- jobs ------------------------------------------------------------------------------------ */

struct fake {
	struct fixture *f;
	struct runs *runs;
	struct schedule *schedules[4];
	size_t nr_schedules;
	struct machine_set *machines;
	int64_t now;
	unsigned most, most_per_source;
	/* Jobs in the order in which they were made. */
	struct {
		char id[JOB_ID_BYTES];
		json_t *spec;
		char by[100];
	} jobs[JOBS_MOST];
	size_t nr_jobs;
	struct err refuse; /* with code: no job can be made */
	unsigned nr_reports;
	struct runs_end last_end; /* without its texts, which were lent */
	char last_vm[16]; /* whose it was */
	unsigned nr_ends;
};

static void put_job(struct fake *k, size_t nr, const char *state, const char *error)
{
	struct err err = ERR_INIT;
	const json_t *spec = k->jobs[nr].spec;
	json_t *value = json_pack("{s:O, s:s}", "spec", spec, "requested_by", k->jobs[nr].by);
	if (error)
		json_object_set_new(
			value, "error", json_pack("{s:s, s:s}", "code", error, "text", "it broke"));
	struct state_job job = {.kind = json_string_value(json_object_get(spec, "kind")),
		.state = state,
		.repository = json_string_value(json_object_get(spec, "repository")),
		.vm = json_string_value(json_object_get(spec, "vm")),
		.created = k->now,
		.value = value};
	snprintf(job.id, sizeof job.id, "%s", k->jobs[nr].id);
	OK(state_job_put(k->f->state, &job, &err), err);
	json_decref(value);
}

static int add(void *context, const json_t *spec, const char *requested_by, char id[JOB_ID_BYTES],
	struct err *err)
{
	struct fake *k = context;
	if (k->refuse.code != ERR_NONE)
		return err_copy(err, &k->refuse);
	assert_true(k->nr_jobs < JOBS_MOST);
	snprintf(k->jobs[k->nr_jobs].id, JOB_ID_BYTES, "job-%06zu", k->nr_jobs);
	k->jobs[k->nr_jobs].spec = json_deep_copy(spec);
	snprintf(k->jobs[k->nr_jobs].by, sizeof k->jobs[0].by, "%s", requested_by);
	put_job(k, k->nr_jobs, "queued", NULL);
	snprintf(id, JOB_ID_BYTES, "%s", k->jobs[k->nr_jobs++].id);
	return 0;
}

static void report(void *context, const char *schedule, int64_t now)
{
	(void)schedule;
	(void)now;
	((struct fake *)context)->nr_reports++;
}

static void ended(void *context, const struct runs_end *end)
{
	struct fake *k = context;
	k->last_end = *end;
	k->last_end.job = k->last_end.vm = k->last_end.repository = NULL;
	snprintf(k->last_vm, sizeof k->last_vm, "%s", end->vm ? end->vm : "");
	k->nr_ends++;
}

static void open_runs(struct fake *k)
{
	struct err err = ERR_INIT;
	struct runs_options options = {
		.state = k->f->state, .add = add, .report = report, .ended = ended, .context = k};
	k->runs = runs_open(&options, &err);
	if (!k->runs)
		fail_msg("%s", err.text);
}

static struct runs_view view_of(const struct fake *k)
{
	return (struct runs_view){.schedules = k->schedules,
		.nr_schedules = k->nr_schedules,
		.machines = k->machines,
		.repositories = &k->f->repository,
		.nr_repositories = 1,
		.most = k->most,
		.most_per_source = k->most_per_source,
		.now = k->now};
}

/* At that time; the number of jobs that it made. */
static size_t tick(struct fake *k, const char *at)
{
	size_t before = k->nr_jobs;
	if (at)
		k->now = fixture_utc(at);
	struct runs_view view = view_of(k);
	assert_true(runs_tick(k->runs, &view) > k->now);
	return k->nr_jobs - before;
}

static bool end_job(struct fake *k, size_t nr, const char *error)
{
	struct runs_view view = view_of(k);
	struct err why = ERR_INIT;
	put_job(k, nr, error ? "failed" : "done", error);
	if (error)
		err_set(&why, strcmp(error, "denied") == 0 ? ERR_DENIED : ERR_IO, "it broke");
	return runs_job_ended(k->runs, &view, k->jobs[nr].id, error ? JOB_FAILED : JOB_DONE, &why);
}

static const char *vm_of(const struct fake *k, size_t nr)
{
	return json_string_value(json_object_get(k->jobs[nr].spec, "vm"));
}

static void add_schedule(struct fake *k, const char *id, const char *text)
{
	struct err err = ERR_INIT;
	json_t *value = fixture_json(text);
	struct schedule *schedule = schedule_parse(id, value, "UTC", &err);
	if (!schedule)
		fail_msg("%s", err.text);
	json_decref(value);
	k->schedules[k->nr_schedules++] = schedule;
}

/* nr machines with a source on a host each, all with the schedule "nightly". */
static void add_machines(struct fake *k, unsigned nr, const char *host)
{
	fixture_put(k->f, "policy", "all",
		"{'vms':['*'],'schedules':['nightly','prunes'],'keep':{'daily':7,'hourly':0},'mode'"
		":'auto'}");
	for (unsigned i = 0; i < nr; i++) {
		char id[32], text[300], own_host[32];
		snprintf(id, sizeof id, "vm%03u", i);
		snprintf(own_host, sizeof own_host, "host%u.example", i);
		snprintf(text, sizeof text,
			"{'disks':[{'key':'disk0','source':'nbd://%s/vm%03u'}],"
			"'created':'2026-11-01T00:00:00Z'}",
			host ? host : own_host, i);
		fixture_put(k->f, "vm", id, text);
	}
	machine_set_free(k->machines);
	k->machines = fixture_machines(k->f);
}

static struct fake *begin(void **context, const char *schedule, unsigned nr, const char *at)
{
	struct fake *k = calloc(1, sizeof *k);
	k->f = *context;
	k->most = 1000;
	k->most_per_source = 1000;
	add_schedule(k, "nightly", schedule);
	add_machines(k, nr, NULL);
	open_runs(k);
	/* Nothing is due for what has just become known. */
	assert_int_equal(tick(k, at), 0);
	return k;
}

static void finish(struct fake *k)
{
	runs_close(k->runs);
	for (size_t i = 0; i < k->nr_jobs; i++)
		json_decref(k->jobs[i].spec);
	for (size_t i = 0; i < k->nr_schedules; i++)
		schedule_free(k->schedules[i]);
	machine_set_free(k->machines);
	free(k);
}

/* --- tests ------------------------------------------------------------------------------- */

static void test_due_once(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *'}", 2, "2026-11-22 12:00");
	assert_int_equal(tick(k, "2026-11-22 21:59"), 0);
	assert_int_equal(tick(k, "2026-11-22 22:00"), 2);
	assert_string_equal(k->jobs[0].by, "schedule nightly");
	json_t *expected = json_pack("{s:s, s:s, s:s, s:[{s:s, s:s}], s:s}", "kind", "backup",
		"repository", "main", "vm", "vm000", "disks", "key", "disk0", "source",
		"nbd://host0.example/vm000", "mode", "auto");
	assert_true(json_equal(k->jobs[0].spec, expected));
	json_decref(expected);
	assert_int_equal(tick(k, NULL), 0);
	assert_int_equal(tick(k, "2026-11-22 22:01"), 0);
	end_job(k, 0, NULL);
	end_job(k, 1, NULL);
	assert_int_equal(tick(k, "2026-11-22 23:00"), 0);
	assert_int_equal(tick(k, "2026-11-23 22:00"), 2);
	finish(k);
}

/* The hub was down for three nights: once, and then at its time again. */
static void test_missed_once(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *'}", 1, "2026-11-22 12:00");
	runs_close(k->runs);
	open_runs(k);
	assert_int_equal(tick(k, "2026-11-25 12:00"), 1);
	end_job(k, 0, NULL);
	assert_int_equal(tick(k, "2026-11-25 12:01"), 0);
	assert_int_equal(tick(k, "2026-11-25 22:00"), 1);
	finish(k);
}

static void test_clock_jumps(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 * * * *'}", 1, "2026-11-22 12:00");
	assert_int_equal(tick(k, "2026-11-22 13:00"), 1);
	end_job(k, 0, NULL);
	/* Back over what was done: not again. */
	assert_int_equal(tick(k, "2026-11-22 12:30"), 0);
	assert_int_equal(tick(k, "2026-11-22 13:00"), 0);
	assert_int_equal(tick(k, "2026-11-22 13:30"), 0);
	/* Forwards by a year: once. */
	assert_int_equal(tick(k, "2027-11-22 13:30"), 1);
	end_job(k, 1, NULL);
	assert_int_equal(tick(k, "2027-11-22 13:31"), 0);
	/* And back again: that year was a mistake, it does not stand still until then. */
	assert_int_equal(tick(k, "2026-11-22 13:40"), 0);
	assert_int_equal(tick(k, "2026-11-22 14:00"), 1);
	finish(k);
}

/* Clocks are put back on 25 October 2026, 03:00 to 02:00: once. */
static void test_doubled_hour(void **context)
{
	struct fake *k = begin(context, "{'cron':'30 2 * * *','time_zone':'Europe/Berlin'}", 1,
		"2026-10-24 12:00");
	assert_int_equal(tick(k, "2026-10-25 00:30"), 1);
	end_job(k, 0, NULL);
	assert_int_equal(tick(k, "2026-10-25 01:30"), 0);
	assert_int_equal(tick(k, "2026-10-26 01:30"), 1);
	finish(k);
}

static void test_limits(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *'}", 10, "2026-11-22 12:00");
	k->most = 3;
	assert_int_equal(tick(k, "2026-11-22 22:00"), 3);
	assert_int_equal(tick(k, NULL), 0);
	end_job(k, 0, NULL);
	assert_int_equal(tick(k, NULL), 1);
	/* Nobody is forgotten, and nobody comes twice. */
	for (size_t i = 1; i < 10; i++) {
		end_job(k, i, NULL);
		tick(k, NULL);
	}
	assert_int_equal(k->nr_jobs, 10);
	for (size_t i = 0; i < 10; i++)
		for (size_t j = 0; j < i; j++)
			assert_string_not_equal(vm_of(k, i), vm_of(k, j));
	finish(k);
}

static void test_limit_of_source(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *','most':7}", 0, "2026-11-22 12:00");
	add_machines(k, 6, "one.example");
	assert_int_equal(tick(k, NULL), 0);
	k->most_per_source = 2;
	assert_int_equal(tick(k, "2026-11-22 22:00"), 2);
	end_job(k, 0, NULL);
	assert_int_equal(tick(k, NULL), 1);
	/* Another source is not in the way. */
	fixture_put(
		k->f, "vm", "zz", "{'disks':[{'key':'disk0','source':'nbd://two.example/zz'}]}");
	machine_set_free(k->machines);
	k->machines = fixture_machines(k->f);
	tick(k, NULL);
	assert_int_equal(tick(k, "2026-11-23 22:00"), 1);
	assert_string_equal(vm_of(k, 3), "zz");
	finish(k);
}

static void test_window(void **context)
{
	struct fake *k =
		begin(context, "{'cron':'0 21 * * *','window':{'from':'22:00','to':'23:00'}}", 2,
			"2026-11-22 12:00");
	assert_int_equal(tick(k, "2026-11-22 21:30"), 0);
	k->most = 1;
	assert_int_equal(tick(k, "2026-11-22 22:00"), 1);
	end_job(k, 0, NULL);
	/* The other one did not get its place in time: the next night, once. */
	assert_int_equal(tick(k, "2026-11-22 23:00"), 0);
	assert_int_equal(tick(k, "2026-11-23 12:00"), 0);
	k->most = 10;
	assert_int_equal(tick(k, "2026-11-23 22:00"), 2);
	finish(k);
}

/* Somebody backs it up by hand, or pushes it: it is not begun a second time beside that. */
static void test_no_overlap(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *'}", 1, "2026-11-22 12:00");
	static const char *const kinds[] = {"backup", "push", "prune"};
	k->now = fixture_utc("2026-11-22 22:00");
	for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++) {
		snprintf(k->jobs[k->nr_jobs].id, JOB_ID_BYTES, "other-%zu", i);
		snprintf(k->jobs[k->nr_jobs].by, 100, "token admin");
		k->jobs[k->nr_jobs].spec = json_pack(
			"{s:s, s:s, s:s}", "kind", kinds[i], "vm", "vm000", "repository", "main");
		put_job(k, k->nr_jobs++, "running", NULL);
		assert_int_equal(tick(k, NULL), 0);
		put_job(k, k->nr_jobs - 1, "done", NULL);
	}
	assert_int_equal(tick(k, NULL), 1);
	finish(k);
}

static void test_retries(void **context)
{
	struct fake *k = begin(context,
		"{'cron':'0 22 * * *','retries':2,'retry_after_s':600,"
		"'window':{'from':'22:00','to':'23:30'}}",
		1, "2026-11-22 12:00");
	assert_int_equal(tick(k, "2026-11-22 22:00"), 1);
	assert_true(end_job(k, 0, "io"));
	assert_int_equal(tick(k, "2026-11-22 22:09"), 0);
	assert_int_equal(tick(k, "2026-11-22 22:10"), 1);
	assert_true(end_job(k, 1, "io")); /* the pause doubles */
	assert_int_equal(tick(k, "2026-11-22 22:29"), 0);
	runs_close(k->runs);
	open_runs(k);
	assert_int_equal(tick(k, "2026-11-22 22:30"), 1);
	assert_false(end_job(k, 2, "io"));
	assert_int_equal(tick(k, "2026-11-22 23:20"), 0);
	/* What is not worth it is not tried again. */
	assert_int_equal(tick(k, "2026-11-23 22:00"), 1);
	assert_false(end_job(k, 3, "denied"));
	assert_int_equal(tick(k, "2026-11-23 22:59"), 0);
	/* A try that would be outside of the window waits for the next one, and is one with it. */
	assert_int_equal(tick(k, "2026-11-24 22:00"), 1);
	k->now = fixture_utc("2026-11-24 23:25");
	assert_true(end_job(k, 4, "io"));
	assert_int_equal(tick(k, "2026-11-24 23:40"), 0);
	assert_int_equal(tick(k, "2026-11-25 22:00"), 1);
	end_job(k, 5, NULL);
	assert_int_equal(tick(k, "2026-11-25 22:20"), 0);
	finish(k);
}

/* No job can be made: told, and tried again if that may help. */
static void test_no_job(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *','retries':1}", 1, "2026-11-22 12:00");
	err_set(&k->refuse, ERR_BUSY, "the hub is about to stop");
	assert_int_equal(tick(k, "2026-11-22 22:00"), 0);
	assert_int_equal(k->nr_ends, 1);
	assert_true(k->last_end.again);
	err_clear(&k->refuse);
	assert_int_equal(tick(k, "2026-11-22 22:10"), 1);
	end_job(k, 0, NULL);
	err_set(&k->refuse, ERR_DENIED, "nbd://host0.example is not allowed");
	assert_int_equal(tick(k, "2026-11-23 22:00"), 0);
	assert_int_equal(k->nr_ends, 2);
	assert_false(k->last_end.again);
	assert_int_equal(k->last_end.why.code, ERR_DENIED);
	err_clear(&k->refuse);
	assert_int_equal(tick(k, "2026-11-23 22:30"), 0);
	finish(k);
}

static int take_run(void *context, const struct state_object *object)
{
	struct state_object *run = context;
	run->id = strdup(object->id);
	run->value = json_deep_copy(object->value);
	return 1;
}

/* As it is in the state before the job's id is. */
static void forget_id(struct fake *k)
{
	struct err err = ERR_INIT;
	struct state_object run = {0};
	OK(state_list(k->f->state, "run", NULL, take_run, &run, &err), err);
	json_object_set_new(run.value, "state", json_string("starting"));
	json_object_set_new(run.value, "job", json_string(""));
	OK(state_put(k->f->state, "run", run.id, run.value, STATE_ANY, NULL, &err), err);
	state_object_clear(&run);
	runs_close(k->runs);
	open_runs(k);
}

static void test_crash_behind_the_job(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *'}", 1, "2026-11-22 12:00");
	assert_int_equal(tick(k, "2026-11-22 22:00"), 1);
	forget_id(k);
	/* It runs on: found, not begun again. */
	assert_int_equal(tick(k, "2026-11-22 22:05"), 0);
	assert_false(end_job(k, 0, NULL));
	assert_int_equal(tick(k, "2026-11-23 22:00"), 1);
	/* It has ended while no hub ran. */
	put_job(k, 1, "failed", "io");
	forget_id(k);
	assert_int_equal(tick(k, "2026-11-23 22:05"), 0);
	assert_int_equal(k->nr_ends, 1);
	assert_string_equal(k->last_vm, "vm000");
	assert_true(k->last_end.again);
	assert_int_equal(tick(k, "2026-11-23 22:15"), 1);
	finish(k);
}

static void test_crash_before_the_job(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *'}", 1, "2026-11-22 12:00");
	assert_int_equal(tick(k, "2026-11-22 22:00"), 1);
	/* A job of the day before is not taken for it. */
	put_job(k, 0, "done", NULL);
	end_job(k, 0, NULL);
	k->now = fixture_utc("2026-11-23 22:00");
	err_set(&k->refuse, ERR_IO, "the hub dies here");
	tick(k, NULL);
	err_clear(&k->refuse);
	forget_id(k);
	assert_int_equal(tick(k, "2026-11-23 22:01"), 1);
	assert_int_equal(tick(k, "2026-11-23 22:02"), 0);
	finish(k);
}

/* What state.db does not tell is asked again: nothing is begun twice, no end is forgotten. */
static void test_state_that_cannot_be_read(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *','retries':1}", 1, "2026-11-22 12:00");
	assert_int_equal(tick(k, "2026-11-22 22:00"), 1);
	forget_id(k);
	cannot_tell = true;
	assert_int_equal(tick(k, "2026-11-22 22:05"), 0);
	assert_int_equal(tick(k, "2026-11-22 22:06"), 0);
	put_job(k, 0, "failed", "io");
	assert_int_equal(tick(k, "2026-11-22 22:07"), 0);
	assert_int_equal(k->nr_ends, 0);
	cannot_tell = false;
	assert_int_equal(tick(k, "2026-11-22 22:08"), 0);
	assert_int_equal(k->nr_ends, 1);
	assert_true(k->last_end.again);
	/* The same of one whose id is known. */
	assert_int_equal(tick(k, "2026-11-22 22:18"), 1);
	put_job(k, 1, "done", NULL);
	cannot_tell = true;
	assert_int_equal(tick(k, "2026-11-22 22:19"), 0);
	assert_int_equal(k->nr_ends, 1);
	cannot_tell = false;
	assert_int_equal(tick(k, "2026-11-22 22:20"), 0);
	assert_int_equal(k->nr_ends, 2);
	finish(k);
}

/* What state.db does not take is written as soon as it does. */
static void test_state_that_cannot_be_written(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *','retries':1}", 1, "2026-11-22 12:00");
	assert_int_equal(tick(k, "2026-11-22 22:00"), 1);
	cannot_take = true;
	assert_true(end_job(k, 0, "io"));
	assert_int_equal(tick(k, "2026-11-22 22:01"), 0);
	cannot_take = false;
	assert_int_equal(tick(k, "2026-11-22 22:02"), 0);
	runs_close(k->runs);
	open_runs(k);
	/* The next hub knows that it was told. */
	assert_int_equal(tick(k, "2026-11-22 22:03"), 0);
	assert_int_equal(k->nr_ends, 0);
	assert_int_equal(tick(k, "2026-11-22 22:10"), 1);
	finish(k);
}

static void test_other_actions(void **context)
{
	struct fake *k =
		begin(context, "{'cron':'0 22 * * *','enabled':false}", 2, "2026-11-22 12:00");
	add_schedule(k, "verify", "{'cron':'0 3 * * *','action':'verify','time_box_s':7200}");
	add_schedule(k, "prunes", "{'cron':'0 4 * * *','action':'prune'}");
	add_schedule(k, "report", "{'cron':'0 8 * * mon','action':'report'}");
	assert_int_equal(tick(k, NULL), 0);
	assert_int_equal(tick(k, "2026-11-23 03:00"), 1);
	json_t *expected = json_pack(
		"{s:s, s:s, s:i}", "kind", "verify", "repository", "main", "time_box_s", 7200);
	assert_true(json_equal(k->jobs[0].spec, expected));
	json_decref(expected);
	assert_int_equal(tick(k, "2026-11-23 04:00"), 2);
	expected = json_pack("{s:s, s:s, s:s, s:{s:i}}", "kind", "prune", "repository", "main",
		"vm", "vm000", "keep", "daily", 7);
	assert_true(json_equal(k->jobs[1].spec, expected));
	json_decref(expected);
	/* 23 November 2026 is a Monday. */
	assert_int_equal(tick(k, "2026-11-23 08:00"), 0);
	assert_int_equal(k->nr_reports, 1);
	tick(k, "2026-11-23 08:01");
	assert_int_equal(k->nr_reports, 1);
	/* The last verification goes on still: not a second one. */
	assert_int_equal(tick(k, "2026-11-24 03:00"), 0);
	end_job(k, 0, NULL);
	assert_int_equal(tick(k, "2026-11-24 03:01"), 1);
	finish(k);
}

/* Put off, or due at other times: what lay between is not made up for. */
static void test_changed_schedule(void **context)
{
	struct fake *k = begin(context, "{'cron':'0 22 * * *'}", 1, "2026-11-22 12:00");
	static const char *const texts[] = {"{'cron':'0 22 * * *','enabled':false}",
		"{'cron':'0 22 * * *'}", "{'cron':'0 6 * * *'}"};
	static const char *const times[] = {
		"2026-11-22 13:00", "2026-11-23 23:00", "2026-11-23 23:30"};
	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
		schedule_free(k->schedules[--k->nr_schedules]);
		add_schedule(k, "nightly", texts[i]);
		assert_int_equal(tick(k, times[i]), 0);
	}
	assert_int_equal(tick(k, "2026-11-24 06:00"), 1);
	finish(k);
}

struct listed {
	size_t nr, nr_next;
	enum runs_wait wait;
	int64_t first;
};

static void note(void *context, const struct runs_entry *entry)
{
	struct listed *l = context;
	l->nr++;
	l->nr_next += entry->next > 0;
	l->wait = entry->wait;
	if (l->first == 0 || entry->next < l->first)
		l->first = entry->next;
}

static struct listed list(struct fake *k)
{
	struct listed l = {0};
	struct runs_view view = view_of(k);
	runs_list(k->runs, &view, k->schedules[0], note, &l);
	return l;
}

static void test_listing(void **context)
{
	struct fake *k =
		begin(context, "{'cron':'0 21 * * *','window':{'from':'22:00','to':'23:00'}}", 1,
			"2026-11-22 12:00");
	struct listed l = list(k);
	assert_int_equal(l.nr, 1);
	assert_int_equal(l.wait, RUNS_DUE_LATER);
	assert_int_equal(l.first, fixture_utc("2026-11-22 22:00"));
	k->now = fixture_utc("2026-11-22 21:30");
	assert_int_equal(list(k).wait, RUNS_WAITS_FOR_WINDOW);
	k->now = fixture_utc("2026-11-22 22:30");
	assert_int_equal(list(k).wait, RUNS_WAITS_FOR_PLACE);
	tick(k, NULL);
	assert_int_equal(list(k).wait, RUNS_GOING);
	assert_int_equal(list(k).first, fixture_utc("2026-11-23 22:00"));
	assert_true(end_job(k, 0, "io"));
	assert_int_equal(list(k).wait, RUNS_WAITS_FOR_RETRY);
	fixture_put(k->f, "vm", "vm000", "{'disks':[]}");
	machine_set_free(k->machines);
	k->machines = fixture_machines(k->f);
	assert_int_equal(list(k).wait, RUNS_NO_DISKS);
	assert_int_equal(list(k).nr_next, 0);
	fixture_put(
		k->f, "vm", "vm000", "{'disks':[{'key':'a','source':'nbd://h/x'}],'paused':true}");
	machine_set_free(k->machines);
	k->machines = fixture_machines(k->f);
	assert_int_equal(list(k).wait, RUNS_PAUSED);
	assert_int_equal(tick(k, "2026-11-23 22:00"), 0);
	finish(k);
}

/* 300 machines: when each is due next, in milliseconds. */
static void test_three_hundred(void **context)
{
	struct fake *k = begin(context,
		"{'cron':'30 22 * * mon-fri','time_zone':'Europe/Berlin','jitter_s':3600}", 300,
		"2026-11-22 12:00");
	int64_t began = clock_now_ns();
	struct listed l = list(k);
	int64_t listed_ns = clock_now_ns() - began;
	began = clock_now_ns();
	assert_int_equal(tick(k, "2026-11-22 12:01"), 0);
	int64_t tick_ns = clock_now_ns() - began;
	print_message("300 machines: next in %.2f ms, a tick in %.2f ms\n", (double)listed_ns / 1e6,
		(double)tick_ns / 1e6);
	assert_int_equal(l.nr, 300);
	assert_int_equal(l.nr_next, 300);
	assert_true(listed_ns < 200000000 && tick_ns < 200000000);
	assert_int_equal(tick(k, "2026-11-23 22:30"), 300);
	finish(k);
}

#define T(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_due_once),
		T(test_missed_once),
		T(test_clock_jumps),
		T(test_doubled_hour),
		T(test_limits),
		T(test_limit_of_source),
		T(test_window),
		T(test_no_overlap),
		T(test_retries),
		T(test_no_job),
		T(test_crash_behind_the_job),
		T(test_crash_before_the_job),
		T(test_state_that_cannot_be_read),
		T(test_state_that_cannot_be_written),
		T(test_other_actions),
		T(test_changed_schedule),
		T(test_listing),
		T(test_three_hundred),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
