/*
 * Jobs: asked for, listed, followed, cancelled.  What a job's words must be is checked by the
 * room that runs them (job.h); here each kind gets its name.
 */
#include "hub_internal.h"

#include "log.h"

#include <errno.h>
#include <string.h>

#define LOG_MOST (1u << 20)

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
	/* What one job is said to take, all others have to leave. */
	if (rest_actor(request)->scope == REST_BACKUP &&
		json_object_get(rest_body(request), "reserve_bytes"))
		return err_set(err, ERR_DENIED,
			"reserve_bytes: it keeps other machines' backups waiting, so it takes a "
			"token of the scope \"operate\"");
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

/* --- listed
 * ----------------------------------------------------------------------------------------- */

/* A token for backups sees those of its machines alone. */
static bool may_see(const struct rest_actor *actor, const json_t *job)
{
	const char *vm = json_string_value(json_object_get(job, "vm"));
	return actor->scope != REST_BACKUP || (vm && rest_actor_may(actor, vm));
}

/* Appends what the token may see, page by page, until there are `limit`; more: there are others
 * behind the last one.  before: room for the filter's. */
static int collect(struct hub *hub, const struct rest_actor *actor, struct state_job_filter *filter,
	char before[JOB_ID_BYTES], unsigned limit, json_t *items, bool *more, struct err *err)
{
	do {
		unsigned most = limit - (unsigned)json_array_size(items);
		json_t *page = jobs_list(hub->jobs, filter, most, more, err);
		if (!page)
			return -1;
		size_t i;
		json_t *job;
		json_array_foreach(page, i, job)
		{
			if (may_see(actor, job))
				json_array_append(items, job);
			snprintf(before, JOB_ID_BYTES, "%s",
				json_string_value(json_object_get(job, "id")));
			filter->before = before;
		}
		json_decref(page);
	} while (*more && json_array_size(items) < limit);
	return 0;
}

/* A state that there is not would find no job, which looks like good news. */
static int check_state(const char *state, struct err *err)
{
	enum job_state parsed;
	if (!state || strcmp(state, "open") == 0 || job_state_parse(state, &parsed))
		return 0;
	return err_set(err, ERR_USAGE,
		"the parameter state: \"%s\" is no state of a job (there is queued, starting, "
		"running, verifying, committing, done, failed, cancelled; open: all that have not "
		"ended)",
		state);
}

static int get_jobs(void *context, struct rest_request *request, struct err *err)
{
	unsigned limit;
	const char *after = NULL;
	bool more = false;
	if (rest_page(request, &limit, &after, err) < 0)
		return -1;
	struct state_job_filter filter = {
		.state = rest_query(request, "state"),
		.kind = rest_query(request, "kind"),
		.vm = rest_query(request, "vm"),
		.repository = rest_query(request, "repository"),
		.before = after,
	};
	char before[JOB_ID_BYTES] = "";
	if (check_state(filter.state, err) < 0)
		return -1;
	json_t *items = json_array();
	if (collect(context, rest_actor(request), &filter, before, limit, items, &more, err) < 0) {
		json_decref(items);
		return -1;
	}
	size_t nr = json_array_size(items);
	const char *last =
		nr > 0 && more
			? json_string_value(json_object_get(json_array_get(items, nr - 1), "id"))
			: NULL;
	return rest_reply_page(request, items, last, err);
}

/* The call's job, when the token may see it. */
static json_t *job_of(struct hub *hub, struct rest_request *request, struct err *err)
{
	json_t *job = jobs_get(hub->jobs, rest_param(request, "id"), err);
	if (job && !may_see(rest_actor(request), job)) {
		json_decref(job);
		err_set(err, ERR_DENIED, "the token is not for this job");
		return NULL;
	}
	return job;
}

static int get_job(void *context, struct rest_request *request, struct err *err)
{
	json_t *job = job_of(context, request, err);
	return job ? rest_reply(request, 200, job, err) : -1;
}

