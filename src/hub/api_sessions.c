/*
 * Push sessions.  A session has the id of its job; the NBD service does the work (host.h), here
 * it is noted, opened for who may, and passed on.
 */
#include "nodes.h"

#include "job.h"
#include "log.h"
#include "repository.h"

#include <errno.h>
#include <string.h>

#define COME_AGAIN_S 5
#define CLOSE_MS 10000
#define DIGESTS_MOST (1u << 20)

/* --- what may be said ----------------------------------------------------------------------- */

static const char *const modes[] = {"auto", "full", "incremental", NULL};
static const char *const resumes[] = {"auto", "never", "must", NULL};
static const char *const digests[] = {"required", "optional", NULL};
static const char *const changes[] = {"none", "compare", "bitmap", "extents", NULL};
static const char *const consistencies[] = {"application", "crash", NULL};

static const struct rest_field session_fields[] = {
	{.name = "repository", .type = REST_STRING, .required = true, .least = 1, .most = 32},
	{.name = "vm", .type = REST_STRING, .required = true, .least = 1, .most = 255},
	{.name = "source", .type = REST_OBJECT},
	{.name = "disks",
		.type = REST_ARRAY,
		.required = true,
		.least = 1,
		.most = REPOSITORY_DISKS_MAX},
	{.name = "mode", .type = REST_STRING, .choices = modes},
	{.name = "resume", .type = REST_STRING, .choices = resumes},
	{.name = "digest", .type = REST_STRING, .choices = digests},
	{.name = "lease_s", .type = REST_INTEGER, .least = 10, .most = 86400},
	{.name = "client", .type = REST_OBJECT, .required = true},
	{.name = "consistency", .type = REST_STRING, .nullable = true, .choices = consistencies},
	{.name = "consistency_reason", .type = REST_STRING, .nullable = true},
	{0},
};

static const struct rest_field client_fields[] = {
	{.name = "software", .type = REST_STRING, .required = true, .least = 1, .most = 255},
	{.name = "build", .type = REST_STRING, .least = 0, .most = 255},
	{.name = "protocol", .type = REST_INTEGER, .least = 0, .most = 1000000},
	{.name = "job", .type = REST_STRING, .least = 1, .most = 64},
	{0},
};

static const struct rest_field disk_fields[] = {
	{.name = "key", .type = REST_STRING, .required = true, .least = 1, .most = 64},
	{.name = "size_bytes",
		.type = REST_INTEGER,
		.required = true,
		.least = 1,
		.most = INT64_MAX},
	{.name = "source", .type = REST_OBJECT},
	{.name = "change", .type = REST_STRING, .choices = changes},
	{.name = "from", .type = REST_STRING, .nullable = true},
	{.name = "bitmap", .type = REST_STRING, .nullable = true},
	{.name = "change_id", .type = REST_STRING, .nullable = true},
	{.name = "new_bitmap", .type = REST_STRING, .nullable = true},
	{.name = "source_state", .type = REST_STRING, .nullable = true},
	{.name = "unusable", .type = REST_STRING, .nullable = true},
	{.name = "tells_since", .type = REST_BOOL},
	{.name = "estimate_bytes", .type = REST_INTEGER, .least = 0, .most = INT64_MAX},
	{0},
};

static int check_client(struct hub *hub, const json_t *client, struct err *err)
{
	const json_t *protocol = json_object_get(client, "protocol");
	if (rest_check_in("client", client, client_fields, err) < 0)
		return -1;
	if (protocol && json_integer_value(protocol) != REST_PROTOCOL)
		return err_set(err, ERR_REFUSED,
			"client.protocol: this hub speaks %d, the client %lld (bring both to one "
			"version)",
			REST_PROTOCOL, (long long)json_integer_value(protocol));
	const char *build = hub_text(client, "build");
	return hub_build_check(hub, build, hub_text(client, "software"), err);
}

static int check_body(
	struct hub *hub, const struct rest_request *request, const json_t *body, struct err *err)
{
	const char *vm = hub_text(body, "vm");
	if (rest_check(body, session_fields, err) < 0 ||
		rest_check_each("disks", json_object_get(body, "disks"), disk_fields, err) < 0 ||
		repository_name_check_vm(vm, err) < 0 || hub_check_vm(request, vm, err) < 0)
		return -1;
	return check_client(hub, json_object_get(body, "client"), err);
}

