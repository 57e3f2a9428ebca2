/*
 * What an earlier hub left: jobs that state.db calls open, processes, folders.  A worker that
 * lives is watched again; one that ended is judged by what it left; one that is gone without a
 * word failed, or is tried again.  Nothing that belongs to no job stays.
 */
#include "job_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define RETRY_AFTER_MOST_S 900

struct found {
	struct jobs *jobs;
	json_t *processes; /* of open jobs, by id */
};

/* --- open jobs ------------------------------------------------------------------------------- */

static int take_job(void *context, const struct state_job *record)
{
	struct found *found = context;
	json_t *process = NULL;
	struct err why = ERR_INIT;
	struct job *job = jobrecord_from(record, &process, &why);
	if (!job) {
		log_error("%s", why.text);
		return 0;
	}
	if (process)
		json_object_set_new(found->processes, job->id, process);
	/* They come with the newest first. */
	job->next = found->jobs->open;
	found->jobs->open = job;
	return 0;
}

static void settle_queued(struct job *job)
{
	if (job->next_try == 0)
		return;
	int64_t left_s = job->next_try - time(NULL);
	if (left_s > RETRY_AFTER_MOST_S)
		left_s = RETRY_AFTER_MOST_S; /* the clock was set */
	job->next_at = deadline_after_ms(left_s > 0 ? left_s * 1000 : 0);
}

static bool has_exit(const struct job *job)
{
	return job->dir_fd >= 0 && faccessat(job->dir_fd, JOBDIR_EXIT, F_OK, 0) == 0;
}

/* Without its folder nobody hears of it: as if it were gone. */
static void end_unheard(struct job *job, const struct err *why)
{
	struct err unheard = job->stop_why;
	if (!job->asked_to_cancel)
		err_set(&unheard, ERR_DISCONNECTED, "its worker cannot be heard any more: %s",
			why->text);
	supervise_stop(job, &unheard);
	job->stop = STOP_KILLED;
	job->stop_at = deadline_after_ms(JOB_KILL_MS);
	process_signal(&job->process, SIGKILL, NULL);
}

static bool look_again(struct jobs *jobs, struct job *job)
{
	struct err trouble = ERR_INIT, why = job->look_why;
	if (look_start(jobs, job, job->look_end, &why, &trouble) == 0)
		return true;
	job->is_looking = true; /* it ends as it was to end */
	return false;
}

static void settle_job(struct found *found, struct job *job)
{
	struct jobs *jobs = found->jobs;
	struct err why = ERR_INIT;
	if (job->is_foreign)
		return;
	if (job->state == JOB_QUEUED) {
		settle_queued(job);
		return;
	}
	const json_t *process = json_object_get(found->processes, job->id);
	bool lives = process && process_find(&job->process, process);
	if (supervise_adopt(jobs, job, &why) == 0 && (lives || has_exit(job))) {
		log_info("job %s: its worker is %s", job->id, lives ? "found again" : "at its end");
		supervise_look(jobs, job);
		if (job->asked_to_cancel && !job->is_looking)
			job->stop = STOP_ASKED;
		return; /* the supervisor goes on with it */
	}
	if (lives) {
		end_unheard(job, &why);
		return;
	}
	if (job->is_looking && look_again(jobs, job))
		return;
	if (job->dir_fd >= 0)
		supervise_look(jobs, job); /* how far it had come */
	err_set(&why, ERR_DISCONNECTED, "its worker is gone, in stage %s: %s", job->stage,
		job->dir_fd < 0 ? "the machine was started again, or its folder was removed"
				: "it was killed while no daemon ran");
	log_warning("job %s: %s", job->id, why.text);
	finish_job(jobs, job, -1, &why);
}

/* --- processes that did not go ---------------------------------------------------------------- */

struct left {
	char job[JOB_ID_BYTES];
	char kind[16], name[64];
	json_t *value;
};

struct lefts {
	const struct jobs *jobs;
	struct left *items;
	size_t nr;
};

static bool is_open(const struct jobs *jobs, const char *id)
{
	for (const struct job *job = jobs->open; job; job = job->next)
		if (strcmp(job->id, id) == 0)
			return true;
	return false;
}

