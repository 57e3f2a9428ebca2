/*
 * A request's way through the HTTP library: its target, its header, its body in parts, its
 * end.  The answer is given at the first of these moments at which the library takes one: the
 * header (when nothing more is to come) or the end of the body.
 */
#include "rest_internal.h"

#include <stdio.h>
#include <string.h>

void *rest_handle_target(void *context, const char *raw, struct MHD_Connection *connection)
{
	struct rest_request *request = calloc(1, sizeof *request);
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	if (!request || !info || !info->socket_context) {
		free(request);
		return NULL;
	}
	request->server = context;
	request->connection = connection;
	request->line = info->socket_context;
	request->began_ns = clock_now_ns();
	rest_target_parse(raw, &request->target, &request->early);
	return request;
}

/* The audit log, and ours. */
static void note(const struct rest_request *request)
{
	const struct rest_server_options *options = &request->server->options;
	bool change = !request->head && strcmp(request->method, "GET") != 0;
	if (request->let_in && change && options->audit)
		options->audit(options->context, &request->actor, request->line->address.text,
			request->match.route->operation, request->target.path,
			request->answer.status);
	log_debug("REST: %s %s of %s (%s): %u after %d ms", request->method,
		request->target.path ? request->target.path : "?", request->line->address.text,
		request->actor.id[0] ? request->actor.id : "nobody", request->answer.status,
		(int)((clock_now_ns() - request->began_ns) / 1000000));
}

static enum MHD_Result answer(struct rest_request *request)
{
	note(request);
	return rest_answer_send(request);
}

/*
 * True when the client waits for a word before it sends the body, or the body is too much to be
 * thrown away.  The library ends the connection with such an answer, so others wait.
 */
static bool may_answer_now(const struct rest_request *request)
{
	const char *length = rest_header(request, "Content-Length");
	return rest_header(request, "Expect") ||
	       (length && strtoull(length, NULL, 10) > rest_body_swallowed_most(request));
}

static enum MHD_Result begin(struct rest_request *request, const char *method)
{
	request->begun = true;
	request->head = !strcmp(method, "HEAD");
	/* A longer one is none of ours, and no part of one. */
	snprintf(request->method, sizeof request->method, "%s",
		strlen(method) < sizeof request->method ? method : "?");
	request->refused = !rest_gate_enter(request) || !rest_body_announced(request);
	return request->refused && may_answer_now(request) ? answer(request) : MHD_YES;
}

/* The time that a handler takes is not the client's silence. */
static void set_timeout(struct rest_request *request, unsigned ms)
{
	MHD_set_connection_option(
		request->connection, MHD_CONNECTION_OPTION_TIMEOUT, (ms + 999) / 1000);
}

static enum MHD_Result complete(struct rest_request *request)
{
	if (!request->refused && rest_body_complete(request)) {
		set_timeout(request, 0);
		rest_lines_busy(&request->server->lines, request->line, true);
		rest_replay_or_call(request);
		set_timeout(request, request->server->options.idle_timeout_ms);
	}
	rest_body_clear(request);
	return answer(request);
}

enum MHD_Result rest_handle_call(void *server, struct MHD_Connection *connection, const char *url,
	const char *method, const char *version, const char *bytes, size_t *length, void **context)
{
	struct rest_request *request = *context;
	(void)server;
	(void)connection;
	(void)url;
	(void)version;
	if (!request)
		return MHD_NO;
	if (!request->begun)
		return begin(request, method);
	if (!*length)
		return complete(request);
	bool goes_on = rest_body_take(request, bytes, *length);
	*length = 0;
	return goes_on ? MHD_YES : MHD_NO;
}

void rest_handle_end(void *server, struct MHD_Connection *connection, void **context,
	enum MHD_RequestTerminationCode why)
{
	struct rest_request *request = *context;
	(void)connection;
	(void)why;
	if (!request)
		return;
	*context = NULL;
	if (request->let_in)
		rest_lines_busy(&((struct rest_server *)server)->lines, request->line, false);
	rest_body_clear(request);
	rest_answer_clear(&request->answer);
	rest_actor_clear(&request->actor);
	rest_target_clear(&request->target);
	explicit_bzero(request->token_hash, sizeof request->token_hash);
	free(request);
}
