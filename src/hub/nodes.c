/*
 * Nodes: daemons near the hypervisors, which call the hub and are never called.
 *
 *   code (once, hashed) ─► enrolled: a token of the scope node ─► asks for work, tells of its jobs
 *
 * What is kept stands in state.db ("node", "code", "token"); in memory is when each was heard of,
 * and a count of the changes of its work, for which its calls wait.  One that was silent for too
 * long has its jobs failed by a thread of its own.
 */
#include "nodes.h"

#include "log.h"
#include "thread.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_MOST_MS 5000
#define NOTE_SEEN_S 600 /* when it was heard of is written down so often */

struct heard {
	struct heard *next;
	char name[NODE_NAME_BYTES];
	int64_t at_ns; /* of the monotonic clock; not heard of since the hub's start: that */
	int64_t seen; /* seconds since 1970; 0: as state.db says */
	uint64_t changes;
	unsigned nr_waiting; /* of its calls; as long as one does, it is there */
};

struct hub_nodes {
	pthread_t thread;
	bool watches;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct heard *heard;
	bool ends;
};

/* The mutex is held.  NULL: no memory. */
static struct heard *heard_of(struct hub *hub, const char *name)
{
	struct hub_nodes *nodes = hub->nodes;
	for (struct heard *heard = nodes->heard; heard; heard = heard->next)
		if (strcmp(heard->name, name) == 0)
			return heard;
	struct heard *heard = calloc(1, sizeof *heard);
	if (!heard)
		return NULL;
	snprintf(heard->name, sizeof heard->name, "%s", name);
	heard->at_ns = hub->started_ns;
	heard->next = nodes->heard;
	return nodes->heard = heard;
}

/* --- who calls ------------------------------------------------------------------------------- */

void hub_nodes_heard_of(struct hub *hub, const char *name)
{
	WITH_LOCK(&hub->nodes->mutex);
	struct heard *heard = heard_of(hub, name);
	if (!heard)
		return;
	heard->at_ns = clock_now_ns();
	heard->seen = time(NULL);
}

static int add_vm(void *context, const struct state_job *job)
{
	json_t *vms = context;
	if (job->vm)
		json_array_append_new(vms, json_string(job->vm));
	return 0;
}

int hub_nodes_authenticate(struct hub *hub, struct rest_actor *actor, struct err *err)
{
	const struct state_job_filter its = {.state = "open", .node = actor->name};
	struct state_object node = {0};
	struct err why = ERR_INIT;
	if (state_get(hub->state, "node", actor->name, &node, &why) < 0)
		return why.code == ERR_NOT_FOUND
			       ? err_set(err, ERR_DENIED, "the node was taken out")
			       : err_copy(err, &why);
	bool is_its = strcmp(hub_text(node.value, "token"), actor->id) == 0;
	state_object_clear(&node);
	if (!is_its)
		return err_set(err, ERR_DENIED, "the node has another token");
	actor->vms = json_array();
	if (!actor->vms)
		return err_errno(err, ENOMEM, "cannot tell what the node may do");
	if (state_list_ids(hub->state, "vm", "node", actor->name, actor->vms, err) < 0 ||
		state_jobs(hub->state, &its, add_vm, actor->vms, err) < 0)
		return -1;
	hub_nodes_heard_of(hub, actor->name);
	return 0;
}

/* --- waiting for work ---------------------------------------------------------------------- */

void hub_nodes_work_changed(struct hub *hub, const char *name)
{
	if (!hub->nodes)
		return;
	WITH_LOCK(&hub->nodes->mutex);
	struct heard *heard = heard_of(hub, name);
	if (heard)
		heard->changes++;
	pthread_cond_broadcast(&hub->nodes->changed);
}

static void seen_text(const struct hub *hub, const struct heard *heard, char out[NODE_SEEN_BYTES])
{
	snprintf(out, NODE_SEEN_BYTES, "%" PRIx64 "-%" PRIu64, (uint64_t)hub->started_ns,
		heard ? heard->changes : 0);
}

void hub_nodes_wait(struct hub *hub, const char *name, const char *seen, struct deadline until,
	char now[NODE_SEEN_BYTES])
{
	struct hub_nodes *nodes = hub->nodes;
	WITH_LOCK(&nodes->mutex);
	struct heard *heard = heard_of(hub, name);
	if (heard)
		heard->nr_waiting++;
	bool in_time = true;
	for (;;) {
		seen_text(hub, heard, now);
		if (!heard || !seen || strcmp(seen, now) != 0 || nodes->ends || !in_time)
			break;
		in_time = thread_cond_wait(&nodes->changed, &nodes->mutex, until);
	}
	if (heard) {
		heard->nr_waiting--;
		heard->at_ns = clock_now_ns();
		heard->seen = time(NULL);
	}
}

void hub_nodes_hurry(struct hub *hub)
{
	if (!hub->nodes)
		return;
	WITH_LOCK(&hub->nodes->mutex);
	hub->nodes->ends = true;
	pthread_cond_broadcast(&hub->nodes->changed);
}

