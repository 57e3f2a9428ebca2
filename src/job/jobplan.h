/*
 * jobplan: what a worker is to do, made of what was asked for (spec), kept in JOBDIR/plan.json.
 *
 *   {"job": ID, "argv": ["backup", "--repo=/srv/r", "--vm=web1",
 *                        {"text": "--disk=2000=", "use": "source", "name": "raw:/srv/vm/a"}, ...],
 *    "repository": {"name", "path", "id", "require_mount", "mount", "stop_free",
 *                   "reserved"}, or {"name", "url", "token_file", "ca_file", "id"}; of a job that
 *                   has none it is not there
 *    "allow": {"source": [...], "target": [...]},
 *    "credentials": [credentials_parse()'s],
 *    "look": {"vm"},                  whether this job's restore point is there: then that is all
 *    "revoke": {"pid", "start", "boot"}}  locks of that process are taken away first
 *
 * Words that name disks are looked at when the job is added, and once more by the worker, just
 * before it uses them: what was a file yesterday may be a symbolic link today.  What is opened
 * then is looked at a last time, by its descriptor, and so is what an image names.
 */
#ifndef SENDENSE_JOB_JOBPLAN_H
#define SENDENSE_JOB_JOBPLAN_H

#include "job.h"

/* The argv of a spec, without looking at any disk; ERR_USAGE names the field, ERR_UNSUPPORTED:
 * a kind that this build has not.  Gives a new array. */
json_t *jobplan_argv(const struct jobs_options *options, const json_t *spec, struct err *err);

/* The one of this name, or NULL. */
const struct job_repository *jobplan_repository(
	const struct jobs_options *options, const char *name);
/* Its folder or URL, as commands name it. */
const char *jobplan_place(const struct job_repository *repository);
/* The words for it. */
void jobplan_add_repository(json_t *argv, const struct job_repository *repository);
/* Sets the error of a spec that names none of them: -1. */
int jobplan_no_repository(const json_t *spec, struct err *err);

/* The words, with the disks as allow_check() found them; ended by NULL, free with jobplan_free().
 */
char **jobplan_words(const json_t *plan, struct err *err);
void jobplan_free(char **words);

/* A guard_check (guard.h) by the rules in the plan, which is the context. */
int jobplan_may_open(void *plan, int fd, const char *path, const char *above, struct err *err);

/* Whether it changes restore points, a replica or the snapshots of one machine. */
bool jobplan_writes(const json_t *spec);
/* Whether both name one machine: of a repository, or of a vCenter.  Two names of a vCenter's
 * machine are two here; its lock tells (vmware.h). */
bool jobplan_same_machine(const json_t *a, const json_t *b);

#endif
