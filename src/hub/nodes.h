/*
 * nodes: daemons near the hypervisors, and the jobs that are theirs.  A node is never called: it
 * asks for work and tells of it, with a token of the scope node.  Its jobs are foreign ones (job.h)
 * of the kind "backup", whose spec names the node.
 *
 * Thread rule: any thread.
 */
#ifndef SENDENSE_HUB_NODES_H
#define SENDENSE_HUB_NODES_H

#include "hub_internal.h"
#include "job.h"

#define NODE_NAME_BYTES 65
#define NODE_SEEN_BYTES 48

/* --- nodes.c ------------------------------------------------------------------------------- */

/* It called just now. */
void hub_nodes_heard_of(struct hub *hub, const char *name);
/* seen: what the node's last answer said; NULL: it has none.  Waits while that is what holds, at
 * most until the deadline, or until the hub stops; now: what the next call is to say. */
void hub_nodes_wait(struct hub *hub, const char *name, const char *seen, struct deadline until,
	char now[NODE_SEEN_BYTES]);
/* Jobs came, ended or are to be cancelled. */
void hub_nodes_work_changed(struct hub *hub, const char *name);
/* Not heard of for longer than [limits] node-silence, and no call of it waits; or an earlier hub
 * found it so.  seen: when it was last, seconds since 1970. */
bool hub_nodes_is_silent(struct hub *hub, const struct state_object *node, int64_t *seen);

/* --- node_jobs.c ---------------------------------------------------------------------------- */

/* What a job for a node may say (POST /backups, a VM's settings and policy): ERR_USAGE names it. */
int node_jobs_check(struct hub *hub, const json_t *spec, struct err *err);
/* {"jobs": [{"id","spec"}], "cancel": [id]}: all that this node has not told the end of. */
json_t *node_jobs_work(struct hub *hub, const char *name, struct err *err);
/* The open job that the node has for a machine: what it sends of it is part of that; id "": none.
 */
int node_jobs_of_machine(struct hub *hub, const char *name, const char *repository, const char *vm,
	char id[JOB_ID_BYTES], struct err *err);
/* What the node says of a job; body: as in the API's document, checked.  ERR_REFUSED: it has ended;
 * ERR_NOT_FOUND: it is none of this node's. */
int node_jobs_tell(
	struct hub *hub, const char *name, const char *id, const json_t *body, struct err *err);
/* ERR_REFUSED: it has ended. */
int node_jobs_is_open(struct hub *hub, const char *id, struct err *err);
/* The spec of a node's job that failed or was cancelled, the caller's; NULL: it is none. */
json_t *node_jobs_again(struct hub *hub, const char *id);
/* All jobs of the node end so.  unless_pushed: but for those that a session is open for: its lease
 * ends first. Else sessions are ended too. */
void node_jobs_end_all(
	struct hub *hub, const char *name, const struct err *why, bool unless_pushed);
/* The same for jobs whose node is not there: they came while it was taken out, or could not be
 * ended then. */
void node_jobs_end_lost(struct hub *hub);
unsigned node_jobs_count(struct hub *hub, const char *name);

#endif