/* --- silence ------------------------------------------------------------------------------- */

static int64_t silence_ns(const struct hub *hub)
{
	return (int64_t)hub_config(hub)->node_silence_s * 1000000000;
}

bool hub_nodes_is_silent(struct hub *hub, const struct state_object *node, int64_t *seen)
{
	WITH_LOCK(&hub->nodes->mutex);
	const struct heard *heard = heard_of(hub, node->id);
	*seen = heard && heard->seen > 0 ? heard->seen
					 : json_integer_value(json_object_get(node->value, "seen"));
	if (heard && heard->seen == 0 && json_object_get(node->value, "silent"))
		return true; /* an earlier hub says so */
	return heard && heard->nr_waiting == 0 && clock_now_ns() - heard->at_ns > silence_ns(hub);
}

/* A node that falls silent, and one that comes back, is told of once. */
static void note_seen(
	struct hub *hub, const struct state_object *node, int64_t seen, bool silent, bool at_once)
{
	struct err err = ERR_INIT;
	int64_t noted = json_integer_value(json_object_get(node->value, "seen"));
	bool turns = silent != (json_object_get(node->value, "silent") != NULL);
	if (!turns && (seen <= noted || (!at_once && seen - noted < NOTE_SEEN_S)))
		return;
	json_t *value = json_deep_copy(node->value);
	json_object_set_new(value, "seen", json_integer(seen));
	if (silent)
		json_object_set_new(value, "silent", json_true());
	else
		json_object_del(value, "silent");
	/* It may have been enrolled anew meanwhile. */
	if (state_put(hub->state, "node", node->id, value, node->version, NULL, &err) < 0) {
		log_debug("when node %s was heard of is not noted: %s", node->id, err.text);
	} else if (turns) {
		hub_event(hub, "hub", silent ? "node.silent" : "node.heard", node->id, NULL);
		hub_time_node_changed(hub);
	}
	json_decref(value);
}

static int look_at(void *context, const struct state_object *node)
{
	struct hub *hub = context;
	int64_t seen;
	bool silent = hub_nodes_is_silent(hub, node, &seen);
	note_seen(hub, node, seen, silent, silent);
	if (silent) {
		struct err why = ERR_INIT;
		char when[CLOCK_UTC_BYTES];
		clock_utc_text(seen, when);
		err_set(&why, ERR_TIMEOUT, "node %s has not been heard of since %s", node->id,
			when);
		node_jobs_end_all(hub, node->id, &why, true);
	}
	return 0;
}

static int note_last(void *context, const struct state_object *node)
{
	int64_t seen;
	bool silent = hub_nodes_is_silent(context, node, &seen);
	note_seen(context, node, seen, silent, true);
	return 0;
}

static void *watch(void *context)
{
	struct hub *hub = context;
	struct hub_nodes *nodes = hub->nodes;
	bool ends = false;
	while (!ends) {
		struct err err = ERR_INIT;
		if (state_list(hub->state, "node", NULL, look_at, hub, &err) < 0)
			log_warning("nodes are not looked at: %s", err.text);
		node_jobs_end_lost(hub);
		int64_t ms = silence_ns(hub) / 5000000;
		struct deadline until = deadline_after_ms(ms < LOOK_MOST_MS ? ms : LOOK_MOST_MS);
		pthread_mutex_lock(&nodes->mutex);
		while (!nodes->ends && thread_cond_wait(&nodes->changed, &nodes->mutex, until))
			;
		ends = nodes->ends;
		pthread_mutex_unlock(&nodes->mutex);
	}
	state_list(hub->state, "node", NULL, note_last, hub, NULL);
	return NULL;
}

/* --- start and stop ------------------------------------------------------------------------ */

int hub_nodes_open(struct hub *hub, struct err *err)
{
	struct hub_nodes *nodes = calloc(1, sizeof *nodes);
	if (!nodes)
		return err_errno(err, ENOMEM, "cannot look after nodes");
	pthread_mutex_init(&nodes->mutex, NULL);
	thread_cond_init(&nodes->changed);
	hub->nodes = nodes;
	return 0;
}

int hub_nodes_watch(struct hub *hub, struct err *err)
{
	int rc = thread_start(&hub->nodes->thread, "nodes", watch, hub, err);
	hub->nodes->watches = rc == 0;
	return rc;
}

void hub_nodes_unwatch(struct hub *hub)
{
	hub_nodes_hurry(hub);
	if (hub->nodes->watches)
		pthread_join(hub->nodes->thread, NULL);
	hub->nodes->watches = false;
}

void hub_nodes_close(struct hub *hub)
{
	struct hub_nodes *nodes = hub->nodes;
	hub->nodes = NULL;
	if (!nodes)
		return;
	while (nodes->heard) {
		struct heard *next = nodes->heard->next;
		free(nodes->heard);
		nodes->heard = next;
	}
	pthread_cond_destroy(&nodes->changed);
	pthread_mutex_destroy(&nodes->mutex);
	free(nodes);
}
