/* backup: what the files that make a restore point share. */
#ifndef SENDENSE_BACKUP_INTERNAL_H
#define SENDENSE_BACKUP_INTERNAL_H

#include "chain.h"
#include "repository_internal.h"
#include "sums.h"

enum backup_state { BACKUP_MAKING, BACKUP_COMMITTED };

struct backup_disk {
	struct repository_backup *backup;
	char key[REPOSITORY_KEY_BYTES];
	uint64_t size_bytes;
	enum repository_disk_mode mode;
	enum repository_change change; /* NONE for a full */
	char *reason, *change_id, *bitmap, *source_state; /* all but the first may be NULL */
	char *stored_since; /* all that is stored is of this change id's state, or of later ones up
			       to the one that is read now; NULL: not known */
	bool tells_since;
	char parent[REPOSITORY_POINT_BYTES]; /* "": none */
	bool is_filled; /* read as an increment, but stored as a full: the chain is long enough */
	bool is_filling; /* that is done now */
	json_t *source;
	struct chain *chain; /* of the parent; NULL for a full */
	struct repository_figures figures;
	uint64_t image_bytes; /* of the finished file */
	const char *checked; /* of a disk that was taken in; a literal */
	struct intake *intake; /* NULL: it is not taken in */
	uint64_t audited_bytes, audit_position; /* the latter in units of the round */
	struct block *image;
	struct sums_writer *sums;
	struct copy_chunk_sink sink;
	struct copy_baseline baseline;
	struct sums_totals totals;
	bool closed; /* image and sums are complete */
	enum repository_resumed resumed;
	bool same_state; /* what is stored is of the state of the source that is read now */
	bool is_updated; /* what changed since stored_since is known */
	struct block *changed; /* tells it; lent; NULL: the caller heeds it */
	uint64_t kept_bytes;
	struct block *remaining; /* the source, seen through what is stored; may be NULL */
	atomic_bool has_news; /* told since the last checkpoint began */
	char image_path[NAME_PATH_BYTES], image_part[NAME_PATH_BYTES];
	char sums_path[NAME_PATH_BYTES], sums_part[NAME_PATH_BYTES];
};

struct checkpoints {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	pthread_t thread;
	bool running; /* changed by the backup's own thread, while nobody tells */
	bool stopping;
	uint64_t told, durable; /* bytes, of all disks */
	struct err err; /* the first */
};

struct repository_backup {
	struct repository *repo;
	enum backup_state state;
	char vm[REPOSITORY_VM_BYTES];
	char job[REPOSITORY_JOB_BYTES];
	char point[REPOSITORY_POINT_BYTES];
	char started[CLOCK_UTC_BYTES];
	/* All but the first may be NULL. */
	char *software, *client, *client_job, *hub_job, *consistency, *consistency_reason;
	json_t *source;
	json_t *config; /* for the manifest */
	struct cancel *cancel;
	void (*on_stage)(void *context, const char *stage); /* may be NULL */
	void *stage_context;
	struct lock *lock;
	struct plan plan;
	bool planned;
	struct plan
		adopted; /* of the interrupted job that this one goes on with; json NULL: none */
	struct backup_disk *disks;
	size_t nr_disks;
	uint64_t fill_bytes; /* that disks which become fulls of their chain may take */
	pthread_mutex_t stage_mutex;
	uint64_t stage_count;
	struct checkpoints checkpoints;
};

/* --- backup.c ------------------------------------------------------------------- */

void backup_free(struct repository_backup *backup);

/* --- commit.c ------------------------------------------------------------------------ */

/* All folders from the top down to the disks' and the point's. */
int backup_sync_folders(struct repository_backup *backup, struct err *err);

/* --- checkpoint.c ---------------------------------------------------------------------- */

void checkpoint_init(struct checkpoints *checkpoints);
void checkpoint_destroy(struct checkpoints *checkpoints);

/* Starts the thread, if it does not run yet.  From the backup's own thread, as the next two. */
int checkpoint_start(struct repository_backup *backup, struct err *err);
/* Ends it, if it runs; -1 when any checkpoint failed. */
int checkpoint_stop(struct repository_backup *backup, struct err *err);
/* Makes durable what was told up to now, where there is news.  Not beside the thread. */
int checkpoint_now(struct repository_backup *backup, struct err *err);

/* So many bytes of a disk are told (0: zeros, which cost nothing to tell again).  Waits while
 * too much is not durable; -1 when a checkpoint failed or the backup is cancelled.  Any thread. */
