/* What is to be begun now; see runs.h. */
#include "runs_internal.h"

#include "job.h"
#include "policy.h"
#include "time_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_AGAIN_S 60 /* clocks may jump, places become free */
#define MOST_JOBS 4 /* as jobs_options.most */
#define MOST_PER_SOURCE 2

struct candidate {
	const struct schedule *schedule;
	const struct machine *machine; /* NULL: none */
	const char *who;
	int64_t moment;
};

struct tick {
	struct runs *runs;
	const struct runs_view *view;
	const struct schedule *schedule;
	json_t *busy; /* machines that a job works on */
	json_t *open; /* ids of jobs that have not ended */
	unsigned nr_open; /* of those that take a place */
	struct candidate *candidates;
	size_t nr_candidates, room;
	int64_t wake;
};

void runs_source(const struct machine *machine, char host[256])
{
	const json_t *settings = machine ? machine->settings : NULL;
	const char *source =
		time_text(json_array_get(json_object_get(settings, "disks"), 0), "source");
	host[0] = '\0';
	if (machine_node(machine))
		snprintf(host, 256, "%s/%s", machine_node(machine), time_text(settings, "vcenter"));
	else if (source)
		allow_host(source, host);
}

/* --- what goes on already ----------------------------------------------------------------- */

static int note_open(void *context, const struct state_job *job)
{
	struct tick *t = context;
	json_object_set_new(t->open, job->id, json_true());
	if (strcmp(job->kind, "serve") != 0 &&
		!json_object_get(json_object_get(job->value, "spec"), "for_job"))
		t->nr_open++;
	/* Those that only read are in nobody's way. */
	if (job->vm && (strcmp(job->kind, "backup") == 0 || strcmp(job->kind, "push") == 0 ||
			       strcmp(job->kind, "prune") == 0))
		json_object_set_new(t->busy, job->vm, json_true());
	return 0;
}

struct lookup {
	const char *requested_by;
	int64_t since;
	char job[JOB_ID_BYTES];
	char vm[256], repository[256]; /* "": none */
	enum job_state state;
	struct err why;
};

static void note_end(struct lookup *l, const struct state_job *job)
{
	snprintf(l->job, sizeof l->job, "%s", job->id);
	snprintf(l->vm, sizeof l->vm, "%s", job->vm ? job->vm : "");
	snprintf(l->repository, sizeof l->repository, "%s", job->repository ? job->repository : "");
	if (!job_state_parse(job->state, &l->state))
		l->state = JOB_FAILED;
	if (l->state != JOB_DONE)
		time_error(json_object_get(job->value, "error"), &l->why);
}

static int find_begun(void *context, const struct state_job *job)
{
	struct lookup *l = context;
	const char *by = time_text(job->value, "requested_by");
	if (job->created < l->since)
		return 1;
	if (!by || strcmp(by, l->requested_by) != 0)
		return 0;
	note_end(l, job);
	return 1;
}

static int find_ended(void *context, const struct state_job *job)
{
	note_end(context, job);
	return 0;
}

/* --- beginning one ------------------------------------------------------------------------- */

static void copy_member(json_t *to, const json_t *from, const char *name)
{
	json_t *value = json_object_get(from, name);
	if (value && !json_is_null(value))
		json_object_set(to, name, value);
}

