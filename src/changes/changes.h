/*
 * changes: lists from outside that say what changed on a disk since an earlier state.
 *
 * The file, JSON lines (design: "The extents file"):
 *
 *   {"sendense-extents":1,"key":"2000","size":BYTES,"from":"ID","to":"ID"}
 *   {"offset":BYTES,"length":BYTES}          sorted, disjoint, within size; any number
 *   {"end":true,"count":N,"bytes":SUM}       shows that the file was not cut off
 *
 * Members may stand in any order, with JSON's white space between them; others than
 * these are refused.  Offsets and lengths have no alignment; no length is 0.  The first
 * line has at most 64 KiB, others 4 KiB.
 *
 * The file is read twice, as a stream: once to check all of it when it is opened, then
 * as the disk is copied.  Memory is bounded (some MiB) whatever its length.
 */
#ifndef SENDENSE_CHANGES_H
#define SENDENSE_CHANGES_H

#include "block.h"

struct changes;

struct changes_facts {
	/* Lent until close, as all strings. */
	const char *key; /* of the disk: 1..64 of A-Z a-z 0-9 _ - */
	uint64_t size_bytes; /* of the disk, > 0 */
	/* Change id of the state before: UTF-8, 1..1023 bytes without control characters. */
	const char *from;
	const char *to; /* change id of the state now */
	uint64_t count, bytes; /* of the extents */
};

/*
 * Opens and checks all of it.  ERR_FORMAT names the line and what is wrong with it:
 * not JSON, unknown version, unsorted, overlapping, past the end of the disk, no end
 * line (cut off), an end line with other sums, anything behind it.  ERR_USAGE for what is
 * no regular file, ERR_NOT_FOUND, ERR_IO, ERR_CANCELLED.  Some 10 million extents a second.
 */
struct changes *changes_open(const char *path, struct cancel *cancel, struct err *err);
/* One that this process wrote itself: the guard (guard.h) is not asked, since nobody from outside
 * named it.  fd is duplicated, and must be readable; name: for messages. */
struct changes *changes_open_own(int fd, const char *name, struct cancel *cancel, struct err *err);
void changes_close(struct changes *changes); /* NULL is harmless */
const struct changes_facts *changes_facts(const struct changes *changes);

/*
 * source with these changes: what the list does not name is BLOCK_UNCHANGED, holes and
 * zeros are what source says.  It is read-only; lanes and all else are the source's own.
 * ERR_RANGE when the sizes differ.  When the file is not what was checked any more, its
 * extents are ERR_FORMAT.  Borrows both; close the result first.
 */
struct block *changes_apply(struct changes *changes, struct block *source, struct err *err);

/*
 * source with this list as its map: what the list names is what source says, all else is a
 * hole of zeros.  For lists of what is allocated (from: whatever the maker says, VMware's is "*").
 * Otherwise as changes_apply(); the result tells no changes.
 */
struct block *changes_allocated(struct changes *changes, struct block *source, struct err *err);

#endif
