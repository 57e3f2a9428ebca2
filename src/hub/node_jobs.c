/*
 * Jobs that nodes do.
 *
 *   queued ─► the node asks for work ─► it tells: starting, running … ─► done, failed, cancelled
 *
 * Whether a restore point was made the hub knows by itself: the session that brought it was opened
 * for the job, and has ended as a job of its own ("push", with "for_job").  So a node's word
 * that all is done counts for nothing without it, and its word that all failed for nothing with it.
 */
#include "nodes.h"

#include "log.h"
#include "repository.h"

#include <errno.h>
#include <string.h>

/* --- what may be asked for ------------------------------------------------------------------ */

static const char *const modes[] = {"auto", "full", "incremental", NULL};

static const struct rest_field spec_fields[] = {
	{.name = "kind", .type = REST_STRING, .required = true},
	{.name = "repository", .type = REST_STRING, .required = true, .least = 1, .most = 64},
	{.name = "vm", .type = REST_STRING, .required = true, .least = 1, .most = 255},
	{.name = "node", .type = REST_STRING, .required = true, .least = 1, .most = 64},
	{.name = "vcenter", .type = REST_STRING, .required = true, .least = 1, .most = 64},
	{.name = "machine", .type = REST_STRING, .required = true, .least = 1, .most = 1024},
	{.name = "mode", .type = REST_STRING, .choices = modes},
	{.name = "skip_disks", .type = REST_ARRAY, .least = 0, .most = REPOSITORY_DISKS_MAX},
	{.name = "skip_unsupported", .type = REST_BOOL},
	{.name = "quiesce", .type = REST_BOOL},
	{.name = "enable_cbt", .type = REST_BOOL},
	{.name = "audit", .type = REST_NUMBER},
	{.name = "limit_rate", .type = REST_INTEGER, .least = 1, .most = INT64_MAX},
	{.name = "parallel", .type = REST_INTEGER, .least = 1, .most = 16},
	{0},
};

int node_jobs_check(struct hub *hub, const json_t *spec, struct err *err)
{
	size_t i;
	json_t *key;
	double audit = json_number_value(json_object_get(spec, "audit"));
	if (rest_check(spec, spec_fields, err) < 0)
		return -1;
	json_array_foreach(json_object_get(spec, "skip_disks"), i, key)
	{
		if (!json_is_string(key) ||
			repository_name_check_key(json_string_value(key), err) < 0)
			return err_set(err, ERR_USAGE, "skip_disks[%zu]: it is no disk's key", i);
	}
	if (!(audit >= 0 && audit <= 100))
		return err_set(err, ERR_USAGE, "audit: a percentage, 0 to 100, is wanted");
	if (repository_name_check_vm(hub_text(spec, "vm"), err) < 0)
		return -1;
	const char *repository = hub_text(spec, "repository"), *name = hub_text(spec, "node");
	struct state_object node = {0};
	struct err why = ERR_INIT;
	if (!hub_config_repository(hub_config(hub), repository))
		return err_set(
			err, ERR_USAGE, "repository: there is no repository \"%s\"", repository);
	if (state_get(hub->state, "node", name, &node, &why) < 0)
		return why.code == ERR_NOT_FOUND
			       ? err_set(err, ERR_USAGE,
					 "node: there is no node \"%s\" (enrol it first)", name)
			       : err_copy(err, &why);
	state_object_clear(&node);
	return 0;
}

int hub_jobs_add(struct hub *hub, const json_t *spec, const char *requested_by,
	char id[JOB_ID_BYTES], struct err *err)
{
	const char *name = json_string_value(json_object_get(spec, "node"));
	if (!name)
		return jobs_add(hub->jobs, spec, requested_by, id, err);
	if (node_jobs_check(hub, spec, err) < 0 ||
		jobs_add_foreign(hub->jobs, spec, requested_by, UINT64_MAX, id, err) < 0)
		return -1;
	hub_nodes_work_changed(hub, name);
	return 0;
}

/* --- what there is to do ------------------------------------------------------------------- */

