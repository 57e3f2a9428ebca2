/*
 * What happens by the clock: its thread, and the hub's hooks.
 *
 * The thread sleeps until something is due or something happened, at most 20 seconds: clocks
 * jump.  Hooks only leave a note in its inbox.
 */
#include "policy.h"
#include "time_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SLEEP_MOST_S 20
#define WEEKLY_REPORT "weekly-report"

struct ended_job {
	struct ended_job *next;
	char id[JOB_ID_BYTES];
	enum job_state state;
	struct err why;
	bool is_part; /* of another job, whose end counts */
	char *kind, *vm, *repository, *point; /* NULL: none */
};

/* Hooks come until the very end: hub->time is looked at behind this door alone. */
static pthread_rwlock_t door = PTHREAD_RWLOCK_INITIALIZER;

int64_t time_now(void)
{
	return time(NULL);
}

json_t *time_moment(int64_t moment)
{
	char text[CLOCK_UTC_BYTES];
	if (moment <= 0)
		return json_null();
	clock_utc_text(moment, text);
	return json_string(text);
}

void time_error(const json_t *error, struct err *err)
{
	const char *text = time_text(error, "text");
	err_set(err, err_code_parse(time_text(error, "code"), ERR_IO), "%s",
		text ? text : "it did not say why");
}

/* --- the inbox -------------------------------------------------------------------------------- */

static void free_ended(struct ended_job *ended)
{
	while (ended) {
		struct ended_job *next = ended->next;
		free(ended->kind);
		free(ended->vm);
		free(ended->repository);
		free(ended->point);
		free(ended);
		ended = next;
	}
}

void time_changed(struct hub_time *time, bool schedules, bool machines)
{
	WITH_LOCK(&time->inbox_mutex);
	time->schedules_changed |= schedules;
	time->machines_changed |= machines;
	time->woken = true;
	pthread_cond_signal(&time->wake);
}

static char *copy_member(const json_t *job, const char *name)
{
	const char *text = time_text(job, name);
	return text ? strdup(text) : NULL;
}

static void note_end(struct hub_time *time, const char *id, enum job_state state, const json_t *job)
{
	struct ended_job *ended = calloc(1, sizeof *ended), **last;
	if (!ended)
		return; /* the next tick finds the run whose job has ended */
	snprintf(ended->id, sizeof ended->id, "%s", id);
	ended->state = state;
	if (state != JOB_DONE)
		time_error(json_object_get(job, "error"), &ended->why);
	ended->is_part = json_object_get(job, "for_job") != NULL;
	ended->kind = copy_member(job, "kind");
	ended->vm = copy_member(job, "vm");
	ended->repository = copy_member(job, "repository");
	ended->point = copy_member(job, "point");
	WITH_LOCK(&time->inbox_mutex);
	for (last = &time->ended; *last; last = &(*last)->next)
		continue;
	*last = ended;
	time->machines_changed = true;
	time->woken = true;
	pthread_cond_signal(&time->wake);
}

void hub_time_job_changed(struct hub *hub, const char *id, enum job_state state, const json_t *job)
{
	pthread_rwlock_rdlock(&door);
	struct hub_time *time = hub->time;
	if (time) {
		json_t *data = json_pack("{s:s, s:s}", "id", id, "state", job_state_name(state));
		static const char *const told[] = {"kind", "vm", "repository", "stage", "error"};
		for (size_t i = 0; data && i < ARRAY_LENGTH(told); i++)
			json_object_set_new(
				data, told[i], json_deep_copy(json_object_get(job, told[i])));
		feed_put(time->feed, "job", time_text(job, "vm"), data);
		if (job_state_is_end(state)) {
			metrics_job_ended(time->metrics, state, job);
			note_end(time, id, state, job);
		}
	}
	pthread_rwlock_unlock(&door);
}

/* Of the audit log.  A token for some VMs sees those alone: their events come as jobs and
 * alarms. */
