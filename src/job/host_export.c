/*
 * Exports of the NBD service.
 *
 *   mode single   one server, one port, for all
 *   mode range    a server and a port for each session, which come and go with it
 *
 * An export is known by its name, 128 random bits, and where there is TLS it is there only for
 * the one pre-shared key that belongs to the same session.  Names and keys are new each time,
 * and are never logged.
 *
 * All of it is one process: a session's data goes through digest, compression and file in the
 * thread that received it, and there is nothing that processes of their own would make faster;
 * docs/nbd-service.md has the figures.
 */
#include "host_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define NAME_BYTES 33
#define PSK_BYTES 32
#define IDENTITY_BYTES 24
#define PUSH_CONNECTIONS 64u /* of one, in mode range */
#define PUSH_BUDGET_BYTES (16 * MIB)
#define BUDGET_BYTES (32 * MIB)
/* A piece must hold a chunk: see pool_init(). */
#define BUDGET_PER_CONNECTION ((size_t)2 * DIGEST_CHUNK_BYTES)

/* A server with its listener and thread. */
struct port {
	struct nbd_server *server;
	struct listener where; /* as it was; run() has it */
	struct listener listener;
	pthread_t thread;
};

struct exports {
	const struct host_config *config;
	struct tls_server *tls; /* NULL: none */
	struct port *port; /* mode single; else NULL */
	pthread_mutex_t mutex; /* over what follows */
	struct export_group *groups;
	unsigned next_port;
};

struct export_group {
	struct export_group *next;
	struct exports *exports;
	struct port *port;
	char *what;
	char identity[IDENTITY_BYTES]; /* "" without TLS */
	uint8_t psk[PSK_BYTES];
	unsigned nr_exports;
};

/* The block that is served: it counts, and knows when something was done last. */
struct export_one {
	struct block block;
	struct block *inner;
	struct export_group *group;
	char name[NAME_BYTES];
	bool exported;
	_Atomic int64_t active_ns;
	atomic_uint_fast64_t requests, read_bytes, received_bytes, zeroed_bytes;
	bool read_only;
	/* The first that a write met, or, where it is read alone, a read: under exports.mutex. */
	struct err failure;
};

/* --- counting -------------------------------------------------------------------- */

static struct export_one *begin(struct block *block, atomic_uint_fast64_t *count, uint64_t bytes)
{
	struct export_one *one = (struct export_one *)block;
	atomic_fetch_add(&one->requests, 1);
	if (count)
		atomic_fetch_add(count, bytes);
	atomic_store(&one->active_ns, clock_now_ns());
	return one;
}

static int end(struct export_one *one, int rc)
{
	atomic_store(&one->active_ns, clock_now_ns());
	return rc;
}

/* The client is told a number and gives up: why, who asks for it later has to know.  Damage counts
 * before what may be over the next time. */
static int end_noted(struct export_one *one, int rc, struct err *why, struct err *err)
{
	if (rc < 0 && why->code != ERR_CANCELLED) {
		WITH_LOCK(&one->group->exports->mutex);
		if (one->failure.code == ERR_NONE ||
			(why->code == ERR_CORRUPT && one->failure.code != ERR_CORRUPT))
			err_copy(&one->failure, why);
	}
	if (rc < 0)
		err_copy(err, why);
	return end(one, rc);
}

static int count_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct export_one *one = (struct export_one *)block;
	begin(block, &one->read_bytes, length);
	if (!one->read_only)
		return end(one, block_read(one->inner, buffer, length, offset, err));
	struct err why = ERR_INIT;
	return end_noted(one, block_read(one->inner, buffer, length, offset, &why), &why, err);
}

static int count_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	struct export_one *one = (struct export_one *)block;
	begin(block, &one->received_bytes, length);
	struct err why = ERR_INIT;
	return end_noted(
		one, block_write(one->inner, buffer, length, offset, flags, &why), &why, err);
}

static int count_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	struct export_one *one = (struct export_one *)block;
	begin(block, &one->zeroed_bytes, length);
	struct err why = ERR_INIT;
	return end_noted(one, block_zero(one->inner, offset, length, flags, &why), &why, err);
}

static int count_trim(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	struct export_one *one = (struct export_one *)block;
	begin(block, &one->zeroed_bytes, length);
	struct err why = ERR_INIT;
	return end_noted(one, block_trim(one->inner, offset, length, flags, &why), &why, err);
}

