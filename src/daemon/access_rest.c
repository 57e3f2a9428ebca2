/* Tokens and the audit log, as daemons answer of them; see access.h. */
#include "access.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* --- tokens ------------------------------------------------------------------------------------
 */

static void time_member(json_t *object, const char *name)
{
	char text[CLOCK_UTC_BYTES];
	const json_t *value = json_object_get(object, name);
	if (!json_is_integer(value))
		return;
	clock_utc_text(json_integer_value(value), text);
	json_object_set_new(object, name, json_string(text));
}

/* A token as it is shown: never its hash. */
static json_t *token_json(const char *id, const json_t *stored)
{
	json_t *object = json_deep_copy(stored);
	json_object_del(object, "hash");
	json_object_set_new(object, "id", json_string(id));
	time_member(object, "created");
	time_member(object, "expires");
	return object;
}

struct listing {
	json_t *items;
	char last[256];
	unsigned limit;
	bool more;
};

static int list_token(void *context, const struct state_object *object)
{
	struct listing *l = context;
	if (json_array_size(l->items) == l->limit) {
		l->more = true;
		return 1;
	}
	json_array_append_new(l->items, token_json(object->id, object->value));
	snprintf(l->last, sizeof l->last, "%s", object->id);
	return 0;
}

int access_rest_tokens(struct state *state, struct rest_request *request, struct err *err)
{
	struct listing l = {.items = json_array()};
	const char *after = NULL;
	int rc = rest_page(request, &l.limit, &after, err);
	if (rc == 0)
		rc = state_list(state, "token", after, list_token, &l, err);
	if (rc == 0)
		return rest_reply_page(request, l.items, l.more ? l.last : NULL, err);
	json_decref(l.items);
	return -1;
}

/* "expires": a time, or "expires_in_s". */
static int expiry_of(const json_t *body, int64_t *expires, struct err *err)
{
	const char *text = json_string_value(json_object_get(body, "expires"));
	const json_t *in = json_object_get(body, "expires_in_s");
	struct tm tm = {0};
	const char *end = text ? strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm) : NULL;
	*expires = 0;
	if (text && in)
		return err_set(err, ERR_USAGE, "expires and expires_in_s: only one of them");
	if (text && (!end || *end))
		return err_set(err, ERR_USAGE,
			"expires: \"%s\" is no time (like "
			"2027-01-01T00:00:00Z)",
			text);
	if (text)
		*expires = timegm(&tm);
	else if (in)
		*expires = time(NULL) + json_integer_value(in);
	if (text && *expires <= time(NULL))
		return err_set(err, ERR_USAGE, "expires: %s is over", text);
	return 0;
}

static int check_vms(enum rest_scope scope, const json_t *vms, struct err *err)
{
	size_t i;
	json_t *vm;
	if (scope == REST_BACKUP && json_array_size(vms) == 0)
		return err_set(err, ERR_USAGE,
			"vms: a token for backups names its VMs (like [\"web*\"]; [\"*\"]: all)");
	if (scope != REST_BACKUP && vms)
		return err_set(err, ERR_USAGE, "vms: is for tokens of the scope backup");
	json_array_foreach(vms, i, vm)
	{
		size_t length = json_string_length(vm);
		if (!json_is_string(vm) || length == 0 || length > 255)
			return err_set(
				err, ERR_USAGE, "vms[%zu]: must be 1 to 255 bytes of text", i);
	}
	return 0;
}

