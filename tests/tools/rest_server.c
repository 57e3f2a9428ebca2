/*
 * A small REST server of invented things, on our room's server, so that other people's clients
 * can be held to it: rest_server [CERTIFICATE KEY [CLIENTS-CA]].  Prints its port; ends when its
 * input ends; "reload" on its input reads the certificate anew.
 * Tokens: "read", "backup" (VMs web*), "operate", "admin", "expired".
 * Environment: REST_CONNECTIONS, REST_IDLE_MS, REST_WRONG (limits), REST_ADDRESS,
 * REST_PORT, REST_LOG (log to
 * stderr).
 */
#include "rest.h"

#include <stdio.h>

struct thing {
	char id[64];
	json_t *value;
	uint64_t version;
};

struct kept {
	char key[128], digest[65];
	unsigned status;
	json_t *body;
};

struct world {
	pthread_mutex_t mutex;
	pthread_cond_t opened;
	struct thing things[64];
	size_t nr_things;
	struct kept kept[64];
	size_t nr_kept;
	unsigned nr_made, nr_waiting;
	bool open;
	char octets[4 << 20];
	size_t octets_length;
};

/* --- things ---------------------------------------------------------------------------------- */

static const struct rest_field thing_fields[] = {
	{.name = "name", .type = REST_STRING, .required = true, .least = 1, .most = 32},
	{.name = "size_bytes", .type = REST_INTEGER, .least = 0, .most = 1000},
	{.name = "until", .type = REST_STRING, .nullable = true},
	{.name = "kind", .type = REST_STRING, .choices = (const char *const[]){"a", "b", NULL}},
	{.name = "disks", .type = REST_ARRAY, .least = 0, .most = 3},
	{0},
};
static const struct rest_field disk_fields[] = {
	{.name = "key", .type = REST_STRING, .required = true},
	{0},
};

static struct thing *find(struct world *world, const char *id, struct err *err)
{
	for (size_t i = 0; i < world->nr_things; i++)
		if (!strcmp(world->things[i].id, id))
			return &world->things[i];
	err_set(err, ERR_NOT_FOUND, "there is no thing %s", id);
	return NULL;
}

static int check_thing(struct rest_request *request, struct err *err)
{
	const json_t *body = rest_body(request);
	return rest_check(body, thing_fields, err) ||
			       rest_check_each(
				       "disks", json_object_get(body, "disks"), disk_fields, err)
		       ? -1
		       : 0;
}

static int make_thing(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	char location[128];
	if (check_thing(request, err))
		return -1;
	WITH_LOCK(&world->mutex);
	if (world->nr_things == ARRAY_LENGTH(world->things))
		return err_set(err, ERR_NO_SPACE, "there are too many things");
	struct thing *thing = &world->things[world->nr_things++];
	snprintf(thing->id, sizeof thing->id, "t%u", ++world->nr_made);
	thing->value = json_deep_copy(rest_body(request));
	json_object_set_new(thing->value, "id", json_string(thing->id));
	thing->version = 1;
	snprintf(location, sizeof location, "/api/v1/things/%s", thing->id);
	rest_set_etag(request, thing->version);
	return rest_reply_made(request, 201, location, json_deep_copy(thing->value), err);
}

static int list_things(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	unsigned limit;
	const char *after;
	if (rest_page(request, &limit, &after, err))
		return -1;
	WITH_LOCK(&world->mutex);
	json_t *items = json_array();
	const char *last = NULL, *next = NULL;
	for (size_t i = after ? strtoul(after + (*after != 0), NULL, 10) : 0; i < world->nr_things;
		i++) {
		if (json_array_size(items) == limit) {
			next = last;
			break;
		}
		last = world->things[i].id;
		json_array_append_new(items, json_deep_copy(world->things[i].value));
	}
	return rest_reply_page(request, items, next, err);
}

static int get_thing(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	WITH_LOCK(&world->mutex);
	const struct thing *thing = find(world, rest_param(request, "id"), err);
	if (!thing)
		return -1;
	rest_set_etag(request, thing->version);
	return rest_reply(request, 200, json_deep_copy(thing->value), err);
}

static int put_thing(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	if (check_thing(request, err))
		return -1;
	WITH_LOCK(&world->mutex);
	struct thing *thing = find(world, rest_param(request, "id"), err);
	if (!thing || rest_check_match(request, thing->version, err))
		return -1;
	json_object_update(thing->value, (json_t *)(uintptr_t)rest_body(request));
	thing->version++;
	rest_set_etag(request, thing->version);
	return rest_reply(request, 200, json_deep_copy(thing->value), err);
}

static int delete_thing(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	WITH_LOCK(&world->mutex);
	struct thing *thing = find(world, rest_param(request, "id"), err);
	if (!thing)
		return -1;
	json_decref(thing->value);
	*thing = world->things[--world->nr_things];
	return rest_reply(request, 204, NULL, err);
}

/* --- others ----------------------------------------------------------------------------------- */

static int echo(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	const char *vm = rest_param(request, "vm"), *q = rest_query(request, "q");
	return rest_reply(request, 200,
		json_pack("{s:s*, s:s*, s:s, s:s}", "vm", vm, "q", q, "peer", rest_peer(request),
			"actor", rest_actor(request)->id),
		err);
}

