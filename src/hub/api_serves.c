/* Restore points served over NBD, as long as their lease is renewed. */
#include "hub_internal.h"

#include "file.h"
#include "job.h"
#include "log.h"
#include "repository.h"

#include <errno.h>
#include <string.h>

#define SERVE_ID_BYTES 17

/* --- opening -----------------------------------------------------------------------------------
 */

static int note_serve(struct hub *hub, const struct rest_request *request, const json_t *body,
	char id[SERVE_ID_BYTES], struct err *err)
{
	uint8_t random[8];
	char who[ACCESS_ACTOR_BYTES];
	if (file_random(random, sizeof random, err) < 0)
		return -1;
	for (size_t i = 0; i < sizeof random; i++)
		snprintf(id + 2 * i, 3, "%02x", random[i]);
	json_t *noted = json_pack("{s:O, s:O, s:s, s:s, s:I, s:I}", "repository",
		json_object_get(body, "repository"), "vm", json_object_get(body, "vm"), "for",
		access_actor_text(rest_actor(request), who), "state", "opening", "hub",
		(json_int_t)hub->started_ns, "opened", (json_int_t)time(NULL));
	int rc = noted ? state_put(hub->state, "serve", id, noted, 0, NULL, err)
		       : err_errno(err, ENOMEM, "cannot serve");
	json_decref(noted);
	return rc;
}

static json_t *ask_service(struct hub *hub, const struct rest_request *request, const json_t *body,
	const char *id, struct err *err)
{
	const struct job_repository *r =
		hub_config_repository(hub_config(hub), hub_text(body, "repository"));
	char who[ACCESS_ACTOR_BYTES];
	json_t *told = json_deep_copy(body);
	json_object_set_new(told, "serve", json_string(id));
	json_object_set_new(told, "repository", json_string(r->path));
	if (r->id)
		json_object_set_new(told, "repository_id", json_string(r->id));
	json_object_set_new(told, "for", json_string(access_actor_text(rest_actor(request), who)));
	return hub_host_call(hub, "serve-open", told, err);
}

static int note_open(struct hub *hub, const char *id, const json_t *answer, struct err *err)
{
	struct state_object object = {0};
	if (state_get(hub->state, "serve", id, &object, err) < 0)
		return -1;
	json_t *value = json_deep_copy(object.value);
	json_object_set_new(value, "state", json_string("open"));
	json_object_set_new(value, "point", json_string(hub_text(answer, "point")));
	int rc = state_put(hub->state, "serve", id, value, object.version, NULL, err);
	json_decref(value);
	state_object_clear(&object);
	return rc;
}

static int undo(struct hub *hub, const char *id, bool is_open)
{
	if (is_open)
		json_decref(
			hub_host_call(hub, "serve-close", json_pack("{s:s}", "serve", id), NULL));
	state_delete(hub->state, "serve", id, STATE_ANY, NULL);
	return -1;
}

/* With what the digests are made, for who holds what is read against the restore point's record.
 * The caller's. */
static json_t *digest_json(struct repository *repo, struct err *err)
{
	struct repository_info info;
	uint8_t seed[DIGEST_SEED_BYTES];
	char hex[2 * DIGEST_SEED_BYTES + 1];
	if (repository_info(repo, &info, err) < 0)
		return NULL;
	repository_seed(repo, seed);
	digest_hex(seed, sizeof seed, hex);
	enum digest_algorithm algorithm = info.settings.digest;
	json_t *digest = json_pack("{s:s, s:s, s:i, s:i}", "algorithm",
		digest_algorithm_name(algorithm), "seed", hex, "chunk_bytes",
		(int)DIGEST_CHUNK_BYTES, "leaf_bytes", (int)digest_leaf_bytes(algorithm));
	explicit_bzero(seed, sizeof seed);
	explicit_bzero(hex, sizeof hex);
	if (!digest)
		err_errno(err, ENOMEM, "cannot serve");
	return digest;
}

static int post_serve(void *context, struct rest_request *request, struct err *err)
{
	static const struct rest_field fields[] = {
		{.name = "repository",
			.type = REST_STRING,
			.required = true,
			.least = 1,
			.most = 32},
		{.name = "vm", .type = REST_STRING, .required = true, .least = 1, .most = 255},
		{.name = "point", .type = REST_STRING, .nullable = true, .least = 1, .most = 64},
		{.name = "key", .type = REST_STRING, .nullable = true, .least = 1, .most = 64},
		{.name = "lease_s", .type = REST_INTEGER, .least = 10, .most = 86400},
		{0},
	};
	struct hub *hub = context;
	const json_t *body = rest_body(request);
	char id[SERVE_ID_BYTES], location[80];
	if (hub_takes_work(hub, err) < 0 || rest_check(body, fields, err) < 0 ||
		repository_name_check_vm(hub_text(body, "vm"), err) < 0)
		return -1;
	const char *name = hub_text(body, "repository");
	if (!hub_config_repository(hub_config(hub), name))
		return err_set(err, ERR_NOT_FOUND, "there is no repository \"%s\"", name);
	struct repository *repo = hub_repository_open(hub, name, false, err);
	if (!repo)
		return hub_unavailable(request, name, err);
	json_t *digest = digest_json(repo, err);
	repository_close(repo);
	if (!digest || note_serve(hub, request, body, id, err) < 0) {
		json_decref(digest);
		return -1;
	}
	json_t *answer = ask_service(hub, request, body, id, err);
	bool is_open = answer != NULL;
	if (!is_open || note_open(hub, id, answer, err) < 0) {
		json_decref(digest);
		json_decref(answer);
		/* It may be there in a moment: its note leads the next hub to it. */
		if (!is_open && cancel_requested(hub->calls_end))
			return rest_problem(request, 503, err);
		return undo(hub, id, is_open);
	}
	json_object_set_new(answer, "digest", digest);
	size_t i;
	json_t *export;
	json_array_foreach(json_object_get(answer, "exports"), i, export)
		hub_export_address(hub, request, export);
	json_object_del(answer, "serve");
	json_object_set_new(answer, "id", json_string(id));
	snprintf(location, sizeof location, "/api/v1/serves/%s", id);
	return rest_reply_made(request, 201, location, answer, err);
}

