/*
 * changes: lists from outside that say what changed on a disk since an earlier state.
 *
 * The file, JSON lines (design: "The extents file"):
 *
 *   {"sendense-extents":1,"key":"2000","size":BYTES,"from":"ID","to":"ID"}
 *   {"offset":BYTES,"length":BYTES}          sorted, disjoint, within size; any number
 *   {"end":true,"count":N,"bytes":SUM}       shows that the file was not cut off
 *
 * The file is read twice, as a stream: once to check all of it when it is opened, then
 * as the disk is copied.  Memory is bounded (some MiB) whatever its length.
 */
#ifndef SENDENSE_CHANGES_H
#define SENDENSE_CHANGES_H

#include "block.h"

struct changes;

struct changes_facts {
	const char *key; /* of the disk; lent until close, as all strings */
	uint64_t size_bytes; /* of the disk, > 0 */
	const char
		*from; /* change id of the state before: 1..1023 bytes without control characters */
	const char *to; /* change id of the state now */
	uint64_t count, bytes; /* of the extents */
};

/*
 * Opens and checks all of it.  ERR_FORMAT names the line and what is wrong with it:
 * not JSON, unknown version, unsorted, overlapping, past the end of the disk, no end
 * line (cut off), an end line with other sums, anything behind it.  ERR_NOT_FOUND, ERR_IO.
 */
struct changes *changes_open(const char *path, struct err *err);
void changes_close(struct changes *changes); /* NULL is harmless */
const struct changes_facts *changes_facts(const struct changes *changes);

/*
 * source with these changes: what the list does not name is BLOCK_UNCHANGED.  Lanes and
 * all else are the source's own.  ERR_RANGE when the sizes differ.  Borrows both; close
 * the result first.
 */
struct block *changes_apply(struct changes *changes, struct block *source, struct err *err);

#endif