static int count_flush(struct block *block, struct err *err)
{
	struct export_one *one = begin(block, NULL, 0);
	struct err why = ERR_INIT;
	return end_noted(one, block_flush(one->inner, &why), &why, err);
}

static int count_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	struct export_one *one = begin(block, NULL, 0);
	return end(one, block_extents(one->inner, offset, length, extents, max, nr, err));
}

static int count_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	return 0;
}

static const struct block_driver counting = {
	.name = "export",
	.read = count_read,
	.write = count_write,
	.zero = count_zero,
	.trim = count_trim,
	.flush = count_flush,
	.extents = count_extents,
	.close = count_close,
};

/* --- ports ----------------------------------------------------------------------- */

static void *port_main(void *arg)
{
	struct port *port = arg;
	struct err err = ERR_INIT;
	if (nbd_server_run(port->server, &port->listener, &err) < 0)
		log_error("the NBD server on %s:%u ended: %s", port->where.address,
			port->where.port, err.text);
	return NULL;
}

/* False: a disk keeps a request; nothing of it can be taken down. */
static bool port_free(struct port *port)
{
	if (!port)
		return true;
	nbd_server_stop(port->server);
	pthread_join(port->thread, NULL);
	if (!nbd_server_free(port->server))
		return false;
	free(port);
	return true;
}

static int listen_on(
	struct exports *exports, struct listener *listener, unsigned port, struct err *err)
{
	const char *address = exports->config->address;
	if (exports->tls)
		return transport_listen_tcp_public(listener, address, port, err);
	return transport_listen_tcp(listener, address, port, err);
}

static struct port *port_new(struct exports *exports, unsigned number, struct err *err)
{
	const struct host_config *config = exports->config;
	struct nbd_server_options options = {
		.max_connections = config->range ? PUSH_CONNECTIONS : config->max_connections,
		.budget_bytes = config->range ? PUSH_BUDGET_BYTES : BUDGET_BYTES,
		.tls = exports->tls ? NBD_TLS_REQUIRED : NBD_TLS_OFF,
		.tls_server = exports->tls,
	};
	options.budget_bytes = (size_t)max_u64(
		options.budget_bytes, BUDGET_PER_CONNECTION * options.max_connections);
	struct port *port = calloc(1, sizeof *port);
	if (!port) {
		err_errno(err, ENOMEM, "cannot serve NBD");
		return NULL;
	}
	if (listen_on(exports, &port->listener, number, err) < 0)
		goto fail;
	port->where = port->listener;
	port->server = nbd_server_new(&options, err);
	if (!port->server)
		goto close_listener;
	if (thread_start(&port->thread, "nbd-server", port_main, port, err) == 0)
		return port;
	(void)nbd_server_free(port->server); /* it had no clients */
close_listener:
	listener_close(&port->listener);
fail:
	free(port);
	return NULL;
}

/* The next one that is free, in turns: one that was just given back may still be in the minds of
 * clients. */
static struct port *port_of_range(struct exports *exports, struct err *err)
{
	const struct host_config *config = exports->config;
	unsigned nr = config->port_last - config->port_first + 1;
	struct err why = ERR_INIT;
	for (unsigned i = 0; i < nr; i++) {
		unsigned number = config->port_first + exports->next_port++ % nr;
		struct port *port = port_new(exports, number, &why);
		if (port)
			return port;
		if (why.code != ERR_BUSY && why.sys_errno != EADDRINUSE) {
			err_copy(err, &why);
			return NULL;
		}
	}
	err_set(err, ERR_BUSY, "all ports from %u to %u are in use: %s", config->port_first,
		config->port_last, why.text);
	err_hint(err, "try again later, or make nbd.port-range wider");
	return NULL;
}

/* --- the whole ------------------------------------------------------------------- */

/* Called by connections' threads. */
static int find_psk(
	void *user, const char *identity, uint8_t key[TLS_PSK_BYTES_MAX], size_t *length)
{
	struct exports *exports = user;
	WITH_LOCK(&exports->mutex);
	for (const struct export_group *group = exports->groups; group; group = group->next) {
		if (strcmp(group->identity, identity) != 0)
			continue;
		memcpy(key, group->psk, PSK_BYTES);
		*length = PSK_BYTES;
		return 0;
	}
	return -1;
}

