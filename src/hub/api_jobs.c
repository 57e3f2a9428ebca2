/*
 * Jobs are asked for: what a job's words must be is checked by the room that runs them (job.h);
 * here each kind gets its name.  The rest is jobs_rest.h's.
 */
#include "nodes.h"

#include <errno.h>
#include <string.h>

/* --- asked for ----------------------------------------------------------------------------------
 */

static int add(struct hub *hub, struct rest_request *request, const char *kind, struct err *err)
{
	const json_t *body = rest_body(request);
	json_t *spec = body ? json_deep_copy(body) : json_object();
	if (!spec)
		return err_errno(err, ENOMEM, "cannot make a job");
	if (json_object_get(spec, "kind")) {
		json_decref(spec);
		return err_set(err, ERR_USAGE, "\"kind\" is not known here");
	}
	const char *vm = json_string_value(json_object_get(spec, "vm"));
	if (vm && hub_check_vm(request, vm, err) < 0) {
		json_decref(spec);
		return -1;
	}
	json_object_set_new(spec, "kind", json_string(kind));
	return hub_reply_new_job(hub, request, spec, err);
}

static int post_backup(void *context, struct rest_request *request, struct err *err)
{
	const json_t *body = rest_body(request);
	enum rest_scope scope = rest_actor(request)->scope;
	if (scope == REST_NODE)
		return err_set(err, ERR_DENIED, "a node is told what to do, and asks for nothing");
	/* What one job is said to take, all others have to leave. */
	if (scope == REST_BACKUP && json_object_get(body, "reserve_bytes"))
		return err_set(err, ERR_DENIED,
			"reserve_bytes: it keeps other machines' backups waiting, so it takes a "
			"token of the scope \"operate\"");
	/* It would read any machine of a vCenter into those of the token. */
	if (scope == REST_BACKUP && json_object_get(body, "node"))
		return err_set(err, ERR_DENIED,
			"node: what it reads is not for tokens of the scope \"backup\" to say");
	return add(context, request, "backup", err);
}

static int post_restore(void *context, struct rest_request *request, struct err *err)
{
	return add(context, request, "restore", err);
}

static int post_verification(void *context, struct rest_request *request, struct err *err)
{
	return add(context, request, "verify", err);
}

static int post_prune(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const json_t *body = rest_body(request);
	const char *policy = json_string_value(json_object_get(body, "policy"));
	if (!policy)
		return add(hub, request, "prune", err);
	/* A policy's rules, as they are now, go into the job. */
	struct state_object object = {0};
	if (state_get(hub->state, "policy", policy, &object, err) < 0)
		return err_context(err, "policy");
	json_t *spec = json_deep_copy(body);
	json_t *keep = json_object_get(object.value, "keep");
	json_t *zone = json_object_get(object.value, "time_zone");
	bool says = json_is_object(keep);
	if (!says)
		err_set(err, ERR_USAGE, "the policy \"%s\" says nothing of what to keep", policy);
	json_object_del(spec, "policy");
	if (says)
		json_object_set(spec, "keep", keep);
	if (json_is_string(zone) && !json_object_get(spec, "timezone"))
		json_object_set(spec, "timezone", zone);
	json_object_set_new(spec, "kind", json_string("prune"));
	state_object_clear(&object);
	if (says)
		return hub_reply_new_job(hub, request, spec, err);
	json_decref(spec);
	return -1;
}

/* --- all of them
 * ------------------------------------------------------------------------------------ */

static int get_jobs(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	return jobs_rest_list(hub->jobs, request, err);
}

static int get_job(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	return jobs_rest_get(hub->jobs, request, err);
}

static int get_log(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	return jobs_rest_log(hub->jobs, request, err);
}

static int get_events(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	return jobs_rest_follow(hub->jobs, request, err);
}

static int post_cancel(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	char who[ACCESS_ACTOR_BYTES];
	return jobs_rest_cancel(
		hub->jobs, request, access_actor_text(rest_actor(request), who), err);
}

static int post_retry(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	if (hub_takes_work(hub, err) < 0)
		return -1;
	json_t *spec = node_jobs_again(hub, rest_param(request, "id"));
	return spec ? hub_reply_new_job(hub, request, spec, err)
		    : jobs_rest_retry(hub->jobs, request, err);
}

const struct rest_route hub_job_routes[] = {
	{"POST", "/api/v1/backups", "createBackup", REST_BACKUP, REST_CREATES, post_backup, 0},
	{"POST", "/api/v1/restores", "createRestore", REST_OPERATE, REST_CREATES, post_restore, 0},
	{"POST", "/api/v1/verifications", "createVerification", REST_OPERATE, REST_CREATES,
		post_verification, 0},
	{"POST", "/api/v1/prunes", "createPrune", REST_OPERATE, REST_CREATES, post_prune, 0},
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
