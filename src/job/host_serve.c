/* Serves: restore points that clients read over NBD, verified as they are read. */
#include "host_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LEASE_S 3600
#define LEASE_S_LEAST 2
#define LEASE_S_MOST (30 * 86400)
#define CACHE_BYTES (4 * MIB)
#define SERVES_MOST 64u

struct served {
	struct repository_disk *disk;
	struct export_one *export;
};

struct serve {
	struct serve *next;
	struct host_repository *repository;
	char id[HOST_ID_BYTES], vm[REPOSITORY_VM_BYTES], point[REPOSITORY_POINT_BYTES];
	char *asker; /* may be NULL */
	int64_t opened_s;
	int lease_s;
	int64_t renewed_ns; /* under service.mutex */
	bool closing; /* the same: somebody takes it down */
	struct export_group *group;
	struct served *disks;
	size_t nr_disks;
};

/* Under the mutex; those that are closing are not there any more. */
static struct serve *find(struct host_service *service, const char *id)
{
	struct serve *at = service->serves;
	while (at && (strcmp(at->id, id) != 0 || at->closing))
		at = at->next;
	return at;
}

/* -1: a disk keeps a request; to be tried again. */
static int take_down(struct host_service *service, struct serve *serve, struct err *err)
{
	for (size_t i = 0; i < serve->nr_disks; i++)
		if (serve->disks[i].export && export_remove(serve->disks[i].export, err) < 0)
			return -1;
	for (size_t i = 0; i < serve->nr_disks; i++) {
		export_free(serve->disks[i].export);
		repository_disk_close(serve->disks[i].disk);
	}
	export_group_free(serve->group);
	host_repository_put(service, serve->repository);
	free(serve->disks);
	free(serve->asker);
	free(serve);
	return 0;
}

/* It was marked as closing.  Off the list when it is down. */
static int close_marked(struct host_service *service, struct serve *serve, struct err *err)
{
	pthread_mutex_lock(&service->mutex);
	struct serve **at = &service->serves;
	while (*at != serve)
		at = &(*at)->next;
	*at = serve->next;
	pthread_mutex_unlock(&service->mutex);
	if (take_down(service, serve, err) == 0)
		return 0;
	WITH_LOCK(&service->mutex);
	serve->closing = false;
	serve->renewed_ns = 0; /* tried again by the clock */
	serve->next = service->serves;
	service->serves = serve;
	return -1;
}

/* --- opening --------------------------------------------------------------------- */

static int open_disk(struct serve *serve, const char *key, struct err *err)
{
	const struct repository_disk_options options = {.verify = true, .cache_bytes = CACHE_BYTES};
	struct served *served = &serve->disks[serve->nr_disks];
	char label[REPOSITORY_VM_BYTES + REPOSITORY_POINT_BYTES + REPOSITORY_KEY_BYTES + 16];
	served->disk = repository_disk_open(
		serve->repository->repo, serve->vm, serve->point, key, &options, err);
	if (!served->disk)
		return -1;
	serve->nr_disks++;
	snprintf(label, sizeof label, "%s@%s disk %s", serve->vm, serve->point,
		repository_disk_info(served->disk)->key);
	served->export =
		export_add(serve->group, label, repository_disk_block(served->disk), true, err);
	return served->export ? 0 : -1;
}

static int open_disks(
	struct serve *serve, const struct repository_point *point, const char *key, struct err *err)
{
	serve->disks = calloc(point->nr_disks, sizeof *serve->disks);
	if (!serve->disks)
		return err_errno(err, ENOMEM, "cannot serve");
	if (key)
		return open_disk(serve, key, err);
	for (size_t i = 0; i < point->nr_disks; i++)
		if (open_disk(serve, point->disks[i].key, err) < 0)
			return -1;
	return 0;
}