static int start_tls(struct exports *exports, struct err *err)
{
	const struct host_config *config = exports->config;
	const struct tls_server_options options = {
		.certificate = config->certificate,
		.key = config->key,
		.clients_ca = config->ca,
		.clients = config->ca ? TLS_CLIENTS_OPTIONAL : TLS_CLIENTS_ANY,
		.psk_find = find_psk,
		.psk_user = exports,
	};
	exports->tls = config->tls ? tls_server_new(&options, err) : NULL;
	return exports->tls || !config->tls ? 0 : -1;
}

struct exports *exports_new(const struct host_config *config, struct err *err)
{
	struct exports *exports = calloc(1, sizeof *exports);
	if (!exports) {
		err_errno(err, ENOMEM, "cannot serve NBD");
		return NULL;
	}
	exports->config = config;
	pthread_mutex_init(&exports->mutex, NULL);
	if (start_tls(exports, err) < 0)
		goto fail;
	if (config->range)
		return exports;
	exports->port = port_new(exports, config->port, err);
	if (exports->port)
		return exports;
fail:
	tls_server_free(exports->tls);
	pthread_mutex_destroy(&exports->mutex);
	free(exports);
	return NULL;
}

bool exports_free(struct exports *exports)
{
	if (!exports)
		return true;
	assert(!exports->groups);
	if (!port_free(exports->port))
		return false;
	tls_server_free(exports->tls);
	pthread_mutex_destroy(&exports->mutex);
	free(exports);
	return true;
}

int exports_reload(struct exports *exports, struct err *err)
{
	return exports->tls ? tls_server_reload(exports->tls, err) : 0;
}

void exports_status(struct exports *exports, json_t *into)
{
	const struct host_config *config = exports->config;
	struct nbd_server_state state = {0};
	unsigned connections = 0;
	json_object_set_new(into, "mode", json_string(config->range ? "range" : "single"));
	json_object_set_new(into, "max_connections", json_integer(config->max_connections));
	if (config->range) {
		json_object_set_new(into, "port_range",
			json_pack("[i, i]", config->port_first, config->port_last));
		WITH_LOCK(&exports->mutex);
		for (const struct export_group *group = exports->groups; group;
			group = group->next) {
			nbd_server_state(group->port->server, &state);
			connections += state.nr_active;
		}
	} else {
		json_object_set_new(into, "listen",
			json_pack("{s:s, s:i}", "address", exports->port->where.address, "port",
				(int)exports->port->where.port));
		nbd_server_state(exports->port->server, &state);
		connections = state.nr_active;
	}
	json_object_set_new(into, "connections", json_integer(connections));
}

/* --- groups ---------------------------------------------------------------------- */

static int make_keys(struct export_group *group, struct err *err)
{
	uint8_t random[8];
	if (file_random(random, sizeof random, err) < 0 ||
		file_random(group->psk, sizeof group->psk, err) < 0)
		return -1;
	memcpy(group->identity, "s-", 2);
	digest_hex(random, sizeof random, group->identity + 2);
	return 0;
}

struct export_group *export_group_new(struct exports *exports, const char *what, struct err *err)
{
	struct export_group *group = calloc(1, sizeof *group);
	if (!group || !(group->what = strdup(what))) {
		free(group);
		err_errno(err, ENOMEM, "cannot export");
		return NULL;
	}
	group->exports = exports;
	if (exports->tls && make_keys(group, err) < 0)
		goto fail;
	pthread_mutex_lock(&exports->mutex);
	group->port = exports->port ? exports->port : port_of_range(exports, err);
	if (group->port) {
		group->next = exports->groups;
		exports->groups = group;
	}
	pthread_mutex_unlock(&exports->mutex);
	if (group->port)
		return group;
fail:
	free(group->what);
	free(group);
	return NULL;
}

void export_group_free(struct export_group *group)
{
	if (!group)
		return;
	struct exports *exports = group->exports;
	assert(group->nr_exports == 0);
	pthread_mutex_lock(&exports->mutex);
	struct export_group **at = &exports->groups;
	while (*at != group)
		at = &(*at)->next;
	*at = group->next;
	pthread_mutex_unlock(&exports->mutex);
	/* Its exports are removed, so nothing is at their disks. */
	if (group->port != exports->port && !port_free(group->port))
		log_error("the port of %s cannot be given back", group->what);
	explicit_bzero(group->psk, sizeof group->psk);
	free(group->what);
	free(group);
}

