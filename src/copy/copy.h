/*
 * copy: moves one disk's content from any block to any block of the same size.
 *
 *   extents of the source, streamed ──► pieces ──► lanes (a thread each)
 *   a lane: read ─► look at every byte: zeros, chunk digests ─► write or zero
 *
 * A piece is a whole number of digest chunks (and of the target's granules), so
 * that every chunk passes exactly one lane in one buffer.  Memory is bounded by
 * lanes x requests in flight x piece size, whatever the size of the disk.
 */
#ifndef SENDENSE_COPY_H
#define SENDENSE_COPY_H

#include "block.h"

/* Five separate figures, in bytes; they only grow.  Read from any thread. */
struct copy_progress {
	/* Of the disk's size, how much is dealt with.  What is unchanged, and data that the
	 * target has already, counts in none of the others but read. */
	atomic_uint_fast64_t logical;
	atomic_uint_fast64_t read; /* came from the source */
	atomic_uint_fast64_t sent; /* went to the target as data */
	atomic_uint_fast64_t zeros_skipped; /* not sent as data: holes and zeros */
	atomic_uint_fast64_t stored; /* what the target takes; 0 where it can't tell */
};

/*
 * Where chunk digests go.  Called by several lanes at once, each chunk exactly
 * once unless a loss makes it be copied again (then the later call counts).
 * A -1 fails the copy with that error.
 */
struct copy_chunk_sink {
	void *context;
	/* nr consecutive chunks from first on; leaf i at leaves + i * 32, or all
	 * zeros in zero_mask bit i (nr <= 64). */
	int (*chunks)(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
		uint64_t zero_mask, struct err *err);
	/* A run of chunks that read as zeros without being read. */
	int (*zeros)(void *context, uint64_t first, uint64_t nr, struct err *err);
};

/*
 * What the target held before the copy, told by digests: the parent of an increment,
 * or what an interrupted backup had stored.  Called by several lanes at once; a -1 fails
 * the copy with that error.  The answer for a chunk must be the same each time, whatever
 * this copy has told the sink meanwhile: what a target lost with its connection is asked
 * for again, and must be written again.
 */
struct copy_baseline {
	void *context;
	/* Sets in *same the bits of those of the nr (<= 64) chunks from first on that the
	 * target holds already; leaves and zero_mask as for the sink. */
	int (*chunks)(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
		uint64_t zero_mask, uint64_t *same, struct err *err);
	/* For chunks that read as zeros without being read: *nr_alike (1..nr) chunks from
	 * first on are zeros in the target already (*same), or none of them is. */
	int (*zeros)(void *context, uint64_t first, uint64_t nr, uint64_t *nr_alike, bool *same,
		struct err *err);
};

struct copy_options {
	unsigned nr_lanes; /* 0: choose */
	unsigned nr_in_flight; /* requests a lane keeps in flight; 0: choose */
	size_t piece_bytes; /* 0: choose; else a power of two, 64 KiB..4 MiB */
	size_t memory_bytes; /* bound on all buffers; 0: 32 MiB */
	uint64_t rate_bytes_per_s; /* of data read; 0: none */
	const struct digest_key *digest_key; /* NULL: no digest */
	const struct copy_chunk_sink *sink; /* with digest_key */
	const struct copy_baseline *baseline; /* with digest_key and sink (asserted); or NULL */
	/* Pass over what the source calls BLOCK_UNCHANGED: neither read, written nor told to
	 * the sink.  A chunk (or granule of the target) with any other byte in it is read
	 * whole.  Without this the flag is not heeded. */
	bool changed_only;
	struct copy_progress *progress; /* may be NULL */
	struct cancel *cancel; /* may be NULL */
	unsigned silence_ms; /* nothing moved for so long: a log line, and again; 0: 30,000 */
};

/*
 * Copies all of source to target; at the end the target is flushed.  Sizes must
 * be equal (ERR_RANGE names both).  Zeros are skipped when the target
 * starts_zero, else written explicitly.  Chunks that the baseline calls the same are
 * neither written nor told to the sink; where the target's granule is larger than a chunk
 * it is written whole if one of its chunks differs, and those that differ are told.  The
 * sink is told before the target has the chunk.  The first error wins, the other lanes are
 * cancelled.  It names the disk and the offset; which copy it was
 * the caller knows.  Connections beyond the first are opened beside the copying, and may be
 * refused: then it goes on with those there are.  What a target lost together
 * with a connection (can_vanish) is copied again.  Blocking; one call a pair of
 * disks at a time.
 */
int copy_run(struct block *source, struct block *target, const struct copy_options *options,
	struct err *err);

/* Reads all of source as copy_run() would, target none: digests and figures only.
 * With a baseline the sink is told of what differs from it. */
int copy_scan(struct block *source, const struct copy_options *options, struct err *err);

#endif