void hub_time_event(struct hub *hub, const struct state_event *event)
{
	pthread_rwlock_rdlock(&door);
	if (hub->time) {
		json_t *data = json_pack("{s:I, s:o, s:s, s:s, s:s}", "id", (json_int_t)event->id,
			"time", time_moment(event->time), "actor", event->actor, "action",
			event->action, "object", event->object);
		if (data && event->detail)
			json_object_set_new(data, "detail", json_deep_copy(event->detail));
		feed_put(hub->time->feed, "event", NULL, data);
	}
	pthread_rwlock_unlock(&door);
}

void hub_time_points_changed(struct hub *hub)
{
	pthread_rwlock_rdlock(&door);
	if (hub->time)
		time_changed(hub->time, false, true);
	pthread_rwlock_unlock(&door);
}

void hub_time_node_changed(struct hub *hub)
{
	pthread_rwlock_rdlock(&door);
	if (hub->time)
		time_changed(hub->time, false, false);
	pthread_rwlock_unlock(&door);
}

void hub_time_reload(struct hub *hub)
{
	pthread_rwlock_rdlock(&door);
	struct hub_time *time = hub->time;
	if (time) {
		pthread_mutex_lock(&time->inbox_mutex);
		time->config_changed = true;
		pthread_mutex_unlock(&time->inbox_mutex);
		time_changed(time, true, true);
		notify_wake(time->notify);
	}
	pthread_rwlock_unlock(&door);
}

/* --- what changed is read anew -----------------------------------------------------------------
 */

static void free_schedules(struct schedule **schedules, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		schedule_free(schedules[i]);
	free(schedules);
}

struct schedules {
	struct schedule **items;
	size_t nr;
	const char *zone;
	int rc;
};

static int take_schedule(void *context, const struct state_object *object)
{
	struct schedules *s = context;
	struct err err = ERR_INIT;
	struct schedule *schedule = schedule_parse(object->id, object->value, s->zone, &err);
	if (!schedule) {
		log_error("schedule %s does not run: %s", object->id, err.text);
		return 0;
	}
	struct schedule **grown = reallocarray(s->items, s->nr + 1, sizeof(struct schedule *));
	if (!grown) {
		schedule_free(schedule);
		s->rc = -1;
		return 1;
	}
	s->items = grown;
	s->items[s->nr++] = schedule;
	return 0;
}

static int read_schedules(struct hub_time *time, struct err *err)
{
	struct schedules s = {.zone = hub_config(time->hub)->time_zone};
	if (state_list(time->hub->state, "schedule", NULL, take_schedule, &s, err) < 0 ||
		s.rc < 0) {
		free_schedules(s.items, s.nr);
		return s.rc < 0 ? err_errno(err, ENOMEM, "cannot read the schedules") : -1;
	}
	free_schedules(time->schedules, time->nr_schedules);
	time->schedules = s.items;
	time->nr_schedules = s.nr;
	return 0;
}

static int read_machines(struct hub_time *time, struct err *err)
{
	bool known = hub_points_known(time->hub); /* before it is read */
	struct machine_set *set =
		machine_load(time->hub->state, time->hub->index, hub_config(time->hub), err);
	if (!set)
		return -1;
	machine_set_free(time->machines);
	time->machines = set;
	time->points_known = known;
	return 0;
}

static int watch_space(struct hub_time *time, struct err *err)
{
	const struct hub_config *config = hub_config(time->hub);
	struct capacity *space = capacity_start(config->repositories, config->nr_repositories, err);
	if (!space)
		return -1;
	capacity_stop(time->capacity);
	time->capacity = space;
	return 0;
}

int time_refresh(struct hub_time *time, struct err *err)
{
	pthread_mutex_lock(&time->inbox_mutex);
	bool schedules = time->schedules_changed, machines = time->machines_changed;
	bool config = time->config_changed;
	time->schedules_changed = time->machines_changed = time->config_changed = false;
	pthread_mutex_unlock(&time->inbox_mutex);
	if ((config && watch_space(time, err) < 0) ||
		(schedules && read_schedules(time, err) < 0) ||
		(machines && read_machines(time, err) < 0)) {
		time_changed(time, schedules, machines);
		return -1;
	}
	return 0;
}

