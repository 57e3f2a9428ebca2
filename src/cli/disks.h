/*
 * disks: what commands for several disks of one VM share: KEY=NAME arguments,
 * and copying several pairs of disks at once.
 */
#ifndef SENDENSE_CLI_DISKS_H
#define SENDENSE_CLI_DISKS_H

#include "cli.h"
#include "repository.h"

/*
 * Splits "KEY=NAME"; a text without a key gives key "" and the whole text (a
 * name begins with its scheme and ':', which no key holds).  rest points into
 * text.
 */
void disks_split_key(const char *text, char key[REPOSITORY_KEY_BYTES], const char **rest);

/* One disk to copy. */
struct disks_copy {
	const char *label; /* for messages: "disk 2000"; NULL: none */
	struct block *source, *target;
	struct copy_options options; /* digests, baseline, changed_only: the rest is filled in */
	struct copy_progress figures;
};

#define DISKS_PARALLEL 2u /* by default; each copy has its own buffers */

/*
 * Copies all, at most nr_parallel at once; with a rate, which counts for all
 * together, one after the other.  The first error wins and stops the others;
 * cancel itself is only heeded.
 */
int disks_copy(struct disks_copy *copies, size_t nr_copies, unsigned nr_parallel,
	uint64_t rate_bytes_per_s, struct cancel *cancel, struct err *err);

/* What a restore point tells of how a disk in it was made, as members of object. */
void disks_json_history(json_t *object, const struct repository_disk_info *disk);

/* "full" or "incremental". */
const char *disks_mode_name(enum repository_disk_mode mode);

/* Opens the repository that --repo names; ERR_USAGE when there is none. */
struct repository *disks_open_repository(
	const char *repo, enum repository_mode mode, struct err *err);

#define REPO_OPTION_ROW(values, member)                                                       \
	{                                                                                     \
		.name = "repo", .kind = OPTION_TEXT, .offset = offsetof(values, member),      \
		.argument = "DIR", .words = WORDS_FOLDER, .help = "the repository (required)" \
	}

#endif