static int take_left(
	void *context, const char *job, const char *kind, const char *name, const json_t *value)
{
	struct lefts *lefts = context;
	bool is_ours = strcmp(kind, "process") == 0 || strcmp(kind, "folder") == 0;
	if (!is_ours || is_open(lefts->jobs, job))
		return 0;
	struct left *items = reallocarray(lefts->items, lefts->nr + 1, sizeof *items);
	if (!items)
		return 1;
	lefts->items = items;
	struct left *left = &items[lefts->nr++];
	snprintf(left->job, sizeof left->job, "%s", job);
	snprintf(left->kind, sizeof left->kind, "%s", kind);
	snprintf(left->name, sizeof left->name, "%s", name);
	left->value = json_deep_copy(value);
	return 0;
}

static int take_ended(void *context, const struct state_job *record)
{
	struct job **job = context;
	json_t *process = NULL;
	*job = jobrecord_from(record, &process, NULL);
	json_decref(process);
	return 0;
}

static struct job *find_unreaped(const struct jobs *jobs, const char *id)
{
	struct job *job = jobs->unreaped;
	while (job && strcmp(job->id, id) != 0)
		job = job->next;
	return job;
}

/* Of a job that was closed although its process was still there: what it holds is taken away,
 * once more if nobody is at it now. */
static void keep_unreaped(struct jobs *jobs, const struct left *left)
{
	struct process process;
	struct job *job = NULL;
	if (strcmp(left->kind, "process") != 0 || strcmp(left->name, "worker") != 0 ||
		!left->value || !process_find(&process, left->value))
		return;
	if (state_job(jobs->options.state, left->job, take_ended, &job, NULL) < 0 || !job) {
		process_drop(&process);
		return;
	}
	job->process = process;
	job->held = process_to_json(&process);
	job->dir_fd =
		openat(jobs->runtime_fd, job->id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	process_signal(&job->process, SIGKILL, NULL);
	job->next = jobs->unreaped;
	jobs->unreaped = job;
}

static int settle_lefts(struct jobs *jobs, struct err *err)
{
	struct lefts lefts = {.jobs = jobs};
	int rc = state_takes(jobs->options.state, NULL, take_left, &lefts, err);
	for (size_t i = 0; rc == 0 && i < lefts.nr; i++)
		keep_unreaped(jobs, &lefts.items[i]);
	for (size_t i = 0; i < lefts.nr; i++) {
		const struct left *left = &lefts.items[i];
		struct job *job = find_unreaped(jobs, left->job);
		if (job && strcmp(left->name, "fence") == 0)
			fence_adopt(job, left->value);
		/* What belongs to one that is to be reaped is given back then. */
		if (rc == 0 && !job)
			rc = state_gave_back(
				jobs->options.state, left->job, left->kind, left->name, err);
		json_decref(left->value);
	}
	free(lefts.items);
	return rc;
}

/* --- folders
 * --------------------------------------------------------------------------------------- */

static bool is_used(const struct jobs *jobs, const char *name)
{
	char id[JOB_ID_BYTES + sizeof FENCE_SUFFIX];
	snprintf(id, sizeof id, "%.32s", name);
	char *end = strstr(id, FENCE_SUFFIX);
	if (end)
		*end = '\0';
	return find_unreaped(jobs, id) || is_open(jobs, id);
}

static int remove_folders(struct jobs *jobs, struct err *err)
{
	int fd = openat(jobs->runtime_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir) {
		err_errno(err, errno, "cannot read folder %s", jobs->runtime);
		if (fd >= 0)
			close(fd);
		return -1;
	}
	const struct dirent *entry;
	struct err why = ERR_INIT;
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.' || is_used(jobs, entry->d_name))
			continue;
		if (jobdir_remove(jobs->runtime_fd, entry->d_name, &why) < 0)
			log_warning("%s", why.text);
	}
	closedir(dir);
	return 0;
}

static int take_last(void *context, const struct state_job *record)
{
	struct jobs *jobs = context;
	memcpy(jobs->last_id, record->id, sizeof jobs->last_id);
	return 1;
}

int reconcile(struct jobs *jobs, struct err *err)
{
	const struct state_job_filter all = {0};
	struct found found = {.jobs = jobs, .processes = json_object()};
	const struct state_job_filter open = {.state = "open"};
	/* Ids grow, also when the clock was set back. */
	int rc = state_jobs(jobs->options.state, &all, take_last, jobs, err);
	if (rc == 0)
		rc = state_jobs(jobs->options.state, &open, take_job, &found, err);
	for (struct job *job = jobs->open, *next; rc == 0 && job; job = next) {
		next = job->next;
		settle_job(&found, job);
	}
	json_decref(found.processes);
	if (rc == 0)
		rc = settle_lefts(jobs, err);
	return rc == 0 ? remove_folders(jobs, err) : -1;
}
