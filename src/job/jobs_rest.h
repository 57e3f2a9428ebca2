/*
 * jobs_rest: what daemons answer of their jobs over REST.  Each function is a handler (rest.h) once
 * the daemon has put its own jobs in front; the path's {id} names the job.  A token of the scope
 * BACKUP sees the jobs of its VMs alone, so routes are marked REST_VMS.
 *
 * Thread rule: any thread.
 */
#ifndef SENDENSE_JOB_JOBS_REST_H
#define SENDENSE_JOB_JOBS_REST_H

#include "job.h"
#include "rest.h"

/* A page of them: "?state&kind&vm&repository&limit&after". */
int jobs_rest_list(struct jobs *jobs, struct rest_request *request, struct err *err);
int jobs_rest_get(struct jobs *jobs, struct rest_request *request, struct err *err);
/* Lines of JSON: "?offset&limit". */
int jobs_rest_log(struct jobs *jobs, struct rest_request *request, struct err *err);
/* A stream of the events "state", "progress" and "end", each with the job (REST_STREAMS). */
int jobs_rest_follow(struct jobs *jobs, struct rest_request *request, struct err *err);
/* who: "token NAME". */
int jobs_rest_cancel(
	struct jobs *jobs, struct rest_request *request, const char *who, struct err *err);
int jobs_rest_retry(struct jobs *jobs, struct rest_request *request, struct err *err);
/* 202 with a job that was just added, and where it is. */
int jobs_rest_made(
	struct jobs *jobs, struct rest_request *request, const char *id, struct err *err);

#endif
