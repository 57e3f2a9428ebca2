/*
 * A hub: its URL, its client, and what it is asked about its repository.
 *
 *   https://HOST[:PORT][/REPOSITORY]
 *   └── the client's URL ──┘ └ left out: the hub has one
 */
#include "remote_internal.h"

#include "repository.h"
#include "transport.h"

#include <errno.h>
#include <string.h>

#define PAGE "1000" /* entries of a list at once */
#define RETRY_MS 120000u /* so long a hub may take to be started again */
#define OPENING_RETRY_MS 2000u /* a name that is wrong is told at once */
#define CLOSING_RETRY_MS 5000u
#define SILENCE_MS 300000u
/* An interrupted job is read, all of it, before it is gone on with.  A hub that is gone, and not
 * just busy, is found out by the connection. */
#define OPENING_MS (12u * 3600 * 1000)

/* --- opening ------------------------------------------------------------------------ */

/* Cuts the repository's name off the URL; both are the store's. */
static int split_url(struct store *store, const char *name, char **url, struct err *err)
{
	const char *host = strstr(name, "://") + 3, *slash = strchr(host, '/');
	size_t length = slash ? (size_t)(slash - name) : strlen(name);
	if (strchr(host, '@'))
		return err_set(err, ERR_USAGE,
			"--repo: a user or password has no place in a hub's URL (--token-file "
			"names the token's file)");
	if (host[0] == '\0' || host[0] == '/' || strpbrk(name, "?# \t\n"))
		return err_set(err, ERR_USAGE,
			"--repo %s: no URL of a hub (https://HOST[:PORT][/REPOSITORY])", name);
	*url = strndup(name, length);
	if (!*url)
		return err_errno(err, ENOMEM, "cannot open %s", name);
	while (slash && *slash == '/')
		slash++;
	if (!slash || !*slash)
		return 0;
	store->repository = strdup(slash);
	if (!store->repository)
		return err_errno(err, ENOMEM, "cannot open %s", name);
	length = strlen(slash);
	while (length > 0 && store->repository[length - 1] == '/')
		store->repository[--length] = '\0';
	if (strchr(store->repository, '/'))
		return err_set(
			err, ERR_USAGE, "--repo %s: a repository's name holds no \"/\"", name);
	return 0;
}

static int check_health(struct store *store, struct err *err)
{
	json_t *health;
	if (rest_call(store->client, "GET", "/api/v1/health", NULL, &health, err) < 0)
		return -1;
	const json_t *protocol = json_object_get(health, "protocol");
	int rc = 0;
	if (!json_is_integer(protocol))
		rc = err_set(err, ERR_PROTOCOL, "what answers there is no hub");
	else if (json_integer_value(protocol) != REST_PROTOCOL)
		rc = err_set(err, ERR_UNSUPPORTED,
			"the hub speaks protocol %lld, this program %d (bring both to one version)",
			(long long)json_integer_value(protocol), REST_PROTOCOL);
	json_decref(health);
	return rc;
}

/* The only one, or an error that lists them. */
static int pick_repository(struct store *store, struct err *err)
{
	json_t *list;
	if (rest_call(store->client, "GET", "/api/v1/repositories?limit=" PAGE, NULL, &list, err) <
		0)
		return -1;
	const json_t *items = json_object_get(list, "items"), *item;
	char names[512] = "";
	size_t i, used = 0;
	json_array_foreach(items, i, item)
	{
		const char *name = json_string_value(json_object_get(item, "name"));
		if (name && used < sizeof names - 2)
			used += (size_t)snprintf(
				names + used, sizeof names - used, "%s%s", used ? ", " : "", name);
		if (name && !store->repository)
			store->repository = strdup(name);
	}
	size_t nr = json_array_size(items);
	json_decref(list);
	if (nr == 1 && store->repository)
		return 0;
	free(store->repository);
	store->repository = NULL;
	return nr == 0 ? err_set(err, ERR_NOT_FOUND, "the hub has no repository")
		       : err_set(err, ERR_USAGE, "which of the hub's repositories? (%s/NAME: %s)",
				 store->name, names);
}

