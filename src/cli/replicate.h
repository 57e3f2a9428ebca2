/*
 * replicate: what the files of "sendense replicate" share.
 *
 *   replicate_targets  words of the command line ─► one target for each disk, opened
 *   cmd_replicate      the flow: sources, targets ─► match ─► prove ─► look ─► begin ─► copy
 *                      ─► verify ─► commit; a machine's snapshot is taken before begin
 */
#ifndef SENDENSE_CLI_REPLICATE_H
#define SENDENSE_CLI_REPLICATE_H

#include "backup.h"
#include "replica.h"

struct replicate_values {
	struct backup_values source; /* its options of sources */
	struct option_list targets, disk_ids;
	const char *nbd_targets, *state_dir, *verify;
	bool cutover, force, no_alias_proof;
};

struct replicate_target {
	const char *name; /* NULL: not given */
	char *owned; /* of --nbd-targets */
	char *id; /* replica_disk.target_id */
	struct block *block;
};

struct replicate_source {
	char *name;
	char *id; /* replica_disk.source_id */
};

struct replicate {
	struct cli *cli;
	const struct replicate_values *values;
	struct backup sources;
	struct replicate_target *targets; /* as many as sources, in their order */
	size_t nr_targets;
	struct replica_disk *disks;
	struct replicate_source *names; /* of the sources, in their order */
	struct replica_left_out *left_out;
	struct replica *replica;
	const char *consistency; /* of a machine: how it was read; NULL: of none */
	char *consistency_reason; /* NULL: it is as good as can be */
	struct progress *progress;
	bool found_damage;
};

/* Exactly one for each disk of the sources, all distinct as far as names tell. */
int replicate_targets_read(struct replicate *r, struct err *err);
int replicate_targets_open(struct replicate *r, struct err *err);
void replicate_targets_close(struct replicate *r);
/* See replica_options; context is the struct replicate. */
struct block *replicate_targets_again(void *context, const char *target, struct err *err);

#endif
