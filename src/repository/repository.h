/*
 * repository: restore points on disk.  Layout, plans, commit, locks, checksums,
 * reading back, verification.  docs/repository-format.md draws every file.
 *
 *   decide ──► begin ──► copy into each disk's block ──► commit ──► a restore point
 *   (full or      │  (its chunk digests into the sink)      ▲ the rename of manifest.json
 *   increment)    └── abort: what the plan lists is removed; leave: it is kept for a while,
 *                     and the next begin of the same disks goes on with it
 *
 *   prune: points that retention does not keep ──► each merged with its child, or deleted
 *
 * A restore point exists when its manifest has been renamed into place, and not
 * before, all its disks at once.  While it is being made, .incoming/JOB/plan.json
 * lists every file that the job owns, before that file exists.  Clean-up removes
 * what the plan of a dead job lists and nothing else.
 *
 * Thread rule: a struct repository may be used by several threads.  A struct
 * repository_backup belongs to one thread, except that its blocks and sinks take
 * calls from any number of threads, and repository_backup_stage() any thread.
 * Strings in results belong to the result.  All times are UTC.
 */
#ifndef SENDENSE_REPOSITORY_H
#define SENDENSE_REPOSITORY_H

#include "block.h"
#include "copy.h"
#include "qcow2.h"

#define REPOSITORY_FORMAT 1 /* the newest format that this program reads */
#define REPOSITORY_VM_BYTES 256 /* a VM's name: 1..255 bytes and the end */
#define REPOSITORY_FOLDER_BYTES 164 /* a VM's name as a folder's */
#define REPOSITORY_KEY_BYTES 65 /* a disk's key: 1..64 of [A-Za-z0-9_-] */
#define REPOSITORY_POINT_BYTES 24 /* "20261121T200000Z-7f3a9c" */
#define REPOSITORY_JOB_BYTES 26 /* "20261121T200000Z-7f3a9c01" */
#define REPOSITORY_STAGE_BYTES 33 /* 1..32 of [a-z0-9-] */
#define REPOSITORY_ID_BYTES 33 /* 32 hex digits */
#define REPOSITORY_DISKS_MAX 256 /* disks of one restore point */
#define REPOSITORY_CONFIG_BYTES_MOST (16u << 20) /* of one file of a VM's configuration */

struct repository;

/* --- names ---------------------------------------------------------------- */

/* 0, or ERR_USAGE with the rule that is broken.  VM names: UTF-8, 1..255 bytes,
 * no control characters; "/", "." and ".." are fine (escaped on disk). */
int repository_name_check_vm(const char *vm, struct err *err);
int repository_name_check_key(const char *key, struct err *err);
bool repository_name_is_point(const char *text);
/* The VM's name as a folder's (valid names only), another one for each. */
void repository_name_folder(const char *vm, char folder[REPOSITORY_FOLDER_BYTES]);

/*
 * Splits "VM" or "VM@POINT" at the last '@'.  What follows it must have the
 * shape of a point's id; when it has not, the whole text is the VM's name.
 * point is "" when none is named.
 */
int repository_name_split(const char *text, char vm[REPOSITORY_VM_BYTES],
	char point[REPOSITORY_POINT_BYTES], struct err *err);

/* --- repositories ---------------------------------------------------------- */

enum repository_compression {
	REPOSITORY_COMPRESS_NONE,
	REPOSITORY_COMPRESS_ZLIB,
	REPOSITORY_COMPRESS_ZSTD,
};

/* "none", "zlib", "zstd". */
const char *repository_compression_name(enum repository_compression compression);
bool repository_compression_parse(const char *name, enum repository_compression *compression);

struct repository_settings {
	enum repository_compression compression;
	int compress_level; /* 0: the library's default; zlib 1..9, zstd 1..19 */
	uint32_t cluster_bytes; /* power of two, 4 KiB..2 MiB */
	enum digest_algorithm digest; /* fixed for the life of the repository */
	unsigned chain_length_max; /* 1..500 */
	unsigned keep_unfinished_s; /* how long a dead job's files are kept, 0..366 days */
};

/* zstd, clusters of 64 KiB, xxh3-128, chains of 60, unfinished jobs kept a day. */
void repository_settings_default(struct repository_settings *settings);

/*
 * Makes a repository in path: a folder that is new, empty, or left by an init
 * that was interrupted; its parent must exist.  ERR_EXISTS when there is one
 * already or the folder holds anything else; ERR_USAGE for settings out of
 * range; ERR_DENIED inside another repository.
 */
int repository_init(const char *path, const struct repository_settings *settings, struct err *err);

