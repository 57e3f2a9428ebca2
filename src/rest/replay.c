/*
 * Calls the handler, or gives the answer that the same call got before (Idempotency-Key).
 * Only answers that say "done" are kept: what failed may be tried again with the same key.
 */
#include "rest_internal.h"

#include <gnutls/crypto.h>
#include <stdio.h>

#define WAIT_MS 30000 /* for the first call with a key */
#define KEY_MOST 255

static void fail(struct rest_request *request, const struct err *why)
{
	unsigned status = rest_status_of(why->code);
	if (why->code == ERR_USAGE && request->body)
		status = 422;
	if (why->code == ERR_RANGE && rest_header(request, "If-Match"))
		status = 412;
	rest_answer_problem(request, status, why);
}

static void call(struct rest_request *request)
{
	struct err err = ERR_INIT;
	const struct rest_route *route = request->match.route;
	int rc = route->handler(request->server->options.context, request, &err);
	if (!rc && !request->answer.status)
		rc = err_set(&err, ERR_PROTOCOL, "%s was not answered", route->operation);
	/* A handler that failed may have said why itself (rest_problem()). */
	if (rc && request->answer.status < 400)
		fail(request, &err);
	if (request->answer.status >= 500)
		log_warning("REST: %s failed with %u: %s", route->operation, request->answer.status,
			err.text);
}

static int digest_of(const struct rest_request *request, char hex[DIGEST_ROOT_HEX_BYTES])
{
	uint8_t sum[DIGEST_ROOT_BYTES];
	gnutls_hash_hd_t hash;
	if (gnutls_hash_init(&hash, GNUTLS_DIG_SHA256) < 0)
		return -1;
	gnutls_hash(hash, request->method, strlen(request->method) + 1);
	gnutls_hash(hash, request->target.raw, strlen(request->target.raw) + 1);
	if (request->length)
		gnutls_hash(hash, request->bytes, request->length);
	gnutls_hash_deinit(hash, sum);
	digest_hex(sum, sizeof sum, hex);
	return 0;
}

/* What is kept of an answer. */
static void remember(struct rest_request *request, const char *key, const char *digest)
{
	const struct rest_server_options *options = &request->server->options;
	struct rest_answer *answer = &request->answer;
	unsigned status = answer->status;
	json_t *body;
	if (status < 200 || status > 299 || answer->bytes || answer->stream)
		return;
	if (request->match.route->flags & REST_SECRET) {
		status = 409;
		body = json_pack("{s:{s:s, s:s, s:i, s:s, s:s}}", "body", "type", "about:blank",
			"title", rest_answer_phrase(status), "status", (int)status, "detail",
			"it was made by the first call with this Idempotency-Key; its secret is "
			"told once (delete it and make another)",
			"code", err_code_name(ERR_EXISTS));
	} else {
		body = json_pack("{s:s, s:s, s:O?}", "location", answer->location, "etag",
			answer->etag, "body", answer->body);
	}
	if (body)
		options->remember(options->context, &request->actor, key, digest, status, body);
	json_decref(body);
}

static void replay(struct rest_request *request, unsigned status, const json_t *kept)
{
	struct rest_answer *answer = &request->answer;
	const char *location = json_string_value(json_object_get(kept, "location"));
	const char *etag = json_string_value(json_object_get(kept, "etag"));
	json_t *body = json_object_get(kept, "body");
	answer->status = status;
	answer->body = json_is_null(body) ? NULL : json_incref(body);
	snprintf(answer->location, sizeof answer->location, "%s", location ? location : "");
	snprintf(answer->etag, sizeof answer->etag, "%s", etag ? etag : "");
}

static void call_once(struct rest_request *request, const char *key)
{
	const struct rest_server_options *options = &request->server->options;
	struct err err = ERR_INIT;
	char digest[DIGEST_ROOT_HEX_BYTES];
	bool found = false;
	unsigned status = 0;
	json_t *kept = NULL;
	if (digest_of(request, digest))
		err_set(&err, ERR_NO_MEMORY, "digesting the call");
	else
		options->remembered(options->context, &request->actor, key, digest, &found, &status,
			&kept, &err);
	if (err.code == ERR_RANGE)
		rest_answer_problem(request, 422, &err);
	else if (err.code)
		fail(request, &err);
	else if (found)
		replay(request, status, kept);
	else
		call(request);
	if (!err.code && !found)
		remember(request, key, digest);
	json_decref(kept);
}

static bool is_key(const char *key)
{
	size_t length = strlen(key);
	for (const char *at = key; *at; at++)
		if (*at < 0x20 || *at > 0x7e)
			return false;
	return length >= 1 && length <= KEY_MOST;
}

void rest_replay_or_call(struct rest_request *request)
{
	struct err err = ERR_INIT;
	struct rest_server *server = request->server;
	const char *key = rest_header(request, "Idempotency-Key");
	if (!key || !(request->match.route->flags & REST_CREATES) || !server->options.remembered) {
		call(request);
		return;
	}
	if (!is_key(key)) {
		err_set(&err, ERR_USAGE, "Idempotency-Key: must be 1 to %d printable characters",
			KEY_MOST);
		rest_answer_problem(request, 400, &err);
	} else if (rest_once_enter(&server->once, request->actor.id, key,
			   deadline_after_ms(WAIT_MS), &err)) {
		fail(request, &err);
	} else {
		call_once(request, key);
		rest_once_leave(&server->once, request->actor.id, key);
	}
}
