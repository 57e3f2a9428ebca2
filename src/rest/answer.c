/*
 * Answers.  A handler only says what to answer; it is put together and sent here, when the
 * handler has returned, in one place for all.
 */
#include "rest_internal.h"

#include <stdio.h>

static const struct {
	unsigned status;
	const char *phrase;
} phrases[] = {
	{400, "Bad Request"},
	{401, "Unauthorized"},
	{403, "Forbidden"},
	{404, "Not Found"},
	{405, "Method Not Allowed"},
	{409, "Conflict"},
	{412, "Precondition Failed"},
	{413, "Content Too Large"},
	{415, "Unsupported Media Type"},
	{422, "Unprocessable Content"},
	{429, "Too Many Requests"},
	{500, "Internal Server Error"},
	{501, "Not Implemented"},
	{503, "Service Unavailable"},
	{504, "Gateway Timeout"},
	{507, "Insufficient Storage"},
};

const char *rest_answer_phrase(unsigned status)
{
	for (size_t i = 0; i < ARRAY_LENGTH(phrases); i++)
		if (phrases[i].status == status)
			return phrases[i].phrase;
	return "Error";
}

unsigned rest_status_of(enum err_code code)
{
	switch (code) {
	case ERR_USAGE:
		return 400;
	case ERR_NOT_FOUND:
		return 404;
	case ERR_DENIED:
		return 403;
	case ERR_EXISTS:
	case ERR_BUSY:
	case ERR_REFUSED:
	case ERR_CONFLICT:
	case ERR_CANCELLED:
		return 409;
	case ERR_RANGE:
		return 422;
	case ERR_NO_SPACE:
		return 507;
	case ERR_TIMEOUT:
		return 504;
	case ERR_UNSUPPORTED:
		return 501;
	default:
		return 500;
	}
}

/* --- what handlers say -------------------------------------------------------------------- */

static int answered_twice(const struct rest_request *request, json_t *body, struct err *err)
{
	json_decref(body);
	return err_set(err, ERR_PROTOCOL, "%s was answered twice", request->match.route->operation);
}

static int out_of_memory(struct err *err)
{
	return err_set(err, ERR_NO_MEMORY, "answering: no memory");
}

int rest_reply(struct rest_request *request, unsigned status, json_t *body, struct err *err)
{
	if (request->answer.status)
		return answered_twice(request, body, err);
	if (!body && status != 204)
		return out_of_memory(err);
	request->answer.status = status;
	request->answer.body = body;
	return 0;
}

int rest_reply_made(struct rest_request *request, unsigned status, const char *location,
	json_t *body, struct err *err)
{
	if (rest_reply(request, status, body, err))
		return -1;
	snprintf(request->answer.location, sizeof request->answer.location, "%s", location);
	return 0;
}

int rest_reply_page(struct rest_request *request, json_t *items, const char *next, struct err *err)
{
	json_t *page = json_pack("{s:o, s:s?}", "items", items, "next", next);
	return rest_reply(request, 200, page, err);
}

int rest_reply_octets(struct rest_request *request, const char *type, const void *bytes,
	size_t length, struct err *err)
{
	if (request->answer.status)
		return answered_twice(request, NULL, err);
	request->answer.bytes = malloc(length + 1);
	if (!request->answer.bytes)
		return out_of_memory(err);
	memcpy(request->answer.bytes, bytes, length);
	request->answer.length = length;
	snprintf(request->answer.type, sizeof request->answer.type, "%s", type);
	request->answer.status = 200;
	return 0;
}

int rest_reply_text(
	struct rest_request *request, const char *type, const char *text, struct err *err)
{
	return rest_reply_octets(request, type, text, strlen(text), err);
}

void rest_answer_clear(struct rest_answer *answer)
{
	json_decref(answer->body);
	free(answer->bytes);
	rest_stream_free(answer->stream);
	*answer = (struct rest_answer){0};
}

