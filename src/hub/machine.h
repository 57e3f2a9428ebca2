/*
 * machine: the VMs that the hub knows: those with settings, and those that have restore points
 * in a repository.  What holds for each, and when its newest usable restore point was made.
 *
 * A snapshot; read by any thread, changed by none.
 */
#ifndef SENDENSE_HUB_MACHINE_H
#define SENDENSE_HUB_MACHINE_H

#include "hub_internal.h"

struct machine {
	char *name;
	uint64_t version; /* of its settings; 0: it has none */
	json_t *settings; /* NULL: none */
	const json_t *policy; /* of the set's policies; NULL: none */
	const char *policy_id; /* NULL: none.  Named, but there is no such policy: policy is NULL */
	const char *repository; /* where its backups go; NULL: nothing says so */
	int64_t objective_s; /* 0: none */
	int64_t created; /* when the hub came to know of it; not behind its oldest point */
	bool paused;
	unsigned nr_points, nr_damaged; /* in all repositories */
	uint64_t stored_bytes;
	int64_t newest_time; /* of the newest usable restore point; 0: none */
	char newest[STATE_JOB_BYTES]; /* its id; "" */
	char *newest_repository; /* where it is; NULL */
};

struct machine_set {
	struct machine *machines; /* by name */
	size_t nr_machines;
	json_t *policies; /* id -> value */
	char *only_repository; /* where there is but one */
};

/* state's and index's own calls; a few milliseconds for hundreds of machines. */
struct machine_set *machine_load(
	struct state *state, struct index *index, const struct hub_config *config, struct err *err);
/* NULL is harmless. */
void machine_set_free(struct machine_set *set);

/* NULL: not known. */
const struct machine *machine_find(const struct machine_set *set, const char *name);

/* Since when it has had no good restore point for longer than its objective; 0: it is
 * well, or has no objective. */
int64_t machine_alarm_since(const struct machine *machine, int64_t now);

/* The moment at which that would be so; 0: it has no objective. */
int64_t machine_alarm_begins(const struct machine *machine);

/* The node that backs it up; NULL: none does.  machine may be NULL. */
const char *machine_node(const struct machine *machine);

/* What its policy keeps; NULL: all. */
const json_t *machine_keep(const struct machine *machine);

#endif
