/*
 * The supervisor's thread: starts what may start, looks after what runs four times a second, ends
 * what must end.
 *
 *   end of a worker:  asked ─► SIGTERM ─4 s─► SIGKILL ─½ s─► fenced ─½ s─► closed, its process
 *                                             (its locks are taken away)    reaped when it goes
 *
 * One that has a snapshot on a vCenter gets minutes instead of the 4 s, as long as it gives signs
 * of life: what it does not give back would slow the machine down until the next job of it.
 */
#include "job_internal.h"

#include "jobplan.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define LOOK_MS 250
#define LOOK_IDLE_MS 5000
#define TERMINATE_MS 4000
#define GIVE_BACK_MS 300000
#define FENCE_MS 500
#define LOOK_MOST_MS 20000 /* for its restore point */
#define SILENCE_OTHERWISE_MS 60000u
#define WATCHED_MOST 256u

void supervise_wake(const struct jobs *jobs)
{
	const uint64_t one = 1;
	ssize_t n = write(jobs->wake_fd, &one, sizeof one);
	(void)n; /* it is full: the thread wakes anyway */
}

int supervise_change(struct jobs *jobs, struct job *job, enum job_state state, struct err *err)
{
	enum job_state before = job->state;
	if (!job_state_may(before, state))
		return err_set(err, ERR_REFUSED, "job %s is %s, and cannot be %s any more", job->id,
			job_state_name(before), job_state_name(state));
	job->state = state;
	if (jobrecord_put(jobs, job, err) < 0) {
		job->state = before;
		return -1;
	}
	jobrecord_tell(jobs, job);
	return 0;
}

void supervise_stop(struct job *job, const struct err *why)
{
	if (job->stop != STOP_NOT)
		return;
	job->stop = STOP_ASKED;
	job->stop_why = *why;
}

/* --- starting ---------------------------------------------------------------------------- */

static json_t *list_of(const char *const *texts)
{
	json_t *list = json_array();
	for (size_t i = 0; texts && texts[i]; i++)
		json_array_append_new(list, json_string(texts[i]));
	return list;
}

/* One that lies here, with what is noted of it. */
static json_t *local_repository(const struct jobs *jobs, const struct job *job,
	const struct job_repository *r, bool stores, struct err *err)
{
	json_t *note;
	struct job_repository noted = *r;
	if (job_mount_noted(jobs->options.state, r, &note, err) < 0)
		return NULL;
	job_mount_use(&noted, note);
	json_t *repository = json_pack("{s:s, s:s, s:s?, s:b, s:s?, s:I, s:I}", "name", r->name,
		"path", r->path, "id", noted.id, "require_mount", r->require_mount, "mount",
		noted.mount, "stop_free", (json_int_t)(stores ? r->stop_free_bytes : 0), "reserved",
		(json_int_t)(queue_reserved(jobs, job->repository, job) & INT64_MAX));
	json_decref(note);
	return repository;
}

json_t *supervise_repository(
	const struct jobs *jobs, const struct job *job, bool stores, struct err *err)
{
	const struct job_repository *r = jobplan_repository(&jobs->options, job->repository);
	if (!r) {
		err_set(err, ERR_NOT_FOUND, "there is no repository %s in the configuration",
			job->repository);
		return NULL;
	}
	if (!r->url)
		return local_repository(jobs, job, r, stores, err);
	return json_pack("{s:s, s:s, s:s?, s:s?, s:s?}", "name", r->name, "url", r->url,
		"token_file", r->token_file, "ca_file", r->ca_file, "id", r->id);
}

/* Paths, no secrets; the worker finds out which disk they are for. */
static json_t *credentials_of(const struct jobs *jobs)
{
	const char *const *lines = jobs->options.credentials;
	json_t *list = json_array();
	for (size_t i = 0; lines && lines[i]; i++)
		json_array_append_new(list, credentials_parse(lines[i], NULL));
	return list;
}

static json_t *plan_of(const struct jobs *jobs, const struct job *job, struct err *err)
{
	bool stores = strcmp(job->kind, "backup") == 0;
	json_t *repository = job->repository ? supervise_repository(jobs, job, stores, err) : NULL;
	json_t *argv = repository || !job->repository ? jobplan_argv(&jobs->options, job->spec, err)
						      : NULL;
	if (!argv) {
		json_decref(repository);
		return NULL;
	}
	return json_pack("{s:s, s:o, s:o*, s:{s:o, s:o}, s:o, s:o*}", "job", job->id, "argv", argv,
		"repository", repository, "allow", "source", list_of(jobs->options.allow_sources),
		"target", list_of(jobs->options.allow_targets), "credentials", credentials_of(jobs),
		"look", job->unsure ? look_plan(job) : NULL);
}

