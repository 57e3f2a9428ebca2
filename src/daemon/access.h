/*
 * access: who may call a daemon, and who did: tokens, the audit log and answers that are
 * remembered, in its state.db.
 *
 * Thread rule: any thread.
 */
#ifndef SENDENSE_DAEMON_ACCESS_H
#define SENDENSE_DAEMON_ACCESS_H

#include "catalogue.h"
#include "rest.h"
#include "settings.h"

/* --- tokens ----------------------------------------------------------------------------- */

/* Makes a token: its secret into token, everything but that into *object (the caller's; NULL: it
 * is not wanted).  vms (of the scope BACKUP, else NULL) is borrowed.  expires: seconds since
 * 1970; 0: never. */
int access_token_make(struct state *state, const char *name, enum rest_scope scope,
	const json_t *vms, int64_t expires, char token[REST_TOKEN_BYTES], json_t **object,
	struct err *err);

/* Whether anybody can use the API: a warning that there are no tokens; beyond loopback ERR_DENIED.
 * kind: "hub". */
int access_check(struct state *state, const char *kind, const struct settings_address *listen,
	struct err *err);

/* For rest_server_options. */
int access_authenticate(
	struct state *state, const char *hash, struct rest_actor *actor, struct err *err);
int access_remembered(struct state *state, const struct rest_actor *actor, const char *key,
	const char *digest, bool *found, unsigned *status, json_t **body, struct err *err);
/* What cannot be kept is logged. */
void access_remember(struct state *state, const struct rest_actor *actor, const char *key,
	const char *digest, unsigned status, const json_t *body);

/* --- the audit log ------------------------------------------------------------------------ */

/* "token NAME", "node NAME", for requested_by and the audit log. */
#define ACCESS_ACTOR_BYTES 300
const char *access_actor_text(const struct rest_actor *actor, char out[ACCESS_ACTOR_BYTES]);

/* Writes a line, and gives it (it borrows what was given).  actor: "token NAME", or the daemon
 * itself; detail may be NULL.  What cannot be written is logged. */
struct state_event access_event(struct state *state, const char *actor, const char *action,
	const char *object, const json_t *detail);

/* --- over REST ------------------------------------------------------------------------------ */

/* Each is a handler (rest.h) once the daemon has put its own state in front. */
int access_rest_tokens(struct state *state, struct rest_request *request, struct err *err);
/* Its answer holds the token, this once (REST_SECRET). */
int access_rest_token_make(struct state *state, struct rest_request *request, struct err *err);
/* {id}; ERR_REFUSED for the last one of the scope admin that does not expire. */
int access_rest_token_revoke(struct state *state, struct rest_request *request, struct err *err);
/* A page of the audit log: "?object&actor&since&limit&after". */
int access_rest_events(struct state *state, struct rest_request *request, struct err *err);

#endif
