/*
 * replica: a machine's disks in raw targets, kept up to date.
 *
 *   open (lock, record, what a crash left in the targets is put right)
 *     ─► match (the mapping against the record, the targets against their digests)
 *     ─► prove (no target is another one, or a source, under another name)
 *     ─► look (what a run that did not come to its commit left in the targets)
 *     ─► begin (each disk whole or what changed; the run is in the record)
 *     ─► copying, by the caller, with replica_copy()'s options
 *     ─► verify ─► commit (all disks are of the next generation, at once)
 *
 * A source that is costly to hold open (a snapshot) is opened behind the look.
 *
 * Nothing is written to a target before begin, but for the proof, which gives back what it
 * took.  What was told by a run that did
 * not come to its commit is doubted: look() reads it again from the target.
 *
 * Thread rule: one thread, save for the options of replica_copy().
 */
#ifndef SENDENSE_REPLICA_H
#define SENDENSE_REPLICA_H

#include "block.h"
#include "copy.h"
#include "repository.h"

/* Where records are: statedir_find() of "replica".  It is made. */
int replica_folder(const char *given, char path[STATEDIR_BYTES], struct err *err);

/* One disk; all lent until close. */
struct replica_disk {
	const char *key; /* of the hypervisor */
	const char *source_id; /* what the disk is known by: the same text in each run */
	const char *target_id; /* the same of the target */
	bool may_move; /* the target has another id where it is served elsewhere: if all that it
			  holds is as it was, it is the same */
	const char *target; /* its name, to be opened by again after a crash */
	uint64_t size_bytes; /* of the source */
	struct block *target_block; /* writable */
	/* By begin at the latest, until replica_end_reading(): */
	struct block *source; /* has_changes: since what the offer says */
	const struct repository_offer *offer; /* what tells of the changes */
	const char *change_id, *bitmap; /* of the state that is read; NULL: none */
};

/* A disk of the machine that has no target, because it was to be so; lent until close. */
struct replica_left_out {
	const char *key, *why;
};

struct replica_options {
	const char *folder; /* see replica_folder() */
	const char *vm;
	const char *software; /* for the record */
	/* Take targets over whatever the record says of them: disks that do not match it
	 * are written whole, those that it has more are forgotten, a cut over replica goes on. */
	bool force;
	bool no_alias_proof; /* the record says so then */
	bool read_back; /* compare all of each target, before and after */
	bool cutover; /* commit marks it: no later run without force */
	const struct replica_left_out *left_out; /* for the record */
	size_t nr_left_out;
	struct cancel *cancel;
	/* Opens a target for writing, by its name. */
	struct block *(*open_target)(void *context, const char *target, struct err *err);
	void *context;
};

struct replica;

/* Strings of the options are lent until close.  ERR_BUSY when another process has the machine,
 * ERR_CONFLICT when it was cut over, ERR_CORRUPT for a record that is damaged. */
struct replica *replica_open(const struct replica_options *options, struct err *err);

/*
 * Compares all with the record: ERR_CONFLICT for a disk or target that is not the one of the
 * earlier run, is missing, belongs to another machine's replica, or was changed by others;
 * ERR_RANGE for sizes that differ; ERR_USAGE for keys, sources or targets that are given twice;
 * ERR_DENIED for a target that cannot be written.
 */
int replica_match(
	struct replica *replica, const struct replica_disk *disks, size_t nr, struct err *err);

/* Writes a mark to each target, reads all, and gives back what was there.  ERR_CONFLICT names the
 * two that are one.  Nothing with no_alias_proof.  Sources that are open are read as well. */
int replica_prove(struct replica *replica, struct err *err);

/* Reads from the targets what an interrupted run may have written: all of them after another boot.
 * Nothing when there was none. */
int replica_look(struct replica *replica, struct err *err);

/* After match: since what a source is to tell the changes of disk i, as the latest generation
 * recorded it.  Both NULL: nothing was recorded, or all of the disk is going to be written.  Lent
 * until begin. */
void replica_since(
	const struct replica *replica, size_t i, const char **change_id, const char **bitmap);

/* Decides, and notes the run.
 * ERR_BUSY: a source has another size than it had. */
int replica_begin(struct replica *replica, struct err *err);

/* What to copy disk i with: fills digest_key, sink, baseline and changed_only of options, and the
 * source to read (lent until close). */
int replica_copy(struct replica *replica, size_t i, struct copy_options *options,
	struct block **source, struct err *err);

/* After all were copied: reads from the target again, a sample or all of it (read_back, cutover).
 * ERR_CORRUPT names the first place that differs; figures may be NULL. */
int replica_verify(
	struct replica *replica, size_t i, struct copy_progress *figures, struct err *err);

/* The sources are not read any more, whatever came of it: they may be closed.  NULL is harmless. */
void replica_end_reading(struct replica *replica);

/* The commit point. */
int replica_commit(struct replica *replica, struct err *err);

/* After begin; root_hex after commit. */
struct replica_outcome {
	bool full;
	bool resumed; /* an interrupted run had begun with it */
	const char *reason; /* why full, or what told of the changes */
	enum repository_change change; /* NONE for a full */
	const char *verified; /* "sample", "read-back" */
	char root_hex[DIGEST_ROOT_HEX_BYTES];
};
void replica_outcome(const struct replica *replica, size_t i, struct replica_outcome *outcome);
/* That this run makes. */
uint64_t replica_generation(const struct replica *replica);
/* "proven", "not proven". */
const char *replica_aliasing(const struct replica *replica);

/* Gives everything back but the blocks.  NULL is harmless. */
void replica_close(struct replica *replica);

#endif
