/*
 * worker: a worker's own side of its JOBDIR.
 *
 *   plan.json    what to do (jobplan.h)                              written by the hub
 *   log          lines of JSON: {"time","level","text"}           by the worker, at most 16 MiB
 *   status.json  {"heartbeat","stage","stage_since","work","progress","disks"}, replaced whole
 *   report.json  the command's report
 *   exit.json    {"status","code","error"}: the last of all; without it, it was killed
 *   stderr       what a library or the kernel made it say
 *
 * Thread rule: worker_log() and worker_status() any thread, the others one.
 */
#ifndef SENDENSE_JOB_WORKER_H
#define SENDENSE_JOB_WORKER_H

#include "base.h"

#include <jansson.h>

struct worker;

/* software, build: of this program, as store_options has them; lent. */
struct worker *worker_open(
	const char *folder, const char *software, const char *build, struct err *err);
void worker_close(struct worker *worker);

/* The command line to run, ended by NULL, lent: the repository was looked at, so were the disks.
 * What is no command is done here: locks that are to be taken away from a process, and a look
 * whether this job's restore point is there, which gives an empty one, and has the report. */
char **worker_words(struct worker *worker, struct err *err);
/* Its id; lent. */
const char *worker_job(const struct worker *worker);

/* With what it connects to an nbds:// disk (credentials.h), lent; NULL: the hub has nothing. */
const json_t *worker_credentials(const struct worker *worker, const char *name);

void worker_log(struct worker *worker, enum log_level level, const char *text);
/* now: {"stage", "stage_since", "progress", "disks"}, borrowed; adds the heartbeat, and how much
 * this process has done, this thread's own share left out.  One caller at a time. */
void worker_status(struct worker *worker, const json_t *now);

/* Standard output becomes the report. */
int worker_begin_report(struct worker *worker, struct err *err);
/* status as of main(); why: what it ended with. */
int worker_end(struct worker *worker, int status, const struct err *why, struct err *err);

#endif
