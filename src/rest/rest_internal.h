/* rest: what its source files share.  The way of a request through them is drawn in README.md. */
#ifndef SENDENSE_REST_INTERNAL_H
#define SENDENSE_REST_INTERNAL_H

#include "rest.h"

#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <microhttpd.h>
#include <stdatomic.h>
#include <sys/socket.h>

/* --- address.c: who is at the other end --------------------------------------------------- */

#define REST_ADDRESS_BYTES 16
#define REST_PEER_BYTES 64

struct rest_address {
	uint8_t key[REST_ADDRESS_BYTES]; /* IPv4 mapped; of IPv6 the first 64 bits only: whoever has
					    one such address has them all */
	bool loopback;
	char text[REST_PEER_BYTES]; /* "192.0.2.1:4711" */
};
void rest_address_of(const struct sockaddr *address, struct rest_address *out);
/* Makes a listening socket; *port as bound.  Returns the descriptor. */
int rest_address_listen(const char *address, unsigned *port, bool *loopback, struct err *err);

/* --- line.c: the connections and their limits ---------------------------------------------- */

struct rest_line {
	struct rest_line *next;
	struct rest_address address;
	struct rest_certificates *certificates; /* of its server; NULL: no TLS */
	int fd; /* the HTTP library's */
	bool started; /* the library knows it, so fd is open until it says otherwise */
	bool refused; /* above a limit: its first request gets 503 */
	bool evicted; /* was shut to make room; does not count any more */
	unsigned busy; /* requests that were let in and have not ended: 0 or 1 */
	int64_t idle_since_ns;
	char refusal[160];
};

struct rest_lines {
	pthread_mutex_t mutex;
	pthread_cond_t quiet;
	struct rest_line *first;
	unsigned most, most_per_address;
};

#define REST_LINES_RESERVE 32 /* of connections that are to be told why they are refused */
#define REST_LINES_EVICTED 64 /* on their way out */
/* Whoever is silent for so long may have to go. */
#define REST_LINES_IDLE_NS ((int64_t)1000000000)

void rest_lines_init(struct rest_lines *lines, unsigned most, unsigned most_per_address);
void rest_lines_clear(struct rest_lines *lines);
/*
 * A place for a new connection: maybe that of the one that was silent the longest, which is
 * shut; maybe one of those that are only told why.  NULL: not even that.
 */
struct rest_line *rest_lines_add(
	struct rest_lines *lines, const struct rest_address *address, int fd, int64_t now_ns);
/* The library has taken fd over; NULL: not one of ours. */
struct rest_line *rest_lines_started(struct rest_lines *lines, int fd);
void rest_lines_remove(struct rest_lines *lines, struct rest_line *line);
void rest_lines_busy(struct rest_lines *lines, struct rest_line *line, bool busy);
/* Until none is busy, or the deadline passed. */
void rest_lines_wait(struct rest_lines *lines, struct deadline until);

/* --- wrong.c: wrong tokens, by address ------------------------------------------------------- */

#define REST_WRONG_ADDRESSES 256 /* remembered; the one that was quiet the longest goes */

struct rest_wrong {
	pthread_mutex_t mutex;
	unsigned per_minute;
	struct {
		uint8_t key[REST_ADDRESS_BYTES];
		int64_t since_ns; /* 0: free */
		unsigned count;
	} of[REST_WRONG_ADDRESSES];
};
void rest_wrong_init(struct rest_wrong *wrong, unsigned per_minute);
void rest_wrong_clear(struct rest_wrong *wrong);
/* One more.  0, or the seconds until the next may come. */
unsigned rest_wrong_count(
	struct rest_wrong *wrong, const struct rest_address *address, int64_t now_ns);

/* --- once.c: two calls with one key do not run at once -----------------------------------------
 */

struct rest_once {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct rest_once_key *first;
};
void rest_once_init(struct rest_once *once);
void rest_once_clear(struct rest_once *once);
/* Waits until nobody else has the key; ERR_BUSY when the deadline passed, ERR_NO_MEMORY. */
int rest_once_enter(struct rest_once *once, const char *actor, const char *key,
	struct deadline until, struct err *err);
void rest_once_leave(struct rest_once *once, const char *actor, const char *key);

/* --- route.c: from the request's line to a route -----------------------------------------------
 */

#define REST_PARAMS_MOST 8
#define REST_QUERIES_MOST 16
#define REST_TARGET_MOST 8192

struct rest_pair {
	char *name, *value; /* into the target's text */
};

struct rest_target {
	char *text; /* owned: taken apart in place */
	char *raw; /* owned: as it came */
	char *path; /* owned: without the query, escaped as by rest_path_append(), for the audit
		       log */
	char *segments[32]; /* decoded */
	size_t nr_segments;
	struct rest_pair queries[REST_QUERIES_MOST];
	size_t nr_queries;
};
/* ERR_USAGE: what is wrong with it. */
int rest_target_parse(const char *raw, struct rest_target *target, struct err *err);
void rest_target_clear(struct rest_target *target);

struct rest_match {
	const struct rest_route *route;
	struct rest_pair params[REST_PARAMS_MOST]; /* names point into the pattern, not ended */
	size_t nr_params;
};
#define REST_ALLOW_BYTES 64
/* 0; 404: no such path; 405: allow holds its methods. */
unsigned rest_route_find(const struct rest_route *const *tables, const char *method,
	const struct rest_target *target, struct rest_match *match, char allow[REST_ALLOW_BYTES]);
