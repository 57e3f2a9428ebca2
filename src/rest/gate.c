/*
 * May it come in?  The one place that finds the route and authenticates; nothing about the
 * body is looked at or told before.
 */
#include "rest_internal.h"

#include <stdio.h>
#include <strings.h>

#define TOKEN_TEXT_MOST 256

static bool refuse(
	struct rest_request *request, unsigned status, enum err_code code, const char *text)
{
	struct err why = {.code = code};
	snprintf(why.text, sizeof why.text, "%s", text);
	rest_answer_problem(request, status, &why);
	return false;
}

static bool is_there_room(struct rest_request *request)
{
	if (atomic_load(&request->server->stopping)) {
		refuse(request, 503, ERR_BUSY, "the server is being stopped (try again)");
	} else if (request->line->refused) {
		char text[256];
		snprintf(text, sizeof text, "%s (try again)", request->line->refusal);
		refuse(request, 503, ERR_BUSY, text);
	} else {
		return true;
	}
	request->answer.retry_after_s = 2;
	request->answer.close = true;
	return false;
}

static bool has_route(struct rest_request *request)
{
	char allow[REST_ALLOW_BYTES];
	if (request->early.code)
		return refuse(request, 400, request->early.code, request->early.text);
	unsigned status = rest_route_find(request->server->options.tables, request->method,
		&request->target, &request->match, allow);
	if (status == 404)
		return refuse(request, 404, ERR_NOT_FOUND,
			"there is no such path (GET /api/v1/openapi.json names all)");
	if (status == 405) {
		refuse(request, 405, ERR_USAGE, "the path does not have this method");
		memcpy(request->answer.allow, allow, sizeof allow);
		return false;
	}
	return true;
}

/* The library asks for a certificate, but lets everybody in who has none or another one. */
static bool has_certificate(struct rest_request *request)
{
	unsigned bad = 0;
	if (!request->server->clients_ca)
		return true;
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(request->connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
	gnutls_session_t session = info ? (gnutls_session_t)info->tls_session : NULL;
	if (session && gnutls_certificate_verify_peers2(session, &bad) == 0 && !bad)
		return true;
	return refuse(request, 403, ERR_DENIED,
		"this server demands a certificate of the client, and none that it trusts was "
		"shown");
}

/* True: it was one too many, and is answered. */
static bool is_one_too_many(struct rest_request *request)
{
	unsigned wait_s =
		rest_wrong_count(&request->server->wrong, &request->line->address, clock_now_ns());
	if (!wait_s)
		return false;
	refuse(request, 429, ERR_DENIED,
		"too many wrong tokens came from this address (wait before the next)");
	request->answer.retry_after_s = wait_s;
	return true;
}

static bool wrong_token(struct rest_request *request)
{
	if (is_one_too_many(request))
		return false;
	refuse(request, 401, ERR_DENIED, "the token is unknown, expired or revoked");
	request->answer.challenge = true;
	request->answer.wrong_token = true;
	return false;
}

int rest_problem_stranger(struct rest_request *request, const struct err *why)
{
	if (!is_one_too_many(request))
		refuse(request, 401, why->code, why->text);
	request->answer.challenge = request->answer.status == 401;
	return -1;
}

static bool is_known(struct rest_request *request)
{
	struct err err = ERR_INIT;
	const char *text = rest_header(request, "Authorization");
	if (!text || strncasecmp(text, "Bearer ", 7) != 0) {
		refuse(request, 401, ERR_DENIED,
			"a token is needed (header \"Authorization: Bearer TOKEN\")");
		request->answer.challenge = true;
		return false;
	}
	text += 7;
	text += strspn(text, " ");
	if (!*text || strlen(text) > TOKEN_TEXT_MOST)
		return wrong_token(request);
	rest_token_hash(text, request->token_hash);
	struct rest_server_options *options = &request->server->options;
	int rc =
		options->authenticate(options->context, request->token_hash, &request->actor, &err);
	if (!rc)
		return true;
	if (err.code == ERR_DENIED)
		return wrong_token(request);
	err_context(&err, "looking at the token");
	rest_answer_problem(request, 503, &err);
	return false;
}

static bool may_call(struct rest_request *request)
{
	const struct rest_route *route = request->match.route;
	const struct rest_actor *actor = &request->actor;
	const char *vm = rest_match_param(&request->match, "vm");
	char text[256];
	bool is_nodes = route->scope == REST_NODE && actor->scope != REST_NODE;
	if (actor->scope < route->scope || actor->scope == REST_NONE || is_nodes) {
		snprintf(text, sizeof text, "the token's scope is \"%s\", this takes \"%s\"",
			rest_scope_name(actor->scope), rest_scope_name(route->scope));
		return refuse(request, 403, ERR_DENIED, text);
	}
	if (vm && !rest_actor_may(actor, vm))
		return refuse(request, 403, ERR_DENIED, "the token is for other VMs");
	if (rest_actor_is_held(actor) && route->scope == REST_READ && !vm &&
		!(route->flags & REST_VMS))
		return refuse(request, 403, ERR_DENIED,
			"the token is for certain VMs, and this tells of all");
	return true;
}

static bool knows_parameters(struct rest_request *request)
{
	const struct rest_target *target = &request->target;
	const struct rest_route *route = request->match.route;
	const char *known = rest_route_queries(route);
	char text[256];
	for (size_t i = 0; i < target->nr_queries; i++) {
		if (rest_route_knows(route, target->queries[i].name))
			continue;
		snprintf(text, sizeof text, "the parameter \"%.64s\" is not known here (%s%s)",
			target->queries[i].name, known[0] ? "there are: " : "there are none",
			known);
		return refuse(request, 400, ERR_USAGE, text);
	}
	return true;
}

bool rest_gate_enter(struct rest_request *request)
{
	if (!is_there_room(request) || !has_route(request) || !has_certificate(request))
		return false;
	if (request->match.route->scope != REST_NONE && (!is_known(request) || !may_call(request)))
		return false;
	request->let_in = true;
	/* A stranger who sends a request slowly is as good as silent. */
	if (request->match.route->scope != REST_NONE)
		rest_lines_busy(&request->server->lines, request->line, true);
	return knows_parameters(request);
}