enum repository_mode {
	REPOSITORY_READ, /* works on a read-only file system as well */
	REPOSITORY_WRITE, /* ERR_DENIED when it cannot be written to */
};

/* ERR_NOT_FOUND: no such folder; ERR_FORMAT: not a repository; ERR_UNSUPPORTED:
 * written by a newer Sendense; ERR_CORRUPT: repository.json is damaged. */
struct repository *repository_open(const char *path, enum repository_mode mode, struct err *err);

/* Nothing of it is open any more (asserted).  NULL is harmless. */
void repository_close(struct repository *repo);

struct repository_info {
	char path[4096]; /* absolute */
	char id[REPOSITORY_ID_BYTES];
	unsigned format;
	char created[CLOCK_UTC_BYTES];
	struct repository_settings settings;
	bool read_only;
	uint64_t free_bytes, total_bytes; /* of its file system, as this user may use it */
};

int repository_info(struct repository *repo, struct repository_info *info, struct err *err);

/* What the digests are keyed with: for who digests elsewhere.  A secret against the guests; never
 * into a log. */
void repository_seed(struct repository *repo, uint8_t seed[DIGEST_SEED_BYTES]);

/*
 * Whether path lies in or below a folder with a repository.json; symbolic links
 * are followed, and the end of the path need not exist.  root (may be NULL)
 * receives that folder.
 */
bool repository_path_inside(const char *path, char root[4096]);

/* ERR_DENIED naming the repository when path lies inside one. */
int repository_path_guard(const char *path, struct err *err);

/* --- listing --------------------------------------------------------------- */

/* name/value pairs that say what a source was: "vm-uuid", "disk-uuid", "uri". */
struct repository_pair {
	const char *name, *value;
};

struct repository_source {
	const char *kind; /* "raw", "qcow2", "nbd", "vmware", "qemu", "null" */
	const char *label; /* for people; no secrets */
	const struct repository_pair *identity; /* nr_identity, sorted by the caller or not */
	size_t nr_identity; /* at most 32 */
};

/* How it is known what changed. */
enum repository_change {
	REPOSITORY_CHANGE_NONE, /* nothing was offered (decide: compare, if there is a parent) */
	REPOSITORY_CHANGE_COMPARE, /* all is read, digests tell what differs */
	REPOSITORY_CHANGE_BITMAP, /* a dirty bitmap of QEMU's */
	REPOSITORY_CHANGE_EXTENTS, /* a list from outside */
};

/* "none", "compare", "bitmap", "extents". */
const char *repository_change_name(enum repository_change change);
/* False for NULL and every other text. */
bool repository_change_parse(const char *name, enum repository_change *change);

enum repository_disk_mode { REPOSITORY_FULL, REPOSITORY_INCREMENTAL };

/* The five figures of a copy.  stored_bytes is what image and sums take on disk. */
struct repository_figures {
	uint64_t logical_bytes, read_bytes, sent_bytes, zeros_skipped_bytes, stored_bytes;
};

struct repository_disk_info {
	char key[REPOSITORY_KEY_BYTES];
	uint64_t size_bytes;
	enum repository_disk_mode mode;
	const char *reason; /* why that mode */
	const char *parent; /* the point it stood on when it was made; NULL: none */
	const char *change_id; /* NULL: none */
	enum repository_change change; /* how it was known what changed; NONE for a full */
	const char *bitmap; /* that began at this point; NULL: none */
	uint64_t audited_bytes;
	struct repository_source source;
	char root_hex[DIGEST_ROOT_HEX_BYTES];
	struct repository_figures figures;
	const char *image; /* relative to the repository */
	const char *sums; /* the same */
	const char *backing; /* the point whose image stands beneath it now; NULL: none */
	uint64_t image_bytes; /* the image file's size; a smaller one was cut; 0: not recorded */
	const char *checked; /* of a disk that a client sent: "root", "sent" (its digest over what
				it sent), "absent" (it gave none); NULL: it was read here */
};

enum repository_verified { REPOSITORY_NEVER_VERIFIED, REPOSITORY_GOOD, REPOSITORY_DAMAGED };

struct repository_point {
	char vm[REPOSITORY_VM_BYTES];
	char id[REPOSITORY_POINT_BYTES];
	const char *damage; /* NULL, or why its manifest cannot be used; then only vm and id hold */
	const char *job;
	const char *software;
	char started[CLOCK_UTC_BYTES], finished[CLOCK_UTC_BYTES];
	struct repository_source source;
	struct repository_disk_info *disks; /* sorted by key */
	size_t nr_disks;
	enum repository_verified verified;
	char verified_at[CLOCK_UTC_BYTES]; /* "" when never */
	bool is_protected;
	char protected_until[CLOCK_UTC_BYTES]; /* "" without an end */
	uint64_t stored_bytes; /* the sum over its disks */
	const char *consistency; /* "application", "crash"; NULL: not known */
	const char *consistency_reason; /* why it is no better; NULL: none is known */
	const char *hub_job; /* the job of a hub that made it; NULL: none */
	const char *client; /* the program that read the source and sent it ("sendense 0.1.0 (git
			       ...)"); NULL: software did itself */
	const char *client_job; /* what client called its job; NULL: it did not say */
	struct repository_point_internal *internal;
};