int supervise_folder(
	struct jobs *jobs, const char *name, const json_t *plan, int *dir_fd, struct err *err)
{
	if (jobdir_remove(jobs->runtime_fd, name, err) < 0)
		return -1;
	if (mkdirat(jobs->runtime_fd, name, 0700) < 0)
		return err_errno(err, errno, "cannot make folder %s/%s", jobs->runtime, name);
	*dir_fd = openat(jobs->runtime_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (*dir_fd < 0)
		return err_errno(err, errno, "cannot open folder %s/%s", jobs->runtime, name);
	return jobdir_store(*dir_fd, JOBDIR_PLAN, plan, err);
}

int supervise_fork(struct jobs *jobs, const char *name, struct process *process, struct err *err)
{
	char folder[PATH_MAX], errors[PATH_MAX + 16];
	snprintf(folder, sizeof folder, "%s/%s", jobs->runtime, name);
	snprintf(errors, sizeof errors, "%s/" JOBDIR_STDERR, folder);
	const char *const argv[] = {"sendense", "worker", folder, NULL};
	struct process_options options = {
		.program = jobs->options.program,
		.argv = argv,
		.stderr_path = errors,
		.memory_bytes = jobs->options.memory_bytes,
	};
	return process_start(process, &options, err);
}

static void watch(struct jobs *jobs, struct job *job)
{
	const struct jobs_options *o = &jobs->options;
	job->silent_at = deadline_after_ms(o->silence_ms ? o->silence_ms : SILENCE_OTHERWISE_MS);
	job->still_at =
		deadline_after_ms(o->stage_ms ? o->stage_ms : job_state_still_ms(job->stage));
	if (job->is_looking)
		job->look_until = deadline_after_ms(LOOK_MOST_MS);
}

void supervise_set_stage(struct job *job, const char *stage, const char *since)
{
	snprintf(job->stage, sizeof job->stage, "%s", stage);
	if (since)
		snprintf(job->stage_since, sizeof job->stage_since, "%.31s", since);
	else
		clock_utc_text(time(NULL), job->stage_since);
}

/* What it takes is written down before: its folder, its process before it does anything. */
int supervise_launch(struct jobs *jobs, struct job *job, const json_t *plan, struct err *err)
{
	struct state *state = jobs->options.state;
	if (state_take(state, job->id, "folder", job->id, NULL, err) < 0 ||
		state_take(state, job->id, "process", "worker", NULL, err) < 0 ||
		supervise_folder(jobs, job->id, plan, &job->dir_fd, err) < 0 ||
		supervise_fork(jobs, job->id, &job->process, err) < 0)
		return -1;
	json_t *who = process_to_json(&job->process);
	int rc = state_take(state, job->id, "process", "worker", who, err);
	json_decref(who);
	if (rc == 0)
		rc = jobrecord_put(jobs, job, err);
	if (rc == 0)
		rc = process_let_go(&job->process, err);
	else
		process_abandon(&job->process);
	job->heartbeat = job->moved = 0;
	watch(jobs, job);
	return rc;
}

static int start(struct jobs *jobs, struct job *job, struct err *err)
{
	json_t *plan = plan_of(jobs, job, err);
	if (!plan)
		return -1;
	int rc = -1;
	job->attempt++;
	job->next_try = 0;
	if (job->started == 0)
		job->started = time(NULL);
	json_decref(job->progress);
	json_decref(job->disks);
	job->progress = job->disks = NULL;
	supervise_set_stage(job, "start", NULL);
	if (supervise_change(jobs, job, JOB_STARTING, err) < 0)
		job->attempt--;
	else
		rc = supervise_launch(jobs, job, plan, err);
	json_decref(plan);
	return rc;
}

static void start_next(struct jobs *jobs)
{
	struct job *job;
	while ((job = queue_next(jobs))) {
		struct err why = ERR_INIT;
		if (start(jobs, job, &why) == 0)
			continue;
		log_warning("job %s: %s", job->id, why.text);
		if (job->state == JOB_QUEUED) {
			/* state.db, or its plan: the former may come back. */
			job->next_at = deadline_after_ms(LOOK_IDLE_MS);
			job->next_try = time(NULL) + LOOK_IDLE_MS / 1000;
			if (why.code != ERR_NOT_FOUND && why.code != ERR_USAGE &&
				why.code != ERR_UNSUPPORTED)
				continue;
		}
		finish_job(jobs, job, -1, &why);
	}
}

int supervise_adopt(struct jobs *jobs, struct job *job, struct err *err)
{
	job->dir_fd =
		openat(jobs->runtime_fd, job->id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (job->dir_fd < 0)
		return err_errno(err, errno, "cannot open folder %s/%s", jobs->runtime, job->id);
	watch(jobs, job);
	return 0;
}

/* --- watching ------------------------------------------------------------------------------ */

static json_int_t sum_of(const json_t *progress)
{
	static const char *const names[] = {"logical", "read", "sent", "stored", "zeros_skipped"};
	json_int_t sum = 0;
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		sum += json_integer_value(json_object_get(progress, names[i])) & INT64_MAX >> 4;
	return sum;
}

/* Its worker found out which machine it is: the next attempt, and whoever looks for its restore
 * point, go by that name. */
static void take_vm(struct job *job, const json_t *status)
{
	json_t *vm = json_object_get(status, "vm");
	if (!job->vm && json_is_string(vm) && json_object_set(job->spec, "vm", vm) == 0)
		job->vm = json_string_value(vm);
}

static void take_figures(struct job *job, const json_t *status)
{
	json_t *progress = json_object_get(status, "progress");
	json_t *disks = json_object_get(status, "disks");
	if (json_is_object(progress)) {
		json_decref(job->progress);
		job->progress = json_incref(progress);
	}
	if (json_is_array(disks)) {
		json_decref(job->disks);
		job->disks = json_incref(disks);
	}
}

static void take_stage(struct jobs *jobs, struct job *job, const json_t *status)
{
	const char *stage = json_string_value(json_object_get(status, "stage"));
	if (!stage || strcmp(stage, job->stage) == 0)
		return;
	supervise_set_stage(job, stage, json_string_value(json_object_get(status, "stage_since")));
	enum job_state state = job_state_of_stage(job->stage);
	struct err why = ERR_INIT;
	if (state == job->state || !job_state_may(job->state, state))
		jobrecord_tell(jobs, job);
	else if (supervise_change(jobs, job, state, &why) < 0)
		log_warning("job %s: %s", job->id, why.text);
}

void supervise_look(struct jobs *jobs, struct job *job)
{
	const struct jobs_options *o = &jobs->options;
	json_t *status = job->dir_fd < 0 ? NULL : jobdir_load(job->dir_fd, JOBDIR_STATUS, NULL);
	json_int_t heartbeat = json_integer_value(json_object_get(status, "heartbeat"));
	if (status && heartbeat != job->heartbeat) {
		char before[JOB_STAGE_BYTES];
		memcpy(before, job->stage, sizeof before);
		if (!job->is_looking) {
			take_figures(job, status);
			take_vm(job, status);
			take_stage(jobs, job, status);
		}
		json_int_t moved =
			sum_of(job->progress) + json_integer_value(json_object_get(status, "work"));
		if (moved != job->moved || strcmp(before, job->stage) != 0)
			job->still_at = deadline_after_ms(
				o->stage_ms ? o->stage_ms : job_state_still_ms(job->stage));
		job->moved = moved;
		job->heartbeat = heartbeat;
		job->silent_at =
			deadline_after_ms(o->silence_ms ? o->silence_ms : SILENCE_OTHERWISE_MS);
		job->changes++;
		pthread_cond_broadcast(&jobs->changed);
	}
	json_decref(status);
}

static void check_deadlines(struct job *job)
{
	struct err why = ERR_INIT;
	if (job->stop != STOP_NOT)
		return;
	if (job->is_looking && deadline_passed(job->look_until))
		err_set(&why, ERR_TIMEOUT, "whoever looks for its restore point does not end");
	else if (deadline_passed(job->silent_at))
		err_set(&why, ERR_TIMEOUT,
			"its worker (process %d) gives no sign of life in stage %s, since %s",
			(int)job->process.pid, job->stage, job->stage_since);
	else if (deadline_passed(job->still_at))
		err_set(&why, ERR_TIMEOUT, "nothing moves any more in stage %s, since %s",
			job->stage, job->stage_since);
	if (why.code != ERR_NONE) {
		log_warning("job %s: %s", job->id, why.text);
		supervise_stop(job, &why);
	}
}

/* --- ending -------------------------------------------------------------------------------- */

bool supervise_has_snapshot(const struct job *job)
{
	/* Of a replication: which target is which is proven before. */
	static const char *const before[] = {
		"start", "check", "prepare", "recover", "open", "match", "prove", "resume"};
	bool takes_one = strcmp(job->kind, "backup") == 0 || strcmp(job->kind, "replicate") == 0;
	if (!takes_one || !json_object_get(job->spec, "vcenter") || job->is_looking)
		return false;
	for (size_t i = 0; i < ARRAY_LENGTH(before); i++)
		if (strcmp(job->stage, before[i]) == 0)
			return false;
	return true;
}

static bool is_patience_over(const struct job *job)
{
	return deadline_passed(job->stop_at) ||
	       (supervise_has_snapshot(job) && deadline_passed(job->silent_at));
}

static void go_on_stopping(struct jobs *jobs, struct job *job)
{
	struct err why = ERR_INIT;
	int number = 0;
	if (job->stop == STOP_ASKED) {
		number = SIGTERM;
		job->stop = STOP_TERMINATED;
		job->stop_at = deadline_after_ms(
			supervise_has_snapshot(job) ? GIVE_BACK_MS : TERMINATE_MS);
		jobrecord_tell(jobs, job);
	} else if (job->stop == STOP_TERMINATED && is_patience_over(job)) {
		number = SIGKILL;
		job->stop = STOP_KILLED;
		job->stop_at = deadline_after_ms(JOB_KILL_MS);
	} else if (job->stop == STOP_KILLED && deadline_passed(job->stop_at)) {
		job->stop = STOP_FENCED;
		job->stop_at = deadline_after_ms(FENCE_MS);
		fence_look(jobs, job);
	} else if (job->stop == STOP_FENCED) {
		fence_look(jobs, job);
		if (job->is_fenced || deadline_passed(job->stop_at))
			finish_fenced(jobs, job);
		return;
	}
	if (number && process_signal(&job->process, number, &why) < 0)
		log_warning("job %s: %s", job->id, why.text);
}

static void look_after(struct jobs *jobs, struct job *job)
{
	int status = -1;
	bool ended = job->process.pid == 0 || process_has_ended(&job->process, &status);
	supervise_look(jobs, job);
	if (ended) {
		if (fence_give_up(job) && deadline_passed(job->finish_at))
			finish_job(jobs, job, status, NULL);
		return;
	}
	check_deadlines(job);
	go_on_stopping(jobs, job);
}

static void look_after_unreaped(struct jobs *jobs)
{
	for (struct job *job = jobs->unreaped, *next; job; job = next) {
		next = job->next;
		bool is_gone = job->process.pid == 0 || process_has_ended(&job->process, NULL);
		if (!is_gone || fence_is_running(job))
			fence_look(jobs, job);
		finish_note_late_point(jobs, job);
		if (is_gone && !fence_is_running(job))
			finish_reaped(jobs, job);
	}
}

/* --- the thread ------------------------------------------------------------------------------ */

static void look_after_all(struct jobs *jobs)
{
	for (struct job *job = jobs->open, *next; job; job = next) {
		next = job->next;
		if (queue_is_running(job))
			look_after(jobs, job);
	}
	look_after_unreaped(jobs);
	start_next(jobs);
}

/* Told without the lock. */
static void tell_changes(struct jobs *jobs)
{
	const struct jobs_options *o = &jobs->options;
	pthread_mutex_lock(&jobs->mutex);
	struct job_change *change = jobs->first;
	jobs->first = NULL;
	jobs->last = &jobs->first;
	pthread_mutex_unlock(&jobs->mutex);
	while (change) {
		struct job_change *next = change->next;
		if (change->json && o->changed)
			o->changed(o->context, change->id, change->state, change->json);
		else if (!change->json && o->cancel_foreign)
			o->cancel_foreign(o->context, change->id, change->why);
		json_decref(change->json);
		free(change);
		change = next;
	}
}

/* What wakes it at once; returns how long it may sleep otherwise. */
static int gather(struct jobs *jobs, struct pollfd *fds, nfds_t *nr)
{
	int timeout_ms = LOOK_IDLE_MS;
	WITH_LOCK(&jobs->mutex);
	fds[0] = (struct pollfd){.fd = jobs->wake_fd, .events = POLLIN};
	*nr = 1;
	for (const struct job *job = jobs->open; job; job = job->next) {
		if (queue_is_running(job)) {
			timeout_ms = LOOK_MS;
			if (job->process.pidfd >= 0 && *nr < WATCHED_MOST)
				fds[(*nr)++] =
					(struct pollfd){.fd = job->process.pidfd, .events = POLLIN};
		} else if (job->state == JOB_QUEUED && job->next_try > 0) {
			int left_ms = deadline_left_ms(job->next_at) + 1;
			timeout_ms = left_ms < timeout_ms ? left_ms : timeout_ms;
		}
	}
	return jobs->unreaped ? LOOK_MS : timeout_ms;
}

void *supervise_main(void *arg)
{
	struct jobs *jobs = arg;
	struct pollfd fds[WATCHED_MOST];
	for (;;) {
		pthread_mutex_lock(&jobs->mutex);
		bool quit = jobs->quit;
		if (!quit)
			look_after_all(jobs);
		pthread_mutex_unlock(&jobs->mutex);
		tell_changes(jobs);
		if (quit)
			return NULL;
		nfds_t nr;
		int timeout_ms = gather(jobs, fds, &nr);
		uint64_t count;
		if (poll(fds, nr, timeout_ms) > 0 && fds[0].revents & POLLIN &&
			read(jobs->wake_fd, &count, sizeof count) < 0 && errno != EAGAIN)
			log_error("cannot read an eventfd: %s", strerror(errno));
	}
}
