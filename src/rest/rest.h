/*
 * rest: what hub, node and command line share of HTTP: routes, the one place that
 * authenticates, JSON messages, problems, streams of events; a server (libmicrohttpd) and a
 * client (libcurl).
 *
 *   request ─► limits ─► route ─► token and scope ─► idempotency ─► body checked ─► handler ─►
 * reply
 *
 * Thread rule: every connection of the server has a thread of its own; handlers may block
 * (with a deadline) and are called by many threads at once.
 */
#ifndef SENDENSE_REST_H
#define SENDENSE_REST_H

#include "base.h"

#include <jansson.h>

#define REST_PROTOCOL 1 /* of hub and node; told by /health and at each session */
#define REST_BODY_MOST (1u << 20)
#define REST_DEPTH_MOST 16u

/* --- tokens ------------------------------------------------------------------------- */

#define REST_TOKEN_BYTES 48 /* "sdt_", 43 of base64url, end */
#define REST_TOKEN_HASH_BYTES 65 /* SHA-256 in hex, end */

int rest_token_make(char token[REST_TOKEN_BYTES], struct err *err);
/* Of any text; only this is ever stored. */
void rest_token_hash(const char *token, char hash[REST_TOKEN_HASH_BYTES]);

/* What a token may do; each includes those before it, except that BACKUP is held to the VMs that
 * the token names, and NODE, a node's own, to those that are the node's; routes of the scope NODE
 * are for those tokens alone. */
enum rest_scope { REST_NONE, REST_READ, REST_BACKUP, REST_NODE, REST_OPERATE, REST_ADMIN };
const char *rest_scope_name(enum rest_scope scope);
bool rest_scope_parse(const char *name, enum rest_scope *scope);

/* Who asks. */
struct rest_actor {
	char id[64]; /* of the token, for the audit log; "" nobody */
	char name[256];
	enum rest_scope scope;
	json_t *vms; /* BACKUP: array of names, with * and ?; NODE: of names; borrowed from the
			actor; else NULL */
};
/* Whether the actor is held to certain VMs: BACKUP and NODE are. */
bool rest_actor_is_held(const struct rest_actor *actor);
/* Whether the actor may touch this VM at all: everybody may who is not held to others. */
bool rest_actor_may(const struct rest_actor *actor, const char *vm);
void rest_actor_clear(struct rest_actor *actor);

/* --- server ------------------------------------------------------------------------- */

struct rest_request; /* of one call, lent to the handler */
struct rest_server;

/* Answers exactly once with a rest_reply_*(); an error it returns becomes a problem. */
typedef int rest_handler(void *context, struct rest_request *request, struct err *err);

enum rest_flags {
	REST_CREATES = 1, /* Idempotency-Key is heeded */
	REST_OCTETS = 2, /* the body is bytes, not JSON */
	REST_STREAMS = 4, /* answers with events; does not count against the time limits */
	REST_VMS = 8, /* the handler holds a BACKUP or NODE token to its VMs itself (a list is
			 filtered, an object's vm is looked at with rest_actor_may()) */
	REST_SECRET = 16, /* the answer holds a secret that is told once: it is not kept for a
			     repeated Idempotency-Key, which gets 409 */
};

/*
 * A BACKUP or NODE token reads less than a READ one.  At a route of scope READ it gets in only when
 * the path has {vm} (which is held against the token before the handler is called, at every route)
 * or the route is marked REST_VMS.  At routes of scope BACKUP without {vm} the handler must ask
 * rest_actor_may().
 */

struct rest_route {
	const char *method; /* "GET", "POST", "PUT", "DELETE" */
	/* "/api/v1/jobs/{id}/log?offset&limit": each {name} is one segment, decoded; behind the
	 * '?' the parameters that it knows, of which any others are refused with 400 */
	const char *path;
	const char *operation; /* operationId in the API's document */
	enum rest_scope scope; /* at least */
	unsigned flags;
	rest_handler *handler;
	size_t body_most; /* 0: REST_BODY_MOST */
};