void repository_point_free(struct repository_point *point);

/* The disk of that key; NULL when there is none, or no point. */
const struct repository_disk_info *repository_point_disk(
	const struct repository_point *point, const char *key);

/* Return 0 to go on, 1 to stop without an error. */
typedef int repository_vm_callback(void *context, const char *vm);
typedef int repository_point_callback(void *context, const struct repository_point *point);

/* VMs that have a folder, in the order of their names on disk. */
int repository_list_vms(
	struct repository *repo, repository_vm_callback *callback, void *context, struct err *err);

/* Restore points of one VM by time, one manifest in memory at a time.  Damaged
 * ones are told too (damage).  ERR_NOT_FOUND: no such VM. */
int repository_list_points(struct repository *repo, const char *vm,
	repository_point_callback *callback, void *context, struct err *err);

/*
 * One restore point; point NULL or "" is the latest.  ERR_CORRUPT when its
 * manifest is damaged (also for the latest: an older one is never given
 * silently).  The caller frees it.
 */
struct repository_point *repository_point_load(
	struct repository *repo, const char *vm, const char *point, struct err *err);

/* The VM's newest restore point that this job of a hub made: 1, 0 when there is none, -1.  Damaged
 * ones are passed over; one that cannot be read may be it. */
int repository_point_of_job(struct repository *repo, const char *vm, const char *hub_job,
	char point[REPOSITORY_POINT_BYTES], struct err *err);

/*
 * Marks, for whoever keeps what it read: another one as soon as something changed, "" when the last
 * change is so young that a next one might not show.  Of each of a VM's restore points, by time:
 * anything about it.  Of a VM: points that came, went or were merged, and nothing else.
 * ERR_NOT_FOUND: no such VM (its mark is "").
 */
#define REPOSITORY_MARK_BYTES 96
int repository_list_marks(struct repository *repo, const char *vm,
	int (*callback)(void *context, const char *point, const char *mark), void *context,
	struct err *err);
int repository_vm_mark(
	struct repository *repo, const char *vm, char mark[REPOSITORY_MARK_BYTES], struct err *err);

/*
 * Keeps a copy of a hub's own state as hub/NAME/state.db; the two before it stay as state.db.1
 * and state.db.2.  file: open for reading, copied from its start.  name: 1..64 of [A-Za-z0-9_.-],
 * not beginning with a dot.  ERR_BUSY: another process is storing one of that name.
 */
#define REPOSITORY_HUB_STATES 3
int repository_hub_state_store(
	struct repository *repo, const char *name, int file, struct err *err);

/* --- making a restore point -------------------------------------------------- */

/* What a source offers for one disk, before it is decided. */
struct repository_offer {
	const char *key;
	uint64_t size_bytes;
	enum repository_change change;
	const char *from; /* EXTENTS: the change id that the list begins at */
	const char *bitmap; /* BITMAP: its name */
	const char *unusable; /* why what was offered cannot be used all the same ("bitmap b0 is
				 not there"); NULL: it can */
	struct repository_source source;
};

struct repository_decision {
	enum repository_disk_mode mode;
	char parent[REPOSITORY_POINT_BYTES]; /* INCREMENTAL: the VM's latest point */
	enum repository_change change; /* INCREMENTAL: never NONE */
	bool fallback; /* a full although there are older points and none was asked for: to be
			  told loudly */
	bool distrusts_changes; /* all is to be read whatever the source calls unchanged: "full"
				   was asked for, or an audit found it to be wrong */
	char reason[256]; /* "first backup", "--mode full", "the disk was resized from ... to ...",
			     "the list of changes begins at X, the parent was made at Y" */
};

/*
 * Decides each disk by itself against the VM's latest restore point.  wish: "auto", "full"
 * or "incremental" (then what would be a full is ERR_CONFLICT with its reason).  The
 * parent counts only if its chain can be opened and no verification or audit found it
 * wrong.  ERR_DENIED when the names agree but strong identities do not ("vm-uuid",
 * "disk-uuid", "source-id" on both sides): a stranger of the same name; "full" takes it all
 * the same, with a warning in the log.  Whatever keeps the parent from being read and may pass
 * (locks, permissions, memory) is an error, and not a full.
 */