/* Mounted, the right one, with space. */
static int check_repository(struct hub *hub, struct rest_request *request, const char *name,
	uint64_t *free_bytes, struct err *err)
{
	const struct job_repository *r = hub_config_repository(hub_config(hub), name);
	if (!r)
		return err_set(err, ERR_NOT_FOUND, "there is no repository \"%s\"", name);
	int rc = job_repository_check_noted(hub->state, r, 0, free_bytes, err);
	return rc < 0 ? hub_unavailable(request, name, err) : 0;
}

/* --- opening -----------------------------------------------------------------------------------
 */

static int64_t total_of(const json_t *disks)
{
	int64_t total = 0;
	size_t i;
	json_t *disk;
	json_array_foreach(
		disks, i, disk) if (__builtin_add_overflow(total,
					    json_integer_value(json_object_get(disk, "size_bytes")),
					    &total)) return INT64_MAX;
	return total;
}

/* Its job, and its note, before the service hears of it.  whole: the job that it is part of; NULL.
 */
static int note_session(struct hub *hub, const struct rest_request *request, const json_t *body,
	const char *whole, uint64_t free_bytes, char id[JOB_ID_BYTES], struct err *err)
{
	char who[ACCESS_ACTOR_BYTES];
	const char *repository = hub_text(body, "repository"), *vm = hub_text(body, "vm");
	json_int_t total = total_of(json_object_get(body, "disks"));
	access_actor_text(rest_actor(request), who);
	json_t *spec = json_pack("{s:s, s:s, s:s, s:O, s:O, s:s*}", "kind", "push", "repository",
		repository, "vm", vm, "disks", json_object_get(body, "disks"), "client",
		json_object_get(body, "client"), "for_job", whole);
	json_t *noted = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:s*}", "repository",
		repository, "vm", vm, "for", who, "state", "opening", "hub",
		(json_int_t)hub->started_ns, "opened", (json_int_t)time(NULL), "total", total,
		"for_job", whole);
	int rc = spec && noted ? 0 : err_errno(err, ENOMEM, "cannot open a session");
	if (rc == 0)
		rc = jobs_add_foreign(hub->jobs, spec, who, free_bytes, id, err);
	if (rc == 0 && state_put(hub->state, "session", id, noted, 0, NULL, err) < 0) {
		jobs_tell(hub->jobs, id, JOB_FAILED, NULL, NULL, err, NULL);
		rc = -1;
	}
	json_decref(noted);
	json_decref(spec);
	return rc;
}

static json_t *ask_service(struct hub *hub, const json_t *body, const char *whole, const char *id,
	const char *who, struct err *err)
{
	const struct job_repository *r =
		hub_config_repository(hub_config(hub), hub_text(body, "repository"));
	json_t *request = json_deep_copy(body);
	json_object_set_new(request, "session", json_string(id));
	json_object_set_new(request, "repository", json_string(r->path));
	if (r->id)
		json_object_set_new(request, "repository_id", json_string(r->id));
	json_object_set_new(request, "for", json_string(who));
	if (whole)
		json_object_set_new(request, "hub_job", json_string(whole));
	return hub_host_call(hub, "session-open", request, err);
}

/* It is open: the note says which point it makes. */
static int note_open(struct hub *hub, const char *id, const json_t *answer, struct err *err)
{
	struct state_object object = {0};
	if (state_get(hub->state, "session", id, &object, err) < 0)
		return -1;
	json_t *value = json_deep_copy(object.value);
	json_object_set_new(value, "state", json_string("open"));
	json_object_set_new(value, "point", json_string(hub_text(answer, "point")));
	int rc = state_put(hub->state, "session", id, value, object.version, NULL, err);
	json_decref(value);
	state_object_clear(&object);
	return rc;
}

/* Nothing came of it. */
static int undo(struct hub *hub, const char *id, bool is_open, struct err *err)
{
	if (is_open)
		json_decref(hub_host_call(
			hub, "session-abort", json_pack("{s:s}", "session", id), NULL));
	jobs_tell(hub->jobs, id, JOB_FAILED, NULL, NULL, err, NULL);
	state_delete(hub->state, "session", id, STATE_ANY, NULL);
	return -1;
}

/*
 * Where the service listens on all addresses, clients get the one under which they called us.
 * uri: "nbd://0.0.0.0:10809/NAME".
 */
