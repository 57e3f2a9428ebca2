/* Who did what, and whose token it is: the hub's state, and who listens to the hub. */
#include "hub_internal.h"

#include <string.h>

void hub_event(struct hub *hub, const char *actor, const char *action, const char *object,
	const json_t *detail)
{
	struct state_event event = access_event(hub->state, actor, action, object, detail);
	hub_time_event(hub, &event);
}

/* --- callbacks of the REST server ---------------------------------------------------------- */

void hub_audit(void *context, const struct rest_actor *actor, const char *peer,
	const char *operation, const char *path, unsigned status)
{
	char who[ACCESS_ACTOR_BYTES];
	/* Leases are renewed day and night, and nodes tell of their jobs; that changes nothing. */
	static const char *const silent[] = {"renewSession", "renewServe", "tellNodeJob"};
	for (size_t i = 0; status < 300 && i < ARRAY_LENGTH(silent); i++)
		if (strcmp(operation, silent[i]) == 0)
			return;
	json_t *detail = json_pack("{s:s, s:i}", "peer", peer, "status", (int)status);
	hub_event(context, access_actor_text(actor, who), operation, path, detail);
	json_decref(detail);
}

int hub_authenticate(void *context, const char *hash, struct rest_actor *actor, struct err *err)
{
	struct hub *hub = context;
	if (access_authenticate(hub->state, hash, actor, err) < 0)
		return -1;
	return actor->scope == REST_NODE ? hub_nodes_authenticate(hub, actor, err) : 0;
}

int hub_remembered(void *context, const struct rest_actor *actor, const char *key,
	const char *digest, bool *found, unsigned *status, json_t **body, struct err *err)
{
	struct hub *hub = context;
	return access_remembered(hub->state, actor, key, digest, found, status, body, err);
}

void hub_remember(void *context, const struct rest_actor *actor, const char *key,
	const char *digest, unsigned status, const json_t *body)
{
	struct hub *hub = context;
	access_remember(hub->state, actor, key, digest, status, body);
}
