/*
 * Finding what an unfinished file tells.
 *
 *   512 ─► [segment│seal│..] [segment│seal│..] [list]  torn.. [segment│seal│..]
 *            │ capacity ──►    │                 │       512 by 512 until something
 *            └ its checksum holds: told          └ told  begins whose checksum holds
 *
 * Nothing in the file is believed before its checksum was found right, its length in the
 * chain included: behind what is torn the next segment is looked for at each block.
 */
#include "sums_internal.h"

#include <errno.h>
#include <sys/stat.h>

#define WINDOW_BYTES (4 * SUMS_SLOT_MOST)
#define SEQUENCE_MOST (UINT64_MAX / 2) /* nobody writes that often */

/* Of lists, by the kind of their segments. */
static const char *const list_magics[] = {[SUMS_ZERO] = "SZER", [SUMS_SAME] = "SSAM"};

/* A part of the file in memory. */
struct window {
	int fd;
	const char *path;
	uint64_t file_bytes;
	uint64_t start;
	size_t length;
	uint8_t *bytes;
};

static uint64_t seal_check(const uint8_t *sequence, uint64_t segment_check)
{
	uint8_t bytes[16];
	memcpy(bytes, sequence, 8);
	be64_put(bytes + 8, segment_check);
	return XXH3_64bits(bytes, sizeof bytes);
}

void sums_seal_put(uint8_t *bytes, const struct sums_entry *entry, uint64_t sequence)
{
	uint8_t *seal = bytes + entry->length;
	be64_put(seal, sequence);
	be64_put(seal + 8, seal_check(seal, entry->check));
}

uint32_t sums_list_pack(uint8_t *bytes, const struct sums_run *runs, unsigned nr, uint64_t sequence)
{
	uint32_t length = SUMS_LIST_HEAD + nr * SUMS_LIST_RUN;
	memset(bytes, 0, SUMS_LIST_HEAD);
	memcpy(bytes, list_magics[runs[0].kind], 4);
	be32_put(bytes + 4, (uint32_t)round_up(length, SUMS_BLOCK));
	be64_put(bytes + 8, sequence);
	be32_put(bytes + 16, nr);
	for (size_t i = 0; i < nr; i++) {
		be64_put(bytes + SUMS_LIST_HEAD + i * SUMS_LIST_RUN, runs[i].first);
		be64_put(bytes + SUMS_LIST_HEAD + i * SUMS_LIST_RUN + 8, runs[i].nr);
	}
	be64_put(bytes + 24, XXH3_64bits(bytes, length));
	return length;
}

/* The bytes from offset on, as many as there are and fit; at least a block's worth of room
 * is needed by any caller. */
static uint8_t *look_at(struct window *w, uint64_t offset, size_t *length, struct err *err)
{
	size_t want = (size_t)min_u64(SUMS_SLOT_MOST, w->file_bytes - offset);
	if (offset < w->start || offset + want > w->start + w->length) {
		w->start = offset;
		w->length = (size_t)min_u64(WINDOW_BYTES, w->file_bytes - offset);
		if (file_pread(w->fd, w->bytes, w->length, offset, w->path, err) < 0)
			return NULL;
	}
	*length = want;
	return w->bytes + (offset - w->start);
}

static uint64_t sequence_of(const uint8_t *bytes, size_t length, const struct sums_entry *entry)
{
	const uint8_t *seal = bytes + entry->length;
	if (length < entry->length + SUMS_SEAL ||
		be64_get(seal + 8) != seal_check(seal, entry->check))
		return 0; /* torn: what is whole counts before it */
	return min_u64(be64_get(seal), SEQUENCE_MOST);
}

/* Tells of a list of segments; *capacity 0 when there is none here. */
static int take_list(const struct sums_facts *facts, uint64_t at, uint8_t *bytes, size_t length,
	uint32_t *capacity, sums_scan_callback *callback, void *context, struct err *err)
{
	*capacity = 0;
	if (length < SUMS_LIST_HEAD)
		return 0;
	enum sums_kind kind = memcmp(bytes, list_magics[SUMS_ZERO], 4) == 0   ? SUMS_ZERO
			      : memcmp(bytes, list_magics[SUMS_SAME], 4) == 0 ? SUMS_SAME
									      : SUMS_INHERIT;
	uint32_t nr = be32_get(bytes + 16);
	if (kind == SUMS_INHERIT || nr == 0 || nr > SUMS_LIST_RUNS_MOST ||
		length < SUMS_LIST_HEAD + nr * SUMS_LIST_RUN)
		return 0;
	uint64_t check = be64_get(bytes + 24);
	uint64_t sequence = min_u64(be64_get(bytes + 8), SEQUENCE_MOST);
	memset(bytes + 24, 0, 8);
	if (XXH3_64bits(bytes, SUMS_LIST_HEAD + nr * SUMS_LIST_RUN) != check)
		return 0;
	*capacity = be32_get(bytes + 4);
	for (size_t i = 0; i < nr; i++) {
		const uint8_t *run = bytes + SUMS_LIST_HEAD + i * SUMS_LIST_RUN;
		struct sums_found found = {.is_list = true,
			.run = {be64_get(run), be64_get(run + 8), kind},
			.sequence = sequence,
			.end = at + *capacity};
		if (range_fits(found.run.first, found.run.nr, sums_nr_segments(facts)) &&
			callback(context, &found, err) < 0)
			return -1;
	}
	return 0;
}

static int take_segment(const struct sums_facts *facts, uint64_t at, uint8_t *bytes, size_t length,
	struct sums_segment *room, uint32_t *capacity, sums_scan_callback *callback, void *context,
	struct err *err)
{
	struct sums_found found = {0};
	*capacity = 0;
	if (!sums_segment_parse(facts, bytes, length, &found.entry, &found.capacity, room))
		return 0;
	*capacity = found.capacity;
	found.entry.offset = at;
	found.sequence = sequence_of(bytes, length, &found.entry);
	found.end = at + found.capacity;
	return callback(context, &found, err);
}

static int scan(const struct sums_facts *facts, struct window *w, struct sums_segment *room,
	sums_scan_callback *callback, void *context, struct err *err)
{
	for (uint64_t at = SUMS_BLOCK; at < w->file_bytes;) {
		size_t length;
		uint32_t capacity;
		uint8_t *bytes = look_at(w, at, &length, err);
		if (!bytes ||
			take_list(facts, at, bytes, length, &capacity, callback, context, err) < 0)
			return -1;
		if (capacity == 0 && take_segment(facts, at, bytes, length, room, &capacity,
					     callback, context, err) < 0)
			return -1;
		at += capacity > 0 ? capacity : SUMS_BLOCK;
	}
	return 0;
}

int sums_scan(const struct sums_facts *facts, int fd, const char *path,
	sums_scan_callback *callback, void *context, struct err *err)
{
	struct stat st;
	struct window w = {.fd = fd, .path = path};
	if (fstat(fd, &st) < 0)
		return err_errno(err, errno, "cannot stat %s", path);
	w.file_bytes = (uint64_t)st.st_size;
	struct sums_segment *room = sums_segment_new(facts);
	w.bytes = malloc(WINDOW_BYTES);
	int rc = room && w.bytes ? scan(facts, &w, room, callback, context, err)
				 : err_errno(err, ENOMEM, "cannot read %s", path);
	free(w.bytes);
	free(room);
	return rc;
}