/* A token that may not ask for it may still be one for backups. */
static int check_repository(struct store *store, struct err *err)
{
	struct err why = ERR_INIT;
	json_t *info = hub_info_json(store, &why);
	json_decref(info);
	return info || why.code == ERR_DENIED ? 0 : err_copy(err, &why);
}

static int make_clients(struct store *store, const struct store_options *options, const char *url,
	unsigned retry_ms, struct err *err)
{
	struct rest_client_options client = {
		.url = url,
		.token_file = options->token_file,
		.ca_file = options->ca_file,
		.silence_timeout_ms = SILENCE_MS,
		.retry_ms = retry_ms,
		.cancel = options->cancel,
	};
	store->client = rest_client_new(&client, err);
	client.silence_timeout_ms = OPENING_MS;
	store->opening = store->client ? rest_client_new(&client, err) : NULL;
	client.retry_ms = CLOSING_RETRY_MS;
	client.silence_timeout_ms = 0;
	client.cancel = NULL;
	store->closing = store->opening ? rest_client_new(&client, err) : NULL;
	return store->closing ? 0 : -1;
}

static int say_hello(struct store *store, const struct store_options *options, struct err *err)
{
	struct err why = ERR_INIT;
	int rc = check_health(store, &why);
	if (rc == 0)
		rc = store->repository ? check_repository(store, &why)
				       : pick_repository(store, &why);
	if (rc == 0)
		return 0;
	err_copy(err, &why);
	return err_context(err, "hub %s", options->name);
}

static void free_clients(struct store *store)
{
	rest_client_free(store->client);
	rest_client_free(store->opening);
	rest_client_free(store->closing);
	store->client = store->opening = store->closing = NULL;
}

int hub_open(struct store *store, const struct store_options *options, struct err *err)
{
	char *AUTO_FREE url = NULL;
	store->build = strdup(options->build);
	if (!store->build)
		return err_errno(err, ENOMEM, "cannot open %s", options->name);
	if (split_url(store, options->name, &url, err) < 0 ||
		make_clients(store, options, url, OPENING_RETRY_MS, err) < 0 ||
		say_hello(store, options, err) < 0)
		return -1;
	/* It has been there: from here on it is waited for. */
	free_clients(store);
	return make_clients(store, options, url, RETRY_MS, err);
}

void hub_close(struct store *store)
{
	free_clients(store);
	free(store->repository);
	free(store->build);
}

/* --- paths ---------------------------------------------------------------------------- */

int hub_path(char path[REMOTE_PATH_BYTES], struct err *err, const char *const *parts)
{
	path[0] = '\0';
	for (size_t i = 0; parts[i]; i++) {
		/* Every second one is a name. */
		if (i % 2 == 1) {
			if (rest_path_append(path, REMOTE_PATH_BYTES, parts[i], err) < 0)
				return -1;
			continue;
		}
		size_t used = strlen(path);
		if (strlen(parts[i]) >= REMOTE_PATH_BYTES - used)
			return err_set(err, ERR_USAGE, "the path %s... is too long", path);
		memcpy(path + used, parts[i], strlen(parts[i]) + 1);
	}
	return 0;
}

/* With TLS it names the identity for other people's clients; ours is told apart from the URI. */
char *hub_export_uri(const json_t *export)
{
	const char *uri = json_string_value(json_object_get(export, "uri"));
	const char *host = uri ? strstr(uri, "://") : NULL;
	char *made = NULL;
	if (!host)
		return NULL;
	host += 3;
	size_t length = strcspn(host, "/?");
	const char *at = memrchr(host, '@', length);
	if (asprintf(&made, "%.*s%s", (int)(host - uri), uri, at ? at + 1 : host) < 0)
		return NULL;
	return made;
}

/* Of "scheme://HOST[:PORT]/...". */
static bool is_here(const char *uri)
{
	char host[256];
	const char *begin = strstr(uri, "://");
	if (!begin)
		return false;
	begin += 3;
	bool is_v6 = *begin == '[';
	begin += is_v6;
	snprintf(host, sizeof host, "%.*s", (int)strcspn(begin, is_v6 ? "]" : ":/?"), begin);
	return transport_is_loopback(host);
}

