/*
 * backup: what the files of "sendense backup" share.
 *
 *   backup_args     words of the command line ─► disks, and what is known of each
 *   backup_sources  disks opened; what each offers; what was decided about it
 *   backup_state    shows that a file is in the same state as before
 *   cmd_backup      the flow: sources ─► decide ─► begin ─► audit ─► copy ─► commit
 *   backup_report   what was made, as text and as JSON
 */
#ifndef SENDENSE_CLI_BACKUP_H
#define SENDENSE_CLI_BACKUP_H

#include "changes.h"
#include "cli.h"
#include "disks.h"
#include "progress.h"
#include "qemu_source.h"
#include "remote.h"
#include "source.h"
#include "tls_options.h"
#include "vmware_source.h"

struct backup_values {
	struct store_values store;
	const char *vm, *mode, *audit;
	struct option_list disks, allow_backing, changed_by, change_ids, source_ids, bitmaps;
	struct option_number rate, parallel, wait;
	const char *agent, *scratch; /* of a machine in QEMU */
	struct tls_options tls;
	struct vmware_access vmware; /* of a machine of a vCenter */
	struct vmware_wishes machine;
	bool resume, no_resume, no_freeze;
};

/* What commands that read a machine's disks take of them; their values begin with backup's. */
#define BACKUP_SOURCE_ROWS                                                                        \
	{.name = "disk",                                                                          \
		.kind = OPTION_LIST,                                                              \
		.offset = offsetof(struct backup_values, disks),                                  \
		.argument = "KEY=SOURCE",                                                         \
		.words = WORDS_DISK,                                                              \
		.help = "a disk and the key it is known by; give it once for each disk"},         \
		{.name = "changed-by",                                                            \
			.kind = OPTION_LIST,                                                      \
			.offset = offsetof(struct backup_values, changed_by),                     \
			.argument = "[KEY=]compare|bitmap:NAME|extents:FILE",                     \
			.help = "what tells what changed since the disk was read last: a dirty "  \
				"bitmap of an NBD export, a list of areas, or comparing all of "  \
				"the disk with the digests that are kept (default); without KEY " \
				"it is of all disks"},                                            \
		{.name = "change-id",                                                             \
			.kind = OPTION_LIST,                                                      \
			.offset = offsetof(struct backup_values, change_ids),                     \
			.argument = "[KEY=]ID",                                                   \
			.help = "names the state of the disk that is read: a later list of "      \
				"changes begins at it"},                                          \
		{.name = "bitmap",                                                                \
			.kind = OPTION_LIST,                                                      \
			.offset = offsetof(struct backup_values, bitmaps),                        \
			.argument = "[KEY=]NAME",                                                 \
			.help = "the dirty bitmap that was started at the state that is read; "   \
				"the next run may use this one and no other"},                    \
		{.name = "limit-rate",                                                            \
			.kind = OPTION_RATE,                                                      \
			.offset = offsetof(struct backup_values, rate),                           \
			.argument = "RATE",                                                       \
			.minimum = 1,                                                             \
			.maximum = UINT64_MAX,                                                    \
			.help = "read no more bytes a second than that, one disk after the "      \
				"other"},                                                         \
		{.name = "parallel",                                                              \
			.kind = OPTION_NUMBER,                                                    \
			.offset = offsetof(struct backup_values, parallel),                       \
			.argument = "N",                                                          \
			.minimum = 1,                                                             \
			.maximum = 16,                                                            \
			.help = "copy that many disks at once (default: 2)"},                     \
		ALLOW_BACKING_ROW(struct backup_values, allow_backing),                           \
		TLS_OPTION_ROWS(struct backup_values)

/* The same of machines; see VMWARE_SOURCE_ROWS(). */
#define BACKUP_MACHINE_ROWS(state_name)                                                           \
	{.name = "agent",                                                                         \
		.kind = OPTION_TEXT,                                                              \
		.offset = offsetof(struct backup_values, agent),                                  \
		.argument = "SOCKET",                                                             \
		.words = WORDS_FILE,                                                              \
		.help = "of a machine in QEMU: the guest agent's socket (default: QEMU is asked " \
			"for it)"},                                                               \
		{.name = "no-freeze",                                                             \
			.kind = OPTION_FLAG,                                                      \
			.offset = offsetof(struct backup_values, no_freeze),                      \
			.help = "of a machine in QEMU: do not freeze the guest's file systems"},  \
		{.name = "scratch",                                                               \
			.kind = OPTION_TEXT,                                                      \
			.offset = offsetof(struct backup_values, scratch),                        \
			.argument = "DIR",                                                        \
			.words = WORDS_FOLDER,                                                    \
			.help = "of a machine in QEMU: where what the guest overwrites while it " \
				"is read is kept (default: /var/tmp)"},                           \
		VMWARE_ACCESS_ROWS(struct backup_values, "vcenter-ca-file"),                      \
		VMWARE_SOURCE_ROWS(struct backup_values, state_name)

