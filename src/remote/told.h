/*
 * told: which chunks of a disk a copy has told of, with their leaves: what the digests of a push
 * or of what was read back are made of.
 *
 *   segment  4096 chunks; in memory one byte each: nothing told, all zeros, or mixed
 *   file     of a mixed segment 4096 states and 4096 leaves at its own place, else a hole
 *
 * The file has no name; memory is 4 KiB for each TiB of the disk.  A chunk told again counts as
 * it was told last.  Any number of threads may tell; the digests are made when nobody does.
 */
#ifndef SENDENSE_REMOTE_TOLD_H
#define SENDENSE_REMOTE_TOLD_H

#include "copy.h"

struct told;

/* The file lies in $TMPDIR, else /var/tmp. */
struct told *told_new(enum digest_algorithm algorithm, uint64_t size_bytes, struct err *err);
/* NULL is harmless. */
void told_free(struct told *told);

/* As struct copy_chunk_sink: context is the record. */
int told_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, struct err *err);
int told_zeros(void *context, uint64_t first, uint64_t nr, struct err *err);
/* The disk's root, where nothing was told of counts as zeros. */
int told_root(
	struct told *told, struct cancel *cancel, uint8_t root[DIGEST_ROOT_BYTES], struct err *err);
/* The digest over what was told (digest_sent). */
int told_sent(struct told *told, struct cancel *cancel, uint8_t digest[DIGEST_ROOT_BYTES],
	struct err *err);

#endif
