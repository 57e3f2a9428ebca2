/*
 * disks: what commands for several disks of one VM share: KEY=NAME arguments,
 * and copying several pairs of disks at once.
 */
#ifndef SENDENSE_CLI_DISKS_H
#define SENDENSE_CLI_DISKS_H

#include "cli.h"
#include "remote.h"
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

/* Opens the folder that is named as a repository; ERR_USAGE when none is, ERR_UNSUPPORTED for a
 * hub's URL. */
struct repository *disks_open_repository(
	const char *repo, enum repository_mode mode, struct err *err);

/* Where restore points are: a folder, or a hub; the member "store" of a command's values. */
struct store_values {
	const char *repo, *token_file, *ca_file;
};

/* Opens what --repo names; ERR_USAGE when it names none. */
struct store *disks_open_store(struct cli *cli, const struct store_values *values,
	enum repository_mode mode, struct err *err);

/* ERR_USAGE when an option (NULL: none was given) is of no use with a hub. */
int disks_refuse_remote(
	const struct store *store, const char *option, const char *why, struct err *err);

#define STORE_OPTION_ROWS(values)                                                          \
	{.name = "repo",                                                                   \
		.kind = OPTION_TEXT,                                                       \
		.offset = offsetof(values, store.repo),                                    \
		.argument = "DIR|URL",                                                     \
		.words = WORDS_FOLDER,                                                     \
		.help = "the repository: a folder, or a hub's https://HOST[:PORT][/NAME] " \
			"(required)"},                                                     \
		HUB_OPTION_ROWS(values)

#define HUB_OPTION_ROWS(values)                                                                    \
	{.name = "token-file",                                                                     \
		.kind = OPTION_TEXT,                                                               \
		.offset = offsetof(values, store.token_file),                                      \
		.argument = "PATH",                                                                \
		.words = WORDS_FILE,                                                               \
		.help = "with a hub: the file that holds the token (default: "                     \
			"$SENDENSE_TOKEN_FILE)"},                                                  \
	{                                                                                          \
		.name = "ca-file", .kind = OPTION_TEXT, .offset = offsetof(values, store.ca_file), \
		.argument = "PATH", .words = WORDS_FILE,                                           \
		.help = "with a hub: the CA that its certificate must be of (default: "            \
			"$SENDENSE_CA_FILE, or the system's)"                                      \
	}

#define REPO_OPTION_ROW(values, member)                                                       \
	{                                                                                     \
		.name = "repo", .kind = OPTION_TEXT, .offset = offsetof(values, member),      \
		.argument = "DIR", .words = WORDS_FOLDER, .help = "the repository (required)" \
	}

#endif
