/* Repositories and their restore points. */
#include "hub_internal.h"

#include "catalogue.h"
#include "log.h"
#include "repository.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* --- repositories -------------------------------------------------------------------------- */

static void put_number(json_t *object, const char *name, uint64_t number)
{
	json_object_set_new(object, name, json_integer((json_int_t)number));
}

/* "ok", "low" (below warn-free), "full" (below stop-free: no backups). */
static const char *space_state(const struct job_repository *r, uint64_t free_bytes)
{
	return r->stop_free_bytes > 0 && free_bytes < r->stop_free_bytes   ? "full"
	       : r->warn_free_bytes > 0 && free_bytes < r->warn_free_bytes ? "low"
									   : "ok";
}

static int put_info(json_t *object, struct hub *hub, const struct job_repository *r,
	const struct rest_actor *actor, struct err *err)
{
	struct repository_info info;
	struct repository *repo = hub_repository_open(hub, r->name, false, err);
	int rc = repo ? repository_info(repo, &info, err) : -1;
	repository_close(repo);
	if (rc < 0)
		return -1;
	const struct repository_settings *s = &info.settings;
	const struct {
		const char *name, *text;
	} texts[] = {{"id", info.id}, {"created", info.created},
		{"state", space_state(r, info.free_bytes)},
		{"compression", repository_compression_name(s->compression)},
		{"digest", digest_algorithm_name(s->digest)},
		{"path", actor->scope == REST_ADMIN ? r->path : NULL}};
	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++)
		if (texts[i].text)
			json_object_set_new(object, texts[i].name, json_string(texts[i].text));
	put_number(object, "format", info.format);
	put_number(object, "cluster_size", s->cluster_bytes);
	put_number(object, "chain_length", s->chain_length_max);
	put_number(object, "free", info.free_bytes);
	put_number(object, "total", info.total_bytes);
	return 0;
}

static json_t *repository_json(
	struct hub *hub, const struct job_repository *r, const struct rest_actor *actor)
{
	struct err err = ERR_INIT;
	json_t *object = json_pack("{s:s}", "name", r->name);
	put_number(object, "warn_free", r->warn_free_bytes);
	put_number(object, "stop_free", r->stop_free_bytes);
	if (put_info(object, hub, r, actor, &err) < 0) {
		json_object_set_new(object, "state", json_string("unavailable"));
		/* What is wrong names the path. */
		json_object_set_new(object, "error",
			actor->scope >= REST_OPERATE
				? json_pack("{s:s, s:s}", "code", err_code_name(err.code), "text",
					  err.text)
				: json_pack("{s:s}", "code", err_code_name(err.code)));
	}
	return object;
}

struct numbers {
	const char *name;
	json_t *object;
};

static int put_numbers(void *context, const struct index_repository *repository)
{
	const struct numbers *numbers = context;
	if (strcmp(repository->name, numbers->name) != 0)
		return 0;
	put_number(numbers->object, "vms", repository->nr_vms);
	put_number(numbers->object, "points", repository->nr_points);
	put_number(numbers->object, "stored", repository->stored_bytes);
	return 1;
}

/* The whole of it: also what the index counts. */
static json_t *full_json(
	struct hub *hub, const struct job_repository *r, const struct rest_actor *actor)
{
	struct numbers numbers = {r->name, repository_json(hub, r, actor)};
	if (!rest_actor_is_held(actor))
		index_repositories(hub->index, put_numbers, &numbers, NULL);
	return numbers.object;
}

static int get_repositories(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const struct hub_config *c = hub_config(hub);
	unsigned limit;
	const char *after;
	if (rest_page(request, &limit, &after, err) < 0)
		return -1;
	size_t i = 0;
	if (after) {
		const struct job_repository *last = hub_config_repository(c, after);
		i = last ? (size_t)(last - c->repositories) + 1 : c->nr_repositories;
	}
	json_t *items = json_array();
	for (; i < c->nr_repositories && json_array_size(items) < limit; i++)
		json_array_append_new(
			items, full_json(hub, &c->repositories[i], rest_actor(request)));
	return rest_reply_page(
		request, items, i < c->nr_repositories ? c->repositories[i - 1].name : NULL, err);
}