struct runs_view time_view(const struct hub_time *time, int64_t now)
{
	const struct hub_config *config = hub_config(time->hub);
	return (struct runs_view){.schedules = time->schedules,
		.nr_schedules = time->nr_schedules,
		.machines = time->machines,
		.repositories = config->repositories,
		.nr_repositories = config->nr_repositories,
		.most = config->most_jobs,
		.most_per_source = config->most_jobs_per_source,
		.now = now};
}

/* --- notices -------------------------------------------------------------------------------- */

static void alarm_changed(void *context, const struct alarm *alarm, bool over)
{
	struct hub_time *time = context;
	struct err err = ERR_INIT;
	bool of_machine = alarm_subject(alarm) == ALARM_OF_MACHINE;
	bool failed = alarm->kind == ALARM_FAILED || alarm->kind == ALARM_VERIFICATION;
	char title[600];
	snprintf(title, sizeof title, "%s %s: %s", alarm_subject_name(alarm), alarm->object,
		over && failed  ? "good again"
		: over          ? "no alarm any more"
		: failed        ? "failed"
		: alarm->severe ? "alarm"
				: "warning");
	json_t *about = api_status_alarm(alarm);
	if (over)
		log_info("%s (it was: %s)", title, alarm->text);
	else
		log_warning("%s: %s", title, alarm->text);
	struct notice notice = {.event = over     ? "recovered"
					 : failed ? "failed"
						  : "alarm",
		.title = title,
		.text = alarm->text,
		.about = about};
	if (time->notify && notify_post(time->notify, &notice, &err) < 0)
		log_error("nobody is told of \"%s\": %s", title, err.text);
	if (about)
		json_object_set_new(about, "over", json_boolean(over));
	feed_put(time->feed, "alarm", of_machine ? alarm->object : NULL, about);
}

static void send_report(void *context, const char *schedule, int64_t now)
{
	struct hub_time *time = context;
	struct err err = ERR_INIT;
	char *AUTO_FREE text = NULL;
	json_t *about = NULL;
	if (report_make(time, now, &text, &about, &err) == 0) {
		struct notice notice = {.event = "report",
			.title = "the week's report",
			.text = text,
			.about = about};
		if (notify_post(time->notify, &notice, &err) == 0)
			log_info("schedule %s: the report is on its way", schedule);
		json_decref(about);
	}
	if (err.code != ERR_NONE)
		log_error("schedule %s: the report is lost: %s", schedule, err.text);
}

/* --- jobs that ended ----------------------------------------------------------------------------
 */

static bool was_handled(struct hub_time *time, const char *job)
{
	for (size_t i = 0; i < ARRAY_LENGTH(time->handled); i++)
		if (strcmp(time->handled[i], job) == 0)
			return true;
	snprintf(time->handled[time->nr_handled++ % ARRAY_LENGTH(time->handled)], JOB_ID_BYTES,
		"%s", job);
	return false;
}

static void prune(struct hub_time *time, const char *repository, const char *vm)
{
	struct err err = ERR_INIT;
	const struct machine *machine = machine_find(time->machines, vm);
	const json_t *keep = machine ? machine_keep(machine) : NULL;
	char id[JOB_ID_BYTES], by[16 + SCHEDULE_ID_BYTES];
	if (!keep || !repository)
		return;
	const char *zone = time_text(machine->policy, "time_zone");
	if (!zone)
		zone = hub_config(time->hub)->time_zone;
	json_t *spec = json_pack("{s:s, s:s, s:s, s:o, s:s*}", "kind", "prune", "repository",
		repository, "vm", vm, "keep", policy_keep_given(keep), "timezone", zone);
	snprintf(by, sizeof by, "policy %s", machine->policy_id);
	if (!spec || jobs_add(time->hub->jobs, spec, by, id, &err) < 0)
		log_warning("VM %s: what its policy does not keep stays for now: %s", vm, err.text);
	json_decref(spec);
}

