/*
 * A disk in memory that behaves as badly as a test wishes: it queues requests and
 * answers them out of order, fails, hangs, refuses lanes, and loses what was not
 * flushed as a server does that dies and comes back.
 */
#ifndef TEST_COPY_FAKE_H
#define TEST_COPY_FAKE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "copy_internal.h"

struct fake {
	struct block block;
	pthread_mutex_t mutex;
	uint8_t *bytes; /* what a reader sees */
	uint8_t *durable; /* what survives a crash */
	size_t size;
	uint8_t *holes; /* one byte for each 512: 1 when a hole that reads as zeros */
	uint8_t *unchanged; /* the same: 1 when BLOCK_UNCHANGED */
	size_t most_extents; /* of one answer; 0: any number */
	unsigned seed;

	/* Faults */
	uint64_t fail_read_at, fail_write_at; /* UINT64_MAX: never */
	bool hang_reads;
	unsigned most_lanes; /* beyond: refused; 0: any number */
	bool hang_lanes; /* beyond: nothing happens until cancelled */
	uint64_t crash_at_byte; /* written; 0: never */
	uint64_t crash_each_bytes; /* the same again and again; 0: never */

	/* Seen */
	unsigned nr_lanes, in_flight, most_in_flight, nr_flushes, nr_crashes;
	uint64_t bytes_read, bytes_written, bytes_zeroed;
	unsigned nr_zero_requests, nr_writes;
};

/* queues: lanes keep requests in flight.  The content is zeros. */
struct fake *fake_new(size_t size, bool read_only, bool queues);
void fake_free(struct fake *fake);

/* Data and holes in stretches of many lengths, the same for the same seed; some
 * data is zeros. */
void fake_fill(struct fake *fake, unsigned seed);

/* --- told: a sink that remembers what it was told of each chunk ------------- */

struct told {
	pthread_mutex_t mutex;
	uint64_t nr_chunks;
	unsigned *times;
	bool *zero;
	uint8_t *leaves;
	bool refuse;
};

struct told *told_new(size_t size);
void told_free(struct told *told);
struct copy_chunk_sink told_sink(struct told *told);

/* The leaf that it has of the chunk, or its zero, is that of these bytes. */
void told_check(const struct told *told, const struct digest_key *key, const uint8_t *bytes,
	size_t size, uint64_t chunk);

#endif
