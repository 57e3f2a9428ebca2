/*
 * target: what a command writes a whole disk to, made or opened, and taken back
 * when the command fails.
 */
#ifndef SENDENSE_CLI_TARGET_H
#define SENDENSE_CLI_TARGET_H

#include "cli.h"
#include "locator.h"
#include "tls_options.h"

/* Options of all commands that have targets; the member "target" of their values. */
struct target_options {
	bool force;
	const char *compression; /* none, zlib, zstd; NULL: none */
	struct option_number cluster_bytes;
};

/* Rows for the command's table; values: its struct, which has them as "target". */
#define TARGET_OPTION_ROWS(values)                                                    \
	{.name = "force",                                                             \
		.kind = OPTION_FLAG,                                                  \
		.offset = offsetof(values, target.force),                             \
		.help = "overwrite an existing file, or a device"},                   \
		{.name = "compression",                                               \
			.kind = OPTION_CHOICE,                                        \
			.offset = offsetof(values, target.compression),               \
			.argument = "none|zlib|zstd",                                 \
			.choices = target_compressions,                               \
			.help = "of a new QCOW2 image (default: none)"},              \
	{                                                                             \
		.name = "cluster-size", .kind = OPTION_SIZE,                          \
		.offset = offsetof(values, target.cluster_bytes), .argument = "SIZE", \
		.minimum = 512, .maximum = 2097152,                                   \
		.help = "of a new QCOW2 image, a power of two (default: 64KiB)"       \
	}

extern const char *const target_compressions[];

struct target {
	const char *name; /* borrowed */
	struct block *block;
	bool created; /* a file was made: it is removed when the command fails */
};

/*
 * Makes or opens it.  A path inside a repository is refused (ERR_DENIED), as is
 * one that is there without --force (ERR_EXISTS).  On failure nothing is left.
 * tls: may be NULL.
 */
int target_open(struct target *target, const char *name, const struct target_options *options,
	const struct tls_options *tls, uint64_t size_bytes, struct cancel *cancel, struct err *err);

/* Closes it for good; what a new file takes is put into *stored_bytes (may be
 * NULL), 0 when unknown.  On failure it is discarded. */
int target_finish(struct target *target, uint64_t *stored_bytes, struct err *err);

/* Closes it and removes the file that was made; adds to err what became of it.
 * Harmless when it is closed already or was never opened. */
void target_discard(struct target *target, struct err *err);

#endif