/* The call's {repo}. */
static const struct job_repository *repository_of(
	struct hub *hub, struct rest_request *request, struct err *err)
{
	const char *name = rest_param(request, "repo");
	const struct job_repository *r = hub_config_repository(hub_config(hub), name);
	if (!r)
		err_set(err, ERR_NOT_FOUND, "there is no repository \"%s\"", name);
	return r;
}

static int get_repository(void *context, struct rest_request *request, struct err *err)
{
	const struct job_repository *r = repository_of(context, request, err);
	return r ? rest_reply(request, 200, full_json(context, r, rest_actor(request)), err) : -1;
}

static int post_reindex(void *context, struct rest_request *request, struct err *err)
{
	const struct job_repository *r = repository_of(context, request, err);
	if (!r)
		return -1;
	return hub_reply_new_job(context, request,
		json_pack("{s:s, s:s}", "kind", "reindex", "repository", r->name), err);
}

/* --- machines ------------------------------------------------------------------------------------
 */

struct vms_listing {
	const struct rest_actor *actor;
	json_t *items;
	unsigned limit;
	char *last;
	bool more;
};

static void put_time(json_t *object, const char *name, int64_t time)
{
	char text[CLOCK_UTC_BYTES];
	clock_utc_text(time, text);
	if (time > 0)
		json_object_set_new(object, name, json_string(text));
}

static int list_vm(void *context, const struct index_vm *vm)
{
	struct vms_listing *l = context;
	if (!rest_actor_may(l->actor, vm->vm))
		return 0;
	if (json_array_size(l->items) == l->limit) {
		l->more = true;
		return 1;
	}
	json_t *object = json_pack("{s:s, s:s, s:i, s:i, s:s?, s:s?, s:s?}", "vm", vm->vm,
		"repository", vm->repository, "points", (int)vm->nr_points, "damaged",
		(int)vm->nr_damaged, "newest", vm->newest, "newest_usable", vm->newest_usable,
		"newest_good", vm->newest_good);
	put_number(object, "stored", vm->stored_bytes);
	put_number(object, "size", vm->size_bytes);
	put_time(object, "newest_time", vm->newest_time);
	put_time(object, "newest_usable_time", vm->newest_usable_time);
	put_time(object, "newest_good_time", vm->newest_good_time);
	json_array_append_new(l->items, object);
	free(l->last);
	l->last = strdup(vm->vm);
	return 0;
}

static int get_vms(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const struct job_repository *r = repository_of(hub, request, err);
	struct vms_listing l = {.actor = rest_actor(request), .items = json_array()};
	const char *after = NULL;
	int rc = r ? rest_page(request, &l.limit, &after, err) : -1;
	if (rc == 0 && hub_points_refresh(hub, r->name, NULL, err) < 0)
		rc = hub_unavailable(request, r->name, err);
	if (rc < 0) {
		json_decref(l.items);
		return -1;
	}
	const struct index_vms_filter filter = {
		.repository = r->name,
		.vm_glob = rest_query(request, "vm"),
		.after_vm = after,
		.after_repository = after ? r->name : NULL,
	};
	rc = index_vms(hub->index, &filter, list_vm, &l, err);
	if (rc < 0)
		json_decref(l.items);
	else
		rc = rest_reply_page(request, l.items, l.more ? l.last : NULL, err);
	free(l.last);
	return rc;
}

/* --- restore points
 * ----------------------------------------------------------------------------------- */

struct points_listing {
	json_t *items;
	char cursor[INDEX_CURSOR_BYTES];
	unsigned limit;
	bool more;
};

static int list_point(
	void *context, const struct index_point *point, const char cursor[INDEX_CURSOR_BYTES])
{
	struct points_listing *l = context;
	if (json_array_size(l->items) == l->limit) {
		l->more = true;
		return 1;
	}
	json_array_append(l->items, (json_t *)point->value);
	snprintf(l->cursor, sizeof l->cursor, "%s", cursor);
	return 0;
}