static void raise_failed(struct hub_time *time, enum alarm_kind kind, const char *object,
	const char *job, const struct err *why, int64_t now)
{
	struct err err = ERR_INIT;
	struct alarm alarm = {.kind = kind,
		.object = (char *)object,
		.since = now,
		.text = (char *)why->text,
		.job = (char *)job};
	if (alarm_raise(time->alarms, &alarm, &err) < 0)
		log_error("%s: %s", object, err.text);
}

static void end_failed(struct hub_time *time, enum alarm_kind kind, const char *object)
{
	struct err err = ERR_INIT;
	if (alarm_clear(time->alarms, kind, object, &err) < 0)
		log_error("%s: %s", object, err.text);
}

/* A job that was to make a restore point, or to verify a repository. */
static void has_ended(struct hub_time *time, bool is_backup, const char *vm, const char *repository,
	const char *job, enum job_state state, const struct err *why, bool again)
{
	enum alarm_kind kind = is_backup ? ALARM_FAILED : ALARM_VERIFICATION;
	const char *object = is_backup ? vm : repository;
	if (!object)
		return;
	if (state == JOB_DONE) {
		end_failed(time, kind, object);
		if (is_backup)
			prune(time, repository, vm);
	} else if (state == JOB_FAILED && !again) {
		raise_failed(time, kind, object, job, why, time_now());
	}
}

/* What the schedule found by itself. */
static void run_ended(void *context, const struct runs_end *end)
{
	struct hub_time *time = context;
	if (end->job[0] && was_handled(time, end->job))
		return;
	has_ended(time, end->vm != NULL, end->vm, end->repository, end->job, end->state, &end->why,
		end->again);
}

static void tell_audit(struct hub_time *time, const struct ended_job *ended)
{
	char object[JOB_ID_BYTES + 8];
	snprintf(object, sizeof object, "job %s", ended->id);
	json_t *detail = json_pack("{s:s*, s:s, s:s*, s:s*, s:s*}", "kind", ended->kind, "state",
		job_state_name(ended->state), "repository", ended->repository, "vm", ended->vm,
		"point", ended->state == JOB_DONE ? ended->point : NULL);
	hub_event(time->hub, "hub", "job.end", object, detail);
	json_decref(detail);
}

static void handle_ended(struct hub_time *time, const struct ended_job *ended, int64_t now)
{
	struct runs_view view = time_view(time, now);
	bool is_backup = ended->kind &&
			 (strcmp(ended->kind, "backup") == 0 || strcmp(ended->kind, "push") == 0);
	bool is_verification = ended->kind && strcmp(ended->kind, "verify") == 0 && !ended->vm;
	bool again = runs_job_ended(time->runs, &view, ended->id, ended->state, &ended->why);
	if (was_handled(time, ended->id) || ended->is_part || !(is_backup || is_verification))
		return;
	has_ended(time, is_backup, ended->vm, ended->repository, ended->id, ended->state,
		&ended->why, again);
}

/* --- the thread
 * ----------------------------------------------------------------------------------- */

/* The moment at which there is something to do again. */
static int64_t work(struct hub_time *time, const struct ended_job *ended)
{
	struct err err = ERR_INIT;
	int64_t now = time_now();
	WITH_LOCK(&time->mutex);
	if (time_refresh(time, &err) < 0) {
		log_error("the schedule goes on with what it knew: %s", err.text);
	}
	for (; ended; ended = ended->next) {
		handle_ended(time, ended, now);
		tell_audit(time, ended);
		hub_points_settled(time->hub, ended->id);
	}
	struct runs_view view = time_view(time, now);
	int64_t wake = now + SLEEP_MOST_S;
	if (!atomic_load(&time->hub->stopping))
		wake = runs_tick(time->runs, &view);
	int64_t alarm = sweep_run(time, now);
	return alarm < wake ? alarm : wake;
}

