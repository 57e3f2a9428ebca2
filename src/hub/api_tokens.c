/* Tokens and the audit log: the hub's routes to access.h. */
#include "hub_internal.h"

static int get_tokens(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	return access_rest_tokens(hub->state, request, err);
}

static int post_token(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	return access_rest_token_make(hub->state, request, err);
}

static int delete_token(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	return access_rest_token_revoke(hub->state, request, err);
}

const struct rest_route hub_token_routes[] = {
	{"GET", "/api/v1/tokens?limit&after", "listTokens", REST_ADMIN, 0, get_tokens, 0},
	{"POST", "/api/v1/tokens", "createToken", REST_ADMIN, REST_CREATES | REST_SECRET,
		post_token, 0},
	{"DELETE", "/api/v1/tokens/{id}", "revokeToken", REST_ADMIN, 0, delete_token, 0},
	{0},
};

static int get_events(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	return access_rest_events(hub->state, request, err);
}

const struct rest_route hub_event_routes[] = {
	{"GET", "/api/v1/events?object&actor&since&limit&after", "listEvents", REST_READ, 0,
		get_events, 0},
	{0},
};
