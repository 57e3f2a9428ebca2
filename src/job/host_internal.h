/*
 * Inside the NBD service; the protocol is in host.h.
 *
 *   host.c          the process: its file of settings, its life, who is looked after by the clock
 *   host_control.c  the control socket: lines, verbs
 *   host_export.c   exports: names, keys, ports, what goes through them
 *   host_serve.c    restore points that clients read
 *   push.c          sessions: the table of states, what is asked of an open one
 *   push_open.c     sessions: opening
 *   push_end.c      sessions: commit, abort, expiry
 *   host_client.c   the hub's side (no part of the process)
 *
 * Locks, in the order in which they may be nested:
 *   session.work     who uses its backup
 *   service.mutex    lists, references, states
 *   exports.mutex    keys, ports
 */
#ifndef SENDENSE_JOB_HOST_INTERNAL_H
#define SENDENSE_JOB_HOST_INTERNAL_H

#include "host.h"
#include "nbd.h"
#include "repository.h"

#include <pthread.h>
#include <stdatomic.h>

#define HOST_ID_BYTES 65
#define HOST_INSTANCE_BYTES 33
#define HOST_LINE_BYTES (1u << 20)
#define HOST_OCTETS_MOST (16u << 20)

/* --- settings -------------------------------------------------------------------- */

struct host_config {
	char address[64];
	unsigned port;
	bool range;
	unsigned port_first, port_last;
	unsigned max_connections, max_sessions;
	char address_for_clients[256]; /* "": the one that is listened on */
	bool tls;
	char *certificate, *key, *ca; /* each may be NULL */
	char digest[DIGEST_ROOT_HEX_BYTES]; /* of the file */
};

/* --- exports --------------------------------------------------------------------- */

struct exports;
struct export_one;

/* Listens, in mode single.  config is borrowed. */
struct exports *exports_new(const struct host_config *config, struct err *err);
/* No export is left (asserted).  False: see nbd_server_free(). */
bool exports_free(struct exports *exports);
void exports_status(struct exports *exports, json_t *into);
int exports_reload(struct exports *exports, struct err *err);

/* Those of one session or serve: they share a port, and what the client is known by. */
struct export_group;
/* ERR_BUSY when all ports of the range are taken. */
struct export_group *export_group_new(struct exports *exports, const char *what, struct err *err);
/* All its exports were removed.  NULL is harmless. */
void export_group_free(struct export_group *group);

/* block is borrowed until it is removed; label: for messages. */
struct export_one *export_add(struct export_group *group, const char *label, struct block *block,
	bool read_only, struct err *err);
/* Ends its connections; ERR_TIMEOUT: the block is in use still, and it may be repeated.  It stays
 * for its figures until it is freed. */
int export_remove(struct export_one *one, struct err *err);
/* It was removed.  NULL is harmless. */
void export_free(struct export_one *one);
/* EXPORT of the protocol; the caller's. */
json_t *export_json(const struct export_one *one);

struct export_figures {
	unsigned connections;
	uint64_t requests, read_bytes, received_bytes, zeroed_bytes;
	int64_t active_ns;
};
void export_figures(struct export_one *one, struct export_figures *figures);
/* Whether a write failed (of one that is read alone: a read), and why the first one did; also when
 * it was removed. */
bool export_failed(struct export_one *one, struct err *why);

/* --- the service ----------------------------------------------------------------- */

struct push;
struct serve;

/* A repository that is open, for all who use it. */
struct host_repository {
	struct host_repository *next;
	struct repository *repo;
	char *path;
	bool writable;
	unsigned nr_users;
};

struct host_service {
	const char *runtime_dir, *software;
	struct host_config config;
	char instance[HOST_INSTANCE_BYTES];
	int64_t started_s;
	struct exports *exports;
	struct cancel *stop;
	pthread_mutex_t mutex; /* over all below, and references of sessions and serves */
	pthread_cond_t changed;
	struct push *sessions;
	struct serve *serves;
	struct host_repository *repositories;
	struct control *controls; /* connections of the control socket */
	unsigned nr_controls;
};

/* id: that it must have; NULL: any.  ERR_REFUSED for another one. */
struct host_repository *host_repository_get(struct host_service *service, const char *path,
	const char *id, bool writable, struct err *err);
void host_repository_put(struct host_service *service, struct host_repository *repository);

/* 1..64 of [A-Za-z0-9_-]; ERR_USAGE. */
int host_check_id(const char *what, const char *id, struct err *err);
/* Unpacks as json_unpack_ex() does, strictly: ERR_USAGE names verb and field. */
int host_unpack(const json_t *request, const char *verb, struct err *err, const char *format, ...);

/* --- the control socket ---------------------------------------------------------- */

struct host_octets {
	void *bytes; /* freed by the control socket */
	size_t length;
};

/* Serves until the service stops; takes the listener.  Each connection has a thread. */
int host_control_run(struct host_service *service, struct listener *listener, struct err *err);

/* Ends waiting for requests; those that are under way go on. */
void host_control_shut(struct host_service *service);

/* A verb: gives the answer's members (the caller's), or NULL with err.  in: the octets that came
 * with the request; out: those that go with the answer. */
typedef json_t *host_verb(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err);

/* --- sessions: push.c, push_end.c ------------------------------------------------ */

host_verb push_verb_open, push_verb_look, push_verb_renew, push_verb_digests, push_verb_config,
	push_verb_distrust, push_verb_commit, push_verb_abort, push_verb_forget;

/* Under service.mutex: all of them as JSON. */
json_t *push_list(struct host_service *service);
/* Opening, and waiting for changes, end soon: the service stops. */
void push_hurry(struct host_service *service);
/* By the clock: leases that ended, ends that were told long enough. */
void push_look_round(struct host_service *service);
/* Leaves all; returns when they have ended. */
void push_stop_all(struct host_service *service);

/* --- serves ---------------------------------------------------------------------- */

host_verb serve_verb_open, serve_verb_look, serve_verb_renew, serve_verb_close;
json_t *serve_list(struct host_service *service);
void serve_look_round(struct host_service *service);
void serve_stop_all(struct host_service *service);

#endif