int checkpoint_told(struct backup_disk *disk, uint64_t bytes, struct err *err);

/* --- audit.c ------------------------------------------------------------------------ */

/* A permutation of a disk's units of 1 MiB. */
struct audit_order {
	uint64_t nr_units;
	unsigned half_bits;
	uint8_t key[DIGEST_ROOT_BYTES];
};
void audit_order_init(struct audit_order *order, const struct digest_key *key, const char *vm,
	const char *disk_key, uint64_t size_bytes);
uint64_t audit_order_at(const struct audit_order *order, uint64_t position);

/* From the parent's state, and into that of the point that is made. */
void audit_load_position(struct backup_disk *disk, const struct repository_point *parent);
int audit_store_positions(struct repository_backup *backup, struct err *err);

/* --- intake.c ----------------------------------------------------------------------- */

/* Nobody writes any more.  NULL is harmless. */
void intake_free(struct intake *intake);

/* --- backup_fill.c ------------------------------------------------------------------ */

/* Completes the disks that are read as increments and stored as fulls.  May be repeated. */
int backup_fill(struct repository_backup *backup, struct err *err);

/* --- backup_record.c -------------------------------------------------------------- */

/* The whole plan; the caller releases it. */
json_t *backup_record_plan(struct repository_backup *backup, struct err *err);
/* Both NULL without memory; the caller releases them. */
json_t *backup_record_facts(struct repository_backup *backup);
json_t *backup_record_storage(struct repository_backup *backup);

/* The point beneath a disk's image: its parent, or NULL for what is stored as a full. */
const char *backup_record_backing(const struct backup_disk *disk);

/* --- backup_disk.c ----------------------------------------------------------------- */

#define BACKUP_BACKING_BYTES (REPOSITORY_POINT_BYTES + sizeof ".qcow2")

/* How its image is made; backing is room for the name of what lies beneath. */
void backup_disk_image_options(const struct backup_disk *disk, struct qcow2_create_options *create,
	char backing[BACKUP_BACKING_BYTES]);
void backup_disk_sums_facts(const struct backup_disk *disk, struct sums_facts *facts);
struct sums_reader *backup_disk_parent_sums(const struct backup_disk *disk);
/* path: the image's, absolute. */
int backup_disk_open_image(struct backup_disk *disk, const char *path, struct err *err);
/* Makes image and sums. */
int backup_disk_make(struct backup_disk *disk, struct err *err);

/* --- backup_copy.c ------------------------------------------------------------------ */

/* Fills in the disk's sink. */
void backup_copy_sink(struct backup_disk *disk);
/* Tells the sums which of these chunks are as beneath: bits of same. */
int backup_copy_tell_same(
	struct backup_disk *disk, uint64_t first, unsigned nr, uint64_t same, struct err *err);
/* What the parent's sums tell, as baselines do; context is the disk. */
int backup_copy_parent_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, uint64_t *same, struct err *err);
int backup_copy_parent_zeros(void *context, uint64_t first, uint64_t nr, uint64_t *nr_alike,
	bool *same, struct err *err);

/* --- resume.c, resume_check.c, resume_copy.c ------------------------------------------- */

/* Takes the VM's write lock, under the id of an interrupted job where there is one to go on
 * with (then backup->adopted is its plan, and the point its point). */
int resume_lock(struct repository_backup *backup, const struct repository_backup_options *options,
	struct err *err);
/* Instead of writing a new plan: the job's plan, with its new owner. */
int resume_write_plan(struct repository_backup *backup,
	const struct repository_backup_options *options, struct err *err);
/* Instead of making its files: opens them, or where they are of no use makes them anew. */
int resume_disk(struct backup_disk *disk, struct err *err);
/* Forgets what the image does not hold as it was told. */
int resume_check(struct backup_disk *disk, struct err *err);
/* What it holds already, for a copy to its image. */
void resume_baseline(struct backup_disk *disk, struct copy_options *options);
/* Of chunks that are not told: whether the image holds anything for them (*held), for how many
 * (1..most); one that it holds a part of is held. */
int resume_held(struct backup_disk *disk, uint64_t first, uint64_t most, bool *held, uint64_t *nr,
	struct err *err);
/* What is left to copy: a disk that is not REPOSITORY_FRESH. */
int resume_copy(struct backup_disk *disk, struct block *source, struct copy_options *options,
	struct block **from, struct err *err);

#endif