static int add_work(void *context, const struct state_job *job)
{
	json_t *work = context;
	json_t *spec = json_deep_copy(json_object_get(job->value, "spec"));
	json_object_del(spec, "node");
	json_array_insert_new(json_object_get(work, "jobs"), 0,
		json_pack("{s:s, s:o}", "id", job->id, "spec", spec));
	if (json_object_get(job->value, "cancel"))
		json_array_insert_new(json_object_get(work, "cancel"), 0, json_string(job->id));
	return 0;
}

json_t *node_jobs_work(struct hub *hub, const char *name, struct err *err)
{
	const struct state_job_filter its = {.state = "open", .node = name};
	json_t *work = json_pack("{s:[], s:[]}", "jobs", "cancel");
	if (!work) {
		err_errno(err, ENOMEM, "cannot tell what there is to do");
		return NULL;
	}
	if (state_jobs(hub->state, &its, add_work, work, err) == 0)
		return work;
	json_decref(work);
	return NULL;
}

static int count_job(void *context, const struct state_job *job)
{
	(void)job;
	++*(unsigned *)context;
	return 0;
}

unsigned node_jobs_count(struct hub *hub, const char *name)
{
	const struct state_job_filter its = {.state = "open", .node = name};
	unsigned nr = 0;
	state_jobs(hub->state, &its, count_job, &nr, NULL);
	return nr;
}

/* --- the sessions of a job ------------------------------------------------------------------ */

struct pushes {
	const char *job;
	char open[JOB_ID_BYTES]; /* "": none */
	char point[64]; /* that one of them made; "" */
};

static int take_push(void *context, const struct state_job *push)
{
	struct pushes *p = context;
	enum job_state state;
	if (strcmp(push->id, p->job) < 0)
		return 1; /* ids grow: it is older than its job would be */
	if (strcmp(hub_text(json_object_get(push->value, "spec"), "for_job"), p->job) != 0 ||
		!job_state_parse(push->state, &state))
		return 0;
	if (!job_state_is_end(state))
		snprintf(p->open, sizeof p->open, "%s", push->id);
	else if (state == JOB_DONE)
		snprintf(p->point, sizeof p->point, "%s", hub_text(push->value, "point"));
	return 0;
}

static int find_pushes(
	struct hub *hub, const char *job, const char *vm, struct pushes *pushes, struct err *err)
{
	const struct state_job_filter filter = {.kind = "push", .vm = vm};
	*pushes = (struct pushes){.job = job};
	return state_jobs(hub->state, &filter, take_push, pushes, err);
}

/* Tells the end; what a session brought counts more than what was said. */
static int end_job(struct hub *hub, const char *id, enum job_state state,
	const struct pushes *pushes, const struct err *said, struct err *err)
{
	struct err why = ERR_INIT;
	if (pushes->point[0]) {
		state = JOB_DONE;
	} else if (state == JOB_DONE) {
		state = JOB_FAILED;
		err_set(&why, ERR_PROTOCOL,
			"the node says that it is done, but no session brought a restore point");
	} else {
		err_copy(&why, said);
	}
	json_t *progress = pushes->point[0] ? json_pack("{s:s}", "point", pushes->point) : NULL;
	int rc = jobs_tell(
		hub->jobs, id, state, NULL, progress, state == JOB_DONE ? NULL : &why, err);
	json_decref(progress);
	return rc;
}

/* --- what the node says -------------------------------------------------------------------- */

struct given {
	char node[NODE_NAME_BYTES], vm[256];
	enum job_state state;
};

static int take_given(void *context, const struct state_job *job)
{
	struct given *given = context;
	snprintf(given->node, sizeof given->node, "%s",
		hub_text(json_object_get(job->value, "spec"), "node"));
	snprintf(given->vm, sizeof given->vm, "%s", job->vm ? job->vm : "");
	if (!job_state_parse(job->state, &given->state))
		given->state = JOB_FAILED;
	return 0;
}