int repository_decide(struct repository *repo, const char *vm, const char *wish,
	const struct repository_offer *offers, size_t nr_offers,
	struct repository_decision *decisions, struct err *err);

/* The parent's record of a disk, for what the source must be asked (change id, bitmap);
 * NULL with err clear when the VM has no points or the latest lacks the disk.  Free the point. */
struct repository_point *repository_latest(struct repository *repo, const char *vm, const char *key,
	const struct repository_disk_info **disk, struct err *err);

struct repository_disk_spec {
	const char *key;
	uint64_t size_bytes; /* the source's true size, > 0 */
	enum repository_disk_mode mode;
	const char *reason; /* of that mode */
	const char *parent; /* INCREMENTAL: must be the VM's latest point still (ERR_BUSY: decide
			       again); NULL for a full */
	enum repository_change change; /* INCREMENTAL */
	const char *change_id; /* of the state that is backed up; NULL: none */
	const char *bitmap; /* the dirty bitmap that began at this state; NULL: none */
	const char *source_state; /* shows that the source is the same one in the same state,
				     when it equals an interrupted job's ("file DEV INODE SIZE
				     MTIME CTIME", "snapshot ID"); NULL: cannot be shown */
	bool tells_since; /* the caller can tell what changed since an earlier change_id of this
			     disk, and is to be believed: see repository_changed_since */
	struct repository_source source;
	uint64_t estimate_bytes; /* that can be stored at most; 0: unknown */
};

enum repository_resume {
	REPOSITORY_RESUME_AUTO, /* go on with an interrupted job of the same disks, if there is one
				 */
	REPOSITORY_RESUME_NEVER, /* remove what it left */
	REPOSITORY_RESUME_MUST, /* ERR_NOT_FOUND when there is none */
};

/*
 * What changed on a disk between the state of an earlier change id and the one that is read now:
 * 1, 0 when that is not known (the caller has said why), -1.  *map: a block of the disk's size in
 * whose extents BLOCK_UNCHANGED stands for what did not; lent until the backup ends.
 */
typedef int repository_changed_since(
	void *context, size_t disk, const char *change_id, struct block **map, struct err *err);

struct repository_backup_options {
	const char *vm;
	struct repository_source source; /* of the VM as a whole */
	const struct repository_disk_spec *disks;
	size_t nr_disks; /* 1..REPOSITORY_DISKS_MAX, keys distinct */
	const char *software; /* "sendense 0.1.0 (build ...)" */
	const char *client; /* the same of who reads the source and sends it; NULL: this one */
	const char *client_job; /* what client calls its job, to know it again; NULL: nothing */
	const char *hub_job; /* id of the job of a hub that this is; NULL: none */
	const char *consistency; /* "application", "crash"; NULL: not known */
	const char *consistency_reason; /* why it is no better ("the guest agent is not
					   running"); NULL: none to be told */
	enum repository_resume resume;
	unsigned wait_ms; /* for a prune of the same VM to let go; other backups are not waited for
			   */
	struct cancel *cancel; /* borrowed until the backup ends; may be NULL */
	/* Told each stage when it begins (a literal, or what the caller named); calls nothing
	 * of the repository.  May be NULL. */
	void (*stage)(void *context, const char *stage);
	void *stage_context;
	/* Asked while an interrupted job's disks that tell (disks[].tells_since) are taken over.
	 * NULL: the caller himself reads those areas again (see repository_backup_since()). */
	repository_changed_since *changed_since;
	void *changed_context;
};

/* Stages that a backup goes through by itself; the caller names its own between
 * (REPOSITORY_STAGE_COPY is the caller's). */
#define REPOSITORY_STAGE_BEGIN "begin"
#define REPOSITORY_STAGE_CREATE "create"
#define REPOSITORY_STAGE_RESUME "resume" /* what an interrupted job stored is looked at */
#define REPOSITORY_STAGE_COPY "copy"
#define REPOSITORY_STAGE_AUDIT "audit"
#define REPOSITORY_STAGE_FILL "fill" /* a full is made of the chain, where it grew too long */
#define REPOSITORY_STAGE_SYNC_DATA "sync-data"
#define REPOSITORY_STAGE_CLOSE_DATA "close-data"
#define REPOSITORY_STAGE_SYNC_SUMS "sync-sums"
#define REPOSITORY_STAGE_RENAME_DATA "rename-data"
#define REPOSITORY_STAGE_SYNC_FOLDERS "sync-folders"
#define REPOSITORY_STAGE_RENAME_MANIFEST "rename-manifest"
#define REPOSITORY_STAGE_LOG "log"
#define REPOSITORY_STAGE_DROP_PLAN "drop-plan"
#define REPOSITORY_STAGE_ABORT "abort"
#define REPOSITORY_STAGE_LEFT "left" /* its owner let go of it, and it is kept */