void hub_export_address(struct hub *hub, const struct rest_request *request, json_t *export)
{
	const struct hub_config *c = hub_config(hub);
	const char *called = rest_header(request, "Host"), *uri = hub_text(export, "uri");
	const char *host = strstr(uri, "://"), *path = host ? strchr(host + 3, '/') : NULL;
	if (c->nbd_address_for_clients || !called || !path ||
		(strcmp(c->nbd_listen.host, "0.0.0.0") != 0 &&
			strcmp(c->nbd_listen.host, "::") != 0))
		return;
	const char *colon = called[0] == '[' ? strchr(called, ']') : strchr(called, ':');
	int length = colon ? (int)(colon - called) + (*colon == ']') : (int)strlen(called);
	char *made = NULL;
	if (asprintf(&made, "%.*s%.*s:%d%s", (int)(host - uri) + 3, uri, length, called,
		    (int)json_integer_value(json_object_get(export, "port")), path) < 0)
		return;
	json_object_set_new(export, "uri", json_string(made));
	json_object_set_new(export, "address", json_stringn(called, (size_t)length));
	free(made);
}

static int reply_open(struct hub *hub, struct rest_request *request, const char *id, json_t *answer,
	struct err *err)
{
	char location[80];
	size_t i;
	json_t *disk;
	json_object_del(answer, "session");
	json_object_set_new(answer, "id", json_string(id));
	json_object_set_new(answer, "job", json_string(id));
	json_array_foreach(json_object_get(answer, "disks"), i, disk)
		hub_export_address(hub, request, json_object_get(disk, "export"));
	snprintf(location, sizeof location, "/api/v1/sessions/%s", id);
	return rest_reply_made(request, 201, location, answer, err);
}

static int post_session(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const json_t *body = rest_body(request);
	const struct rest_actor *actor = rest_actor(request);
	char id[JOB_ID_BYTES], part_of[JOB_ID_BYTES], who[ACCESS_ACTOR_BYTES];
	uint64_t free_bytes = UINT64_MAX;
	if (hub_takes_work(hub, err) < 0 || check_body(hub, request, body, err) < 0 ||
		check_repository(hub, request, hub_text(body, "repository"), &free_bytes, err) < 0)
		return -1;
	const char *whole = NULL;
	if (actor->scope == REST_NODE) {
		if (node_jobs_of_machine(hub, actor->name, hub_text(body, "repository"),
			    hub_text(body, "vm"), part_of, err) < 0)
			return -1;
		whole = part_of[0] ? part_of : NULL;
	}
	if (note_session(hub, request, body, whole, free_bytes, id, err) < 0)
		return err && err->code == ERR_BUSY && err->sys_errno == EAGAIN
			       ? rest_problem_for_now(request, err, COME_AGAIN_S)
			       : -1;
	rest_set_job(request, id);
	json_t *answer =
		ask_service(hub, body, whole, id, access_actor_text(rest_actor(request), who), err);
	if (!answer && cancel_requested(hub->calls_end))
		/* It may be open in a moment: its note leads the next hub to it. */
		return rest_problem(request, 503, err);
	if (!answer)
		return undo(hub, id, false, err);
	if (note_open(hub, id, answer, err) < 0) {
		json_decref(answer);
		return undo(hub, id, true, err);
	}
	hub_sessions_wake(hub);
	return reply_open(hub, request, id, answer, err);
}

/* --- one of them
 * ----------------------------------------------------------------------------------- */

/* The call's session, when the token may touch it. */
static int session_of(
	struct hub *hub, struct rest_request *request, struct state_object *noted, struct err *err)
{
	const char *id = rest_param(request, "id");
	if (state_get(hub->state, "session", id, noted, err) < 0) {
		if (err && err->code == ERR_NOT_FOUND)
			err_set(err, ERR_NOT_FOUND,
				"there is no open session %s (how one ended tells "
				"/api/v1/jobs/ID)",
				id);
		return -1;
	}
	rest_set_job(request, id);
	if (hub_check_vm(request, hub_text(noted->value, "vm"), err) == 0)
		return 0;
	state_object_clear(noted);
	return -1;
}

static int check_session(struct hub *hub, struct rest_request *request, struct err *err)
{
	struct state_object noted = {0};
	if (session_of(hub, request, &noted, err) < 0)
		return -1;
	state_object_clear(&noted);
	return 0;
}

static json_t *request_for(struct rest_request *request)
{
	return json_pack("{s:s}", "session", rest_param(request, "id"));
}