static int count_vm(void *context, const struct index_vm *vm)
{
	(void)vm;
	*(bool *)context = true;
	return 1;
}

/* Of a VM without points: whether there is such a VM at all. */
static int check_known(struct hub *hub, const char *repository, const char *vm, struct err *err)
{
	bool known = false;
	const struct index_vms_filter filter = {.repository = repository, .vm_glob = vm};
	if (index_vms(hub->index, &filter, count_vm, &known, err) < 0)
		return -1;
	return known ? 0
		     : err_set(err, ERR_NOT_FOUND, "the repository %s has no VM \"%s\"", repository,
			       vm);
}

static int get_points(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const struct job_repository *r = repository_of(hub, request, err);
	const char *vm = rest_param(request, "vm"), *after = NULL;
	struct points_listing l = {.items = json_array()};
	int rc = r ? rest_page(request, &l.limit, &after, err) : -1;
	if (rc == 0 && hub_points_refresh(hub, r->name, vm, err) < 0)
		rc = hub_unavailable(request, r->name, err);
	if (rc < 0) {
		json_decref(l.items);
		return -1;
	}
	const struct index_filter filter = {
		.repository = r->name,
		.vm = vm,
		.oldest_first = true,
		.after = after,
		.limit = l.limit + 1,
	};
	rc = index_points(hub->index, &filter, list_point, &l, err);
	if (rc == 0 && json_array_size(l.items) == 0 && !after)
		rc = check_known(hub, r->name, vm, err);
	if (rc == 0)
		return rest_reply_page(request, l.items, l.more ? l.cursor : NULL, err);
	json_decref(l.items);
	return rc;
}

static int get_point(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const struct job_repository *r = repository_of(hub, request, err);
	const char *vm = rest_param(request, "vm"), *point = rest_param(request, "point");
	if (!r)
		return -1;
	if (hub_points_refresh(hub, r->name, vm, err) < 0)
		return hub_unavailable(request, r->name, err);
	bool latest = strcmp(point, "latest") == 0;
	json_t *value = index_point(hub->index, r->name, vm, latest ? NULL : point, err);
	return value ? rest_reply(request, 200, value, err) : -1;
}

/* Of who may read the disks: it tells how the machine was made. */
static int get_config(void *context, struct rest_request *request, struct err *err)
{
	const struct job_repository *r = repository_of(context, request, err);
	const char *point = rest_param(request, "point");
	struct repository *repo = r ? hub_repository_open(context, r->name, false, err) : NULL;
	char *AUTO_FREE bytes = NULL;
	size_t length;
	if (!repo)
		return r ? hub_unavailable(request, r->name, err) : -1;
	int rc = repository_config_load(repo, rest_param(request, "vm"),
		strcmp(point, "latest") == 0 ? NULL : point, rest_param(request, "name"), &bytes,
		&length, err);
	repository_close(repo);
	return rc < 0 ? -1
		      : rest_reply_octets(request, "application/octet-stream", bytes, length, err);
}

/* --- protection
 * ---------------------------------------------------------------------------------------- */

static int parse_until(const json_t *body, int64_t *until, struct err *err)
{
	const json_t *value = json_object_get(body, "until");
	const char *text = json_string_value(value);
	struct tm tm = {0};
	const char *end = text ? strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm) : NULL;
	*until = 0;
	if (!value || json_is_null(value))
		return 0;
	if (!end || *end)
		return err_set(err, ERR_USAGE,
			"until: \"%s\" is no time (like 2026-12-31T00:00:00Z, or null: without "
			"end)",
			text ? text : "");
	*until = timegm(&tm);
	return *until > time(NULL) ? 0 : err_set(err, ERR_USAGE, "until: %s is over", text);
}