/* "" or "state&kind": the parameters that it knows. */
const char *rest_route_queries(const struct rest_route *route);
bool rest_route_knows(const struct rest_route *route, const char *query);
const char *rest_match_param(const struct rest_match *match, const char *name);

/* --- certificate.c: TLS, with a certificate that can be exchanged --------------------------------
 */

struct rest_certificates;
struct rest_certificates *rest_certificates_new(
	const char *certificate_file, const char *key_file, struct err *err);
void rest_certificates_free(struct rest_certificates *certificates);
int rest_certificates_reload(struct rest_certificates *certificates, struct err *err);
/* Those that hold now; valid for five minutes more at least, so for any handshake. */
void rest_certificates_get(struct rest_certificates *certificates, gnutls_pcert_st **chain,
	unsigned *nr_chain, gnutls_privkey_t *key);

/* --- one request
 * ------------------------------------------------------------------------------------ */

/* What will be answered; filled by rest_reply_*(), sent when the handler has returned. */
struct rest_answer {
	unsigned status; /* 0: none yet */
	json_t *body; /* owned */
	void *bytes; /* owned: octets or text */
	size_t length;
	char type[128]; /* of bytes */
	char location[1024];
	char etag[32];
	char allow[REST_ALLOW_BYTES];
	char job[64];
	unsigned retry_after_s;
	bool challenge; /* WWW-Authenticate */
	bool wrong_token;
	bool close; /* the connection ends with it */
	struct rest_stream *stream; /* owned until it is sent */
};

struct rest_request {
	struct rest_server *server;
	struct MHD_Connection *connection;
	struct rest_line *line;
	struct rest_target target;
	struct rest_match match;
	struct rest_actor actor;
	char token_hash[REST_TOKEN_HASH_BYTES]; /* "": none was asked for */
	char method[8];
	bool head, begun, let_in, refused, sent;
	uint8_t *bytes; /* of the body */
	size_t length, room, swallowed;
	json_t *body;
	int64_t began_ns;
	struct rest_answer answer;
	struct err early; /* why the target could not be read; ERR_NONE: it could */
};

/* gate.c: may it come in?  Returns false when it may not: the answer says why. */
bool rest_gate_enter(struct rest_request *request);

/* body.c: takes the body in, within bounds. */
/* So much of a refused one is read and thrown away, so that its sender comes to read why. */
size_t rest_body_swallowed_most(const struct rest_request *request);
/* Before the first byte: 413, 415. */
bool rest_body_announced(struct rest_request *request);
/* False: too much came, the connection has to end. */
bool rest_body_take(struct rest_request *request, const void *bytes, size_t length);
/* All is here: 400. */
bool rest_body_complete(struct rest_request *request);
void rest_body_clear(struct rest_request *request);

/* answer.c */
/* Replaces whatever was answered so far by a problem. */
void rest_answer_problem(struct rest_request *request, unsigned status, const struct err *why);
enum MHD_Result rest_answer_send(struct rest_request *request);
void rest_answer_clear(struct rest_answer *answer);
const char *rest_answer_phrase(unsigned status);

/* handle.c: the HTTP library's callbacks for requests. */
void *rest_handle_target(void *server, const char *raw, struct MHD_Connection *connection);
enum MHD_Result rest_handle_call(void *server, struct MHD_Connection *connection, const char *url,
	const char *method, const char *version, const char *bytes, size_t *length, void **request);
void rest_handle_end(void *server, struct MHD_Connection *connection, void **request,
	enum MHD_RequestTerminationCode why);

/* replay.c: calls the handler, or gives the answer that the same call got before. */
void rest_replay_or_call(struct rest_request *request);

/* stream.c */
struct MHD_Response *rest_stream_response(struct rest_request *request);
void rest_stream_free(struct rest_stream *stream);

/* --- the server
 * ---------------------------------------------------------------------------------------- */

#define REST_BODIES_MOST (64u << 20) /* of all requests at once */

struct rest_server {
	struct rest_server_options options;
	struct MHD_Daemon *daemon;
	struct rest_certificates *certificates;
	char *clients_ca;
	int listener;
	unsigned port;
	pthread_t acceptor;
	bool accepts;
	struct cancel *stop;
	struct rest_lines lines;
	struct rest_wrong wrong;
	struct rest_once once;
	_Atomic(bool) stopping;
	_Atomic(size_t) bodies_bytes;
	_Atomic(unsigned) nr_streams;
};

/* --- event.c: server-sent events, as text
 * --------------------------------------------------------------- */

#define REST_EVENT_MOST (1u << 20)

/* "id: 7\nevent: progress\ndata: {...}\n\n"; the caller's.  NULL: no memory. */
char *rest_event_text(const char *name, uint64_t id, const json_t *data, size_t *length);

/* Takes a stream apart; init with zeros. */
struct rest_event_parser {
	char *line; /* what came of the line so far */
	size_t line_length, line_room;
	char *data; /* of the event so far; NULL: no data line yet */
	size_t data_length, data_room;
	char name[64];
	char id[64]; /* the last one that was given */
	bool after_cr;
};
/* Calls event for each that is complete.  0, what event returned when not 0, or -1
 * (ERR_PROTOCOL, ERR_NO_MEMORY). */
int rest_event_parse(struct rest_event_parser *parser, const char *bytes, size_t length,
	int (*event)(void *context, const char *name, const char *data, size_t data_length),
	void *context, struct err *err);
/* The connection is new: what was not complete is forgotten, the last id is kept. */
void rest_event_restart(struct rest_event_parser *parser);
void rest_event_clear(struct rest_event_parser *parser);

#endif