static int make_secret(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	WITH_LOCK(&world->mutex);
	world->nr_made++;
	return rest_reply_made(
		request, 201, "/api/v1/secrets/1", json_pack("{s:s}", "token", "only-once"), err);
}

static int put_octets(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	size_t length;
	const void *bytes = rest_octets(request, &length);
	(void)err;
	WITH_LOCK(&world->mutex);
	memcpy(world->octets, bytes, length);
	world->octets_length = length;
	return rest_reply(request, 204, NULL, err);
}

static int get_octets(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	WITH_LOCK(&world->mutex);
	return rest_reply_octets(
		request, "application/octet-stream", world->octets, world->octets_length, err);
}

/* Waits until somebody else opens. */
static int wait_open(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	struct deadline until = deadline_after_ms(20000);
	WITH_LOCK(&world->mutex);
	world->nr_waiting++;
	world->nr_made++;
	while (!world->open)
		if (!thread_cond_wait(&world->opened, &world->mutex, until))
			return err_set(err, ERR_TIMEOUT, "nobody opened");
	return rest_reply_made(request, 202, "/api/v1/things/t1",
		json_pack("{s:i}", "made", (int)world->nr_made), err);
}

static int do_open(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	WITH_LOCK(&world->mutex);
	world->open = true;
	pthread_cond_broadcast(&world->opened);
	return rest_reply(request, 200, json_pack("{s:i}", "waiting", (int)world->nr_waiting), err);
}

static int get_waiting(void *context, struct rest_request *request, struct err *err)
{
	struct world *world = context;
	WITH_LOCK(&world->mutex);
	return rest_reply(request, 200, json_pack("{s:i}", "waiting", (int)world->nr_waiting), err);
}

static int fail(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	rest_set_job(request, "20261122T000000Z-1");
	return err_set(err, err_code_parse(rest_query(request, "code"), ERR_IO),
		"it was asked to fail, on \xff purpose");
}

static int problem(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	err_set(err, ERR_NO_SPACE, "the repository is full");
	return rest_problem(request, 507, err);
}

/* --- events
 * --------------------------------------------------------------------------------------- */

struct counter {
	uint64_t at, last, cut; /* silent after so many; 0: not */
};

static int next_count(
	void *context, struct deadline until, const char **event, uint64_t *id, json_t **data)
{
	struct counter *counter = context;
	bool is_over = counter->at >= counter->last;
	if (is_over && counter->last < 1000)
		return 0;
	if (is_over || (counter->cut && counter->at == counter->cut)) {
		cancel_sleep(NULL, until, NULL);
		return 2;
	}
	*event = ++counter->at == counter->last ? "end" : "count";
	*id = counter->at;
	*data = json_pack("{s:i}", "n", (int)counter->at);
	return 1;
}

static int get_events(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	const char *seen = rest_header(request, "Last-Event-ID");
	uint64_t last, cut;
	if (rest_query_number(request, "last", 0, 1000000, 10, &last, err) ||
		rest_query_number(request, "cut", 0, 1000000, 0, &cut, err))
		return -1;
	struct counter *counter = calloc(1, sizeof *counter);
	if (!counter)
		return err_set(err, ERR_NO_MEMORY, "no memory");
	counter->at = seen ? strtoull(seen, NULL, 10) : 0;
	counter->last = last;
	counter->cut = seen ? 0 : cut;
	if (last >= 1000) /* that never ends: silent at once */
		counter->at = last;
	return rest_reply_stream(request, next_count, free, counter, err);
}

static const struct rest_route routes[] = {
	{"GET", "/api/v1/health?q", "getHealth", REST_NONE, 0, echo, 0},
	{"GET", "/api/v1/things?limit&after", "listThings", REST_READ, REST_VMS, list_things, 0},
	{"POST", "/api/v1/things", "makeThing", REST_OPERATE, REST_CREATES, make_thing, 0},
	{"GET", "/api/v1/things/{id}", "getThing", REST_READ, 0, get_thing, 0},
	{"PUT", "/api/v1/things/{id}", "putThing", REST_OPERATE, 0, put_thing, 0},
	{"DELETE", "/api/v1/things/{id}", "deleteThing", REST_OPERATE, 0, delete_thing, 0},
	{"GET", "/api/v1/vms/{vm}?q", "getVm", REST_READ, 0, echo, 0},
	{"GET", "/api/v1/vms/all", "getAllVms", REST_READ, 0, echo, 0},
	{"POST", "/api/v1/vms/{vm}/sessions", "makeSession", REST_BACKUP, 0, echo, 0},
	{"POST", "/api/v1/secrets", "makeSecret", REST_ADMIN, REST_CREATES | REST_SECRET,
		make_secret, 0},
	{"PUT", "/api/v1/octets", "putOctets", REST_OPERATE, REST_OCTETS, put_octets, 3 << 20},
	{"GET", "/api/v1/octets", "getOctets", REST_READ, 0, get_octets, 0},
	{"POST", "/api/v1/wait", "wait", REST_OPERATE, REST_CREATES, wait_open, 0},
	{"GET", "/api/v1/wait", "getWaiting", REST_READ, 0, get_waiting, 0},
	{"POST", "/api/v1/open", "open", REST_OPERATE, 0, do_open, 0},
	{"GET", "/api/v1/fail?code", "fail", REST_READ, 0, fail, 0},
	{"GET", "/api/v1/problem", "problem", REST_READ, 0, problem, 0},
	{"GET", "/api/v1/events?last&cut", "getEvents", REST_READ, REST_STREAMS, get_events, 0},
	{0},
};