struct repository_backup;

/*
 * Takes the VM's write lock (ERR_BUSY names job, host, pid, since when, stage),
 * cleans what dead jobs of this VM left, and of others whose time has passed, checks free space
 * (ERR_NO_SPACE), writes the plan, makes the images.  An interrupted job of the same disks is
 * gone on with instead (options->resume): its point, its files, as far as their digests hold.
 * On failure nothing is left, but what was there to go on with stays.  Borrows
 * everything in options for the call, except cancel.  A restore point of more than one disk is one
 * backup.
 */
struct repository_backup *repository_backup_begin(
	struct repository *repo, const struct repository_backup_options *options, struct err *err);

const char *repository_backup_job(const struct repository_backup *backup);
const char *repository_backup_point(const struct repository_backup *backup);

/* Names what goes on now, for status, lock messages and whoever looks after a
 * crash.  A failure to record it is logged, no more.  Refused names assert. */
void repository_backup_stage(struct repository_backup *backup, const char *stage);

enum repository_resumed {
	REPOSITORY_FRESH,
	REPOSITORY_RESUMED, /* what is stored need not be read again */
	REPOSITORY_UPDATED, /* what is stored is read again where it changed since */
	REPOSITORY_COMPARED, /* all is read again, what is stored already is not sent again */
};
/* kept_bytes (may be NULL): guest bytes of an interrupted job that were found good. */
enum repository_resumed repository_backup_resumed(
	const struct repository_backup *backup, size_t disk, uint64_t *kept_bytes);
/* REPOSITORY_UPDATED: the change id since whose state all that changed is to be read again; what is
 * stored is not older.  Else NULL. */
const char *repository_backup_since(const struct repository_backup *backup, size_t disk);

/*
 * What to copy: fills options' digest_key, sink, baseline and changed_only, and gives the
 * blocks for copy_run().  *from is source, or source seen through what an interrupted job
 * had stored; lent, as *to, until the backup ends; source is borrowed until then.
 * While it is copied the backup makes it durable every 32 MiB, from a thread of its own, so that
 * an interruption costs 64 MiB at most.  Once for each disk.
 */
int repository_backup_copy(struct repository_backup *backup, size_t disk, struct block *source,
	struct copy_options *options, struct block **from, struct block **to, struct err *err);

/*
 * Reads per_mille thousandths of the disk's chunks where the source says BLOCK_UNCHANGED
 * and compares them with the parent's digests; which chunks is random to the guest,
 * and goes round: the whole disk in 1000 / per_mille backups.  The first mismatch is
 * ERR_CORRUPT naming the offsets (at most 16), and the disk's next backup is a full.  Before
 * or after the copy; not for fulls and comparing (nothing is done).  Where source is *from of
 * repository_backup_copy(), what is kept of an interrupted job (of a full, too) is held against
 * what that job told; then before the copy.  audited_bytes may be NULL.
 */
int repository_backup_audit(struct repository_backup *backup, size_t disk, struct block *source,
	unsigned per_mille, uint64_t *audited_bytes, struct err *err);

/*
 * Instead of the copy: the disk as a block that others write, in any order, of any length, from
 * any number of threads; read it may be as well.  What is written of a chunk at once is digested as
 * it comes; what comes in parts is read back by repository_backup_settle().  Zeros and trims are
 * told as zeros (a trim that covers a part of a chunk alone is not heeded).  Whatever is written
 * counts as sent, also what is as it was before.  Lent until the backup ends; once for each disk.
 * It is made durable every 32 MiB, as with repository_backup_copy().
 */
int repository_backup_intake(
	struct repository_backup *backup, size_t disk, struct block **block, struct err *err);

/*
 * Reads back what was written in parts.  Nobody writes any more.  Behind it the digests below hold
 * until something is written again.  May be repeated.
 */
int repository_backup_settle(struct repository_backup *backup, size_t disk, struct err *err);

/* The root of the disk as it is now: what was sent, the parent elsewhere. */
int repository_backup_root(struct repository_backup *backup, size_t disk,
	uint8_t root[DIGEST_ROOT_BYTES], struct err *err);

/*
 * SHA-256 over what was sent, kept chunks of an interrupted job included: for each chunk,
 * ascending, its index (be64) and its node of level 0 (32 bytes, base/digest.h).  Counts may be
 * NULL.
 */
int repository_backup_sent(struct repository_backup *backup, size_t disk,
	uint8_t digest[DIGEST_ROOT_BYTES], uint64_t *nr_data, uint64_t *nr_zero, struct err *err);