static int find_given(
	struct hub *hub, const char *name, const char *id, struct given *given, struct err *err)
{
	struct err why = ERR_INIT;
	*given = (struct given){0};
	if (state_job(hub->state, id, take_given, given, &why) < 0 && why.code != ERR_NOT_FOUND)
		return err_copy(err, &why);
	if (strcmp(given->node, name) != 0)
		return err_set(err, ERR_NOT_FOUND, "node %s has no job %.64s", name, id);
	return 0;
}

static int take_id(void *context, const struct state_job *job)
{
	memcpy(context, job->id, JOB_ID_BYTES);
	return 1;
}

int node_jobs_of_machine(struct hub *hub, const char *name, const char *repository, const char *vm,
	char id[JOB_ID_BYTES], struct err *err)
{
	const struct state_job_filter its = {
		.state = "open", .node = name, .repository = repository, .vm = vm};
	id[0] = '\0';
	return state_jobs(hub->state, &its, take_id, id, err);
}

static int check_open(const char *id, const struct given *given, struct err *err)
{
	return job_state_is_end(given->state)
		       ? err_set(err, ERR_REFUSED, "job %s has ended: it is %s", id,
				 job_state_name(given->state))
		       : 0;
}

int node_jobs_is_open(struct hub *hub, const char *id, struct err *err)
{
	struct given given = {0};
	return state_job(hub->state, id, take_given, &given, err) < 0 ? -1
								      : check_open(id, &given, err);
}

static json_t *progress_of(const json_t *body)
{
	json_t *progress = json_deep_copy(json_object_get(body, "progress"));
	/* Which point it was the session tells. */
	if (json_is_object(progress)) {
		json_object_del(progress, "point");
		return progress;
	}
	json_decref(progress);
	return NULL;
}

static void error_of(const json_t *body, enum job_state state, struct err *said)
{
	const json_t *error = json_object_get(body, "error");
	if (json_is_object(error))
		err_set(said, err_code_parse(hub_text(error, "code"), ERR_IO), "%s",
			hub_text(error, "text"));
	else if (state == JOB_CANCELLED)
		err_set(said, ERR_CANCELLED, "it was cancelled");
	else
		err_set(said, ERR_IO, "the node did not say why");
}

/* A node that was away may have gone through several states. */
static int tell_state(struct hub *hub, const char *id, enum job_state before, enum job_state state,
	const json_t *body, struct err *err)
{
	const char *stage = json_string_value(json_object_get(body, "stage"));
	json_t *progress = progress_of(body);
	int rc = 0;
	if (!job_state_may(before, state))
		rc = jobs_tell(hub->jobs, id, JOB_QUEUED, NULL, NULL, NULL, err);
	if (rc == 0)
		rc = jobs_tell(hub->jobs, id, state, stage, progress, NULL, err);
	json_decref(progress);
	return rc;
}

int node_jobs_tell(
	struct hub *hub, const char *name, const char *id, const json_t *body, struct err *err)
{
	struct given given;
	struct pushes pushes;
	struct err said = ERR_INIT;
	enum job_state state;
	if (find_given(hub, name, id, &given, err) < 0)
		return -1;
	if (check_open(id, &given, err) < 0)
		return -1;
	if (!job_state_parse(hub_text(body, "state"), &state))
		return err_set(err, ERR_USAGE, "state: it is none of those that there are");
	if (!job_state_is_end(state))
		return tell_state(hub, id, given.state, state, body, err);
	if (find_pushes(hub, id, given.vm, &pushes, err) < 0)
		return -1;
	json_t *progress = progress_of(body);
	const json_t *report = json_object_get(body, "report");
	int rc = 0;
	if (progress)
		rc = jobs_tell(hub->jobs, id, given.state, NULL, progress, NULL, err);
	json_decref(progress);
	if (rc == 0 && json_is_object(report))
		rc = jobs_keep_report(hub->jobs, id, report, err);
	error_of(body, state, &said);
	return rc < 0 ? -1 : end_job(hub, id, state, &pushes, &said, err);
}

