/*
 * Taking all away from a process that does not end.  It was sent SIGKILL, so what the kernel holds
 * is its last call: the only one that can do harm still is the rename of manifest.json.part, and
 * behind plan_fence() that has been done, or finds nothing.
 */
#include "repository_internal.h"

static int revoke_job(struct repository *repo, const char *job,
	const struct repository_process *process, struct err *err)
{
	struct plan plan;
	struct err why = ERR_INIT;
	if (!name_is_job(job))
		return 0;
	if (plan_load(repo, job, &plan, &why) < 0)
		/* A plan that is none was written by nobody who commits. */
		return why.code == ERR_NOT_FOUND || why.code == ERR_FORMAT ||
				       why.code == ERR_UNSUPPORTED
			       ? 0
			       : err_copy(err, &why);
	int rc = 0;
	if (plan.kind == PLAN_BACKUP && owner_is(&plan.owner, process))
		rc = plan_fence(repo, &plan, &why);
	plan_free(&plan);
	return rc == 0 || why.code == ERR_EXISTS ? 0 : err_copy(err, &why);
}

int repository_revoke(struct repository *repo, const struct repository_process *process,
	unsigned *nr, struct err *err)
{
	struct path_names jobs;
	unsigned nr_locks = 0;
	if (lock_revoke(repo, process, &nr_locks, err) < 0 ||
		path_names(repo->dir_fd, ".incoming", &jobs, err) < 0)
		return -1;
	int rc = 0;
	for (size_t i = 0; i < jobs.nr && rc == 0; i++)
		rc = revoke_job(repo, jobs.name[i], process, err);
	path_names_free(&jobs);
	if (nr)
		*nr = nr_locks;
	return rc;
}