/*
 * What the target holds of the chunks from first on (what was sent, else the parent, else zeros),
 * as records: kind (1 byte: REPOSITORY_HOLDS_*, | REPOSITORY_HOLDS_SENT), how many chunks (be32),
 * and for DATA as many leaves of digest_leaf_bytes().  Fills at most room bytes (>= 256), of
 * which *length are used, for *nr chunks from first on (> 0, at most most; less where the room
 * ends).  ERR_RANGE: first beyond the disk.
 */
/* Written in parts and not settled, or interrupted in the middle: to be sent, whatever tells of
 * changes. */
#define REPOSITORY_HOLDS_UNKNOWN 0u
#define REPOSITORY_HOLDS_ZERO 1u
#define REPOSITORY_HOLDS_DATA 2u
#define REPOSITORY_HOLDS_SENT 0x10u /* in this backup */
int repository_backup_digests(struct repository_backup *backup, size_t disk, uint64_t first,
	uint64_t most, uint8_t *bytes, size_t room, size_t *length, uint64_t *nr, struct err *err);

/* For the manifest: against what a disk that was taken in was checked ("root", "sent", "absent").
 * A literal.  Required before the commit of such a disk (asserted). */
void repository_backup_checked(struct repository_backup *backup, size_t disk, const char *how);

/* As an audit of one's own would (repository_backup_audit()): these chunks were called unchanged
 * and are not, so the disk's next backup is a full.  ERR_USAGE without a parent. */
int repository_backup_distrust(struct repository_backup *backup, size_t disk,
	const uint64_t *offsets, size_t nr_offsets, struct err *err);

/* What of a disk was audited elsewhere, for the manifest. */
void repository_backup_audited(struct repository_backup *backup, size_t disk, uint64_t bytes);

/* What the copy did; stored_bytes is found by commit itself. */
void repository_backup_figures(
	struct repository_backup *backup, size_t disk, const struct repository_figures *figures);

/* A file of the VM's own configuration, kept as config/NAME.  name: like a key,
 * with dots that are not first.  Copied at once. */
int repository_backup_config(struct repository_backup *backup, const char *name, const void *bytes,
	size_t length, struct err *err);

/*
 * Such a file of a restore point (NULL or "": the latest), into memory that the caller frees; one
 * zero byte follows the content.  ERR_NOT_FOUND: the point has none of that name; ERR_CORRUPT: it
 * is not what was backed up.
 */
int repository_config_load(struct repository *repo, const char *vm, const char *point,
	const char *name, char **bytes, size_t *length, struct err *err);

/*
 * Makes it a restore point (invariant 1).  On success the backup is gone.  On
 * failure it still exists: abort or leave it.  ERR_BUSY when the lock was taken
 * away meanwhile (the job had been declared dead).
 */
int repository_backup_commit(struct repository_backup *backup, struct err *err);

/* After a commit that failed: whether the restore point exists all the same (its folder
 * could not be synced, so that it may not outlast a power cut). */
bool repository_backup_is_committed(const struct repository_backup *backup);

/* Removes all that the plan lists, gives back the lock; the backup is gone.
 * Failures are logged, and the plan stays for the next clean-up.  After a commit
 * that failed behind its commit point nothing is removed.  NULL is harmless. */
void repository_backup_abort(struct repository_backup *backup);

/* Gives back the lock but keeps files and plan as an unfinished job, for the
 * time that the repository's settings say.  The backup is gone. */
void repository_backup_leave(struct repository_backup *backup);

/* --- retention --------------------------------------------------------------- */

/* What to keep.  In each period with restore points the newest one is kept, for the newest
 * so many periods that have any (as restic, borg and others count).  0: rule not given. */
struct retention_policy {
	unsigned last, hourly, daily, weekly, monthly,
		yearly; /* weeks begin on Monday (ISO 8601) */
	int64_t within_s; /* all that are younger than this, counted from the newest point */
	const char *timezone; /* of the periods: "Europe/Berlin", "UTC"; NULL: the local one */
};

struct retention_point {
	int64_t time; /* seconds since 1970, ascending over the points */
	bool held; /* stays whatever the policy says; the caller tells why */
	/* Out: */
	bool keep;
	char why[128]; /* "last 1, daily 2026-11-21, monthly 2026-11", "no rule keeps it" */
};

/*
 * Pure: nothing but points and policy decides.  The newest point always stays.  ERR_USAGE: a policy
 * without any rule (it would keep one point alone), an unknown time zone.  O(n).
 */
int retention_apply(const struct retention_policy *policy, struct retention_point *points,
	size_t nr_points, struct err *err);