static void *time_main(void *arg)
{
	struct hub_time *time = arg;
	int64_t wake = time_now();
	for (;;) {
		int64_t left_s = wake - time_now();
		left_s = left_s > SLEEP_MOST_S ? SLEEP_MOST_S : left_s;
		struct deadline until = deadline_after_ms(left_s * 1000);
		pthread_mutex_lock(&time->inbox_mutex);
		while (!time->stop && !time->woken &&
			thread_cond_wait(&time->wake, &time->inbox_mutex, until))
			continue;
		struct ended_job *ended = time->ended;
		bool stop = time->stop;
		time->ended = NULL;
		time->woken = false;
		pthread_mutex_unlock(&time->inbox_mutex);
		if (!stop)
			wake = work(time, ended);
		free_ended(ended);
		if (stop)
			return NULL;
	}
}

/* --- start and stop
 * ------------------------------------------------------------------------------- */

static int add_job(void *context, const json_t *spec, const char *requested_by,
	char id[JOB_ID_BYTES], struct err *err)
{
	struct hub_time *time = context;
	return hub_jobs_add(time->hub, spec, requested_by, id, err);
}

static const struct hub_config *config_of(void *context)
{
	return hub_config(((struct hub_time *)context)->hub);
}

/* A new hub has one schedule: the report, Mondays at eight. */
static int make_defaults(struct hub_time *time, struct err *err)
{
	struct state *state = time->hub->state;
	struct state_object object;
	struct err why = ERR_INIT;
	if (state_get(state, "setting", "schedules-made", &object, &why) == 0) {
		state_object_clear(&object);
		return 0;
	}
	if (why.code != ERR_NOT_FOUND)
		return err_copy(err, &why);
	json_t *report = json_pack("{s:s, s:s, s:s, s:o}", "action", "report", "cron",
		"0 8 * * mon", "description", "How the week was, by webhook and mail", "created",
		time_moment(time_now()));
	json_t *made = json_pack("{s:s}", "by", "start");
	int rc = report && made ? 0 : err_errno(err, ENOMEM, "cannot make the first schedule");
	if (rc == 0)
		rc = state_put(state, "schedule", WEEKLY_REPORT, report, 0, NULL, &why);
	if (rc < 0 && why.code == ERR_EXISTS)
		rc = 0;
	if (rc == 0)
		rc = state_put(state, "setting", "schedules-made", made, STATE_ANY, NULL, &why);
	json_decref(report);
	json_decref(made);
	return rc < 0 && why.code != ERR_NONE ? err_copy(err, &why) : rc;
}

static void time_free(struct hub_time *time)
{
	notify_stop(time->notify);
	capacity_stop(time->capacity);
	alarm_close(time->alarms);
	runs_close(time->runs);
	machine_set_free(time->machines);
	free_schedules(time->schedules, time->nr_schedules);
	metrics_free(time->metrics);
	feed_free(time->feed);
	free_ended(time->ended);
	pthread_cond_destroy(&time->wake);
	pthread_mutex_destroy(&time->inbox_mutex);
	pthread_mutex_destroy(&time->mutex);
	free(time);
}

static int open_all(struct hub_time *time, struct err *err)
{
	struct hub *hub = time->hub;
	struct notify_options notify = {.state = hub->state, .config = config_of, .context = time};
	struct alarms_options alarms = {
		.state = hub->state, .changed = alarm_changed, .context = time};
	struct runs_options runs = {.state = hub->state,
		.add = add_job,
		.report = send_report,
		.ended = run_ended,
		.context = time};
	if (make_defaults(time, err) < 0 || !(time->feed = feed_new(err)) ||
		!(time->metrics = metrics_new(err)) ||
		!(time->notify = notify_start(&notify, err)) ||
		!(time->alarms = alarm_open(&alarms, err)) || !(time->runs = runs_open(&runs, err)))
		return -1;
	return watch_space(time, err) < 0 || read_schedules(time, err) < 0
		       ? -1
		       : read_machines(time, err);
}

