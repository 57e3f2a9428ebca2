/* disk: what verify needs of an open restore point beyond repository.h. */
#ifndef SENDENSE_DISK_INTERNAL_H
#define SENDENSE_DISK_INTERNAL_H

#include "chain.h"
#include "repository_internal.h"
#include "sums.h"

/* As repository_disk_open() without verify; its block's extents tell what the point's own image
 * holds: the rest is BLOCK_UNCHANGED. */
struct repository_disk *disk_open_layer(struct repository *repo, const char *vm, const char *point,
	const char *key, struct err *err);

/* Lent until the disk is closed. */
struct sums_reader *disk_sums(struct repository_disk *disk);
const struct chain *disk_chain(const struct repository_disk *disk);

/* Whether a chunk with this leaf (or of zeros) is what the sums say; -1 when they
 * cannot be read. */
int disk_match(struct repository_disk *disk, uint64_t chunk, bool is_zero, const uint8_t *leaf,
	bool *matches, struct err *err);
int disk_match_bytes(struct repository_disk *disk, uint64_t chunk, const void *bytes, size_t length,
	bool *matches, struct err *err);

/* The first chunk of the run that is not zero by the sums; UINT64_MAX: none. */
int disk_match_zeros(struct repository_disk *disk, uint64_t first, uint64_t nr, uint64_t *wrong,
	struct err *err);

#endif