static json_t *spec_of(const struct candidate *c)
{
	static const char *const from_machine[] = {"disks", "node", "vcenter", "machine",
		"skip_disks", "skip_unsupported", "quiesce", "enable_cbt"};
	json_t *spec = json_pack("{s:s}", "kind", schedule_action_name(c->schedule->action));
	if (!spec)
		return NULL;
	if (c->schedule->action == SCHEDULE_VERIFY) {
		json_object_set_new(spec, "repository", json_string(c->who));
		if (c->schedule->time_box_s > 0)
			json_object_set_new(
				spec, "time_box_s", json_integer(c->schedule->time_box_s));
		return spec;
	}
	json_object_set_new(spec, "repository", json_string(c->machine->repository));
	json_object_set_new(spec, "vm", json_string(c->who));
	if (c->schedule->action == SCHEDULE_PRUNE) {
		json_object_set_new(spec, "keep", policy_keep_given(machine_keep(c->machine)));
		const char *zone = time_text(c->machine->policy, "time_zone");
		if (zone)
			json_object_set_new(spec, "timezone", json_string(zone));
		return spec;
	}
	for (size_t i = 0; i < ARRAY_LENGTH(from_machine); i++)
		copy_member(spec, c->machine->settings, from_machine[i]);
	copy_member(spec, c->machine->policy, "mode");
	copy_member(spec, c->machine->policy, "audit");
	copy_member(spec, c->machine->policy, "limit_rate");
	return spec;
}

static void came_to_nothing(
	struct tick *t, const struct candidate *c, struct run *run, const struct err *why)
{
	bool again = runs_try_again(t->runs, c->schedule, run, why, t->view->now);
	log_warning(
		"schedule %s, %s: no job could be made: %s", run->schedule, run->who, why->text);
	bool of_repository = c->schedule->action == SCHEDULE_VERIFY;
	struct runs_end end = {.job = "",
		.vm = of_repository ? NULL : run->who,
		.repository = of_repository ? run->who : c->machine->repository,
		.state = JOB_FAILED,
		.why = *why,
		.again = again};
	t->runs->options.ended(t->runs->options.context, &end);
}

static void make_job(struct tick *t, const struct candidate *c, struct run *run)
{
	struct err err = ERR_INIT;
	char by[16 + SCHEDULE_ID_BYTES];
	json_t *spec = spec_of(c);
	snprintf(by, sizeof by, "schedule %s", c->schedule->id);
	int rc = spec ? t->runs->options.add(t->runs->options.context, spec, by, run->job, &err)
		      : err_errno(&err, ENOMEM, "cannot make a job");
	json_decref(spec);
	if (rc < 0) {
		came_to_nothing(t, c, run, &err);
		return;
	}
	run->state = RUN_GOING;
	t->nr_open++;
	json_object_set_new(t->open, run->job, json_true());
	if (c->machine)
		json_object_set_new(t->busy, c->who, json_true());
	runs_note(t->runs, run);
	log_info("schedule %s begins %s of %s: job %s", run->schedule,
		schedule_action_name(c->schedule->action), run->who, run->job);
}

/* Noted first, then done. */
static void begin(struct tick *t, const struct candidate *c, struct run *run)
{
	struct err err = ERR_INIT;
	int64_t now = t->view->now;
	bool due = run->due <= now;
	run->attempt = due ? 1 : run->attempt + 1;
	run->seen = due ? schedule_seen(c->schedule, run->who, run->seen, now) : run->seen;
	run->due = 0;
	run->begun = now;
	run->job[0] = '\0';
	run->state = c->schedule->action == SCHEDULE_REPORT ? RUN_IDLE : RUN_STARTING;
	if (c->machine)
		runs_source(c->machine, run->source);
	if (runs_store(t->runs, run, &err) < 0) {
		/* Not noted, not done: the next call tries again. */
		log_error("schedule %s, %s: %s", run->schedule, run->who, err.text);
		run->state = RUN_WAITING;
		run->next_try = now + LOOK_AGAIN_S;
		return;
	}
	if (c->schedule->action == SCHEDULE_REPORT)
		t->runs->options.report(t->runs->options.context, run->schedule, now);
	else
		make_job(t, c, run);
}

/* --- whether it may ---------------------------------------------------------------------- */