enum repository_fate {
	REPOSITORY_KEPT,
	REPOSITORY_PRUNED, /* with dry_run: would be */
	REPOSITORY_LEFT, /* no rule keeps it, but it could not be done ("in use by ...") */
};

struct repository_prune_options {
	const char *vm; /* NULL: each VM by itself */
	const struct retention_policy *policy;
	bool dry_run;
	bool trust_clock; /* prune although the clock looks wrong */
	const char *software;
	unsigned wait_ms; /* for a VM's write lock; 0: what is busy is passed over */
	struct cancel *cancel; /* heeded between merges and within; what was begun is gone on with
				  by the next prune or backup */
	/* Each point of a VM when that VM is done, oldest first, with what has become of it and
	 * why; freed_bytes: what its going gave back, as the file system counts (negative:
	 * merging made more of it). */
	void (*point)(void *context, const char *vm, const char *point, enum repository_fate fate,
		const char *why, int64_t freed_bytes);
	void (*stage)(void *context, const char *vm, const char *point, const char *stage);
	struct copy_progress *progress; /* may be NULL */
	void *context;
};

struct repository_prune_result {
	unsigned kept, pruned, left;
	unsigned failed; /* of those left: not because somebody reads them */
	char failure[ERR_TEXT_BYTES]; /* why the first of these */
	int64_t freed_bytes; /* blocks of the repository's files before, less those after */
};

/*
 * Takes out of the list what the policy does not keep: a point without a child is deleted, one with
 * a child is merged with it (docs/repository-format.md, "Prune and merge").  Stay whatever the
 * policy says: the newest point, protected ones, those in use (a lease on it or on what
 * stands on it: left), the last one that was verified good, damaged ones.  ERR_CONFLICT when the
 * clock is before the newest point, or a year and more behind it, unless trust_clock; of
 * several VMs the others are pruned all the same.  ERR_USAGE as retention_apply().
 */
int repository_prune(struct repository *repo, const struct repository_prune_options *options,
	struct repository_prune_result *result, struct err *err);

/* Protects a point from prune until that time (0: without end), or no longer (off).  Works while
 * a backup runs. */
int repository_protect(struct repository *repo, const char *vm, const char *point, bool off,
	int64_t until, struct err *err);

/* --- unfinished jobs ---------------------------------------------------------- */

enum repository_job_kind { REPOSITORY_JOB_BACKUP, REPOSITORY_JOB_PRUNE };

struct repository_job {
	char id[REPOSITORY_JOB_BYTES];
	enum repository_job_kind kind;
	char vm[REPOSITORY_VM_BYTES];
	char point[REPOSITORY_POINT_BYTES]; /* that it makes, or takes out */
	char host[256];
	int64_t pid;
	char started[CLOCK_UTC_BYTES];
	char stage[REPOSITORY_STAGE_BYTES];
	char stage_since[CLOCK_UTC_BYTES];
	bool alive;
	bool committed; /* its point exists already, only the plan is left */
	char keep_until[CLOCK_UTC_BYTES]; /* of a dead backup */
	uint64_t stored_bytes; /* that its files take */
	const char *damage; /* NULL, or why its plan cannot be read */
};

/* "backup", "prune". */
const char *repository_job_kind_name(enum repository_job_kind kind);

typedef int repository_job_callback(void *context, const struct repository_job *job);

/* All plans in .incoming, by time. */
int repository_jobs(
	struct repository *repo, repository_job_callback *callback, void *context, struct err *err);

enum repository_clean_what {
	REPOSITORY_CLEAN_EXPIRED, /* dead jobs whose time has passed */
	REPOSITORY_CLEAN_DEAD, /* all dead jobs */
};

/*
 * Removes what plans of dead jobs list; finishes those that had committed.
 * vm NULL: of all VMs.  A job whose VM is locked by a live one is passed over.
 */
int repository_clean(struct repository *repo, enum repository_clean_what what, const char *vm,
	unsigned *nr_jobs, uint64_t *freed_bytes, struct err *err);

/* A process of this host: its pid may be given out anew, and is another one's elsewhere. */
struct repository_process {
	const char *boot_id;
	int64_t pid;
	uint64_t start; /* in clock ticks since the boot */
};

/*
 * Takes all locks and leases away from a process that was sent SIGKILL and does not end (the kernel
 * holds it in one last call).  Behind it, what it was making is committed or never will be, also
 * when that call is the commit's rename.  May be repeated; *nr (may be NULL): how many it held.
 */
int repository_revoke(struct repository *repo, const struct repository_process *process,
	unsigned *nr, struct err *err);

/* --- reading back -------------------------------------------------------------- */

