/* Who did what, and whose token it is. */
#include "access.h"

#include "file.h"
#include "log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* --- tokens ------------------------------------------------------------------------------- */

/* A token as it is stored: {name, hash, scope, vms?, created, expires?} with times in seconds
 * since 1970. */
int access_token_make(struct state *state, const char *name, enum rest_scope scope,
	const json_t *vms, int64_t expires, char token[REST_TOKEN_BYTES], json_t **object,
	struct err *err)
{
	uint8_t random[8];
	char id[2 * sizeof random + 1], hash[REST_TOKEN_HASH_BYTES];
	if (file_random(random, sizeof random, err) < 0 || rest_token_make(token, err) < 0)
		return -1;
	for (size_t i = 0; i < sizeof random; i++)
		snprintf(id + 2 * i, 3, "%02x", random[i]);
	rest_token_hash(token, hash);
	json_t *made = json_pack("{s:s, s:s, s:s, s:I}", "name", name, "hash", hash, "scope",
		rest_scope_name(scope), "created", (json_int_t)time(NULL));
	if (!made)
		return err_errno(err, ENOMEM, "cannot make a token");
	if (vms)
		json_object_set(made, "vms", (json_t *)vms);
	if (expires > 0)
		json_object_set_new(made, "expires", json_integer(expires));
	int rc = state_put(state, "token", id, made, 0, NULL, err);
	json_object_set_new(made, "id", json_string(id));
	if (rc < 0 || !object)
		json_decref(made);
	else
		*object = made;
	return rc < 0 ? err_context(err, "cannot make the token %s", name) : 0;
}

static int count(void *context, const struct state_object *object)
{
	(void)object;
	++*(unsigned *)context;
	return 0;
}

int access_check(struct state *state, const char *kind, const struct settings_address *listen,
	struct err *err)
{
	unsigned nr_tokens = 0;
	if (state_list(state, "token", NULL, count, &nr_tokens, err) < 0)
		return -1;
	if (nr_tokens == 0 && !listen->loopback)
		return err_set(err, ERR_DENIED,
			"there are no tokens, and [%s] listen = %s:%u is beyond loopback "
			"(\"sendense %s init\" makes the first one)",
			kind, listen->host, listen->port, kind);
	if (nr_tokens == 0)
		log_warning("there are no tokens: nobody can use the API (\"sendense %s init\" "
			    "makes the first one)",
			kind);
	return 0;
}

static int actor_of(const struct state_object *object, struct rest_actor *actor, struct err *err)
{
	const char *name = json_string_value(json_object_get(object->value, "name"));
	const char *scope = json_string_value(json_object_get(object->value, "scope"));
	json_int_t expires = json_integer_value(json_object_get(object->value, "expires"));
	if (expires > 0 && time(NULL) >= expires) {
		char when[CLOCK_UTC_BYTES];
		clock_utc_text(expires, when);
		return err_set(err, ERR_DENIED, "the token expired at %s", when);
	}
	if (!scope || !rest_scope_parse(scope, &actor->scope))
		return err_set(err, ERR_DENIED, "the token has no scope");
	snprintf(actor->id, sizeof actor->id, "%s", object->id);
	snprintf(actor->name, sizeof actor->name, "%s", name ? name : "");
	json_t *vms = json_object_get(object->value, "vms");
	actor->vms = actor->scope == REST_BACKUP && vms ? json_incref(vms) : NULL;
	return 0;
}

int access_authenticate(
	struct state *state, const char *hash, struct rest_actor *actor, struct err *err)
{
	struct state_object object = {0};
	if (state_token(state, hash, &object, err) < 0) {
		if (err && err->code == ERR_NOT_FOUND)
			return err_set(err, ERR_DENIED, "there is no such token");
		return -1;
	}
	int rc = actor_of(&object, actor, err);
	state_object_clear(&object);
	return rc;
}

/* --- answers that are remembered -------------------------------------------------------------- */

int access_remembered(struct state *state, const struct rest_actor *actor, const char *key,
	const char *digest, bool *found, unsigned *status, json_t **body, struct err *err)
{
	return state_remembered(state, actor->id, key, digest, found, status, body, err);
}

void access_remember(struct state *state, const struct rest_actor *actor, const char *key,
	const char *digest, unsigned status, const json_t *body)
{
	struct err err = ERR_INIT;
	if (state_remember(state, actor->id, key, digest, status, body, &err) < 0)
		log_warning("the answer to a call is not kept for its repetition: %s", err.text);
}

/* --- the audit log ---------------------------------------------------------------------- */

const char *access_actor_text(const struct rest_actor *actor, char out[ACCESS_ACTOR_BYTES])
{
	if (actor && actor->id[0])
		snprintf(out, ACCESS_ACTOR_BYTES, "%s %s",
			actor->scope == REST_NODE ? "node" : "token",
			actor->name[0] ? actor->name : actor->id);
	else
		snprintf(out, ACCESS_ACTOR_BYTES, "nobody");
	return out;
}

struct state_event access_event(struct state *state, const char *actor, const char *action,
	const char *object, const json_t *detail)
{
	struct err err = ERR_INIT;
	struct state_event event = {
		.time = time(NULL),
		.actor = actor,
		.action = action,
		.object = object,
		.detail = detail,
	};
	if (state_event_add(state, &event, &event.id, &err) < 0)
		log_error("the audit log does not have \"%s %s %s\": %s", actor, action, object,
			err.text);
	return event;
}