static enum runs_wait obstacle(const struct schedule *schedule, const struct machine *machine,
	const struct run *run, int64_t now)
{
	if (machine && machine->paused && schedule->action == SCHEDULE_BACKUP)
		return RUNS_PAUSED;
	if (machine && !machine->repository)
		return RUNS_NO_REPOSITORY;
	if (schedule->action == SCHEDULE_BACKUP &&
		(!machine || (!machine_node(machine) && json_array_size(json_object_get(
								machine->settings, "disks")) == 0)))
		return RUNS_NO_DISKS;
	if (run && (run->state == RUN_GOING || run->state == RUN_STARTING))
		return RUNS_GOING;
	if (!schedule_is_open(schedule, now))
		return RUNS_WAITS_FOR_WINDOW;
	return RUNS_DUE_LATER;
}

static bool has_place(const struct tick *t, const struct candidate *c)
{
	const struct runs_view *view = t->view;
	const struct schedule *schedule = c->schedule;
	unsigned most = view->most > 0 ? view->most : MOST_JOBS;
	unsigned per_source = view->most_per_source > 0 ? view->most_per_source : MOST_PER_SOURCE;
	unsigned nr_schedule = 0, nr_source = 0;
	char host[256] = "";
	if (schedule->action == SCHEDULE_REPORT)
		return true;
	if (t->nr_open >= most || (c->machine && json_object_get(t->busy, c->who)))
		return false;
	if (schedule->most_per_source > 0 && schedule->most_per_source < per_source)
		per_source = schedule->most_per_source;
	if (schedule->action == SCHEDULE_BACKUP)
		runs_source(c->machine, host);
	for (size_t i = 0; i < t->runs->nr_runs; i++) {
		const struct run *run = &t->runs->runs[i];
		if (run->state != RUN_GOING)
			continue;
		nr_schedule += strcmp(run->schedule, schedule->id) == 0;
		nr_source += host[0] && strcmp(run->source, host) == 0;
	}
	return (schedule->most == 0 || nr_schedule < schedule->most) && nr_source < per_source;
}

static void wake_at(struct tick *t, int64_t moment)
{
	if (moment < t->wake)
		t->wake = moment;
}

static void add_candidate(
	struct tick *t, const char *who, const struct machine *machine, int64_t moment)
{
	if (t->nr_candidates == t->room) {
		size_t room = t->room ? t->room * 2 : 64;
		struct candidate *grown = reallocarray(t->candidates, room, sizeof *grown);
		if (!grown)
			return; /* the next call finds it */
		t->candidates = grown;
		t->room = room;
	}
	t->candidates[t->nr_candidates++] = (struct candidate){
		.schedule = t->schedule, .machine = machine, .who = who, .moment = moment};
}

static void look_at(void *context, const char *who, const struct machine *machine)
{
	struct tick *t = context;
	const struct schedule *schedule = t->schedule;
	struct err err = ERR_INIT;
	int64_t now = t->view->now;
	struct run *run = runs_get(t->runs, schedule, who, now, &err);
	if (!run) {
		log_error("schedule %s, %s: %s", schedule->id, who, err.text);
		return;
	}
	if (!schedule->enabled)
		return;
	if (machine && run->source[0] == '\0')
		runs_source(machine, run->source);
	if (schedule_mend(schedule, who, now, &run->seen)) {
		log_warning("schedule %s, %s: the clock was put back by more than a day: what was "
			    "done in that future does not count",
			schedule->id, who);
		run->due = 0;
	}
	int64_t moment = runs_moment(schedule, run);
	enum runs_wait wait = obstacle(schedule, machine, run, now);
	if (moment > now)
		wake_at(t, moment);
	else if (wait == RUNS_WAITS_FOR_WINDOW)
		wake_at(t, schedule_opens(schedule, now));
	else if (wait == RUNS_DUE_LATER)
		add_candidate(t, who, machine, moment);
}

/* What is due longest comes first; of the same moment the one that was without a restore
 * point for the longest time. */
