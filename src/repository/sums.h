/*
 * sums: the checksum file of one disk at one point (docs/repository-format.md).
 *
 * Internal to the room.  The writer takes chunks from several threads in any
 * order and holds at most SUMS_OPEN_SEGMENTS segments in memory; a chunk told
 * again replaces what was told before.  Any number of threads may use a reader, and its memory
 * is bounded: the topmost reader of a chain keeps a few segments that are merged over
 * the whole chain, so that looking a chunk up costs the same at any depth.
 */
#ifndef SENDENSE_SUMS_H
#define SENDENSE_SUMS_H

#include "repository.h"

#define SUMS_SEGMENT_CHUNKS 4096u
#define SUMS_OPEN_SEGMENTS 16u

enum sums_kind {
	SUMS_INHERIT = 0,
	SUMS_ZERO = 1,
	SUMS_DATA = 2,
	SUMS_SAME = 3, /* inherited, and that was looked at: in unfinished files alone */
};

struct sums_facts {
	enum digest_algorithm algorithm;
	uint64_t size_bytes; /* > 0 */
	bool increment; /* what is not told is inherited, not zero */
	char key[REPOSITORY_KEY_BYTES];
	char point[REPOSITORY_POINT_BYTES];
};

struct sums_totals {
	uint64_t nr_data, nr_zero; /* told in this file */
	uint8_t root[DIGEST_ROOT_BYTES];
};

struct sums_writer;
struct sums_reader;

/*
 * Makes the file (ERR_EXISTS when it is there).  parent: the sums beneath an
 * increment, of any size; borrowed until the writer is freed; NULL for a full.
 */
struct sums_writer *sums_writer_create(int dir_fd, const char *path, const struct sums_facts *facts,
	struct sums_reader *parent, struct err *err);

/* As struct copy_chunk_sink; leaves 32 bytes apart.  ERR_RANGE beyond the disk. */
int sums_writer_chunks(struct sums_writer *writer, uint64_t first, unsigned nr,
	const uint8_t *leaves, uint64_t zero_mask, struct err *err);
int sums_writer_zeros(struct sums_writer *writer, uint64_t first, uint64_t nr, struct err *err);
/* Of these, those that nothing was told of are what lies beneath.  The finished file does not
 * tell of it: it is for whoever goes on with an unfinished one. */
int sums_writer_same(struct sums_writer *writer, uint64_t first, uint64_t nr, struct err *err);

/* Completes and syncs the file.  Nothing is told any more (one thread). */
int sums_writer_finish(struct sums_writer *writer, struct sums_totals *totals, struct err *err);

/* What was told of chunk first (INHERIT: nothing yet), for how many (1..most) from it on; a data
 * chunk comes alone, with its leaf. */
int sums_writer_look(struct sums_writer *writer, uint64_t first, uint64_t most,
	enum sums_kind *kind, uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err);

/* Forgets what was told of a chunk. */
int sums_writer_forget(struct sums_writer *writer, uint64_t chunk, struct err *err);

/* All that was told so far is durable when it returns, and sums_writer_reopen() finds it. */
int sums_writer_checkpoint(struct sums_writer *writer, struct err *err);

/*
 * Opens an unfinished file and goes on with it: takes each segment whose checksum holds.  facts
 * must be those of its header (ERR_CORRUPT).  Memory and time as for reading an index.
 */
struct sums_writer *sums_writer_reopen(int dir_fd, const char *path, const struct sums_facts *facts,
	struct sums_reader *parent, struct err *err);

/* Closes; an unfinished file stays where it is.  NULL is harmless. */
void sums_writer_free(struct sums_writer *writer);

/*
 * Opens a finished file; header, index and trailer are checked, segments when
 * they are read.  expect: what it must be of, else ERR_CORRUPT; may be NULL.  Where an
 * increment is expected a file that tells all is as good (a merge puts it there first).
 * parent: as above.  ERR_CORRUPT names the file and what is wrong.
 */
struct sums_reader *sums_reader_open(int dir_fd, const char *path, const struct sums_facts *expect,
	struct sums_reader *parent, struct err *err);
/* Not its parent.  NULL is harmless. */
void sums_reader_free(struct sums_reader *reader);

const struct sums_facts *sums_reader_facts(const struct sums_reader *reader);
const struct sums_totals *sums_reader_totals(const struct sums_reader *reader);

/*
 * What chunk first is, looked for down the chain: SUMS_ZERO with the number (up
 * to most) of zero chunks from it on that are known to follow, or SUMS_DATA with
 * nr 1 and its leaf.  first < the disk's chunks, most > 0.
 */
int sums_reader_run(struct sums_reader *reader, uint64_t first, uint64_t most, enum sums_kind *kind,
	uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err);

/* The same of this file alone: SUMS_INHERIT where it tells nothing (in a full: SUMS_ZERO). */
int sums_reader_own_run(struct sums_reader *reader, uint64_t first, uint64_t most,
	enum sums_kind *kind, uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err);

/* Reads all and computes the root anew; cancel may be NULL. */
int sums_reader_root(struct sums_reader *reader, struct cancel *cancel,
	uint8_t root[DIGEST_ROOT_BYTES], struct err *err);

/* Reads every segment of this file alone and checks it. */
int sums_reader_check(struct sums_reader *reader, struct cancel *cancel, struct err *err);

#endif