static int open_point(struct host_service *service, struct serve *serve, const char *path,
	const char *repository_id, const char *point, const char *key, struct err *err)
{
	char what[HOST_ID_BYTES + 16];
	serve->repository = host_repository_get(service, path, repository_id, false, err);
	if (!serve->repository)
		return -1;
	struct repository_point *of =
		repository_point_load(serve->repository->repo, serve->vm, point, err);
	if (!of)
		return -1;
	memcpy(serve->point, of->id, sizeof serve->point);
	snprintf(what, sizeof what, "serve %s", serve->id);
	serve->group = export_group_new(service->exports, what, err);
	int rc = serve->group ? open_disks(serve, of, key, err) : -1;
	repository_point_free(of);
	return rc;
}

static json_t *opened(const struct serve *serve)
{
	json_t *exports = json_array();
	for (size_t i = 0; i < serve->nr_disks; i++) {
		const struct served *served = &serve->disks[i];
		const struct repository_disk_info *info = repository_disk_info(served->disk);
		json_t *one = export_json(served->export);
		json_object_set_new(one, "key", json_string(info->key));
		json_object_set_new(one, "size_bytes", json_integer((json_int_t)info->size_bytes));
		json_array_append_new(exports, one);
	}
	return json_pack("{s:s, s:s, s:s, s:i, s:o}", "serve", serve->id, "vm", serve->vm, "point",
		serve->point, "lease_s", serve->lease_s, "exports", exports);
}

static int check_new(struct host_service *service, const char *id, int lease_s, struct err *err)
{
	unsigned nr = 0;
	if (host_check_id("serve", id, err) < 0)
		return -1;
	if (lease_s < LEASE_S_LEAST || lease_s > LEASE_S_MOST)
		return err_set(err, ERR_USAGE, "lease_s: %d to %d", LEASE_S_LEAST, LEASE_S_MOST);
	WITH_LOCK(&service->mutex);
	for (const struct serve *at = service->serves; at; at = at->next)
		nr++;
	if (nr >= SERVES_MOST)
		return err_set(err, ERR_BUSY, "%u restore points are served already", nr);
	return find(service, id) ? err_set(err, ERR_EXISTS, "serve %s is there already", id) : 0;
}

json_t *serve_verb_open(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	const char *id, *path, *repository_id = NULL, *vm, *point = NULL, *key = NULL,
			       *asker = NULL;
	int lease_s = LEASE_S;
	(void)in, (void)out;
	if (host_unpack(request, "serve-open", err, "{s:s, s:s, s?s, s:s, s?s, s?s, s?i, s?s}",
		    "serve", &id, "repository", &path, "repository_id", &repository_id, "vm", &vm,
		    "point", &point, "key", &key, "lease_s", &lease_s, "for", &asker) < 0 ||
		check_new(service, id, lease_s, err) < 0 || repository_name_check_vm(vm, err) < 0)
		return NULL;
	struct serve *serve = calloc(1, sizeof *serve);
	if (!serve || (asker && !(serve->asker = strdup(asker)))) {
		free(serve);
		err_errno(err, ENOMEM, "cannot serve");
		return NULL;
	}
	snprintf(serve->id, sizeof serve->id, "%s", id);
	snprintf(serve->vm, sizeof serve->vm, "%s", vm);
	serve->lease_s = lease_s;
	serve->opened_s = time(NULL);
	serve->renewed_ns = clock_now_ns();
	if (open_point(service, serve, path, repository_id, point, key, err) < 0) {
		(void)take_down(service, serve, NULL); /* it had no clients */
		return NULL;
	}
	json_t *answer = opened(serve);
	log_info("serve %s: %s@%s", serve->id, serve->vm, serve->point);
	WITH_LOCK(&service->mutex);
	serve->next = service->serves;
	service->serves = serve;
	return answer;
}

/* --- while it is there ----------------------------------------------------------- */

/* Under the mutex. */
static int64_t lease_left_s(const struct serve *serve)
{
	int64_t last = serve->renewed_ns;
	for (size_t i = 0; i < serve->nr_disks; i++) {
		struct export_figures figures;
		export_figures(serve->disks[i].export, &figures);
		if (figures.active_ns > last && serve->renewed_ns > 0)
			last = figures.active_ns;
	}
	return serve->lease_s - (clock_now_ns() - last) / 1000000000;
}

