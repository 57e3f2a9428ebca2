/*
 * A worker that does not end, because the kernel holds it: another process takes away what it holds
 * in the repository, and says whether it had made its restore point.  That may hang as well,
 * and fail: it is tried until it was done, by the next hub too.
 */
#include "job_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define AGAIN_MS 10000

static void name_of(const struct job *job, char name[JOB_ID_BYTES + sizeof FENCE_SUFFIX])
{
	snprintf(name, JOB_ID_BYTES + sizeof FENCE_SUFFIX, "%s" FENCE_SUFFIX, job->id);
}

bool fence_is_running(const struct job *job)
{
	return job->fence.pid > 0;
}

void fence_adopt(struct job *job, const json_t *process)
{
	if (process)
		process_find(&job->fence, process);
}

/* A hub needs nobody to take locks away: the session's lease ends it. */
static json_t *plan_of(const struct jobs *jobs, const struct job *job, struct err *err)
{
	json_t *repository = supervise_repository(jobs, job, false, err);
	bool is_here = json_object_get(repository, "path") != NULL;
	return repository ? json_pack("{s:s, s:[], s:o, s:O*, s:o*}", "job", job->id, "argv",
				    "repository", repository, "revoke", is_here ? job->held : NULL,
				    "look", look_plan(job))
			  : NULL;
}

/* Written down before it does anything, as a worker is. */
static int launch(struct jobs *jobs, struct job *job, const json_t *plan, struct err *err)
{
	char name[JOB_ID_BYTES + sizeof FENCE_SUFFIX];
	struct state *state = jobs->options.state;
	int AUTO_CLOSE dir_fd = -1;
	name_of(job, name);
	if (state_take(state, job->id, "folder", name, NULL, err) < 0 ||
		supervise_folder(jobs, name, plan, &dir_fd, err) < 0 ||
		supervise_fork(jobs, name, &job->fence, err) < 0)
		return -1;
	json_t *who = process_to_json(&job->fence);
	int rc = state_take(state, job->id, "process", "fence", who, err);
	json_decref(who);
	if (rc == 0)
		return process_let_go(&job->fence, err);
	process_abandon(&job->fence);
	return -1;
}

static void start(struct jobs *jobs, struct job *job)
{
	struct err why = ERR_INIT;
	if (!job->held && job->process.pid > 0)
		job->held = process_to_json(&job->process);
	job->fence_at = deadline_after_ms(AGAIN_MS);
	job->is_fenced |= !job->repository; /* it holds nothing of the kind */
	if (job->is_fenced || !job->held)
		return;
	json_t *plan = plan_of(jobs, job, &why);
	if (!plan || launch(jobs, job, plan, &why) < 0)
		log_warning("job %s: its locks cannot be taken away: %s", job->id, why.text);
	json_decref(plan);
}

/* Its exit and its report. */
static void end(struct jobs *jobs, struct job *job)
{
	char name[JOB_ID_BYTES + sizeof FENCE_SUFFIX];
	name_of(job, name);
	int AUTO_CLOSE dir_fd =
		openat(jobs->runtime_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	json_t *exit = dir_fd < 0 ? NULL : jobdir_load(dir_fd, JOBDIR_EXIT, NULL);
	const json_t *status = json_object_get(exit, "status");
	json_t *report = dir_fd < 0 ? NULL : jobdir_load(dir_fd, JOBDIR_REPORT, NULL);
	const char *point = json_string_value(json_object_get(report, "point"));
	const char *text = json_string_value(json_object_get(exit, "error"));
	job->is_fenced = json_is_integer(status) && json_integer_value(status) == 0;
	job->is_made = job->is_fenced && point;
	if (job->is_made)
		snprintf(job->point, sizeof job->point, "%.63s", point);
	if (!job->is_fenced)
		log_warning("job %s: its locks were not taken away: %s", job->id,
			text ? text : "whoever was to do it ended before");
	json_decref(report);
	json_decref(exit);
}

void fence_look(struct jobs *jobs, struct job *job)
{
	if (fence_is_running(job)) {
		if (process_has_ended(&job->fence, NULL))
			end(jobs, job);
	} else if (!job->is_fenced && deadline_passed(job->fence_at)) {
		start(jobs, job);
	}
}

bool fence_give_up(struct job *job)
{
	if (!fence_is_running(job) || process_has_ended(&job->fence, NULL))
		return true;
	process_signal(&job->fence, SIGKILL, NULL);
	if (!deadline_passed(job->stop_at))
		return false;
	process_drop(&job->fence); /* the kernel holds that one: it has nothing of ours */
	return true;
}

void fence_give_back(struct jobs *jobs, struct job *job)
{
	char name[JOB_ID_BYTES + sizeof FENCE_SUFFIX];
	struct err why = ERR_INIT;
	struct state *state = jobs->options.state;
	if (!job->held)
		return;
	name_of(job, name);
	if (jobdir_remove(jobs->runtime_fd, name, &why) < 0 ||
		state_gave_back(state, job->id, "process", "fence", &why) < 0 ||
		state_gave_back(state, job->id, "folder", name, &why) < 0)
		log_warning("job %s: %s", job->id, why.text);
	json_decref(job->held);
	job->held = NULL;
	job->is_fenced = job->is_made = false;
}
