/* Records of runs; see runs.h. */
#include "runs_internal.h"

#include "time_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAUSE_MOST_S 86400

static const char *const state_names[] = {
	[RUN_IDLE] = "idle",
	[RUN_STARTING] = "starting",
	[RUN_GOING] = "going",
	[RUN_WAITING] = "waiting",
};

static void make_id(const char *schedule, const char *who, char id[RUN_ID_BYTES])
{
	uint8_t hash[DIGEST_ROOT_BYTES];
	char hex[33];
	digest_sha256(who, strlen(who), hash);
	digest_hex(hash, 16, hex);
	snprintf(id, RUN_ID_BYTES, "%s/%s", schedule, hex);
}

/* Where it is, or where it would have to be. */
static size_t place_of(const struct runs *runs, const char *id, bool *found)
{
	size_t low = 0, high = runs->nr_runs;
	*found = false;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		int order = strcmp(runs->runs[middle].id, id);
		if (order == 0)
			*found = true;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct run *runs_find(struct runs *runs, const char *schedule, const char *who)
{
	char id[RUN_ID_BYTES];
	bool found;
	make_id(schedule, who, id);
	size_t place = place_of(runs, id, &found);
	return found ? &runs->runs[place] : NULL;
}

/* Room for one more. */
static bool has_room(struct runs *runs)
{
	if (runs->runs && runs->nr_runs < runs->room)
		return true;
	size_t room = runs->room ? runs->room * 2 : 64;
	struct run *grown = reallocarray(runs->runs, room, sizeof *grown);
	if (!grown)
		return false;
	runs->runs = grown;
	runs->room = room;
	return true;
}

/* Takes who. */
static struct run *insert(struct runs *runs, const char *schedule, char *who, struct err *err)
{
	char id[RUN_ID_BYTES];
	bool found;
	if (!who || !has_room(runs)) {
		free(who);
		err_errno(err, ENOMEM, "cannot note a run of schedule %s", schedule);
		return NULL;
	}
	make_id(schedule, who, id);
	size_t place = place_of(runs, id, &found);
	struct run *run = &runs->runs[place];
	memmove(run + 1, run, (runs->nr_runs - place) * sizeof *run);
	runs->nr_runs++;
	*run = (struct run){.who = who};
	memcpy(run->id, id, sizeof run->id);
	snprintf(run->schedule, sizeof run->schedule, "%s", schedule);
	return run;
}

static void drop(struct runs *runs, size_t place)
{
	struct run *run = &runs->runs[place];
	free(run->who);
	memmove(run, run + 1, (--runs->nr_runs - place) * sizeof *run);
}

int runs_store(struct runs *runs, const struct run *run, struct err *err)
{
	json_t *value = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:i, s:s}", "schedule",
		run->schedule, "who", run->who, "rule", run->rule, "state", state_names[run->state],
		"seen", (json_int_t)run->seen, "begun", (json_int_t)run->begun, "next_try",
		(json_int_t)run->next_try, "attempt", (int)run->attempt, "job", run->job);
	if (!value)
		return err_errno(err, ENOMEM, "cannot note a run of schedule %s", run->schedule);
	int rc = state_put(runs->options.state, "run", run->id, value, STATE_ANY, NULL, err);
	json_decref(value);
	return rc;
}

void runs_note(struct runs *runs, struct run *run)
{
	struct err err = ERR_INIT;
	bool failed = runs_store(runs, run, &err) < 0;
	if (failed && !run->unsaved)
		log_error("schedule %s, %s: %s (it is tried again)", run->schedule, run->who,
			err.text);
	run->unsaved = failed;
}

struct run *runs_get(struct runs *runs, const struct schedule *schedule, const char *who,
	int64_t now, struct err *err)
{
	struct run *run = runs_find(runs, schedule->id, who);
	if (run && strcmp(run->rule, schedule->rule) == 0)
		return run;
	if (!run && !(run = insert(runs, schedule->id, strdup(who), err)))
		return NULL;
	/* New, or due at other times from now on. */
	run->seen = now;
	run->due = 0;
	memcpy(run->rule, schedule->rule, sizeof run->rule);
	return runs_store(runs, run, err) < 0 ? NULL : run;
}

/* --- what an earlier hub left ------------------------------------------------------------- */

struct opening {
	struct runs *runs;
	int rc;
	struct err *err;
};

