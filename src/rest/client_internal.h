/* rest: what the client's source files share. */
#ifndef SENDENSE_REST_CLIENT_INTERNAL_H
#define SENDENSE_REST_CLIENT_INTERNAL_H

#include "rest_internal.h"

#include "http.h"

#define REST_CLIENT_LINES 4 /* connections kept for the next calls */

/* One connection at most, used by one call at a time. */
struct rest_client_line {
	struct rest_client_line *next;
	CURLM *multi; /* keeps the connection */
	CURL *easy;
};

struct rest_client {
	struct rest_client_options options;
	char *base; /* "https://hub.example:8443", no "/" at its end */
	char *token_file, *ca_file;
	uint8_t fingerprint[DIGEST_ROOT_BYTES];
	struct http_trust trust; /* of the two above */
	bool loopback;
	pthread_mutex_t mutex;
	struct rest_client_line *idle; /* at most REST_CLIENT_LINES */
	unsigned nr_idle;
};

struct rest_client_line *rest_client_line_take(struct rest_client *client, struct err *err);
/* reusable false: its connection is closed. */
void rest_client_line_give(
	struct rest_client *client, struct rest_client_line *line, bool reusable);

/* One exchange, over the network, once. */
struct rest_exchange {
	/* what is asked */
	const char *method, *path;
	const void *body; /* NULL: none */
	size_t body_length;
	const char *type, *accept; /* of the body; of the answer */
	const char *key; /* Idempotency-Key, or NULL */
	const char *last_event; /* Last-Event-ID, or NULL */
	/* Takes the body of an answer 200 as it comes (else it is kept in bytes); 0, 1 to end
	 * the exchange there, or -1. */
	int (*take)(void *context, const char *bytes, size_t length, struct err *err);
	void *context;
	size_t most; /* of bytes */
	/* what came; bytes are the caller's */
	unsigned status; /* 0: no answer */
	char *bytes;
	size_t length, room;
	unsigned retry_after_s;
	bool ended; /* by take */
};
/* 0 when there was an answer, whatever its status; err.code says whether another try is of
 * use: ERR_DISCONNECTED, ERR_TIMEOUT. */
int rest_client_exchange(
	struct rest_client *client, struct rest_exchange *exchange, struct err *err);
void rest_exchange_clear(struct rest_exchange *exchange);
/* An answer that is no success, as an error. */
int rest_client_problem(
	struct rest_client *client, const struct rest_exchange *exchange, struct err *err);
/* Whether the same call may have another answer soon. */
bool rest_client_is_passing(const struct rest_exchange *exchange, const struct err *err);
/* Waits before the next try; -1 (err as it is) when that would end behind until. */
int rest_client_back_off(struct rest_client *client, const struct rest_exchange *exchange,
	unsigned tries, struct deadline until, struct err *err);

#endif
