/* The body of a request: within bounds before memory is taken for it, of the right type. */
#include "rest_internal.h"

#include <stdio.h>
#include <strings.h>

#define FIRST_ROOM 4096

static size_t most_of(const struct rest_request *request)
{
	const struct rest_route *route = request->match.route;
	return route && route->body_most ? route->body_most : REST_BODY_MOST;
}

size_t rest_body_swallowed_most(const struct rest_request *request)
{
	return most_of(request) + REST_BODY_MOST;
}

static bool has_method_with_body(const struct rest_request *request)
{
	return !request->head && strcmp(request->method, "GET") != 0;
}

static bool too_large(struct rest_request *request)
{
	struct err why = {.code = ERR_USAGE};
	snprintf(why.text, sizeof why.text, "the body is larger than %zu bytes", most_of(request));
	rest_answer_problem(request, 413, &why);
	return false;
}

static bool is_type(const char *header, const char *type)
{
	size_t length = strlen(type);
	return !strncasecmp(header, type, length) && strchr("; \t", header[length]);
}

bool rest_body_announced(struct rest_request *request)
{
	const char *length = rest_header(request, "Content-Length");
	const char *coded = rest_header(request, "Transfer-Encoding");
	bool is_empty = !coded && (!length || strtoull(length, NULL, 10) == 0);
	if (!has_method_with_body(request) || is_empty)
		return true;
	if (length && strtoull(length, NULL, 10) > most_of(request))
		return too_large(request);
	bool octets = request->match.route->flags & REST_OCTETS;
	const char *wanted = octets ? "application/octet-stream" : "application/json";
	const char *type = rest_header(request, "Content-Type");
	if (type && is_type(type, wanted))
		return true;
	struct err why = {.code = ERR_USAGE};
	snprintf(why.text, sizeof why.text, "the body must be %s, not %.64s", wanted,
		type ? type : "of no type");
	rest_answer_problem(request, 415, &why);
	return false;
}

/* Accounts for more memory of all bodies together. */
static bool reserve(struct rest_request *request, size_t more)
{
	_Atomic(size_t) *all = &request->server->bodies_bytes;
	if (atomic_fetch_add(all, more) + more <= REST_BODIES_MOST)
		return true;
	atomic_fetch_sub(all, more);
	return false;
}

static bool make_room(struct rest_request *request, size_t length)
{
	size_t room = request->room ? request->room : FIRST_ROOM;
	while (room < length)
		room *= 2;
	room = min_size(room, max_u64(most_of(request), FIRST_ROOM));
	if (room <= request->room)
		return true;
	struct err why = {.code = ERR_BUSY};
	if (!reserve(request, room - request->room)) {
		snprintf(why.text, sizeof why.text,
			"the bodies of other requests take all memory for them (try again)");
		rest_answer_problem(request, 503, &why);
		request->answer.retry_after_s = 1;
		return false;
	}
	uint8_t *bytes = realloc(request->bytes, room);
	if (!bytes) {
		atomic_fetch_sub(&request->server->bodies_bytes, room - request->room);
		why.code = ERR_NO_MEMORY;
		snprintf(why.text, sizeof why.text, "no memory for the body");
		rest_answer_problem(request, 503, &why);
		return false;
	}
	request->bytes = bytes;
	request->room = room;
	return true;
}

static bool swallow(struct rest_request *request, size_t length)
{
	request->swallowed += length;
	return request->swallowed <= rest_body_swallowed_most(request);
}

bool rest_body_take(struct rest_request *request, const void *bytes, size_t length)
{
	if (!request->refused && has_method_with_body(request)) {
		if (length > most_of(request) - request->length)
			request->refused = !too_large(request);
		else if (!make_room(request, request->length + length))
			request->refused = true;
	}
	if (request->refused || !has_method_with_body(request))
		return swallow(request, length);
	memcpy(request->bytes + request->length, bytes, length);
	request->length += length;
	return true;
}

bool rest_body_complete(struct rest_request *request)
{
	struct err why = ERR_INIT;
	if (!request->length || request->match.route->flags & REST_OCTETS)
		return true;
	request->body = rest_json_parse(request->bytes, request->length, &why);
	if (request->body && !json_is_object(request->body))
		err_set(&why, ERR_FORMAT, "must be a JSON object");
	if (!why.code)
		return true;
	err_context(&why, "the body");
	rest_answer_problem(request, 400, &why);
	return false;
}

void rest_body_clear(struct rest_request *request)
{
	json_decref(request->body);
	free(request->bytes);
	atomic_fetch_sub(&request->server->bodies_bytes, request->room);
	request->body = NULL;
	request->bytes = NULL;
	request->length = request->room = 0;
}