struct repository_disk_options {
	bool verify; /* a chunk whose digest is wrong answers ERR_CORRUPT (EIO) naming
			disk and offset, instead of its bytes */
	size_t cache_bytes; /* with verify: chunks kept for reads of less; 0: 8 MiB */
};

struct repository_disk;

/*
 * Opens one disk of a restore point, read-only, at its true size, and takes a
 * read lease for the point.  point NULL or "": the latest.  key NULL: the only
 * disk (ERR_USAGE lists the keys when there are several).  Any number of threads
 * may read its block.
 */
struct repository_disk *repository_disk_open(struct repository *repo, const char *vm,
	const char *point, const char *key, const struct repository_disk_options *options,
	struct err *err);

/* All lent until close. */
struct block *repository_disk_block(struct repository_disk *disk);
const struct repository_disk_info *repository_disk_info(const struct repository_disk *disk);
const char *repository_disk_point(const struct repository_disk *disk);
/* Compares the digests of what a copy read with the sums: ERR_CORRUPT names disk
 * and offset.  For copy_options of a restore, with the digest key. */
const struct copy_chunk_sink *repository_disk_sink(struct repository_disk *disk);
const struct digest_key *repository_disk_digest_key(struct repository_disk *disk);

/* NULL is harmless. */
void repository_disk_close(struct repository_disk *disk);

/* --- verify and check ------------------------------------------------------------ */

enum repository_finding_kind {
	REPOSITORY_FINDING_DAMAGE, /* data or records are lost or wrong */
	REPOSITORY_FINDING_MISSING, /* a file or point that should be there */
	REPOSITORY_FINDING_FOREIGN, /* a file that no manifest and no plan knows; kept */
	REPOSITORY_FINDING_LEAK, /* only space is lost */
	REPOSITORY_FINDING_JOB, /* an unfinished job */
	REPOSITORY_FINDING_LOCK, /* a lock whose owner is dead */
	REPOSITORY_FINDING_REPAIRED, /* put in order by this call */
};

struct repository_finding {
	enum repository_finding_kind kind;
	const char *vm, *point, *key; /* NULL where it belongs to none */
	const char *file; /* relative to the repository; NULL: none */
	uint64_t guest_offset, guest_length; /* length 0: not about guest bytes */
	const char *text; /* what is wrong */
	const char *remedy; /* what still can be restored, and what to do */
};

/* "damage", "missing", ... */
const char *repository_finding_name(enum repository_finding_kind kind);
/* DAMAGE, MISSING and FOREIGN (invariant 1: what no manifest and no plan knows is damage,
 * told and kept): what exit status 3 tells. */
bool repository_finding_is_damage(enum repository_finding_kind kind);

/* Called from one thread at a time; strings are the caller's for the call only. */
typedef void repository_finding_callback(void *context, const struct repository_finding *finding);

struct repository_verify_options {
	const char *vm; /* NULL: all */
	const char *point; /* with vm; NULL: all of it */
	int64_t time_box_ms; /* stop after that; 0: no limit.  The next run goes on */
	struct copy_progress *progress; /* may be NULL */
	struct cancel *cancel; /* may be NULL */
	/* Called when a restore point begins, with how many are left, it included; may be NULL. */
	void (*begins)(void *context, const struct repository_point *point, unsigned nr_left);
	repository_finding_callback *finding;
	void *context;
};

struct repository_verify_result {
	unsigned points_good, points_damaged;
	unsigned points_left; /* the time box ended before them */
	uint64_t bytes_checked; /* guest bytes whose digests were compared */
	unsigned damages; /* findings that are damage */
};

/*
 * Manifests, points.log, sums, roots, images and each chunk's digest, the points
 * that were verified longest ago first; records the result in state.json where
 * the repository can be written to.  Returns 0 when it could be done, whatever
 * was found.  ERR_NOT_FOUND for a filter that matches nothing.
 */
int repository_verify(struct repository *repo, const struct repository_verify_options *options,
	struct repository_verify_result *result, struct err *err);

struct repository_check_options {
	bool repair; /* clean dead jobs, drop dead locks; never anything else */
	struct cancel *cancel;
	repository_finding_callback *finding;
	void *context;
};

struct repository_check_result {
	unsigned vms, points, images;
	unsigned damages, foreign, leaks, jobs, locks, repaired;
};

/* Structure alone: layout, foreign files, plans, locks, manifests, sums' checksums,
 * images' tables.  Reads no guest data. */
int repository_check(struct repository *repo, const struct repository_check_options *options,
	struct repository_check_result *result, struct err *err);

/* --- a restore point as JSON, in a header of its own ----------------------------------- */

#include "point_json.h"

#endif
