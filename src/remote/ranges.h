/*
 * ranges: what a session's disk holds at the hub, told by digests, fetched in windows.
 *
 *   window   chunks from first on, as the hub's records: runs of nothing known, of zeros, of
 *            data with their leaves; at most 1 MiB of answer
 *
 * WINDOWS of them are kept, the ones used longest ago make room; where the disk is read from
 * its beginning to its end the next one is fetched ahead by a thread.  Memory is some 12 MiB at
 * most, whatever the disk.
 *
 * Thread rule: any number of threads may look.
 */
#ifndef SENDENSE_REMOTE_RANGES_H
#define SENDENSE_REMOTE_RANGES_H

#include "digest.h"
#include "rest.h"

enum ranges_kind { RANGES_UNKNOWN, RANGES_ZERO, RANGES_DATA };

struct ranges;

/* path: of the disk's digests, without a query; copied.  ahead: all of the disk is going to be
 * looked at.  Borrows client. */
struct ranges *ranges_new(struct rest_client *client, const char *path,
	enum digest_algorithm algorithm, uint64_t nr_chunks, bool ahead, struct err *err);
/* NULL is harmless. */
void ranges_free(struct ranges *ranges);

/* What the hub holds of chunk first, for how many (1..most) from it on; a data chunk comes alone,
 * with its leaf.  *sent: it was sent in this backup, or in the interrupted one it goes on
 * with. */
int ranges_look(struct ranges *ranges, uint64_t first, uint64_t most, enum ranges_kind *kind,
	bool *sent, uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err);

/* All of it once, in order; leaves of data packed, digest_leaf_bytes() each. */
typedef int ranges_run(void *context, uint64_t first, uint64_t nr, enum ranges_kind kind, bool sent,
	const uint8_t *leaves, struct err *err);
int ranges_each(struct ranges *ranges, ranges_run *run, void *context, struct err *err);

#endif