int hub_export_check(const struct store *store, const char *uri, bool has_key, struct err *err)
{
	if (strncmp(uri, "nbds://", 7) == 0)
		return has_key ? 0
			       : err_set(err, ERR_REFUSED,
					 "the hub's NBD export is there with TLS, and it gave no "
					 "key for it");
	if (strncmp(uri, "nbd://", 6) != 0)
		return err_set(err, ERR_REFUSED, "what the hub calls its NBD export is none");
	if (!is_here(uri))
		return err_set(err, ERR_REFUSED,
			"the hub's NBD export is elsewhere, without TLS (its [nbd] section needs "
			"tls = required)");
	if (!is_here(store->name))
		return err_set(err, ERR_REFUSED,
			"the hub is elsewhere, and calls a server of this machine its NBD export, "
			"without TLS (its [nbd] section needs tls = required, or an "
			"address-for-clients)");
	return 0;
}

/* --- asking ---------------------------------------------------------------------------- */

json_t *hub_info_json(struct store *store, struct err *err)
{
	char path[REMOTE_PATH_BYTES];
	json_t *info = NULL;
	if (HUB_PATH(path, err, "/api/v1/repositories/", store->repository) < 0 ||
		rest_call(store->client, "GET", path, NULL, &info, err) < 0)
		return NULL;
	if (json_is_object(info))
		return info;
	json_decref(info);
	err_set(err, ERR_PROTOCOL, "the hub told nothing of the repository %s", store->repository);
	return NULL;
}

static const char *text_of(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));
	return text ? text : "";
}

static uint64_t number_of(const json_t *object, const char *name)
{
	json_int_t number = json_integer_value(json_object_get(object, name));
	return number > 0 ? (uint64_t)number : 0;
}

int hub_info(struct store *store, struct repository_info *info, struct err *err)
{
	json_t *json = hub_info_json(store, err);
	if (!json)
		return -1;
	memset(info, 0, sizeof *info);
	repository_settings_default(&info->settings);
	snprintf(info->path, sizeof info->path, "%s", text_of(json, "path"));
	snprintf(info->id, sizeof info->id, "%s", text_of(json, "id"));
	snprintf(info->created, sizeof info->created, "%s", text_of(json, "created"));
	info->format = (unsigned)number_of(json, "format");
	info->free_bytes = number_of(json, "free");
	info->total_bytes = number_of(json, "total");
	json_decref(json);
	return 0;
}

/* Calls item() for each entry of a list, over all its pages, until it returns not 0. */
typedef int hub_item(void *context, const json_t *item, struct err *err);

static int each(
	struct store *store, const char *path, hub_item *item, void *context, struct err *err)
{
	char *AUTO_FREE next = NULL;
	int rc = 0;
	do {
		char page[REMOTE_PATH_BYTES];
		json_t *list = NULL;
		snprintf(
			page, sizeof page, "%.1500s?limit=" PAGE "%s", path, next ? "&after=" : "");
		if ((next && rest_path_append(page, sizeof page, next, err) < 0) ||
			rest_call(store->client, "GET", page, NULL, &list, err) < 0)
			return -1;
		const json_t *items = json_object_get(list, "items");
		for (size_t i = 0; rc == 0 && i < json_array_size(items); i++)
			rc = item(context, json_array_get(items, i), err);
		const char *after = json_string_value(json_object_get(list, "next"));
		free(next);
		next = after ? strdup(after) : NULL;
		json_decref(list);
	} while (rc == 0 && next);
	return rc < 0 ? -1 : 0;
}

struct vm_visit {
	repository_vm_callback *callback;
	void *context;
};

static int visit_vm(void *context, const json_t *item, struct err *err)
{
	const struct vm_visit *visit = context;
	const char *vm = json_string_value(json_object_get(item, "vm"));
	if (!vm || repository_name_check_vm(vm, NULL) < 0)
		return err_set(
			err, ERR_PROTOCOL, "the hub's list of machines has one without a name");
	return visit->callback(visit->context, vm);
}

int hub_list_vms(
	struct store *store, repository_vm_callback *callback, void *context, struct err *err)
{
	char path[REMOTE_PATH_BYTES];
	struct vm_visit visit = {callback, context};
	if (HUB_PATH(path, err, "/api/v1/repositories/", store->repository, "/vms") < 0)
		return -1;
	return each(store, path, visit_vm, &visit, err);
}