int hub_time_start(struct hub *hub, struct err *err)
{
	struct hub_time *time = calloc(1, sizeof *time);
	if (!time)
		return err_errno(err, ENOMEM, "cannot start the schedule");
	time->hub = hub;
	pthread_mutex_init(&time->mutex, NULL);
	pthread_mutex_init(&time->inbox_mutex, NULL);
	thread_cond_init(&time->wake);
	if (open_all(time, err) < 0 ||
		thread_start(&time->thread, "schedule", time_main, time, err) < 0) {
		time_free(time);
		return -1;
	}
	pthread_rwlock_wrlock(&door);
	hub->time = time;
	pthread_rwlock_unlock(&door);
	return 0;
}

void hub_time_stop(struct hub *hub)
{
	pthread_rwlock_wrlock(&door);
	struct hub_time *time = hub->time;
	hub->time = NULL;
	pthread_rwlock_unlock(&door);
	if (!time)
		return;
	feed_end(time->feed);
	pthread_mutex_lock(&time->inbox_mutex);
	time->stop = true;
	pthread_cond_signal(&time->wake);
	pthread_mutex_unlock(&time->inbox_mutex);
	pthread_join(time->thread, NULL);
	time_free(time);
}

/* --- REST
 * ------------------------------------------------------------------------------------------ */

const struct rest_route hub_time_routes[] = {
	{"GET", "/api/v1/schedules?limit&after", "listSchedules", REST_READ, 0, api_schedules_list,
		0},
	{"POST", "/api/v1/schedules", "createSchedule", REST_OPERATE, REST_CREATES,
		api_schedules_create, 0},
	{"GET", "/api/v1/schedules/{id}", "getSchedule", REST_READ, 0, api_schedules_get, 0},
	{"PUT", "/api/v1/schedules/{id}", "putSchedule", REST_OPERATE, 0, api_schedules_replace, 0},
	{"DELETE", "/api/v1/schedules/{id}", "deleteSchedule", REST_OPERATE, 0,
		api_schedules_delete, 0},
	{"GET", "/api/v1/schedules/{id}/next?count", "getScheduleNext", REST_READ, 0,
		api_schedules_next, 0},
	{"GET", "/api/v1/policies?limit&after", "listPolicies", REST_READ, 0, api_policies_list, 0},
	{"POST", "/api/v1/policies", "createPolicy", REST_OPERATE, REST_CREATES,
		api_policies_create, 0},
	{"GET", "/api/v1/policies/{id}", "getPolicy", REST_READ, 0, api_policies_get, 0},
	{"PUT", "/api/v1/policies/{id}", "putPolicy", REST_OPERATE, 0, api_policies_replace, 0},
	{"DELETE", "/api/v1/policies/{id}", "deletePolicy", REST_OPERATE, 0, api_policies_delete,
		0},
	{"GET", "/api/v1/vms?limit&after", "listVms", REST_READ, REST_VMS, api_machines_list, 0},
	{"GET", "/api/v1/vms/{vm}", "getVm", REST_READ, 0, api_machines_get, 0},
	{"PUT", "/api/v1/vms/{vm}", "putVm", REST_OPERATE, 0, api_machines_replace, 0},
	{"DELETE", "/api/v1/vms/{vm}", "deleteVm", REST_OPERATE, 0, api_machines_delete, 0},
	{"GET", "/api/v1/status", "getStatus", REST_READ, REST_VMS, api_status, 0},
	{"GET", "/api/v1/events/stream", "followEvents", REST_READ, REST_STREAMS | REST_VMS,
		api_stream, 0},
	{"GET", "/metrics", "getMetrics", REST_READ, 0, api_metrics, 0},
	{0},
};