static int by_moment(const void *a, const void *b)
{
	const struct candidate *one = a, *other = b;
	if (one->moment != other->moment)
		return one->moment < other->moment ? -1 : 1;
	int64_t point = one->machine ? one->machine->newest_time : 0;
	int64_t other_point = other->machine ? other->machine->newest_time : 0;
	if (point != other_point)
		return point < other_point ? -1 : 1;
	return strcmp(one->who, other->who);
}

/* --- what a crash left ---------------------------------------------------------------------- */

static const struct schedule *schedule_of(const struct runs_view *view, const char *id)
{
	for (size_t i = 0; i < view->nr_schedules; i++)
		if (strcmp(view->schedules[i]->id, id) == 0)
			return view->schedules[i];
	return NULL;
}

/* A run whose job is not open: it has ended, or was never made. */
static void settle(struct tick *t, struct run *run)
{
	struct err err = ERR_INIT;
	char by[16 + SCHEDULE_ID_BYTES];
	struct lookup lookup = {.requested_by = by, .since = run->begun - 1, .why = ERR_INIT};
	const struct schedule *schedule = schedule_of(t->view, run->schedule);
	bool of_repository = schedule && schedule->action == SCHEDULE_VERIFY;
	struct state_job_filter filter = {0};
	if (of_repository)
		filter.repository = run->who;
	else
		filter.vm = run->who;
	snprintf(by, sizeof by, "schedule %s", run->schedule);
	int rc = run->state == RUN_STARTING
			 ? state_jobs(t->runs->options.state, &filter, find_begun, &lookup, &err)
			 : state_job(t->runs->options.state, run->job, find_ended, &lookup, &err);
	bool was_in_doubt = run->in_doubt;
	run->in_doubt = rc < 0 && err.code != ERR_NOT_FOUND;
	if (run->in_doubt && !was_in_doubt)
		log_error("schedule %s, %s: what became of its job is not known yet: %s",
			run->schedule, run->who, err.text);
	if (run->in_doubt)
		return; /* as if it went on: the next tick asks again */
	if (lookup.job[0] && !job_state_is_end(lookup.state)) {
		memcpy(run->job, lookup.job, sizeof run->job);
		run->state = RUN_GOING;
	} else if (lookup.job[0]) {
		memcpy(run->job, lookup.job, sizeof run->job);
		struct runs_end end = {.job = lookup.job,
			.vm = lookup.vm[0] ? lookup.vm : NULL,
			.repository = lookup.repository[0] ? lookup.repository : NULL,
			.state = lookup.state,
			.why = lookup.why};
		end.again = runs_job_ended(t->runs, t->view, run->job, lookup.state, &lookup.why);
		t->runs->options.ended(t->runs->options.context, &end);
		return;
	} else {
		/* Noted and not begun: it is its turn again. */
		run->state = RUN_WAITING;
		run->next_try = t->view->now;
		run->attempt -= run->attempt > 0;
	}
	runs_note(t->runs, run);
}

bool runs_job_ended(struct runs *runs, const struct runs_view *view, const char *job,
	enum job_state state, const struct err *why)
{
	for (size_t i = 0; i < runs->nr_runs; i++) {
		struct run *run = &runs->runs[i];
		if (strcmp(run->job, job) != 0 || run->state == RUN_IDLE)
			continue;
		if (run->state == RUN_WAITING) /* it was told already */
			return true;
		if (state == JOB_FAILED)
			return runs_try_again(
				runs, schedule_of(view, run->schedule), run, why, view->now);
		run->state = RUN_IDLE;
		runs_note(runs, run);
		return false;
	}
	return false;
}

/* --- a tick --------------------------------------------------------------------------------- */

static int look_around(struct tick *t, struct err *err)
{
	struct state_job_filter open = {.state = "open"};
	t->busy = json_object();
	t->open = json_object();
	if (!t->busy || !t->open)
		return err_errno(err, ENOMEM, "cannot look at the schedule");
	if (state_jobs(t->runs->options.state, &open, note_open, t, err) < 0)
		return -1;
	for (size_t i = 0; i < t->runs->nr_runs; i++) {
		struct run *run = &t->runs->runs[i];
		if (run->unsaved)
			runs_note(t->runs, run);
		if (run->state == RUN_STARTING ||
			(run->state == RUN_GOING && !json_object_get(t->open, run->job)))
			settle(t, run);
	}
	return 0;
}