struct point_visit {
	repository_point_callback *callback;
	void *context;
};

static int visit_point(void *context, const json_t *item, struct err *err)
{
	const struct point_visit *visit = context;
	struct repository_point *point = point_json_parse(item, err);
	if (!point)
		return -1;
	int rc = visit->callback(visit->context, point);
	repository_point_free(point);
	return rc;
}

int hub_list_points(struct store *store, const char *vm, repository_point_callback *callback,
	void *context, struct err *err)
{
	char path[REMOTE_PATH_BYTES];
	struct point_visit visit = {callback, context};
	if (HUB_PATH(path, err, "/api/v1/repositories/", store->repository, "/vms/", vm,
		    "/points") < 0)
		return -1;
	return each(store, path, visit_point, &visit, err);
}

struct made {
	const char *job;
	char *point;
	bool found;
};

static int compare_job(void *context, const struct repository_point *point)
{
	struct made *made = context;
	if (point->damage || !point->client_job || strcmp(point->client_job, made->job) != 0)
		return 0;
	made->found = true;
	snprintf(made->point, REPOSITORY_POINT_BYTES, "%s", point->id);
	return 1;
}

int hub_point_of_job(struct store *store, const char *vm, const char *job, struct deadline until,
	char point[REPOSITORY_POINT_BYTES], struct err *err)
{
	struct made made = {.job = job, .point = point};
	struct err why = ERR_INIT;
	if (begin_settle(store, vm, until, err) < 0)
		return -1;
	if (hub_list_points(store, vm, compare_job, &made, &why) < 0 && why.code != ERR_NOT_FOUND)
		return err_copy(err, &why);
	return made.found;
}

struct repository_point *hub_point_load(
	struct store *store, const char *vm, const char *id, struct err *err)
{
	char path[REMOTE_PATH_BYTES];
	json_t *json = NULL;
	if (HUB_PATH(path, err, "/api/v1/repositories/", store->repository, "/vms/", vm, "/points/",
		    id && id[0] ? id : "latest") < 0 ||
		rest_call(store->client, "GET", path, NULL, &json, err) < 0)
		return NULL;
	struct repository_point *point = point_json_parse(json, err);
	json_decref(json);
	if (!point || !point->damage)
		return point;
	err_set(err, ERR_CORRUPT, "restore point %s of VM \"%s\" cannot be used: %s", point->id, vm,
		point->damage);
	repository_point_free(point);
	return NULL;
}

int hub_point_config(struct store *store, const char *vm, const char *point, const char *name,
	char **bytes, size_t *length, struct err *err)
{
	char path[REMOTE_PATH_BYTES];
	void *octets = NULL;
	if (HUB_PATH(path, err, "/api/v1/repositories/", store->repository, "/vms/", vm, "/points/",
		    point && point[0] ? point : "latest", "/config/", name) < 0 ||
		rest_call_octets(store->client, "GET", path, NULL, 0, &octets, length,
			REPOSITORY_CONFIG_BYTES_MOST, err) < 0)
		return -1;
	/* With the zero byte behind it that a file's bytes have. */
	*bytes = realloc(octets, *length + 1);
	if (!*bytes) {
		free(octets);
		return err_errno(err, ENOMEM, "cannot take the file %s of the hub", name);
	}
	(*bytes)[*length] = 0;
	return 0;
}

int hub_protect(struct store *store, const char *vm, const char *point, bool off, int64_t until,
	struct err *err)
{
	char path[REMOTE_PATH_BYTES], text[CLOCK_UTC_BYTES] = "";
	if (until > 0)
		clock_utc_text(until, text);
	if (HUB_PATH(path, err, "/api/v1/repositories/", store->repository, "/vms/", vm, "/points/",
		    point, "/protection") < 0)
		return -1;
	json_t *body = off ? NULL : json_pack("{s:s?}", "until", until > 0 ? text : NULL);
	int rc = rest_call(store->client, off ? "DELETE" : "PUT", path, body, NULL, err);
	json_decref(body);
	return rc;
}