/* As it is shown: the hub's note, and what the service tells. */
static json_t *session_json(const char *id, const json_t *noted, json_t *told)
{
	json_t *shown = told ? told : json_pack("{s:O}", "state", json_object_get(noted, "state"));
	json_object_del(shown, "session");
	json_object_set_new(shown, "id", json_string(id));
	json_object_set_new(shown, "job", json_string(id));
	json_object_set(shown, "repository", json_object_get(noted, "repository"));
	json_object_set(shown, "vm", json_object_get(noted, "vm"));
	json_object_set(shown, "for", json_object_get(noted, "for"));
	return shown;
}

static int get_session(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	struct state_object noted = {0};
	if (session_of(hub, request, &noted, err) < 0)
		return -1;
	json_t *told = hub_host_call(hub, "session", request_for(request), NULL);
	json_t *shown = session_json(noted.id, noted.value, told);
	state_object_clear(&noted);
	return rest_reply(request, 200, shown, err);
}

struct listing {
	const struct rest_actor *actor;
	json_t *items;
	char last[256];
	unsigned limit;
	bool more;
};

static int list_session(void *context, const struct state_object *object)
{
	struct listing *l = context;
	if (!rest_actor_may(l->actor, hub_text(object->value, "vm")))
		return 0;
	if (json_array_size(l->items) == l->limit) {
		l->more = true;
		return 1;
	}
	json_array_append_new(l->items, session_json(object->id, object->value, NULL));
	snprintf(l->last, sizeof l->last, "%s", object->id);
	return 0;
}

static int get_sessions(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	struct listing l = {.actor = rest_actor(request), .items = json_array()};
	const char *after = NULL;
	int rc = rest_page(request, &l.limit, &after, err);
	if (rc == 0)
		rc = state_list(hub->state, "session", after, list_session, &l, err);
	if (rc == 0)
		return rest_reply_page(request, l.items, l.more ? l.last : NULL, err);
	json_decref(l.items);
	return -1;
}

/* Passes a call without content of its own on, and its answer back. */
static int pass(struct hub *hub, struct rest_request *request, const char *verb, json_t *told,
	unsigned status, struct err *err)
{
	json_t *answer = hub_host_call(hub, verb, told, err);
	if (!answer)
		return -1;
	if (status == 204) {
		json_decref(answer);
		answer = NULL;
	}
	return rest_reply(request, status, answer, err);
}

static int post_heartbeat(void *context, struct rest_request *request, struct err *err)
{
	if (check_session(context, request, err) < 0)
		return -1;
	return pass(context, request, "session-renew", request_for(request), 200, err);
}

static int delete_session(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const char *keep = rest_query(request, "keep");
	if (keep && strcmp(keep, "true") != 0 && strcmp(keep, "false") != 0)
		return err_set(err, ERR_USAGE, "keep: must be true or false");
	if (check_session(hub, request, err) < 0)
		return -1;
	json_t *told = request_for(request);
	if (keep && strcmp(keep, "true") == 0)
		json_object_set_new(told, "keep", json_true());
	json_t *answer = hub_host_call(hub, "session-abort", told, err);
	if (!answer)
		return -1;
	json_decref(answer);
	/* Whoever asks next may want to begin anew. */
	hub_sessions_wait(hub, rest_param(request, "id"), deadline_after_ms(CLOSE_MS));
	return rest_reply(request, 204, NULL, err);
}

static int get_digests(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	uint64_t first, most;
	if (check_session(hub, request, err) < 0 ||
		rest_query_number(request, "first", 0, INT64_MAX, 0, &first, err) < 0 ||
		rest_query_number(request, "count", 1, INT64_MAX, DIGESTS_MOST, &most, err) < 0)
		return -1;
	json_t *told = json_pack("{s:s, s:s, s:I, s:I}", "session", rest_param(request, "id"),
		"key", rest_param(request, "key"), "first", (json_int_t)first, "count",
		(json_int_t)most);
	void *octets = NULL;
	size_t length = 0;
	json_t *answer =
		hub_host_octets(hub, "session-digests", told, NULL, 0, &octets, &length, err);
	if (!answer)
		return -1;
	json_decref(answer);
	int rc = rest_reply_octets(
		request, "application/octet-stream", octets ? octets : "", length, err);
	free(octets);
	return rc;
}