struct rest_server_options {
	const char *address; /* numeric; beyond loopback only with certificate and key */
	unsigned port; /* 0: the kernel picks */
	const char *certificate_file, *key_file; /* PEM; NULL: plain HTTP */
	const char *clients_ca_file; /* certificates of clients are demanded; or NULL */
	const struct rest_route *const *tables; /* of routes, each ended by a route without method;
						   NULL ends the list; lent */
	void *context; /* for handlers and callbacks */
	/* Who a token belongs to: 0, or ERR_DENIED for an unknown, expired or revoked one. */
	int (*authenticate)(
		void *context, const char *hash, struct rest_actor *actor, struct err *err);
	/* Of a call with Idempotency-Key: true when it was answered before (status and body are
	 * given; body is the caller's).  ERR_RANGE: the key was used for another call.
	 * body: as remember() got it, opaque.  Two calls with one key never run at once: the
	 * server lets the second wait.  Only answers 2xx are told to remember().  Both or none;
	 * NULL: the key is not heeded. */
	int (*remembered)(void *context, const struct rest_actor *actor, const char *key,
		const char *digest, bool *found, unsigned *status, json_t **body, struct err *err);
	void (*remember)(void *context, const struct rest_actor *actor, const char *key,
		const char *digest, unsigned status, const json_t *body);
	/* Each change (not GET) that was let in, with its outcome: the audit log; path without the
	 * query.  May be NULL. */
	void (*audit)(void *context, const struct rest_actor *actor, const char *peer,
		const char *operation, const char *path, unsigned status);
	unsigned most_connections; /* 0: 256 */
	unsigned most_per_address; /* 0: 64; not for loopback */
	unsigned idle_timeout_ms; /* 0: 30,000 */
	unsigned wrong_tokens_per_minute; /* of one address, then 429; 0: 10 */
};

/* Ready when it returns.  Borrows options' strings and tables until it is stopped. */
struct rest_server *rest_server_start(const struct rest_server_options *options, struct err *err);
unsigned rest_server_port(const struct rest_server *server);
/* Reads the certificate anew; when that fails, the old one stays.  Connections that stand go on. */
int rest_server_reload(struct rest_server *server, struct err *err);
/* Streams are ended within a second, calls in progress get 5 s to be answered, then their
 * connections are cut.  Returns when the last handler has: one that waits longer than that holds
 * it up, so what handlers wait for has deadlines.  NULL is harmless. */
void rest_server_stop(struct rest_server *server);

/* Of the call; strings live until the handler returns.  Path and query are percent-decoded (no
 * NUL, valid UTF-8); a parameter given twice was refused before. */
const char *rest_param(const struct rest_request *request, const char *name); /* of the path */
const char *rest_query(const struct rest_request *request, const char *name); /* NULL: not given */
int rest_query_number(const struct rest_request *request, const char *name, uint64_t least,
	uint64_t most, uint64_t otherwise, uint64_t *value, struct err *err);
const char *rest_header(const struct rest_request *request, const char *name);
const struct rest_actor *rest_actor(const struct rest_request *request);
const char *rest_peer(const struct rest_request *request);
const json_t *rest_body(const struct rest_request *request); /* an object; NULL: none was sent */
const void *rest_octets(const struct rest_request *request, size_t *length);
/* limit and after of a list, within their bounds. */
int rest_page(
	const struct rest_request *request, unsigned *limit, const char **after, struct err *err);

/* Answers; body is taken.  status 200, 201, 202 (with the Location of what was made), 204. */
int rest_reply(struct rest_request *request, unsigned status, json_t *body, struct err *err);
int rest_reply_made(struct rest_request *request, unsigned status, const char *location,
	json_t *body, struct err *err);
int rest_reply_page(struct rest_request *request, json_t *items, const char *next, struct err *err);
/* Copies bytes. */
int rest_reply_octets(struct rest_request *request, const char *type, const void *bytes,
	size_t length, struct err *err);
int rest_reply_text(
	struct rest_request *request, const char *type, const char *text, struct err *err);
/* The version of an object: sets ETag; for PUT: ERR_RANGE (412) when If-Match names another. */
void rest_set_etag(struct rest_request *request, uint64_t version);
int rest_check_match(const struct rest_request *request, uint64_t version, struct err *err);
/* One that err_code does not say: status 429, 507 ...; returns -1 for the handler to return. */
int rest_problem(struct rest_request *request, unsigned status, const struct err *why);
/* The same with the reason's own status, and how long to wait before another try. */
int rest_problem_for_now(
	struct rest_request *request, const struct err *why, unsigned retry_after_s);
/* What a stranger showed to be let in (a code) is wrong: counted like a wrong token, and answered
 * 401 with that reason, or 429.  Returns -1. */
int rest_problem_stranger(struct rest_request *request, const struct err *why);
/* A problem that follows names this job. */
void rest_set_job(struct rest_request *request, const char *job);
/* The status that an error has by itself: ERR_NOT_FOUND 404, ERR_BUSY 409 ... */
unsigned rest_status_of(enum err_code code);