/* --- one of them
 * ----------------------------------------------------------------------------------- */

static int check_serve(struct hub *hub, const char *id, struct state_object *noted, struct err *err)
{
	if (state_get(hub->state, "serve", id, noted, err) == 0)
		return 0;
	if (err && err->code == ERR_NOT_FOUND)
		err_set(err, ERR_NOT_FOUND, "there is no serve %s (its lease may have ended)", id);
	return -1;
}

/* As it is shown.  Names of exports are told to who opened it, and never again. */
static json_t *serve_json(const char *id, const json_t *noted, json_t *told)
{
	json_t *shown = told ? told : json_object();
	json_object_del(shown, "serve");
	json_object_set_new(shown, "id", json_string(id));
	static const char *const members[] = {"repository", "vm", "point", "for"};
	for (size_t i = 0; i < ARRAY_LENGTH(members); i++)
		if (json_object_get(noted, members[i]))
			json_object_set(shown, members[i], json_object_get(noted, members[i]));
	return shown;
}

static int get_serve(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const char *id = rest_param(request, "id");
	struct state_object noted = {0};
	if (check_serve(hub, id, &noted, err) < 0)
		return -1;
	json_t *told = hub_host_call(hub, "serve", json_pack("{s:s}", "serve", id), err);
	json_t *shown = told ? serve_json(id, noted.value, told) : NULL;
	state_object_clear(&noted);
	return shown ? rest_reply(request, 200, shown, err) : -1;
}

struct listing {
	json_t *items;
	char last[256];
	unsigned limit;
	bool more;
};

static int list_serve(void *context, const struct state_object *object)
{
	struct listing *l = context;
	if (json_array_size(l->items) == l->limit) {
		l->more = true;
		return 1;
	}
	json_array_append_new(l->items, serve_json(object->id, object->value, NULL));
	snprintf(l->last, sizeof l->last, "%s", object->id);
	return 0;
}

static int get_serves(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	struct listing l = {.items = json_array()};
	const char *after = NULL;
	int rc = rest_page(request, &l.limit, &after, err);
	if (rc == 0)
		rc = state_list(hub->state, "serve", after, list_serve, &l, err);
	if (rc == 0)
		return rest_reply_page(request, l.items, l.more ? l.last : NULL, err);
	json_decref(l.items);
	return -1;
}

static int delete_serve(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const char *id = rest_param(request, "id");
	struct state_object noted = {0};
	struct err why = ERR_INIT;
	if (check_serve(hub, id, &noted, err) < 0)
		return -1;
	state_object_clear(&noted);
	json_t *answer = hub_host_call(hub, "serve-close", json_pack("{s:s}", "serve", id), &why);
	json_decref(answer);
	if (!answer && why.code != ERR_NOT_FOUND)
		return err_copy(err, &why);
	if (state_delete(hub->state, "serve", id, STATE_ANY, &why) < 0 && why.code != ERR_NOT_FOUND)
		return err_copy(err, &why);
	return rest_reply(request, 204, NULL, err);
}

static int post_heartbeat(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const char *id = rest_param(request, "id");
	struct state_object noted = {0};
	if (check_serve(hub, id, &noted, err) < 0)
		return -1;
	state_object_clear(&noted);
	json_t *answer = hub_host_call(hub, "serve-renew", json_pack("{s:s}", "serve", id), err);
	return answer ? rest_reply(request, 200, answer, err) : -1;
}

const struct rest_route hub_serve_routes[] = {
	{"POST", "/api/v1/serves", "openServe", REST_OPERATE, REST_CREATES | REST_SECRET,
		post_serve, 0},
	{"GET", "/api/v1/serves?limit&after", "listServes", REST_READ, 0, get_serves, 0},
	{"GET", "/api/v1/serves/{id}", "getServe", REST_READ, 0, get_serve, 0},
	{"DELETE", "/api/v1/serves/{id}", "closeServe", REST_OPERATE, 0, delete_serve, 0},
	{"POST", "/api/v1/serves/{id}/heartbeat", "renewServe", REST_OPERATE, 0, post_heartbeat, 0},
	{0},
};