void rest_answer_problem(struct rest_request *request, unsigned status, const struct err *why)
{
	char detail[ERR_TEXT_BYTES];
	memcpy(detail, why->text, sizeof detail);
	utf8_mend(detail);
	char job[sizeof request->answer.job];
	memcpy(job, request->answer.job, sizeof job);
	rest_answer_clear(&request->answer);
	memcpy(request->answer.job, job, sizeof job);
	request->answer.status = status;
	request->answer.body = json_pack("{s:s, s:s, s:i, s:s, s:s, s:s*}", "type", "about:blank",
		"title", rest_answer_phrase(status), "status", (int)status, "detail", detail,
		"code", err_code_name(why->code), "job", job[0] ? job : NULL);
}

int rest_problem(struct rest_request *request, unsigned status, const struct err *why)
{
	rest_answer_problem(request, status, why);
	return -1;
}

int rest_problem_for_now(
	struct rest_request *request, const struct err *why, unsigned retry_after_s)
{
	rest_answer_problem(request, rest_status_of(why->code), why);
	request->answer.retry_after_s = retry_after_s;
	return -1;
}

/* --- sending --------------------------------------------------------------------------------- */

/* Takes the bytes, on failure too. */
static struct MHD_Response *response_of(void *bytes, size_t length, const char *type)
{
	struct MHD_Response *response =
		MHD_create_response_from_buffer(length, bytes, MHD_RESPMEM_MUST_FREE);
	if (!response)
		free(bytes);
	else if (type)
		MHD_add_response_header(response, "Content-Type", type);
	return response;
}

static bool is_unchanged(const struct rest_request *request)
{
	const char *have = rest_header(request, "If-None-Match");
	return have && request->answer.status == 200 && request->answer.etag[0] &&
	       strstr(have, request->answer.etag);
}

static struct MHD_Response *make_response(struct rest_request *request)
{
	struct rest_answer *answer = &request->answer;
	if (answer->stream)
		return rest_stream_response(request);
	if (is_unchanged(request)) {
		answer->status = 304;
		return response_of(NULL, 0, NULL);
	}
	if (answer->bytes) {
		void *bytes = answer->bytes;
		answer->bytes = NULL;
		return response_of(bytes, answer->length, answer->type);
	}
	if (!answer->body)
		return response_of(NULL, 0, NULL);
	char *text = json_dumps(answer->body, JSON_COMPACT);
	if (!text)
		return NULL;
	return response_of(text, strlen(text),
		answer->status >= 400 ? "application/problem+json" : "application/json");
}

static void add_headers(struct rest_request *request, struct MHD_Response *response)
{
	const struct rest_answer *answer = &request->answer;
	char number[16];
	MHD_add_response_header(response, "Cache-Control", "no-store");
	MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
	if (answer->location[0])
		MHD_add_response_header(response, "Location", answer->location);
	if (answer->etag[0])
		MHD_add_response_header(response, "ETag", answer->etag);
	if (answer->allow[0])
		MHD_add_response_header(response, "Allow", answer->allow);
	if (answer->challenge)
		MHD_add_response_header(response, "WWW-Authenticate",
			answer->wrong_token ? "Bearer realm=\"sendense\", error=\"invalid_token\""
					    : "Bearer realm=\"sendense\"");
	if (answer->retry_after_s) {
		snprintf(number, sizeof number, "%u", answer->retry_after_s);
		MHD_add_response_header(response, "Retry-After", number);
	}
	if (answer->close)
		MHD_add_response_header(response, "Connection", "close");
}

enum MHD_Result rest_answer_send(struct rest_request *request)
{
	struct MHD_Response *response = make_response(request);
	if (!response)
		return MHD_NO;
	add_headers(request, response);
	enum MHD_Result rc =
		MHD_queue_response(request->connection, request->answer.status, response);
	request->sent = rc == MHD_YES;
	MHD_destroy_response(response);
	return rc;
}