static json_t *describe(const struct serve *serve)
{
	char opened_at[CLOCK_UTC_BYTES];
	int64_t left_s = lease_left_s(serve);
	json_t *exports = json_array();
	for (size_t i = 0; i < serve->nr_disks; i++) {
		struct export_figures figures;
		struct err why = ERR_INIT;
		json_t *error = NULL;
		export_figures(serve->disks[i].export, &figures);
		if (export_failed(serve->disks[i].export, &why))
			error = json_pack(
				"{s:s, s:s}", "code", err_code_name(why.code), "text", why.text);
		json_array_append_new(
			exports, json_pack("{s:s, s:i, s:I, s:I, s:o*}", "key",
					 repository_disk_info(serve->disks[i].disk)->key,
					 "connections", (int)figures.connections, "read_bytes",
					 (json_int_t)figures.read_bytes, "requests",
					 (json_int_t)figures.requests, "error", error));
	}
	clock_utc_text(serve->opened_s, opened_at);
	return json_pack("{s:s, s:s, s:s, s:s, s:s*, s:s, s:i, s:I, s:o}", "serve", serve->id, "vm",
		serve->vm, "point", serve->point, "repository", serve->repository->path, "for",
		serve->asker, "opened", opened_at, "lease_s", serve->lease_s, "lease_left_s",
		(json_int_t)(left_s > 0 ? left_s : 0), "exports", exports);
}

json_t *serve_list(struct host_service *service)
{
	json_t *list = json_array();
	for (const struct serve *at = service->serves; at; at = at->next)
		if (!at->closing)
			json_array_append_new(list, describe(at));
	return list;
}

/* Under the mutex. */
static struct serve *find_named(
	struct host_service *service, const json_t *request, const char *verb, struct err *err)
{
	const char *id;
	if (host_unpack(request, verb, err, "{s:s}", "serve", &id) < 0)
		return NULL;
	struct serve *serve = find(service, id);
	if (!serve)
		err_set(err, ERR_NOT_FOUND, "there is no serve %s", id);
	return serve;
}

json_t *serve_verb_look(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	(void)in, (void)out;
	WITH_LOCK(&service->mutex);
	const struct serve *serve = find_named(service, request, "serve", err);
	return serve ? describe(serve) : NULL;
}

json_t *serve_verb_renew(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	(void)in, (void)out;
	WITH_LOCK(&service->mutex);
	struct serve *serve = find_named(service, request, "serve-renew", err);
	if (!serve)
		return NULL;
	serve->renewed_ns = clock_now_ns();
	return json_pack("{s:i}", "lease_left_s", serve->lease_s);
}

json_t *serve_verb_close(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	(void)in, (void)out;
	pthread_mutex_lock(&service->mutex);
	struct serve *serve = find_named(service, request, "serve-close", err);
	if (serve)
		serve->closing = true;
	pthread_mutex_unlock(&service->mutex);
	return serve && close_marked(service, serve, err) == 0 ? json_object() : NULL;
}

/* --- by the clock ---------------------------------------------------------------- */

static struct serve *next_ended(struct host_service *service, bool all)
{
	WITH_LOCK(&service->mutex);
	for (struct serve *at = service->serves; at; at = at->next) {
		if (at->closing || (!all && lease_left_s(at) > 0))
			continue;
		at->closing = true;
		return at;
	}
	return NULL;
}

void serve_look_round(struct host_service *service)
{
	struct serve *serve = next_ended(service, false);
	struct err err = ERR_INIT;
	if (!serve)
		return;
	log_info("serve %s: its lease ended", serve->id);
	if (close_marked(service, serve, &err) < 0)
		log_warning("%s", err.text);
}

void serve_stop_all(struct host_service *service)
{
	struct serve *serve;
	struct err err = ERR_INIT;
	while ((serve = next_ended(service, true)))
		if (close_marked(service, serve, &err) < 0) {
			log_error("%s", err.text);
			_exit(1); /* its thread uses all there is */
		}
}