int access_rest_token_make(struct state *state, struct rest_request *request, struct err *err)
{
	static const char *const scopes[] = {"read", "backup", "operate", "admin", NULL};
	static const struct rest_field fields[] = {
		{.name = "name", .type = REST_STRING, .required = true, .least = 1, .most = 128},
		{.name = "scope", .type = REST_STRING, .required = true, .choices = scopes},
		{.name = "vms", .type = REST_ARRAY, .least = 0, .most = 1000},
		{.name = "expires", .type = REST_STRING},
		{.name = "expires_in_s", .type = REST_INTEGER, .least = 1, .most = 3153600000},
		{0},
	};
	const json_t *body = rest_body(request);
	enum rest_scope scope;
	int64_t expires;
	if (rest_check(body, fields, err) < 0 || expiry_of(body, &expires, err) < 0)
		return -1;
	const json_t *vms = json_object_get(body, "vms");
	rest_scope_parse(json_string_value(json_object_get(body, "scope")), &scope);
	if (check_vms(scope, vms, err) < 0)
		return -1;
	char token[REST_TOKEN_BYTES], location[96];
	json_t *made = NULL;
	if (access_token_make(state, json_string_value(json_object_get(body, "name")), scope, vms,
		    expires, token, &made, err) < 0)
		return -1;
	const char *id = json_string_value(json_object_get(made, "id"));
	snprintf(location, sizeof location, "/api/v1/tokens/%s", id);
	json_t *shown = token_json(id, made);
	json_object_set_new(shown, "token", json_string(token)); /* this once */
	explicit_bzero(token, sizeof token);
	json_decref(made);
	return rest_reply_made(request, 201, location, shown, err);
}

struct admins {
	const char *id; /* that is to go */
	bool goes, stays; /* it is an admin's; another one that holds without end */
};

static int look_at_token(void *context, const struct state_object *object)
{
	struct admins *a = context;
	const char *scope = json_string_value(json_object_get(object->value, "scope"));
	if (!scope || strcmp(scope, "admin") != 0)
		return 0;
	if (strcmp(object->id, a->id) == 0)
		a->goes = true;
	else if (!json_object_get(object->value, "expires"))
		a->stays = true;
	return 0;
}

/* Without it nobody could make another one. */
static int check_admin_stays(struct state *state, const char *id, struct err *err)
{
	struct admins a = {.id = id};
	if (state_list(state, "token", NULL, look_at_token, &a, err) < 0)
		return -1;
	return a.goes && !a.stays ? err_set(err, ERR_REFUSED,
					    "it is the last of the scope admin that does not "
					    "expire (make another one first)")
				  : 0;
}

int access_rest_token_revoke(struct state *state, struct rest_request *request, struct err *err)
{
	const char *id = rest_param(request, "id");
	if (check_admin_stays(state, id, err) < 0 ||
		state_delete(state, "token", id, STATE_ANY, err) < 0)
		return err_context(err, "token %s", id);
	return rest_reply(request, 204, NULL, err);
}

/* --- the audit log
 * -------------------------------------------------------------------------------- */

static int list_event(void *context, const struct state_event *event)
{
	struct listing *l = context;
	char when[CLOCK_UTC_BYTES];
	if (json_array_size(l->items) == l->limit) {
		l->more = true;
		return 1;
	}
	clock_utc_text(event->time, when);
	json_array_append_new(
		l->items, json_pack("{s:I, s:s, s:s, s:s, s:s, s:O?}", "id", (json_int_t)event->id,
				  "time", when, "actor", event->actor, "action", event->action,
				  "object", event->object, "detail", event->detail));
	snprintf(l->last, sizeof l->last, "%" PRIu64, event->id);
	return 0;
}

int access_rest_events(struct state *state, struct rest_request *request, struct err *err)
{
	struct listing l = {.items = json_array()};
	const char *after = NULL, *since = rest_query(request, "since");
	struct state_event_filter filter = {
		.actor = rest_query(request, "actor"), .object = rest_query(request, "object")};
	struct tm tm = {0};
	int rc = rest_page(request, &l.limit, &after, err);
	const char *end = since ? strptime(since, "%Y-%m-%dT%H:%M:%SZ", &tm) : NULL;
	if (rc == 0 && since && (!end || *end))
		rc = err_set(err, ERR_USAGE, "since: \"%s\" is no time (like 2026-12-31T00:00:00Z)",
			since);
	if (end)
		filter.since = timegm(&tm);
	char *rest = NULL;
	if (rc == 0 && after) {
		filter.after = strtoull(after, &rest, 10);
		if (*rest || rest == after)
			rc = err_set(err, ERR_USAGE, "after: \"%s\" is no cursor", after);
	}
	if (rc == 0)
		rc = state_events(state, &filter, list_event, &l, err);
	if (rc == 0)
		return rest_reply_page(request, l.items, l.more ? l.last : NULL, err);
	json_decref(l.items);
	return -1;
}
