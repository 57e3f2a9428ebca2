/*
 * Inside of the changes room.
 *
 *   changes_line    one line: JSON to numbers, strictly
 *   changes         the file: checking all of it, finding an extent again
 *   changes_apply   a source with these changes
 */
#ifndef SENDENSE_CHANGES_INTERNAL_H
#define SENDENSE_CHANGES_INTERNAL_H

#include "changes.h"

#define CHANGES_FIRST_LINE_BYTES_MAX 65536u
#define CHANGES_LINE_BYTES_MAX 4096u
#define CHANGES_KEY_BYTES_MAX 64u
#define CHANGES_ID_BYTES_MAX 1023u

struct changes_extent {
	uint64_t offset, length;
};

/* --- lines: without their end; err says what is wrong, without the line's number --- */

struct changes_header {
	char key[CHANGES_KEY_BYTES_MAX + 1];
	char from[CHANGES_ID_BYTES_MAX + 1], to[CHANGES_ID_BYTES_MAX + 1];
	uint64_t size_bytes;
};

int changes_line_header(
	const char *line, size_t length, struct changes_header *header, struct err *err);

/* An extent as it should stand: true.  False: it is something else. */
bool changes_line_extent(const char *line, size_t length, struct changes_extent *extent);

/* The end line; for anything else err says what the line is, or is not. */
int changes_line_end(
	const char *line, size_t length, uint64_t *count, uint64_t *bytes, struct err *err);

/* --- the file ------------------------------------------------------------------ */

/*
 * The first extent that ends behind offset, as [*start, *end); both are the disk's
 * size when there is none.  Any thread.  ERR_FORMAT when the file is not what it was.
 */
int changes_next(
	struct changes *changes, uint64_t offset, uint64_t *start, uint64_t *end, struct err *err);

/* For messages. */
const char *changes_path(const struct changes *changes);

#endif