struct backup_disk {
	char key[REPOSITORY_KEY_BYTES];
	char label[REPOSITORY_KEY_BYTES + 8]; /* "disk KEY" */
	const char *name; /* of the source */

	/* As given; NULL: not. */
	enum repository_change change;
	const char *change_argument; /* name of the bitmap, path of the list */
	const char *change_id, *source_id, *bitmap;

	struct block *opened; /* the source */
	struct changes *changes;
	struct block *source; /* the same, seen through the list of changes if there is one */
	char *path; /* of a local source, absolute */
	char *state; /* store_backup_disk.source_state; NULL */
	char unusable[512]; /* repository_offer.unusable; "" */
	struct repository_pair identity[3];
	size_t nr_identity;
	/* Both NULL: the source is opened by its name. */
	const struct qemu_source_disk *qemu;
	const struct vmware_disk *vmware;
	char *since; /* of a machine's: the bitmap or change id that began at the parent's state;
			NULL: nothing is known */

	/* What became of it. */
	enum repository_resumed resumed;
	uint64_t kept_bytes;
};

struct backup {
	struct cli *cli;
	const struct backup_values *values;
	bool is_replica; /* of "sendense replicate", which has no store */
	unsigned audit_per_mille; /* 0: none */
	char vm[REPOSITORY_VM_BYTES]; /* the machine's name in the store */
	struct store *store;
	/* The machine whose disks they are; both NULL: there is none. */
	struct qemu_source *qemu;
	struct vmware_session *vmware;
	struct backup_disk *disks;
	struct store_backup_disk *offers;
	struct repository_decision *decisions;
	struct disks_copy *copies;
	size_t nr_disks;
	struct progress *progress;
	char point[REPOSITORY_POINT_BYTES];
	char missing_of[REPOSITORY_POINT_BYTES]; /* the point that has the missing disks */
	json_t *missing_disks; /* its disks that are not in this backup; NULL: none */
	unsigned nr_losses; /* how often a source was lost and all of it begun again */
};

/* Reads all of the command line; allocates the arrays, which free gives back. */
int backup_args_read(struct backup *b, struct err *err);
void backup_args_free(struct backup *b);

/* What each disk of a machine is known by: that is so before they are open. */
void backup_sources_identify(struct backup *b);
/* Opens every disk with what tells of its changes; of a machine since what each disk says. */
int backup_sources_open(struct backup *b, struct err *err);
/* How the machine was read: see the two rooms; NULL: there is none. */
const char *backup_sources_consistency(const struct backup *b, const char **reason);
/* A machine's disks must still be what they were at its moment; if they are not, that is the
 * reason, whatever came of it (rc, err). */
int backup_sources_check(struct backup *b, int rc, struct err *err);
/* What was read is recorded: from now on a machine's changes count since then. */
void backup_sources_commit(const struct backup *b);
/* See store_backup_options; context is the struct backup. */
uint64_t backup_sources_estimate(void *context, size_t disk,
	const struct repository_decision *decision, const struct repository_settings *settings);
/* The same, of a machine of a vCenter. */
int backup_sources_changed_since(
	void *context, size_t disk, const char *change_id, struct block **map, struct err *err);
/* Tells of the disks that became full although they need not have, in the log. */
void backup_sources_warn(const struct backup *b);
/*
 * Whether a source is among them of which nothing shows that it is the same when its server
 * was started again (an NBD export without --source-id, change id or list): such a
 * connection is not made again, losing it is ERR_DISCONNECTED at once.
 */
bool backup_sources_may_change(const struct backup *b);
/* Also gives all back to the machine.  May be called again, and so may opening after it,
 * except that of a machine. */
void backup_sources_close(struct backup *b);

/*
 * What shows that a local disk is the same file in the same state ("file ..."): of each
 * file of a QCOW2 image's chain its device, inode, size and times.  Gives an allocated text;
 * NULL when that cannot be shown: no regular file, or written to just now, so that one
 * more write might leave its times as they are.
 */
char *backup_state_of_file(const char *path, bool is_qcow2);

/* Tells in the log which disks of the latest restore point are left out, and keeps them for the
 * report. */
void backup_report_missing(struct backup *b);
int backup_report_print(const struct backup *b, int64_t took_ns, struct err *err);

#endif