/*
 * A stream of server-sent events.  next is called on the connection's thread until it
 * returns 0 (the end) or -1; it waits for what is new at most until the deadline, and gives
 * 1 with an event (name and data, which is taken) or 2: nothing yet (a comment is sent, so that
 * both sides see the other).  done is called once, whatever happened.
 */
typedef int rest_stream_next(
	void *context, struct deadline until, const char **event, uint64_t *id, json_t **data);
int rest_reply_stream(struct rest_request *request, rest_stream_next *next,
	void (*done)(void *context), void *context, struct err *err);

/* --- checking JSON ---------------------------------------------------------------------- */

enum rest_type { REST_STRING, REST_INTEGER, REST_NUMBER, REST_BOOL, REST_OBJECT, REST_ARRAY };

/* A member that an object may have. */
struct rest_field {
	const char *name; /* NULL ends the table */
	enum rest_type type;
	bool required;
	bool nullable;
	int64_t least, most; /* of an integer; of a string's or an array's length; both 0: no bounds
				(strings: 4096 bytes) */
	const char *const *choices; /* of a string; NULL ends */
};
/* ERR_USAGE naming the member (unknown, missing, of another type, out of bounds).  object NULL
 * is an empty one. */
int rest_check(const json_t *object, const struct rest_field *fields, struct err *err);
/* The same of an object inside; where: "disks[0]", put in front of the member's name. */
int rest_check_in(
	const char *where, const json_t *object, const struct rest_field *fields, struct err *err);
/* The same of each object of an array ("disks" -> "disks[3].key: ..."). */
int rest_check_each(
	const char *where, const json_t *array, const struct rest_field *fields, struct err *err);
/* Text as one JSON object or array: UTF-8, at most REST_DEPTH_MOST deep, no member twice.
 * ERR_FORMAT naming the place.  The caller's. */
json_t *rest_json_parse(const void *text, size_t length, struct err *err);

/* --- the API's document ------------------------------------------------------------------ */

/* docs/openapi.json, as built in. */
const char *rest_document(void);
/* GET /api/v1/openapi.json, for the list of tables. */
extern const struct rest_route rest_document_routes[];

/* --- client ------------------------------------------------------------------------------ */

struct rest_client;

struct rest_client_options {
	const char *url; /* "https://hub.example:8443", "http://127.0.0.1:8080"; plain HTTP only to
			    loopback */
	const char *token_file; /* read at each call; NULL: none */
	const char *ca_file; /* the only CA that counts; NULL: the system's */
	const char *fingerprint; /* SHA-256 of the server's certificate, hex; or NULL */
	unsigned connect_timeout_ms; /* 0: 10,000 */
	unsigned silence_timeout_ms; /* nothing moved for so long; 0: 60,000 */
	unsigned retry_ms; /* calls that may be made again (GET, PUT, DELETE, POST with an
			      idempotency key of ours) are, so long; 0: 30,000 */
	struct cancel *cancel; /* borrowed; may be NULL */
};

/* Copies options' strings. */
struct rest_client *rest_client_new(const struct rest_client_options *options, struct err *err);
void rest_client_free(struct rest_client *client);

/*
 * One call; path begins with "/" and may hold a query.  body may be NULL (borrowed).  reply may
 * be NULL, else the caller's (NULL for an answer without content).  A problem becomes err: its
 * code by the member "code", its text by "detail", sys_errno EAGAIN where the answer says when to
 * try again (Retry-After), EKEYREJECTED where the token is refused (401).  POSTs carry an
 * idempotency key of their own, so every call is made again while it is worth trying (no
 * connection, 429, 502, 503, 504), at most for retry_ms; a DELETE that finds nothing at its second
 * try has done its work. ERR_DENIED also for a certificate that is not trusted; ERR_CANCELLED
 * within a second.  Any thread, also several at once.
 */
int rest_call(struct rest_client *client, const char *method, const char *path, const json_t *body,
	json_t **reply, struct err *err);
int rest_call_octets(struct rest_client *client, const char *method, const char *path,
	const void *body, size_t body_length, void **reply, size_t *reply_length, size_t reply_most,
	struct err *err);
/* Follows a stream, and takes it up again where it was lost (Last-Event-ID) while that takes no
 * longer than retry_ms; event returns 1 to end it.  0 also when the server ended a stream that
 * had nothing new. */
int rest_follow(struct rest_client *client, const char *path,
	int (*event)(void *context, const char *name, const json_t *data), void *context,
	struct err *err);
/* Appends text to out as one segment of a path (percent-encoded). */
int rest_path_append(char *out, size_t bytes, const char *text, struct err *err);

#endif
