/* What daemons answer of their jobs; see jobs_rest.h. */
#include "job_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LOG_MOST (1u << 20)

/* --- listed ------------------------------------------------------------------------------- */

/* A token for backups sees those of its machines alone. */
static bool may_see(const struct rest_actor *actor, const json_t *job)
{
	const char *vm = json_string_value(json_object_get(job, "vm"));
	return !rest_actor_is_held(actor) || (vm && rest_actor_may(actor, vm));
}

/* Appends what the token may see, page by page, until there are `limit`; more: there are others
 * behind the last one.  before: room for the filter's. */
static int collect(struct jobs *jobs, const struct rest_actor *actor,
	struct state_job_filter *filter, char before[JOB_ID_BYTES], unsigned limit, json_t *items,
	bool *more, struct err *err)
{
	do {
		unsigned most = limit - (unsigned)json_array_size(items);
		json_t *page = jobs_list(jobs, filter, most, more, err);
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

int jobs_rest_list(struct jobs *jobs, struct rest_request *request, struct err *err)
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
	if (collect(jobs, rest_actor(request), &filter, before, limit, items, &more, err) < 0) {
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
static json_t *job_of(struct jobs *jobs, struct rest_request *request, struct err *err)
{
	json_t *job = jobs_get(jobs, rest_param(request, "id"), err);
	if (job && !may_see(rest_actor(request), job)) {
		json_decref(job);
		err_set(err, ERR_DENIED, "the token is not for this job");
		return NULL;
	}
	return job;
}

int jobs_rest_get(struct jobs *jobs, struct rest_request *request, struct err *err)
{
	json_t *job = job_of(jobs, request, err);
	return job ? rest_reply(request, 200, job, err) : -1;
}

int jobs_rest_log(struct jobs *jobs, struct rest_request *request, struct err *err)
{
	uint64_t offset, most;
	json_t *job = job_of(jobs, request, err);
	if (!job)
		return -1;
	json_decref(job);
	if (rest_query_number(request, "offset", 0, INT64_MAX, 0, &offset, err) < 0 ||
		rest_query_number(request, "limit", 1, LOG_MOST, LOG_MOST, &most, err) < 0)
		return -1;
	char *text = NULL;
	size_t length = 0;
	if (jobs_log(jobs, rest_param(request, "id"), offset, (size_t)most, &text, &length, err) <
		0)
		return -1;
	int rc = rest_reply_octets(request, "application/x-ndjson", text ? text : "", length, err);
	free(text);
	return rc;
}

/* --- followed ----------------------------------------------------------------------------- */

struct following {
	struct jobs *jobs;
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
	json_t *job = jobs_wait(f->jobs, f->id, &f->seen, until, &err);
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

int jobs_rest_follow(struct jobs *jobs, struct rest_request *request, struct err *err)
{
	json_t *job = job_of(jobs, request, err);
	if (!job)
		return -1;
	json_decref(job);
	struct following *f = calloc(1, sizeof *f);
	if (!f)
		return err_errno(err, ENOMEM, "cannot follow the job");
	f->jobs = jobs;
	snprintf(f->id, sizeof f->id, "%s", rest_param(request, "id"));
	return rest_reply_stream(request, next_event, end_following, f, err);
}

/* --- made, cancelled, tried again ------------------------------------------------------------ */

int jobs_rest_made(struct jobs *jobs, struct rest_request *request, const char *id, struct err *err)
{
	char location[64];
	json_t *job = jobs_get(jobs, id, err);
	if (!job)
		return -1;
	rest_set_job(request, id);
	snprintf(location, sizeof location, "/api/v1/jobs/%s", id);
	return rest_reply_made(request, 202, location, job, err);
}

int jobs_rest_cancel(
	struct jobs *jobs, struct rest_request *request, const char *who, struct err *err)
{
	const char *id = rest_param(request, "id");
	char why[512];
	json_t *job = job_of(jobs, request, err);
	if (!job)
		return -1;
	json_decref(job);
	snprintf(why, sizeof why, "cancelled by %s", who);
	if (jobs_cancel(jobs, id, why, err) < 0)
		return -1;
	job = jobs_get(jobs, id, err);
	return job ? rest_reply(request, 202, job, err) : -1;
}

int jobs_rest_retry(struct jobs *jobs, struct rest_request *request, struct err *err)
{
	char id[JOB_ID_BYTES];
	json_t *job = job_of(jobs, request, err);
	if (!job)
		return -1;
	json_decref(job);
	return jobs_retry(jobs, rest_param(request, "id"), id, err) < 0
		       ? -1
		       : jobs_rest_made(jobs, request, id, err);
}