/* --- one ------------------------------------------------------------------------- */

struct export_one *export_add(struct export_group *group, const char *label, struct block *block,
	bool read_only, struct err *err)
{
	uint8_t random[16];
	char identity[IDENTITY_BYTES + 8];
	struct export_one *one = calloc(1, sizeof *one);
	char *copy = strdup(label);
	if (!one || !copy) {
		err_errno(err, ENOMEM, "cannot export");
		goto fail;
	}
	if (file_random(random, sizeof random, err) < 0)
		goto fail;
	digest_hex(random, sizeof random, one->name);
	one->group = group;
	one->inner = block;
	one->read_only = read_only;
	atomic_store(&one->active_ns, clock_now_ns());
	block_init(&one->block, &counting, copy);
	copy = NULL;
	one->block.info = *block_info(block);
	one->block.info.can_fua = one->block.info.can_fast_zero = false;
	one->block.info.has_changes = false;
	snprintf(identity, sizeof identity, "psk:%s", group->identity);
	const struct nbd_export export = {
		.name = one->name,
		.description = one->block.label, /* for the log, which does not show the name */
		.block = &one->block,
		.read_only = read_only,
		.hidden = true,
		.tls_identity = group->exports->tls ? identity : NULL,
	};
	if (nbd_server_add_export(group->port->server, &export, err) < 0) {
		block_fini(&one->block);
		goto fail;
	}
	one->exported = true;
	group->nr_exports++;
	return one;
fail:
	free(copy);
	free(one);
	return NULL;
}

int export_remove(struct export_one *one, struct err *err)
{
	struct err why = ERR_INIT;
	if (!one->exported)
		return 0;
	if (nbd_server_remove_export(one->group->port->server, one->name, &why) < 0)
		/* Its text has the name. */
		return err_set(err, why.code,
			"the connections of %s do not end: its disk keeps a request",
			one->block.label);
	one->exported = false;
	one->group->nr_exports--;
	return 0;
}

void export_free(struct export_one *one)
{
	if (!one)
		return;
	assert(!one->exported);
	block_close(&one->block, NULL);
	explicit_bzero(one->name, sizeof one->name);
	free(one);
}

/* What a client reaches; a hub that does not know its own address fills it in. */
static const char *address_of(const struct export_one *one)
{
	const struct host_config *config = one->group->exports->config;
	return config->address_for_clients[0] ? config->address_for_clients
					      : one->group->port->where.address;
}

json_t *export_json(const struct export_one *one)
{
	const struct export_group *group = one->group;
	const char *address = address_of(one);
	unsigned port = group->port->where.port;
	bool is_v6 = strchr(address, ':') != NULL;
	char hex[2 * PSK_BYTES + 1];
	json_t *tls = json_null();
	if (group->identity[0]) {
		digest_hex(group->psk, sizeof group->psk, hex);
		tls = json_pack("{s:s, s:s}", "identity", group->identity, "psk", hex);
		explicit_bzero(hex, sizeof hex);
	}
	json_t *uri = json_sprintf("%s://%s%s%s%s%s:%u/%s", group->identity[0] ? "nbds" : "nbd",
		group->identity, group->identity[0] ? "@" : "", is_v6 ? "[" : "", address,
		is_v6 ? "]" : "", port, one->name);
	return json_pack("{s:o, s:s, s:i, s:s, s:o}", "uri", uri, "address", address, "port",
		(int)port, "name", one->name, "tls", tls);
}

void export_figures(struct export_one *one, struct export_figures *figures)
{
	struct nbd_export_state state = {0};
	if (one->exported)
		(void)nbd_server_export_state(one->group->port->server, one->name, &state, NULL);
	*figures = (struct export_figures){
		.connections = state.nr_connections,
		.requests = atomic_load(&one->requests),
		.read_bytes = atomic_load(&one->read_bytes),
		.received_bytes = atomic_load(&one->received_bytes),
		.zeroed_bytes = atomic_load(&one->zeroed_bytes),
		.active_ns = atomic_load(&one->active_ns),
	};
}

bool export_failed(struct export_one *one, struct err *why)
{
	WITH_LOCK(&one->group->exports->mutex);
	if (one->failure.code == ERR_NONE)
		return false;
	err_copy(why, &one->failure);
	return true;
}
