/*
 * The inside of replica.
 *
 *   ledger   FOLDER/VM.replica.json: what each target holds since when, and the run
 *            that is at it now; replaced whole, synced
 *   leaves   FOLDER/VM.replica/KEY.leaves: the digest of each chunk of a target, 16 bytes each,
 *            zeros for a chunk of zeros (a sparse file)
 *            FOLDER/VM.replica/KEY.told-G: a byte a chunk: what the run to generation
 *            G has told of it
 *   match    a run's disks against the record, targets against their leaves
 *   proof    FOLDER/VM.replica.proof: one sector of each target, while it holds a mark
 *   decide   whole or what changed; what an interrupted run left in doubt
 *
 * A run may be killed anywhere.  A chunk's mark is written before its leaf, both before the
 * chunk; so whatever has no mark is of the earlier generation, and what has one is read
 * again from the target.  After a boot in between marks may be missing: then all of the
 * target is read.  The record's root is over all leaves: it shows that they are whole.
 */
#ifndef SENDENSE_REPLICA_INTERNAL_H
#define SENDENSE_REPLICA_INTERNAL_H

#include "replica.h"

#include <jansson.h>

#define REPLICA_LEAF_BYTES 16u
#define REPLICA_ID_BYTES 2048

/* --- ledger ---------------------------------------------------------------------- */

struct ledger_disk {
	char key[REPOSITORY_KEY_BYTES];
	uint64_t size_bytes;
	char *source_id, *target_id, *target;
	char *change_id, *bitmap; /* NULL: none */
	char root_hex[DIGEST_ROOT_HEX_BYTES]; /* "": it never came to a commit */
	bool full; /* of the run: what has no mark is not known */
};

struct ledger {
	char vm[REPOSITORY_VM_BYTES];
	uint8_t seed[DIGEST_SEED_BYTES];
	uint64_t generation; /* 0: none yet */
	char cut_over[CLOCK_UTC_BYTES]; /* "": it was not */
	bool proven; /* aliasing, in the latest run */
	bool running; /* a run to generation + 1 has begun */
	char boot[PROC_BOOT_BYTES]; /* of it; "": trust no marks */
	struct ledger_disk *disks;
	size_t nr_disks;
	json_t *left_out; /* of the latest run; NULL: none */
};

/* A new one for vm where there is no file. */
int ledger_load(
	int dir_fd, const char *name, const char *vm, struct ledger *record, struct err *err);
int ledger_store(int dir_fd, const char *name, const struct ledger *record, const char *software,
	struct err *err);
void ledger_free(struct ledger *record);
struct ledger_disk *ledger_disk(const struct ledger *record, const char *key);
/* Takes a text's place; NULL empties it. */
int ledger_text(char **text, const char *now, struct err *err);
void ledger_disk_free(struct ledger_disk *disk);

/* --- leaves ------------------------------------------------------------------------- */

enum leaf_mark {
	MARK_NONE, /* as the latest generation left it */
	MARK_LOOKED, /* told by an earlier try, and read from the target since */
	MARK_TOLD, /* by this try, or one of which nobody has looked what came of it */
};

struct leaves {
	int fd, marks_fd;
	uint64_t nr_chunks, size_bytes;
	bool unknown; /* what has no mark is not known: a full */
	char label[REPOSITORY_KEY_BYTES + 32]; /* for messages */
};

/* fresh: nothing is known.  The files are made where they are missing. */
int leaves_open(struct leaves *leaves, int dir_fd, const char *key, uint64_t size_bytes, bool fresh,
	struct err *err);
int leaves_open_marks(struct leaves *leaves, int dir_fd, const char *key, uint64_t generation,
	bool fresh, struct err *err);
void leaves_drop_marks(int dir_fd, const char *key, uint64_t generation);
void leaves_close(struct leaves *leaves);

/* nr <= 64, leaves 32 bytes apart, as a copy_chunk_sink has them. */
int leaves_tell(struct leaves *leaves, uint64_t first, unsigned nr, const uint8_t *of,
	uint64_t zero_mask, enum leaf_mark mark, struct err *err);
int leaves_tell_zeros(
	struct leaves *leaves, uint64_t first, uint64_t nr, enum leaf_mark mark, struct err *err);
/* As copy_baseline has them. */
int leaves_same(struct leaves *leaves, uint64_t first, unsigned nr, const uint8_t *of,
	uint64_t zero_mask, uint64_t *same, struct err *err);
int leaves_same_zeros(struct leaves *leaves, uint64_t first, uint64_t nr, uint64_t *nr_alike,
	bool *same, struct err *err);
/* Compares whatever the marks say: ERR_CORRUPT names the offset. */
int leaves_compare(struct leaves *leaves, uint64_t first, unsigned nr, const uint8_t *of,
	uint64_t zero_mask, struct err *err);
int leaves_compare_zeros(struct leaves *leaves, uint64_t first, uint64_t nr, struct err *err);
int leaves_get(struct leaves *leaves, uint64_t chunk, uint8_t leaf[REPLICA_LEAF_BYTES],
	enum leaf_mark *mark, struct err *err);
/* The first chunk of data from chunk on, before end; end when there is none. */
int leaves_next_data(
	struct leaves *leaves, uint64_t chunk, uint64_t end, uint64_t *found, struct err *err);
/* The same of what this run told. */
int leaves_next_told(
	struct leaves *leaves, uint64_t chunk, uint64_t end, uint64_t *found, struct err *err);
int leaves_root(struct leaves *leaves, struct cancel *cancel, uint8_t root[DIGEST_ROOT_BYTES],
	struct err *err);
int leaves_sync(struct leaves *leaves, struct err *err);
/* block_remap: what has a mark is not BLOCK_UNCHANGED.  context: struct leaves_map. */
struct leaves_map {
	struct leaves *leaves;
	bool only; /* all else is */
};
block_remap leaves_remap;

/* --- replica ------------------------------------------------------------------------------ */

struct one_disk {
	const struct replica_disk *given;
	struct leaves leaves;
	struct leaves_map map;
	struct block *view; /* of the source; NULL: as it is */
	struct copy_chunk_sink sink;
	struct copy_baseline baseline;
	bool retake; /* forced: written whole */
	bool moved; /* the target has another id: all of it must be as it was */
	bool begun; /* the marks are this run's */
	bool full, resumed, changed_only;
	enum repository_change change;
	char reason[256];
	bool read_back;
	uint8_t root[DIGEST_ROOT_BYTES];
};

struct replica {
	struct replica_options options;
	int dir_fd, disks_fd, lock_fd;
	char record_name[REPOSITORY_FOLDER_BYTES + 32], proof_name[REPOSITORY_FOLDER_BYTES + 32],
		disks_name[REPOSITORY_FOLDER_BYTES + 32];
	struct ledger record;
	struct digest_key key;
	struct one_disk *disks;
	size_t nr_disks;
	bool proven;
};

/* Whether target and record agree, looked at in a sample or all of it. */
int match_target(struct replica *replica, struct one_disk *disk, bool whole,
	struct copy_progress *figures, struct err *err);
int match_record(struct replica *replica, struct err *err);

/* Gives back what a crash left; nothing when there is no journal. */
int proof_recover(struct replica *replica, struct err *err);
/* Distinct targets, and none of them a source. */
int proof_run(struct replica *replica, struct err *err);

/* What an interrupted run left in the target: reads all of it, or where it told of something. */
int decide_look(struct replica *replica, struct one_disk *disk, bool everywhere, struct err *err);
/* How the disk is copied; record: of it, before this run. */
void decide_disk(struct one_disk *disk, const struct ledger_disk *record);

#endif
