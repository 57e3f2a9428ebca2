/*
 * Whether a backup that ended badly made its restore point all the same: who was killed behind the
 * commit point could not tell.  The repository may hang, so a process looks: the next attempt
 * before it begins, and where there is none, one more that does nothing else.
 */
#include "job_internal.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

bool look_is_needed(const struct job *job, bool told, const struct err *why)
{
	if (strcmp(job->kind, "backup") != 0 || job->attempt == 0 || why->code == ERR_NONE)
		return false;
	/* A stage is told before it begins.  Who was cancelled has not committed. */
	return (!told && job->dir_fd < 0) || (job_state_of_stage(job->stage) == JOB_COMMITTING &&
						     !(told && why->code == ERR_CANCELLED));
}

json_t *look_plan(const struct job *job)
{
	return job->vm && strcmp(job->kind, "backup") == 0 ? json_pack("{s:s}", "vm", job->vm)
							   : NULL;
}

static int start(struct jobs *jobs, struct job *job, struct err *err)
{
	json_t *repository = supervise_repository(jobs, job, false, err);
	if (!repository)
		return -1;
	json_t *plan = json_pack("{s:s, s:[], s:o, s:o*}", "job", job->id, "argv", "repository",
		repository, "look", look_plan(job));
	int rc = supervise_change(jobs, job, JOB_COMMITTING, err);
	if (rc == 0) {
		finish_keep_files(jobs, job);
		if (job->dir_fd >= 0)
			close(job->dir_fd);
		job->dir_fd = -1;
		fence_give_back(jobs, job);
		rc = supervise_launch(jobs, job, plan, err);
	}
	json_decref(plan);
	return rc;
}

int look_start(
	struct jobs *jobs, struct job *job, enum job_state state, struct err *why, struct err *err)
{
	char stage[JOB_STAGE_BYTES], since[CLOCK_UTC_BYTES];
	memcpy(stage, job->stage, sizeof stage);
	memcpy(since, job->stage_since, sizeof since);
	job->is_looking = true;
	job->look_end = state;
	job->look_why = *why;
	job->stop = STOP_NOT;
	job->next_try = 0;
	supervise_set_stage(job, "look", NULL);
	if (start(jobs, job, err) == 0)
		return 0;
	job->is_looking = false;
	supervise_set_stage(job, stage, since);
	return -1;
}

enum job_state look_end(const struct job *job, int status, struct err *why)
{
	struct err trouble;
	bool told = finish_judge(job, status, &trouble);
	bool made = told && trouble.code == ERR_NONE && job->dir_fd >= 0 &&
		    faccessat(job->dir_fd, JOBDIR_REPORT, F_OK, 0) == 0;
	err_clear(why);
	if (made)
		return JOB_DONE;
	*why = job->look_why;
	if (trouble.code != ERR_NONE)
		err_hint(why, "whether its restore point was made all the same is not known: %s",
			trouble.text);
	return job->look_end;
}
