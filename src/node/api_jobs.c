/*
 * REST: jobs are asked for, here each kind gets its name: what a job's words must be is checked by
 * the room that runs them (job.h).  The rest is jobs_rest.h's.
 */
#include "node_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MACHINE_BYTES 4097 /* longer ones no job takes */

/* --- asked for --------------------------------------------------------------------------- */

static int takes_work(struct node *node, struct err *err)
{
	return atomic_load(&node->stopping)
		       ? err_set(err, ERR_BUSY, "the node is about to stop (try again)")
		       : 0;
}

/* What the machine is called: the last part of its path, or all of it. */
static void name_of(const char *machine, char *out, size_t bytes)
{
	size_t end = strlen(machine), start;
	while (end > 0 && machine[end - 1] == '/')
		end--;
	for (start = end; start > 0 && machine[start - 1] != '/';)
		start--;
	snprintf(out, bytes, "%.*s", (int)(end - start), machine + start);
}

/* A token of the scope BACKUP names the VM, which else comes from the machine's name.  What is read
 * into it is a machine of the token's as well: else the token would reach all of the vCenter. */
static int check_held(const struct rest_request *request, const json_t *spec, struct err *err)
{
	const struct rest_actor *actor = rest_actor(request);
	const char *vm = json_string_value(json_object_get(spec, "vm"));
	const char *machine = json_string_value(json_object_get(spec, "machine"));
	char name[MACHINE_BYTES] = "";
	if (!rest_actor_is_held(actor))
		return 0;
	if (!vm)
		return err_set(err, ERR_DENIED, "vm: a token of the scope \"backup\" must name it");
	if (!rest_actor_may(actor, vm))
		return err_set(err, ERR_DENIED, "the token is not for the VM \"%s\"", vm);
	/* What one job is said to take, all others have to leave. */
	if (json_object_get(spec, "reserve_bytes"))
		return err_set(err, ERR_DENIED,
			"reserve_bytes: it keeps other machines' backups waiting, so it takes a "
			"token of the scope \"operate\"");
	if (machine)
		name_of(machine, name, sizeof name);
	return !machine || rest_actor_may(actor, name)
		       ? 0
		       : err_set(err, ERR_DENIED,
				 "machine: the token is not for one of the name \"%s\" (a path or "
				 "a name is wanted, no uuid)",
				 name);
}

static int add(struct node *node, struct rest_request *request, const char *kind, struct err *err)
{
	const json_t *body = rest_body(request);
	char id[JOB_ID_BYTES], who[ACCESS_ACTOR_BYTES];
	json_t *spec = body ? json_deep_copy(body) : json_object();
	if (!spec)
		return err_errno(err, ENOMEM, "cannot make a job");
	int rc = takes_work(node, err);
	if (rc == 0 && json_object_get(spec, "kind"))
		rc = err_set(err, ERR_USAGE, "\"kind\" is not known here");
	/* What the hub asked for it gives itself (link.c): another's would pass for it. */
	if (rc == 0 && json_object_get(spec, "hub_job"))
		rc = err_set(err, ERR_USAGE, "\"hub_job\" is not known here");
	if (rc == 0)
		rc = check_held(request, spec, err);
	json_object_set_new(spec, "kind", json_string(kind));
	if (rc == 0)
		rc = jobs_add(
			node->jobs, spec, access_actor_text(rest_actor(request), who), id, err);
	json_decref(spec);
	return rc < 0 ? -1 : jobs_rest_made(node->jobs, request, id, err);
}

static int post_backup(void *context, struct rest_request *request, struct err *err)
{
	return add(context, request, "backup", err);
}

static int post_replication(void *context, struct rest_request *request, struct err *err)
{
	return add(context, request, "replicate", err);
}

static int post_cleanup(void *context, struct rest_request *request, struct err *err)
{
	return add(context, request, "cleanup", err);
}

/* --- all of them ------------------------------------------------------------------------- */

static int get_jobs(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	return jobs_rest_list(node->jobs, request, err);
}

static int get_job(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	return jobs_rest_get(node->jobs, request, err);
}

static int get_log(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	return jobs_rest_log(node->jobs, request, err);
}

static int get_events(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	return jobs_rest_follow(node->jobs, request, err);
}

static int post_cancel(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	char who[ACCESS_ACTOR_BYTES];
	return jobs_rest_cancel(
		node->jobs, request, access_actor_text(rest_actor(request), who), err);
}

static int post_retry(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	return takes_work(node, err) < 0 ? -1 : jobs_rest_retry(node->jobs, request, err);
}

const struct rest_route node_job_routes[] = {
	{"POST", "/api/v1/backups", "createBackup", REST_BACKUP, REST_CREATES, post_backup, 0},
	{"POST", "/api/v1/replications", "createReplication", REST_OPERATE, REST_CREATES,
		post_replication, 0},
	{"POST", "/api/v1/cleanups", "createCleanup", REST_OPERATE, REST_CREATES, post_cleanup, 0},
	{"GET", "/api/v1/jobs?state&kind&vm&repository&limit&after", "listJobs", REST_READ,
		REST_VMS, get_jobs, 0},
	{"GET", "/api/v1/jobs/{id}", "getJob", REST_READ, REST_VMS, get_job, 0},
	{"GET", "/api/v1/jobs/{id}/log?offset&limit", "getJobLog", REST_READ, REST_VMS, get_log, 0},
	{"GET", "/api/v1/jobs/{id}/events", "followJob", REST_READ, REST_VMS | REST_STREAMS,
		get_events, 0},
	{"POST", "/api/v1/jobs/{id}/cancel", "cancelJob", REST_OPERATE, 0, post_cancel, 0},
	{"POST", "/api/v1/jobs/{id}/retry", "retryJob", REST_OPERATE, REST_CREATES, post_retry, 0},
	{0},
};