static int put_config(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	size_t length;
	const void *octets = rest_octets(request, &length);
	if (check_session(hub, request, err) < 0)
		return -1;
	json_t *told = json_pack("{s:s, s:s}", "session", rest_param(request, "id"), "name",
		rest_param(request, "name"));
	json_t *answer =
		hub_host_octets(hub, "session-config", told, octets, length, NULL, NULL, err);
	if (!answer)
		return -1;
	json_decref(answer);
	return rest_reply(request, 204, NULL, err);
}

static int post_distrust(void *context, struct rest_request *request, struct err *err)
{
	static const struct rest_field fields[] = {
		{.name = "key", .type = REST_STRING, .required = true, .least = 1, .most = 64},
		{.name = "offsets", .type = REST_ARRAY, .required = true, .least = 1, .most = 1024},
		{0},
	};
	const json_t *body = rest_body(request);
	if (rest_check(body, fields, err) < 0 || check_session(context, request, err) < 0)
		return -1;
	json_t *told = json_deep_copy(body);
	json_object_set_new(told, "session", json_string(rest_param(request, "id")));
	return pass(context, request, "session-distrust", told, 204, err);
}

/* Of one that is part of a job: what has ended without it makes no restore point any more. */
static int check_commit(struct hub *hub, struct rest_request *request, struct err *err)
{
	struct state_object noted = {0};
	if (session_of(hub, request, &noted, err) < 0)
		return -1;
	const char *whole = json_string_value(json_object_get(noted.value, "for_job"));
	int rc = whole ? node_jobs_is_open(hub, whole, err) : 0;
	state_object_clear(&noted);
	return rc;
}

static int post_commit(void *context, struct rest_request *request, struct err *err)
{
	static const struct rest_field fields[] = {
		{.name = "disks",
			.type = REST_ARRAY,
			.required = true,
			.least = 1,
			.most = REPOSITORY_DISKS_MAX},
		{0},
	};
	static const struct rest_field of_disk[] = {
		{.name = "key", .type = REST_STRING, .required = true, .least = 1, .most = 64},
		{.name = "digest", .type = REST_OBJECT},
		{.name = "figures", .type = REST_OBJECT},
		{.name = "audited_bytes", .type = REST_INTEGER, .least = 0, .most = INT64_MAX},
		{0},
	};
	struct hub *hub = context;
	const json_t *body = rest_body(request);
	const char *id = rest_param(request, "id");
	char location[64];
	if (rest_check(body, fields, err) < 0 ||
		rest_check_each("disks", json_object_get(body, "disks"), of_disk, err) < 0 ||
		check_commit(hub, request, err) < 0)
		return -1;
	json_t *told = json_deep_copy(body);
	json_object_set_new(told, "session", json_string(id));
	json_t *answer = hub_host_call(hub, "session-commit", told, err);
	if (!answer)
		return -1;
	json_decref(answer);
	hub_sessions_wake(hub);
	json_t *job = jobs_get(hub->jobs, id, err);
	snprintf(location, sizeof location, "/api/v1/jobs/%s", id);
	return job ? rest_reply_made(request, 202, location, job, err) : -1;
}

#define SESSION "/api/v1/sessions/{id}"

const struct rest_route hub_session_routes[] = {
	{"POST", "/api/v1/sessions", "openSession", REST_BACKUP, REST_CREATES | REST_SECRET,
		post_session, 0},
	{"GET", "/api/v1/sessions?limit&after", "listSessions", REST_READ, REST_VMS, get_sessions,
		0},
	{"GET", SESSION, "getSession", REST_READ, REST_VMS, get_session, 0},
	{"DELETE", SESSION "?keep", "closeSession", REST_BACKUP, 0, delete_session, 0},
	{"POST", SESSION "/heartbeat", "renewSession", REST_BACKUP, 0, post_heartbeat, 0},
	{"GET", SESSION "/disks/{key}/digests?first&count", "getDigests", REST_BACKUP, 0,
		get_digests, 0},
	{"PUT", SESSION "/config/{name}", "putConfig", REST_BACKUP, REST_OCTETS, put_config,
		REPOSITORY_CONFIG_BYTES_MOST},
	{"POST", SESSION "/distrust", "distrustParent", REST_BACKUP, 0, post_distrust, 0},
	{"POST", SESSION "/commit", "commitSession", REST_BACKUP, REST_CREATES, post_commit, 0},
	{0},
};