static int get_log(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	uint64_t offset, most;
	json_t *job = job_of(hub, request, err);
	if (!job)
		return -1;
	json_decref(job);
	if (rest_query_number(request, "offset", 0, INT64_MAX, 0, &offset, err) < 0 ||
		rest_query_number(request, "limit", 1, LOG_MOST, LOG_MOST, &most, err) < 0)
		return -1;
	char *text = NULL;
	size_t length = 0;
	if (jobs_log(hub->jobs, rest_param(request, "id"), offset, (size_t)most, &text, &length,
		    err) < 0)
		return -1;
	int rc = rest_reply_octets(request, "application/x-ndjson", text ? text : "", length, err);
	free(text);
	return rc;
}

/* --- followed ------------------------------------------------------------------------------------
 */

struct following {
	struct hub *hub;
	char id[JOB_ID_BYTES];
	uint64_t seen;
	json_t *told; /* the job as the client knows it */
	bool ended;
};

static bool same(const json_t *a, const json_t *b, const char *name)
{
	const json_t *x = json_object_get(a, name), *y = json_object_get(b, name);
	return x == y || (x && y && json_equal(x, y));
}

/* "state" when state or stage is another one, "end" at the end, else "progress". */
static const char *event_name(const struct following *f, const json_t *job)
{
	const char *state = json_string_value(json_object_get(job, "state"));
	static const char *const ends[] = {"done", "failed", "cancelled"};
	for (size_t i = 0; state && i < ARRAY_LENGTH(ends); i++)
		if (strcmp(state, ends[i]) == 0)
			return "end";
	return f->told && same(f->told, job, "state") && same(f->told, job, "stage") ? "progress"
										     : "state";
}

static int next_event(
	void *context, struct deadline until, const char **event, uint64_t *id, json_t **data)
{
	struct following *f = context;
	if (f->ended)
		return 0;
	struct err err = ERR_INIT;
	uint64_t before = f->seen;
	json_t *job = jobs_wait(f->hub->jobs, f->id, &f->seen, until, &err);
	if (!job)
		return err.code == ERR_NONE ? 2 : -1;
	*event = event_name(f, job);
	*data = job;
	f->ended = strcmp(*event, "end") == 0;
	/* What jobs_wait() calls the end is more than other languages' numbers hold. */
	*id = f->ended ? before + 1 : f->seen;
	json_decref(f->told);
	f->told = json_incref(job);
	return 1;
}

static void end_following(void *context)
{
	struct following *f = context;
	json_decref(f->told);
	free(f);
}

static int get_events(void *context, struct rest_request *request, struct err *err)
{
	json_t *job = job_of(context, request, err);
	if (!job)
		return -1;
	json_decref(job);
	struct following *f = calloc(1, sizeof *f);
	if (!f)
		return err_errno(err, ENOMEM, "cannot follow the job");
	f->hub = context;
	snprintf(f->id, sizeof f->id, "%s", rest_param(request, "id"));
	return rest_reply_stream(request, next_event, end_following, f, err);
}

/* --- cancelled, tried again
 * ------------------------------------------------------------------------- */

static int post_cancel(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const char *id = rest_param(request, "id");
	char who[ACCESS_ACTOR_BYTES], why[ACCESS_ACTOR_BYTES + 32];
	json_t *job = job_of(hub, request, err);
	if (!job)
		return -1;
	json_decref(job);
	snprintf(why, sizeof why, "cancelled by %s", access_actor_text(rest_actor(request), who));
	if (jobs_cancel(hub->jobs, id, why, err) < 0)
		return -1;
	job = jobs_get(hub->jobs, id, err);
	return job ? rest_reply(request, 202, job, err) : -1;
}

static int post_retry(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	char id[JOB_ID_BYTES], location[64];
	json_t *job = job_of(hub, request, err);
	if (!job)
		return -1;
	json_decref(job);
	if (hub_takes_work(hub, err) < 0 ||
		jobs_retry(hub->jobs, rest_param(request, "id"), id, err) < 0)
		return -1;
	job = jobs_get(hub->jobs, id, err);
	snprintf(location, sizeof location, "/api/v1/jobs/%s", id);
	return job ? rest_reply_made(request, 202, location, job, err) : -1;
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