/* --- once more ---------------------------------------------------------------------------- */

static int take_spec(void *context, const struct state_job *job)
{
	json_t **spec = context;
	json_t *given = json_object_get(job->value, "spec");
	if (json_object_get(given, "node") &&
		(strcmp(job->state, "failed") == 0 || strcmp(job->state, "cancelled") == 0))
		*spec = json_deep_copy(given);
	return 0;
}

json_t *node_jobs_again(struct hub *hub, const char *id)
{
	json_t *spec = NULL;
	state_job(hub->state, id, take_spec, &spec, NULL);
	return spec;
}

/* --- ended here ---------------------------------------------------------------------------- */

static int add_id(void *context, const struct state_job *job)
{
	json_object_set_new(context, job->id, json_string(job->vm ? job->vm : ""));
	return 0;
}

static void end_one(
	struct hub *hub, const char *id, const char *vm, const struct err *why, bool unless_pushed)
{
	struct pushes pushes;
	struct err err = ERR_INIT;
	if (find_pushes(hub, id, vm, &pushes, &err) < 0) {
		log_warning("job %s stays open: %s", id, err.text);
		return;
	}
	if (pushes.open[0] && unless_pushed)
		return;
	if (end_job(hub, id, JOB_FAILED, &pushes, why, &err) < 0)
		log_warning("job %s stays open: %s", id, err.text);
	if (pushes.open[0] && jobs_cancel(hub->jobs, pushes.open, why->text, &err) < 0)
		log_warning("session %s stays open: %s", pushes.open, err.text);
}

void node_jobs_end_all(struct hub *hub, const char *name, const struct err *why, bool unless_pushed)
{
	const struct state_job_filter its = {.state = "open", .node = name};
	struct err err = ERR_INIT;
	json_t *jobs = json_object();
	const char *id;
	json_t *vm;
	if (state_jobs(hub->state, &its, add_id, jobs, &err) < 0)
		log_warning("jobs of node %s: %s", name, err.text);
	json_object_foreach(jobs, id, vm)
		end_one(hub, id, json_string_value(vm), why, unless_pushed);
	json_decref(jobs);
}

static int add_nodes_job(void *context, const struct state_job *job)
{
	const json_t *node = json_object_get(json_object_get(job->value, "spec"), "node");
	if (node)
		json_object_set_new(context, job->id,
			json_pack("{s:O, s:s}", "node", node, "vm", job->vm ? job->vm : ""));
	return 0;
}

void node_jobs_end_lost(struct hub *hub)
{
	const struct state_job_filter open = {.state = "open"};
	struct err err = ERR_INIT;
	json_t *jobs = json_object(), *job;
	const char *id;
	if (state_jobs(hub->state, &open, add_nodes_job, jobs, &err) < 0)
		log_warning("jobs of nodes are not looked at: %s", err.text);
	json_object_foreach(jobs, id, job)
	{
		struct state_object node = {0};
		struct err why = ERR_INIT;
		if (state_get(hub->state, "node", hub_text(job, "node"), &node, &why) == 0) {
			state_object_clear(&node);
		} else if (why.code == ERR_NOT_FOUND) {
			err_set(&why, ERR_DENIED, "node %s was taken out", hub_text(job, "node"));
			end_one(hub, id, hub_text(job, "vm"), &why, false);
		}
	}
	json_decref(jobs);
}

bool hub_nodes_cancel(struct hub *hub, const char *id, const char *why)
{
	struct given given = {0};
	struct err cancelled = ERR_INIT, err = ERR_INIT;
	if (state_job(hub->state, id, take_given, &given, NULL) < 0 || !given.node[0])
		return false;
	err_set(&cancelled, ERR_CANCELLED, "%s", why);
	if (given.state == JOB_QUEUED &&
		jobs_tell(hub->jobs, id, JOB_CANCELLED, NULL, NULL, &cancelled, &err) < 0)
		log_warning("job %s stays open: %s", id, err.text);
	hub_nodes_work_changed(hub, given.node);
	return true;
}