static int protect(
	struct hub *hub, struct rest_request *request, bool off, int64_t until, struct err *err)
{
	const struct job_repository *r = repository_of(hub, request, err);
	const char *vm = rest_param(request, "vm");
	struct repository *repo = r ? hub_repository_open(hub, r->name, true, err) : NULL;
	if (!repo)
		return r ? hub_unavailable(request, r->name, err) : -1;
	int rc = repository_protect(repo, vm, rest_param(request, "point"), off, until, err);
	repository_close(repo);
	if (rc < 0)
		return -1;
	return off ? rest_reply(request, 204, NULL, err) : get_point(hub, request, err);
}

static int put_protection(void *context, struct rest_request *request, struct err *err)
{
	static const struct rest_field fields[] = {
		{.name = "until", .type = REST_STRING, .nullable = true},
		{0},
	};
	int64_t until;
	if (rest_check(rest_body(request), fields, err) < 0 ||
		parse_until(rest_body(request), &until, err) < 0)
		return -1;
	return protect(context, request, false, until, err);
}

static int delete_protection(void *context, struct rest_request *request, struct err *err)
{
	return protect(context, request, true, 0, err);
}

/* --- what a source must know before a session
 * -------------------------------------------------------- */

static int get_latest(void *context, struct rest_request *request, struct err *err)
{
	const char *name = rest_query(request, "repository"), *key = rest_query(request, "key");
	const char *vm = rest_param(request, "vm");
	if (!name || !key)
		return err_set(err, ERR_USAGE, "%s is missing (?repository=NAME&key=KEY)",
			name ? "key" : "repository");
	if (repository_name_check_key(key, err) < 0 || repository_name_check_vm(vm, err) < 0)
		return -1;
	if (!hub_config_repository(hub_config(context), name))
		return err_set(err, ERR_NOT_FOUND, "there is no repository \"%s\"", name);
	struct repository *repo = hub_repository_open(context, name, false, err);
	if (!repo)
		return hub_unavailable(request, name, err);
	const struct repository_disk_info *disk = NULL;
	struct err why = ERR_INIT;
	struct repository_point *point = repository_latest(repo, vm, key, &disk, &why);
	int rc;
	if (point)
		rc = rest_reply(request, 200,
			json_pack("{s:s, s:s, s:s, s:I, s:s?, s:s?}", "vm", vm, "point", point->id,
				"key", disk->key, "size", (json_int_t)disk->size_bytes, "change_id",
				disk->change_id, "bitmap", disk->bitmap),
			err);
	else if (why.code == ERR_NONE)
		rc = err_set(err, ERR_NOT_FOUND,
			"the VM \"%s\" has no restore point with a disk %s", vm, key);
	else
		rc = err_copy(err, &why);
	repository_point_free(point);
	repository_close(repo);
	return rc;
}

#define REPO "/api/v1/repositories/{repo}"
#define POINT REPO "/vms/{vm}/points/{point}"

const struct rest_route hub_repository_routes[] = {
	{"GET", "/api/v1/repositories?limit&after", "listRepositories", REST_READ, REST_VMS,
		get_repositories, 0},
	{"GET", REPO, "getRepository", REST_READ, REST_VMS, get_repository, 0},
	{"POST", REPO "/reindex", "reindexRepository", REST_OPERATE, REST_CREATES, post_reindex, 0},
	{"GET", REPO "/vms?vm&limit&after", "listRepositoryVms", REST_READ, REST_VMS, get_vms, 0},
	{"GET", REPO "/vms/{vm}/points?limit&after", "listPoints", REST_READ, 0, get_points, 0},
	{"GET", POINT, "getPoint", REST_READ, 0, get_point, 0},
	{"GET", POINT "/config/{name}", "getPointConfig", REST_OPERATE, 0, get_config, 0},
	{"PUT", POINT "/protection", "protectPoint", REST_OPERATE, 0, put_protection, 0},
	{"DELETE", POINT "/protection", "unprotectPoint", REST_OPERATE, 0, delete_protection, 0},
	{"GET", "/api/v1/vms/{vm}/latest?repository&key", "getLatestDisk", REST_BACKUP, 0,
		get_latest, 0},
	{0},
};
