/* What others call of the queue; see job.h. */
#include "job_internal.h"

#include "allow.h"
#include "jobplan.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#define STOP_STEP_MS 100
#define OPEN_MOST 4000u
#define OPEN_MOST_OF_ONE 500u /* of one token, or schedule */

/* --- start and stop ---------------------------------------------------------------------- */

static int open_folder(const char *parent, char **path, int *fd, struct err *err)
{
	if (asprintf(path, "%s/jobs", parent) < 0) {
		*path = NULL;
		return err_errno(err, ENOMEM, "cannot start the queue of jobs");
	}
	if (file_make_dir(AT_FDCWD, *path, 0700, err) < 0)
		return -1;
	*fd = open(*path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return *fd < 0 ? err_errno(err, errno, "cannot open folder %s", *path) : 0;
}

static void free_list(struct job *job)
{
	while (job) {
		struct job *next = job->next;
		jobrecord_free(job);
		job = next;
	}
}

static void free_jobs(struct jobs *jobs)
{
	free_list(jobs->open);
	free_list(jobs->unreaped);
	while (jobs->first) {
		struct job_change *next = jobs->first->next;
		json_decref(jobs->first->json);
		free(jobs->first);
		jobs->first = next;
	}
	if (jobs->runtime_fd >= 0)
		close(jobs->runtime_fd);
	if (jobs->kept_fd >= 0)
		close(jobs->kept_fd);
	if (jobs->wake_fd >= 0)
		close(jobs->wake_fd);
	pthread_cond_destroy(&jobs->changed);
	pthread_mutex_destroy(&jobs->mutex);
	free(jobs->runtime);
	free(jobs);
}

static int check_rules(const struct jobs_options *o, struct err *err)
{
	for (size_t i = 0; o->allow_sources && o->allow_sources[i]; i++)
		if (allow_check_rule(o->allow_sources[i], ALLOW_SOURCE, err) < 0)
			return -1;
	for (size_t i = 0; o->allow_targets && o->allow_targets[i]; i++)
		if (allow_check_rule(o->allow_targets[i], ALLOW_TARGET, err) < 0)
			return -1;
	for (size_t i = 0; o->credentials && o->credentials[i]; i++) {
		json_t *one = credentials_parse(o->credentials[i], err);
		json_decref(one);
		if (!one)
			return -1;
	}
	return 0;
}

/* What is kept would be put behind itself, and then removed. */
static int check_folders(const struct jobs *jobs, struct err *err)
{
	struct stat a, b;
	if (fstat(jobs->runtime_fd, &a) < 0 || fstat(jobs->kept_fd, &b) < 0)
		return err_errno(err, errno, "cannot look at %s", jobs->runtime);
	if (a.st_dev != b.st_dev || a.st_ino != b.st_ino)
		return 0;
	return err_set(err, ERR_USAGE,
		"the folders for what runs and for what is kept are one: %s (give each its own)",
		jobs->runtime);
}

struct jobs *jobs_start(const struct jobs_options *options, struct err *err)
{
	char *AUTO_FREE kept = NULL;
	if (check_rules(options, err) < 0)
		return NULL;
	struct jobs *jobs = calloc(1, sizeof *jobs);
	if (!jobs) {
		err_errno(err, ENOMEM, "cannot start the queue of jobs");
		return NULL;
	}
	jobs->options = *options;
	jobs->last = &jobs->first;
	jobs->kept_fd = -1;
	jobs->runtime_fd = -1;
	pthread_mutex_init(&jobs->mutex, NULL);
	thread_cond_init(&jobs->changed);
	jobs->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (jobs->wake_fd < 0)
		err_errno(err, errno, "cannot start the queue of jobs");
	else if (open_folder(options->runtime_dir, &jobs->runtime, &jobs->runtime_fd, err) == 0 &&
		 open_folder(options->state_dir, &kept, &jobs->kept_fd, err) == 0 &&
		 check_folders(jobs, err) == 0 && reconcile(jobs, err) == 0 &&
		 thread_start(&jobs->thread, "jobs", supervise_main, jobs, err) == 0)
		return jobs;
	free_jobs(jobs);
	return NULL;
}

static bool nothing_runs(const struct jobs *jobs)
{
	for (const struct job *job = jobs->open; job; job = job->next)
		if (queue_is_running(job))
			return false;
	return true;
}

/* Written down, so that the next hub knows what ended them, if that takes longer. */
static void stop_all(struct jobs *jobs)
{
	struct err why, trouble = ERR_INIT;
	err_set(&why, ERR_CANCELLED, "the daemon was stopped");
	for (struct job *job = jobs->open; job; job = job->next) {
		if (!queue_is_running(job) || job->asked_to_cancel || job->is_looking)
			continue;
		job->asked_to_cancel = true;
		job->stop_why = why;
		supervise_stop(job, &why);
		if (jobrecord_put(jobs, job, &trouble) < 0)
			log_warning("job %s: %s", job->id, trouble.text);
	}
}

void jobs_stop(struct jobs *jobs, bool hand_over, struct deadline until)
{
	if (!jobs)
		return;
	pthread_mutex_lock(&jobs->mutex);
	jobs->draining = true;
	if (!hand_over)
		stop_all(jobs);
	supervise_wake(jobs);
	while (!nothing_runs(jobs) && !deadline_passed(until))
		thread_cond_wait(&jobs->changed, &jobs->mutex,
			deadline_min(until, deadline_after_ms(STOP_STEP_MS)));
	jobs->quit = true;
	supervise_wake(jobs);
	pthread_mutex_unlock(&jobs->mutex);
	pthread_join(jobs->thread, NULL);
	free_jobs(jobs);
}

/* --- adding ------------------------------------------------------------------------------------
 */

/* Ids grow, also within a second: the tail begins with the part of the second. */
static int make_id(struct jobs *jobs, char id[JOB_ID_BYTES], struct err *err)
{
	uint32_t chance;
	struct timespec now;
	if (file_random(&chance, sizeof chance, err) < 0)
		return -1;
	clock_gettime(CLOCK_REALTIME, &now);
	struct tm tm;
	gmtime_r(&now.tv_sec, &tm);
	size_t used = strftime(id, JOB_ID_BYTES, "%Y%m%dT%H%M%SZ", &tm);
	snprintf(id + used, JOB_ID_BYTES - used, "-%05x%03x", (unsigned)(now.tv_nsec / 1000),
		chance & 0xfff);
	if (strcmp(id, jobs->last_id) <= 0) {
		/* The same microsecond, or the clock went back. */
		uint32_t tail = (uint32_t)strtoul(jobs->last_id + used + 1, NULL, 16);
		memcpy(id, jobs->last_id, JOB_ID_BYTES);
		snprintf(id + used, JOB_ID_BYTES - used, "-%08x", tail + 1);
	}
	memcpy(jobs->last_id, id, JOB_ID_BYTES);
	return 0;
}

struct last_stored {
	const char *figure;
	bool is_foreign;
	json_int_t bytes;
};

static int take_stored(void *context, const struct state_job *record)
{
	struct last_stored *last = context;
	/* What somebody else says that his took reserves nothing for ours. */
	if (json_is_true(json_object_get(record->value, "foreign")) != last->is_foreign)
		return 0;
	last->bytes = json_integer_value(
		json_object_get(json_object_get(record->value, "progress"), last->figure));
	return 1;
}

/* What the machine's last backup took and a quarter more, where nobody said better. */
static void estimate(struct jobs *jobs, struct job *job)
{
	struct last_stored last = {.figure = queue_figure(job), .is_foreign = job->is_foreign};
	const struct state_job_filter filter = {
		.state = "done", .kind = job->kind, .vm = job->vm, .repository = job->repository};
	bool stores = strcmp(job->kind, "backup") == 0 || queue_is_push(job);
	if (job->reserved_bytes > 0 || !stores)
		return;
	if (state_jobs(jobs->options.state, &filter, take_stored, &last, NULL) == 0 &&
		last.bytes > 0)
		job->reserved_bytes = (uint64_t)last.bytes + (uint64_t)last.bytes / 4;
}

/* Nobody waits in the queue for a client: it is told to come again. */
static int check_place(
	const struct jobs *jobs, const struct job *push, uint64_t free_bytes, struct err *err)
{
	unsigned most = queue_most(jobs), nr = queue_nr_places(jobs);
	const struct job_repository *r = jobplan_repository(&jobs->options, push->repository);
	int rc = 0;
	if (nr >= most)
		rc = err_set(
			err, ERR_BUSY, "%u jobs run, pushes included, of at most %u", nr, most);
	else if (r && free_bytes != UINT64_MAX)
		rc = job_check_space(
			r, free_bytes, queue_reserved(jobs, push->repository, NULL), err);
	if (rc < 0 && err && err->code == ERR_BUSY)
		err->sys_errno = EAGAIN;
	return rc;
}

/* The queue is looked through again and again: one who asks without end must not bring it to a
 * stand for all. */
static int check_room(const struct jobs *jobs, const struct job *new, struct err *err)
{
	unsigned nr = 0, nr_same = 0;
	for (const struct job *job = jobs->open; job; job = job->next) {
		nr++;
		nr_same += strcmp(job->requested_by, new->requested_by) == 0;
	}
	if (nr_same >= OPEN_MOST_OF_ONE)
		return err_set(err, ERR_BUSY,
			"%u jobs that %s asked for have not ended: that is the most", nr_same,
			new->requested_by);
	return nr < OPEN_MOST
		       ? 0
		       : err_set(err, ERR_BUSY, "%u jobs have not ended: that is the most", nr);
}

static struct job *find(struct jobs *jobs, const char *id)
{
	struct job *job = jobs->open;
	while (job && strcmp(job->id, id) != 0)
		job = job->next;
	return job;
}

static bool is_same(const char *a, const char *b)
{
	return a && b && strcmp(a, b) == 0;
}

/* What is part of a job is of the same machine and repository, and does not outlive it. */
static int check_whole(struct jobs *jobs, const struct job *part, struct err *err)
{
	const char *id = queue_part_of(part);
	const struct job *whole = id ? find(jobs, id) : NULL;
	if (!id)
		return 0;
	if (!whole || whole->asked_to_cancel)
		return err_set(err, ERR_REFUSED, "job %s has ended, or is to be cancelled", id);
	if (!is_same(whole->vm, part->vm) || !is_same(whole->repository, part->repository))
		return err_set(err, ERR_REFUSED, "job %s is of another machine or repository", id);
	return 0;
}

static int put_in(struct jobs *jobs, struct job *job, uint64_t free_bytes, struct err *err)
{
	struct job **end = &jobs->open;
	if (check_room(jobs, job, err) < 0 || check_whole(jobs, job, err) < 0)
		return -1;
	const struct job *writer = job->is_foreign ? queue_writer(jobs, job) : NULL;
	if (writer)
		return err_set(err, ERR_BUSY, "%s: job %s (%s) writes its restore points, since %s",
			job->vm, writer->id, writer->kind, writer->stage_since);
	if (queue_is_push(job) && !queue_part_of(job) &&
		check_place(jobs, job, free_bytes, err) < 0)
		return -1;
	if (make_id(jobs, job->id, err) < 0 || jobrecord_put(jobs, job, err) < 0)
		return -1;
	while (*end)
		end = &(*end)->next;
	*end = job;
	jobrecord_tell(jobs, job);
	supervise_wake(jobs);
	return 0;
}

static int add(struct jobs *jobs, const json_t *spec, const char *requested_by, bool is_foreign,
	uint64_t free_bytes, const char *retry_of, char id[JOB_ID_BYTES], struct err *err)
{
	struct job *job = jobrecord_new(spec, requested_by, err);
	if (!job)
		return -1;
	job->is_foreign = is_foreign;
	if (retry_of)
		snprintf(job->retry_of, sizeof job->retry_of, "%s", retry_of);
	estimate(jobs, job);
	pthread_mutex_lock(&jobs->mutex);
	int rc = jobs->draining ? err_set(err, ERR_BUSY,
					  "no job is taken any more: the daemon is being stopped")
				: put_in(jobs, job, free_bytes, err);
	if (rc == 0)
		memcpy(id, job->id, JOB_ID_BYTES);
	pthread_mutex_unlock(&jobs->mutex);
	if (rc < 0)
		jobrecord_free(job);
	return rc;
}

static bool is_going_to_clean(const struct jobs *jobs, const json_t *spec)
{
	for (const struct job *job = jobs->open; job; job = job->next)
		if (job->state == JOB_QUEUED && json_equal(job->spec, spec))
			return true;
	return false;
}

void jobs_put_cleanup(struct jobs *jobs, const struct job *job)
{
	char who[sizeof "job " + JOB_ID_BYTES];
	struct err why = ERR_INIT;
	if (!job->owes)
		return;
	snprintf(who, sizeof who, "job %s", job->id);
	json_t *spec = json_pack("{s:s, s:O, s:O}", "kind", "cleanup", "vcenter",
		json_object_get(job->spec, "vcenter"), "machine",
		json_object_get(job->spec, "machine"));
	struct job *cleanup =
		spec && !is_going_to_clean(jobs, spec) ? jobrecord_new(spec, who, &why) : NULL;
	if (cleanup && put_in(jobs, cleanup, UINT64_MAX, &why) < 0)
		jobrecord_free(cleanup);
	if (why.code != ERR_NONE)
		log_warning("job %s: what it left on its vCenter is not cleaned up: %s", job->id,
			why.text);
	json_decref(spec);
}

/* Its fields, its places, its disks. */
int jobs_check(const struct jobs *jobs, const json_t *spec, struct err *err)
{
	if (!json_is_object(spec))
		return err_set(err, ERR_USAGE, "it is no object");
	json_t *argv = jobplan_argv(&jobs->options, spec, err);
	if (!argv)
		return -1;
	int rc = 0;
	size_t i;
	const json_t *word;
	json_array_foreach(argv, i, word)
	{
		const char *use = json_string_value(json_object_get(word, "use"));
		const char *disk = json_string_value(json_object_get(word, "name"));
		bool is_source = use && strcmp(use, "source") == 0;
		if (rc == 0 && disk)
			rc = allow_check(is_source ? jobs->options.allow_sources
						   : jobs->options.allow_targets,
				is_source ? ALLOW_SOURCE : ALLOW_TARGET, disk, NULL, err);
	}
	json_decref(argv);
	return rc;
}

int jobs_add(struct jobs *jobs, const json_t *spec, const char *requested_by, char id[JOB_ID_BYTES],
	struct err *err)
{
	if (jobs_check(jobs, spec, err) < 0)
		return -1;
	return add(jobs, spec, requested_by, false, UINT64_MAX, NULL, id, err);
}

int jobs_add_foreign(struct jobs *jobs, const json_t *spec, const char *requested_by,
	uint64_t free_bytes, char id[JOB_ID_BYTES], struct err *err)
{
	if (!json_is_string(json_object_get(spec, "kind")))
		return err_set(err, ERR_USAGE, "kind: it is missing");
	return add(jobs, spec, requested_by, true, free_bytes, NULL, id, err);
}

/* --- foreign ones -------------------------------------------------------------------------------
 */

static int not_open(struct jobs *jobs, const char *id, struct err *err)
{
	json_t *job = jobs_get(jobs, id, err);
	if (!job)
		return -1;
	err_set(err, ERR_REFUSED, "job %s has ended: it is %s", id,
		json_string_value(json_object_get(job, "state")));
	json_decref(job);
	return -1;
}

/* The figures; "point" and "disks" have places of their own. */
static void take_progress(struct job *job, const json_t *progress)
{
	json_t *figures = json_deep_copy(progress), *disks = json_object_get(figures, "disks");
	const char *point = json_string_value(json_object_get(figures, "point"));
	if (point)
		snprintf(job->point, sizeof job->point, "%s", point);
	if (disks) {
		json_decref(job->disks);
		job->disks = json_incref(disks);
	}
	json_object_del(figures, "point");
	json_object_del(figures, "disks");
	if (json_object_size(figures) == 0) {
		json_decref(figures);
		return; /* those that were told before stay */
	}
	json_decref(job->progress);
	job->progress = figures;
}

static int tell(struct jobs *jobs, struct job *job, enum job_state state, const char *stage,
	const json_t *progress, const struct err *error, struct err *err)
{
	if (!job->is_foreign)
		return err_set(err, ERR_REFUSED, "job %s has a worker of its own", job->id);
	if (progress)
		take_progress(job, progress);
	bool is_new = state != job->state;
	if (stage && strcmp(stage, job->stage) != 0) {
		snprintf(job->stage, sizeof job->stage, "%s", stage);
		clock_utc_text(time(NULL), job->stage_since);
		is_new = true;
	}
	if (error)
		job->error = *error;
	if (job->started == 0 && state != JOB_QUEUED)
		job->started = time(NULL);
	if (!is_new) {
		job->changes++;
		pthread_cond_broadcast(&jobs->changed);
		return 0;
	}
	if (job_state_is_end(state))
		job->ended = time(NULL);
	if (state == JOB_DONE)
		finish_note_late_cancel(job);
	if (supervise_change(jobs, job, state, err) < 0) {
		job->ended = 0;
		return -1;
	}
	if (!job_state_is_end(state))
		return 0;
	struct job **at = &jobs->open;
	while (*at != job)
		at = &(*at)->next;
	*at = job->next;
	jobrecord_free(job);
	return 0;
}

int jobs_tell(struct jobs *jobs, const char *id, enum job_state state, const char *stage,
	const json_t *progress, const struct err *error, struct err *err)
{
	pthread_mutex_lock(&jobs->mutex);
	struct job *job = find(jobs, id);
	int rc = job ? tell(jobs, job, state, stage, progress, error, err) : -1;
	supervise_wake(jobs);
	pthread_mutex_unlock(&jobs->mutex);
	return job ? rc : not_open(jobs, id, err);
}

int jobs_keep_report(struct jobs *jobs, const char *id, const json_t *report, struct err *err)
{
	pthread_mutex_lock(&jobs->mutex);
	const struct job *job = find(jobs, id);
	bool is_foreign = job && job->is_foreign;
	pthread_mutex_unlock(&jobs->mutex);
	if (!is_foreign)
		return err_set(err, ERR_REFUSED, "job %s is no open one of another's", id);
	if (file_make_dir(jobs->kept_fd, id, 0700, err) < 0)
		return -1;
	int AUTO_CLOSE kept_fd =
		openat(jobs->kept_fd, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (kept_fd < 0)
		return err_errno(err, errno, "cannot open the folder of job %s", id);
	return jobdir_store(kept_fd, JOBDIR_REPORT, report, err);
}

/* --- cancel and retry
 * -------------------------------------------------------------------------------- */

static int cancel_foreign(struct jobs *jobs, struct job *job, struct err *err)
{
	if (!jobs->options.cancel_foreign)
		return err_set(err, ERR_UNSUPPORTED, "job %s cannot be cancelled", job->id);
	struct job_change *change = job->told_to_cancel ? NULL : calloc(1, sizeof *change);
	if (!change)
		return 0;
	job->told_to_cancel = true;
	memcpy(change->id, job->id, sizeof change->id);
	snprintf(change->why, sizeof change->why, "%.255s", job->stop_why.text);
	*jobs->last = change;
	jobs->last = &change->next;
	return 0;
}

static int cancel(struct jobs *jobs, struct job *job, const char *why, struct err *err)
{
	struct err reason;
	err_set(&reason, ERR_CANCELLED, "%s", why);
	if (job->is_looking)
		return 0; /* it has ended, but for what came of it */
	if (job->state == JOB_QUEUED && !job->is_foreign) {
		job->asked_to_cancel = true;
		job->stop_why = reason;
		return finish_job(jobs, job, -1, &reason);
	}
	if (job->asked_to_cancel) {
		/* Its owner may have been dead when it was told. */
		job->told_to_cancel = false;
		return job->is_foreign ? cancel_foreign(jobs, job, err) : 0;
	}
	job->asked_to_cancel = true;
	struct err before = job->stop_why;
	job->stop_why = reason;
	/* Written down first: a hub that is started again goes on with it. */
	if (jobrecord_put(jobs, job, err) < 0) {
		job->asked_to_cancel = false;
		job->stop_why = before;
		return -1;
	}
	if (job->is_foreign)
		return cancel_foreign(jobs, job, err);
	supervise_stop(job, &reason);
	return 0;
}

int jobs_cancel(struct jobs *jobs, const char *id, const char *why, struct err *err)
{
	pthread_mutex_lock(&jobs->mutex);
	struct job *job = find(jobs, id);
	int rc = job ? cancel(jobs, job, why, err) : -1;
	supervise_wake(jobs);
	pthread_mutex_unlock(&jobs->mutex);
	return job ? rc : not_open(jobs, id, err);
}

struct again {
	json_t *spec;
	bool may;
	char requested_by[320];
};

static int take_spec(void *context, const struct state_job *record)
{
	struct again *again = context;
	const char *by = json_string_value(json_object_get(record->value, "requested_by"));
	again->spec = json_deep_copy(json_object_get(record->value, "spec"));
	again->may =
		!json_is_true(json_object_get(record->value, "foreign")) &&
		(strcmp(record->state, "failed") == 0 || strcmp(record->state, "cancelled") == 0);
	snprintf(again->requested_by, sizeof again->requested_by, "%s", by ? by : "");
	return 0;
}

int jobs_retry(struct jobs *jobs, const char *id, char new_id[JOB_ID_BYTES], struct err *err)
{
	struct again again = {0};
	if (state_job(jobs->options.state, id, take_spec, &again, err) < 0)
		return -1;
	int rc = -1;
	if (!again.may)
		err_set(err, ERR_REFUSED, "job %s is none that failed or was cancelled", id);
	else if (jobs_check(jobs, again.spec, err) == 0)
		rc = add(jobs, again.spec, again.requested_by, false, UINT64_MAX, id, new_id, err);
	json_decref(again.spec);
	return rc;
}