static int take(void *context, const struct state_object *object)
{
	struct opening *o = context;
	const char *schedule = time_text(object->value, "schedule");
	const char *who = time_text(object->value, "who");
	const char *rule = time_text(object->value, "rule"), *job = time_text(object->value, "job");
	const char *state = time_text(object->value, "state");
	if (!schedule || !who || !rule || !job || !state) {
		log_warning(
			"run %s in the hub's state cannot be understood: passed over", object->id);
		return 0;
	}
	struct run *run = insert(o->runs, schedule, strdup(who), o->err);
	if (!run) {
		o->rc = -1;
		return 1;
	}
	snprintf(run->rule, sizeof run->rule, "%s", rule);
	snprintf(run->job, sizeof run->job, "%s", job);
	for (size_t i = 0; i < ARRAY_LENGTH(state_names); i++)
		if (strcmp(state, state_names[i]) == 0)
			run->state = (enum run_state)i;
	run->seen = time_number(object->value, "seen", 0);
	run->begun = time_number(object->value, "begun", 0);
	run->next_try = time_number(object->value, "next_try", 0);
	run->attempt = (unsigned)time_number(object->value, "attempt", 1);
	return 0;
}

struct runs *runs_open(const struct runs_options *options, struct err *err)
{
	struct runs *runs = calloc(1, sizeof *runs);
	struct opening opening = {.runs = runs, .err = err};
	if (!runs) {
		err_errno(err, ENOMEM, "cannot start the schedule");
		return NULL;
	}
	runs->options = *options;
	if (state_list(options->state, "run", NULL, take, &opening, err) == 0 && opening.rc == 0)
		return runs;
	runs_close(runs);
	return NULL;
}

void runs_close(struct runs *runs)
{
	if (!runs)
		return;
	while (runs->nr_runs > 0)
		drop(runs, runs->nr_runs - 1);
	free(runs->runs);
	free(runs);
}

int runs_forget(struct runs *runs, const char *schedule, const char *who, struct err *err)
{
	for (size_t i = runs->nr_runs; i-- > 0;) {
		const struct run *run = &runs->runs[i];
		if (schedule ? strcmp(run->schedule, schedule) != 0 : strcmp(run->who, who) != 0)
			continue;
		if (state_delete(runs->options.state, "run", run->id, STATE_ANY, err) < 0)
			return -1;
		drop(runs, i);
	}
	return 0;
}

/* --- for whom, and when -------------------------------------------------------------------- */

static bool names_schedule(const struct machine *machine, const char *schedule)
{
	const json_t *schedules = json_object_get(machine->policy, "schedules");
	for (size_t i = 0; i < json_array_size(schedules); i++)
		if (strcmp(json_string_value(json_array_get(schedules, i)), schedule) == 0)
			return true;
	return false;
}

void runs_each(const struct runs_view *view, const struct schedule *schedule,
	void (*each)(void *context, const char *who, const struct machine *machine), void *context)
{
	switch (schedule->action) {
	case SCHEDULE_REPORT:
		each(context, "", NULL);
		return;
	case SCHEDULE_VERIFY:
		for (size_t i = 0; i < view->nr_repositories; i++)
			if (!schedule->repository ||
				strcmp(schedule->repository, view->repositories[i].name) == 0)
				each(context, view->repositories[i].name, NULL);
		return;
	case SCHEDULE_BACKUP:
	case SCHEDULE_PRUNE:
		break;
	}
	for (size_t i = 0; i < view->machines->nr_machines; i++) {
		const struct machine *machine = &view->machines->machines[i];
		/* What clients push is no schedule's business. */
		if (names_schedule(machine, schedule->id) &&
			(schedule->action == SCHEDULE_PRUNE ? machine_keep(machine) != NULL
							    : machine->settings != NULL))
			each(context, machine->name, machine);
	}
}

int64_t runs_moment(const struct schedule *schedule, struct run *run)
{
	if (run->due == 0)
		run->due = schedule_due(schedule, run->who, run->seen);
	return run->state == RUN_WAITING && run->next_try < run->due ? run->next_try : run->due;
}

/* Whether it may go better at another time. */
static bool is_worth_it(const struct err *why)
{
	switch (why->code) {
	case ERR_USAGE:
	case ERR_DENIED:
	case ERR_UNSUPPORTED:
	case ERR_CORRUPT:
	case ERR_CANCELLED:
	case ERR_EXISTS:
	case ERR_CONFLICT:
	case ERR_RANGE:
		return false;
	default:
		return true;
	}
}

bool runs_try_again(struct runs *runs, const struct schedule *schedule, struct run *run,
	const struct err *why, int64_t now)
{
	bool again = schedule && schedule->enabled && run->attempt <= schedule->retries &&
		     is_worth_it(why);
	run->state = again ? RUN_WAITING : RUN_IDLE;
	if (again) {
		int64_t pause = schedule->retry_after_s;
		for (unsigned i = 1; i < run->attempt && pause < PAUSE_MOST_S; i++)
			pause *= 2;
		run->next_try = now + (pause < PAUSE_MOST_S ? pause : PAUSE_MOST_S);
	}
	runs_note(runs, run);
	return again;
}