int64_t runs_tick(struct runs *runs, const struct runs_view *view)
{
	struct tick t = {.runs = runs, .view = view, .wake = view->now + LOOK_AGAIN_S};
	struct err err = ERR_INIT;
	if (look_around(&t, &err) < 0) {
		log_error("the schedule cannot be looked at: %s", err.text);
		goto out;
	}
	for (size_t i = 0; i < view->nr_schedules; i++) {
		t.schedule = view->schedules[i];
		runs_each(view, t.schedule, look_at, &t);
	}
	if (t.nr_candidates > 0)
		qsort(t.candidates, t.nr_candidates, sizeof *t.candidates, by_moment);
	for (size_t i = 0; i < t.nr_candidates; i++) {
		struct candidate *c = &t.candidates[i];
		struct run *run = runs_find(runs, c->schedule->id, c->who);
		if (has_place(&t, c))
			begin(&t, c, run);
	}
out:
	json_decref(t.busy);
	json_decref(t.open);
	free(t.candidates);
	return t.wake;
}

/* --- for people ------------------------------------------------------------------------------ */

static const char *const wait_names[] = {
	[RUNS_DUE_LATER] = "due later",
	[RUNS_GOING] = "its job goes on",
	[RUNS_WAITS_FOR_RETRY] = "waits for its next try",
	[RUNS_WAITS_FOR_WINDOW] = "waits for its window",
	[RUNS_WAITS_FOR_PLACE] = "waits for a free place",
	[RUNS_PAUSED] = "paused",
	[RUNS_NO_DISKS] = "no disks are set",
	[RUNS_NO_REPOSITORY] = "no repository is set",
};

const char *runs_wait_name(enum runs_wait wait)
{
	return wait_names[wait];
}

struct listing {
	struct runs *runs;
	const struct runs_view *view;
	const struct schedule *schedule;
	void (*callback)(void *context, const struct runs_entry *entry);
	void *context;
};

static void list_one(void *context, const char *who, const struct machine *machine)
{
	struct listing *l = context;
	int64_t now = l->view->now;
	struct run *run = runs_find(l->runs, l->schedule->id, who), blank = {0};
	if (!run || strcmp(run->rule, l->schedule->rule) != 0) {
		blank.seen = now;
		blank.who = (char *)who;
		run = &blank;
	}
	int64_t moment = runs_moment(l->schedule, run);
	enum runs_wait wait = obstacle(l->schedule, machine, run, now);
	bool never = !l->schedule->enabled || wait == RUNS_PAUSED || wait == RUNS_NO_DISKS ||
		     wait == RUNS_NO_REPOSITORY;
	if (moment > now && (wait == RUNS_WAITS_FOR_WINDOW || wait == RUNS_DUE_LATER))
		wait = run->state == RUN_WAITING ? RUNS_WAITS_FOR_RETRY : RUNS_DUE_LATER;
	else if (wait == RUNS_DUE_LATER)
		wait = RUNS_WAITS_FOR_PLACE;
	if (moment < now)
		moment = now;
	struct runs_entry entry = {.who = who,
		.next = never ? 0 : schedule_opens(l->schedule, moment),
		.last = run->begun,
		.last_job = run->job,
		.wait = wait};
	l->callback(l->context, &entry);
}

void runs_list(struct runs *runs, const struct runs_view *view, const struct schedule *schedule,
	void (*callback)(void *context, const struct runs_entry *entry), void *context)
{
	struct listing listing = {.runs = runs,
		.view = view,
		.schedule = schedule,
		.callback = callback,
		.context = context};
	runs_each(view, schedule, list_one, &listing);
}