/* --- callbacks
 * ------------------------------------------------------------------------------------ */

static int authenticate(void *context, const char *hash, struct rest_actor *actor, struct err *err)
{
	static const char *const tokens[] = {"read", "backup", "operate", "admin"};
	(void)context;
	for (size_t i = 0; i < ARRAY_LENGTH(tokens); i++) {
		char ours[REST_TOKEN_HASH_BYTES];
		rest_token_hash(tokens[i], ours);
		if (strcmp(ours, hash) != 0)
			continue;
		snprintf(actor->id, sizeof actor->id, "%s", tokens[i]);
		rest_scope_parse(tokens[i], &actor->scope);
		if (actor->scope == REST_BACKUP)
			actor->vms = json_pack("[s]", "web*");
		return 0;
	}
	return err_set(err, ERR_DENIED, "unknown");
}

static int remembered(void *context, const struct rest_actor *actor, const char *key,
	const char *digest, bool *found, unsigned *status, json_t **body, struct err *err)
{
	struct world *world = context;
	(void)actor;
	WITH_LOCK(&world->mutex);
	for (size_t i = 0; i < world->nr_kept; i++)
		if (!strcmp(world->kept[i].key, key)) {
			if (strcmp(world->kept[i].digest, digest) != 0)
				return err_set(err, ERR_RANGE,
					"the Idempotency-Key was used for another call");
			*found = true;
			*status = world->kept[i].status;
			*body = json_deep_copy(world->kept[i].body);
		}
	return 0;
}

static void remember(void *context, const struct rest_actor *actor, const char *key,
	const char *digest, unsigned status, const json_t *body)
{
	struct world *world = context;
	(void)actor;
	WITH_LOCK(&world->mutex);
	if (world->nr_kept == ARRAY_LENGTH(world->kept))
		return;
	struct kept *kept = &world->kept[world->nr_kept++];
	snprintf(kept->key, sizeof kept->key, "%s", key);
	snprintf(kept->digest, sizeof kept->digest, "%s", digest);
	kept->status = status;
	kept->body = json_deep_copy(body);
}

static void audit(void *context, const struct rest_actor *actor, const char *peer,
	const char *operation, const char *path, unsigned status)
{
	(void)context;
	(void)peer;
	printf("audit %s %s %s %u\n", actor->id, operation, path, status);
	fflush(stdout);
}

static void log_stderr(void *context, enum log_level level, const char *text)
{
	(void)context;
	fprintf(stderr, "%s: %s\n", log_level_name(level), text);
}

static unsigned number_of(const char *name)
{
	const char *text = getenv(name);
	return text ? (unsigned)strtoul(text, NULL, 10) : 0;
}

static struct world world = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void clear_world(void)
{
	for (size_t i = 0; i < world.nr_things; i++)
		json_decref(world.things[i].value);
	for (size_t i = 0; i < world.nr_kept; i++)
		json_decref(world.kept[i].body);
}

int main(int argc, char **argv)
{
	const struct rest_route *tables[] = {routes, rest_document_routes, NULL};
	struct rest_server_options options = {
		.address = getenv("REST_ADDRESS") ? getenv("REST_ADDRESS") : "127.0.0.1",
		.port = number_of("REST_PORT"),
		.certificate_file = argc > 2 ? argv[1] : NULL,
		.key_file = argc > 2 ? argv[2] : NULL,
		.clients_ca_file = argc > 3 ? argv[3] : NULL,
		.tables = tables,
		.context = &world,
		.authenticate = authenticate,
		.remembered = remembered,
		.remember = remember,
		.audit = audit,
		.most_connections = number_of("REST_CONNECTIONS"),
		.idle_timeout_ms = number_of("REST_IDLE_MS"),
		.wrong_tokens_per_minute = number_of("REST_WRONG")};
	struct err err = ERR_INIT;
	char line[64];
	if (getenv("REST_LOG"))
		log_set_sink(log_stderr, NULL, LOG_LEVEL_DEBUG);
	thread_cond_init(&world.opened);
	struct rest_server *server = rest_server_start(&options, &err);
	if (!server) {
		fprintf(stderr, "rest_server: %s\n", err.text);
		return 1;
	}
	printf("%u\n", rest_server_port(server));
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		err_clear(&err);
		if (!strcmp(line, "reload\n"))
			printf("%s\n", rest_server_reload(server, &err) ? err.text : "reloaded");
		fflush(stdout);
	}
	rest_server_stop(server);
	clear_world();
	puts("stopped");
	return 0;
}
