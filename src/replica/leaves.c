/* The digests of what a target holds, and what was told of it; see replica_internal.h. */
#include "replica_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* What is read or written at once. */
#define WINDOW_CHUNKS 4096u
/* As many as a sink is told of. */
#define TOLD_MOST 64u

static const uint8_t zero_leaf[REPLICA_LEAF_BYTES];

/* --- files ---------------------------------------------------------------------------- */

static int open_sized(int dir_fd, const char *name, uint64_t bytes, bool fresh, struct err *err)
{
	int fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | (fresh ? O_TRUNC : 0), 0600);
	if (fd < 0)
		return err_errno(err, errno, "cannot open %s", name);
	if (bytes <= INT64_MAX && ftruncate(fd, (off_t)bytes) == 0)
		return fd;
	err_errno(err, errno, "cannot make %s %" PRIu64 " bytes long", name, bytes);
	close(fd);
	return -1;
}

int leaves_open(struct leaves *leaves, int dir_fd, const char *key, uint64_t size_bytes, bool fresh,
	struct err *err)
{
	char name[REPOSITORY_KEY_BYTES + 16];
	leaves->size_bytes = size_bytes;
	leaves->nr_chunks = div_round_up(size_bytes, DIGEST_CHUNK_BYTES);
	leaves->marks_fd = -1;
	snprintf(name, sizeof name, "%s.leaves", key);
	snprintf(leaves->label, sizeof leaves->label, "the digests of disk %s", key);
	leaves->fd = open_sized(dir_fd, name, leaves->nr_chunks * REPLICA_LEAF_BYTES, fresh, err);
	return leaves->fd < 0 ? -1 : 0;
}

static void marks_name(char name[REPOSITORY_KEY_BYTES + 32], const char *key, uint64_t generation)
{
	snprintf(name, REPOSITORY_KEY_BYTES + 32, "%s.told-%" PRIu64, key, generation);
}

int leaves_open_marks(struct leaves *leaves, int dir_fd, const char *key, uint64_t generation,
	bool fresh, struct err *err)
{
	char name[REPOSITORY_KEY_BYTES + 32];
	marks_name(name, key, generation);
	leaves->marks_fd = open_sized(dir_fd, name, leaves->nr_chunks, fresh, err);
	return leaves->marks_fd < 0 ? -1 : 0;
}

void leaves_drop_marks(int dir_fd, const char *key, uint64_t generation)
{
	char name[REPOSITORY_KEY_BYTES + 32];
	marks_name(name, key, generation);
	/* One that stays is of a generation that does not come again. */
	if (unlinkat(dir_fd, name, 0) < 0 && errno != ENOENT)
		log_warning("cannot remove %s: %s", name, strerror(errno));
}

void leaves_close(struct leaves *leaves)
{
	if (leaves->fd >= 0)
		close(leaves->fd);
	if (leaves->marks_fd >= 0)
		close(leaves->marks_fd);
	leaves->fd = leaves->marks_fd = -1;
}

int leaves_sync(struct leaves *leaves, struct err *err)
{
	if (fsync(leaves->fd) < 0 || (leaves->marks_fd >= 0 && fsync(leaves->marks_fd) < 0))
		return err_errno(err, errno, "cannot sync %s", leaves->label);
	return 0;
}

/* --- reading --------------------------------------------------------------------------- */

static int read_leaves(
	struct leaves *leaves, uint64_t first, uint64_t nr, uint8_t *out, struct err *err)
{
	return file_pread(leaves->fd, out, (size_t)nr * REPLICA_LEAF_BYTES,
		first * REPLICA_LEAF_BYTES, leaves->label, err);
}

/* Where no run is, nothing has a mark. */
static int read_marks(
	struct leaves *leaves, uint64_t first, uint64_t nr, uint8_t *out, struct err *err)
{
	if (leaves->marks_fd < 0) {
		memset(out, MARK_NONE, (size_t)nr);
		return 0;
	}
	return file_pread(leaves->marks_fd, out, (size_t)nr, first, leaves->label, err);
}

int leaves_get(struct leaves *leaves, uint64_t chunk, uint8_t leaf[REPLICA_LEAF_BYTES],
	enum leaf_mark *mark, struct err *err)
{
	uint8_t byte = 0;
	if (read_leaves(leaves, chunk, 1, leaf, err) < 0 ||
		read_marks(leaves, chunk, 1, &byte, err) < 0)
		return -1;
	*mark = byte;
	return 0;
}

/* From chunk on, the next that may be no hole in the file, which has bytes for each. */
static uint64_t skip_hole(const struct leaves *leaves, int fd, unsigned bytes, uint64_t chunk)
{
	off_t data = lseek(fd, (off_t)(chunk * bytes), SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? leaves->nr_chunks : chunk;
	return max_u64(chunk, (uint64_t)data / bytes);
}

int leaves_next_data(
	struct leaves *leaves, uint64_t chunk, uint64_t end, uint64_t *found, struct err *err)
{
	uint8_t window[64 * REPLICA_LEAF_BYTES];
	while (chunk < end &&
		(chunk = skip_hole(leaves, leaves->fd, REPLICA_LEAF_BYTES, chunk)) < end) {
		uint64_t nr = min_u64(64, end - chunk);
		if (read_leaves(leaves, chunk, nr, window, err) < 0)
			return -1;
		for (uint64_t i = 0; i < nr; i++, chunk++) {
			if (memcmp(window + i * REPLICA_LEAF_BYTES, zero_leaf, sizeof zero_leaf) ==
				0)
				continue;
			*found = chunk;
			return 0;
		}
	}
	*found = end;
	return 0;
}

int leaves_next_told(
	struct leaves *leaves, uint64_t chunk, uint64_t end, uint64_t *found, struct err *err)
{
	uint8_t marks[WINDOW_CHUNKS];
	*found = end;
	while (chunk < end && (chunk = skip_hole(leaves, leaves->marks_fd, 1, chunk)) < end) {
		uint64_t nr = min_u64(WINDOW_CHUNKS, end - chunk);
		if (read_marks(leaves, chunk, nr, marks, err) < 0)
			return -1;
		const uint8_t *told = memchr(marks, MARK_TOLD, (size_t)nr);
		if (told) {
			*found = chunk + (uint64_t)(told - marks);
			return 0;
		}
		chunk += nr;
	}
	return 0;
}

int leaves_root(struct leaves *leaves, struct cancel *cancel, uint8_t root[DIGEST_ROOT_BYTES],
	struct err *err)
{
	struct digest_tree tree;
	uint64_t chunk = 0, next;
	digest_tree_init(&tree, DIGEST_XXH3_128, leaves->size_bytes);
	while (chunk < leaves->nr_chunks) {
		uint8_t window[64 * REPLICA_LEAF_BYTES];
		if (cancel_check(cancel, err) < 0 ||
			leaves_next_data(leaves, chunk, leaves->nr_chunks, &next, err) < 0)
			return -1;
		if (next > chunk)
			digest_tree_zeros(&tree, next - chunk);
		chunk = next;
		uint64_t nr = min_u64(64, leaves->nr_chunks - chunk);
		if (nr > 0 && read_leaves(leaves, chunk, nr, window, err) < 0)
			return -1;
		for (uint64_t i = 0; i < nr; i++, chunk++) {
			const uint8_t *leaf = window + i * REPLICA_LEAF_BYTES;
			if (memcmp(leaf, zero_leaf, sizeof zero_leaf) == 0)
				digest_tree_zeros(&tree, 1);
			else
				digest_tree_leaf(&tree, leaf);
		}
	}
	digest_tree_root(&tree, root);
	return 0;
}

/* --- telling ------------------------------------------------------------------------------ */

static int put_marks(
	struct leaves *leaves, uint64_t first, uint64_t nr, enum leaf_mark mark, struct err *err)
{
	uint8_t bytes[WINDOW_CHUNKS];
	memset(bytes, (int)mark, sizeof bytes);
	for (uint64_t done = 0; done < nr;) {
		uint64_t here = min_u64(nr - done, sizeof bytes);
		if (file_pwrite(leaves->marks_fd, bytes, (size_t)here, first + done, leaves->label,
			    err) < 0)
			return -1;
		done += here;
	}
	return 0;
}

int leaves_tell(struct leaves *leaves, uint64_t first, unsigned nr, const uint8_t *of,
	uint64_t zero_mask, enum leaf_mark mark, struct err *err)
{
	uint8_t packed[TOLD_MOST * REPLICA_LEAF_BYTES] = {0};
	if (!range_fits(first, nr, leaves->nr_chunks) || nr > TOLD_MOST)
		return err_set(err, ERR_RANGE, "%s: beyond the end of the disk", leaves->label);
	for (unsigned i = 0; i < nr; i++)
		if (!(zero_mask >> i & 1))
			memcpy(packed + (size_t)i * REPLICA_LEAF_BYTES,
				of + (size_t)i * DIGEST_LEAF_BYTES_MAX, REPLICA_LEAF_BYTES);
	if (put_marks(leaves, first, nr, mark, err) < 0)
		return -1;
	return file_pwrite(leaves->fd, packed, (size_t)nr * REPLICA_LEAF_BYTES,
		first * REPLICA_LEAF_BYTES, leaves->label, err);
}

int leaves_tell_zeros(
	struct leaves *leaves, uint64_t first, uint64_t nr, enum leaf_mark mark, struct err *err)
{
	if (!range_fits(first, nr, leaves->nr_chunks))
		return err_set(err, ERR_RANGE, "%s: beyond the end of the disk", leaves->label);
	if (put_marks(leaves, first, nr, mark, err) < 0)
		return -1;
	/* Holes are zeros already, so only what is there is written. */
	static const uint8_t zeros[64 * REPLICA_LEAF_BYTES];
	for (uint64_t chunk = first, end = first + nr, next; chunk < end; chunk = next) {
		if (leaves_next_data(leaves, chunk, end, &chunk, err) < 0)
			return -1;
		if (chunk >= end)
			break;
		next = min_u64(end, chunk + 64);
		if (file_pwrite(leaves->fd, zeros, (size_t)(next - chunk) * REPLICA_LEAF_BYTES,
			    chunk * REPLICA_LEAF_BYTES, leaves->label, err) < 0)
			return -1;
	}
	return 0;
}

/* --- comparing ------------------------------------------------------------------------------- */

static bool same_leaf(const uint8_t *ours, const uint8_t *of, bool is_zero)
{
	return memcmp(ours, is_zero ? zero_leaf : of, REPLICA_LEAF_BYTES) == 0;
}

/* What this run has told may not have come to the target, if its connection was lost. */
static bool is_known(const struct leaves *leaves, uint8_t mark)
{
	return mark == MARK_LOOKED || (mark == MARK_NONE && !leaves->unknown);
}

int leaves_same(struct leaves *leaves, uint64_t first, unsigned nr, const uint8_t *of,
	uint64_t zero_mask, uint64_t *same, struct err *err)
{
	uint8_t ours[TOLD_MOST * REPLICA_LEAF_BYTES], marks[TOLD_MOST];
	*same = 0;
	if (!range_fits(first, nr, leaves->nr_chunks) || nr > TOLD_MOST)
		return err_set(err, ERR_RANGE, "%s: beyond the end of the disk", leaves->label);
	if (read_leaves(leaves, first, nr, ours, err) < 0 ||
		read_marks(leaves, first, nr, marks, err) < 0)
		return -1;
	for (unsigned i = 0; i < nr; i++)
		if (is_known(leaves, marks[i]) &&
			same_leaf(ours + (size_t)i * REPLICA_LEAF_BYTES,
				of + (size_t)i * DIGEST_LEAF_BYTES_MAX, zero_mask >> i & 1))
			*same |= (uint64_t)1 << i;
	return 0;
}

int leaves_same_zeros(struct leaves *leaves, uint64_t first, uint64_t nr, uint64_t *nr_alike,
	bool *same, struct err *err)
{
	uint8_t marks[WINDOW_CHUNKS];
	uint64_t here = min_u64(nr, WINDOW_CHUNKS), data;
	if (!range_fits(first, nr, leaves->nr_chunks))
		return err_set(err, ERR_RANGE, "%s: beyond the end of the disk", leaves->label);
	if (read_marks(leaves, first, here, marks, err) < 0 ||
		leaves_next_data(leaves, first, first + here, &data, err) < 0)
		return -1;
	*same = data > first && is_known(leaves, marks[0]);
	/* Data is looked at one by one: such runs are short. */
	if (data == first)
		here = 1;
	else
		here = min_u64(here, data - first);
	*nr_alike = 1;
	while (*nr_alike < here && is_known(leaves, marks[*nr_alike]) == is_known(leaves, marks[0]))
		(*nr_alike)++;
	return 0;
}

static int differs(uint64_t chunk, struct err *err)
{
	return err_set(err, ERR_CORRUPT, "the target holds something else at offset %" PRIu64,
		chunk * DIGEST_CHUNK_BYTES);
}

int leaves_compare(struct leaves *leaves, uint64_t first, unsigned nr, const uint8_t *of,
	uint64_t zero_mask, struct err *err)
{
	uint8_t ours[TOLD_MOST * REPLICA_LEAF_BYTES];
	if (!range_fits(first, nr, leaves->nr_chunks) || nr > TOLD_MOST)
		return err_set(err, ERR_RANGE, "%s: beyond the end of the disk", leaves->label);
	if (read_leaves(leaves, first, nr, ours, err) < 0)
		return -1;
	for (unsigned i = 0; i < nr; i++)
		if (!same_leaf(ours + (size_t)i * REPLICA_LEAF_BYTES,
			    of + (size_t)i * DIGEST_LEAF_BYTES_MAX, zero_mask >> i & 1))
			return differs(first + i, err);
	return 0;
}

int leaves_compare_zeros(struct leaves *leaves, uint64_t first, uint64_t nr, struct err *err)
{
	uint64_t data;
	if (leaves_next_data(leaves, first, first + nr, &data, err) < 0)
		return -1;
	return data < first + nr ? differs(data, err) : 0;
}

/* --- the map ------------------------------------------------------------------------------------
 */

/* Puts one extent, cut where marks begin and end; false when out is full. */
static int put_extent(const struct leaves_map *map, uint64_t offset, struct block_extent extent,
	struct block_extent *out, size_t max, size_t *nr, bool *full, struct err *err)
{
	uint8_t marks[WINDOW_CHUNKS];
	uint64_t end = offset + extent.length;
	while (offset < end) {
		uint64_t first = offset / DIGEST_CHUNK_BYTES;
		uint64_t chunks =
			min_u64(WINDOW_CHUNKS, div_round_up(end, DIGEST_CHUNK_BYTES) - first);
		if (read_marks(map->leaves, first, chunks, marks, err) < 0)
			return -1;
		for (uint64_t i = 0; i < chunks; i++) {
			uint64_t to = min_u64(end, (first + i + 1) * DIGEST_CHUNK_BYTES);
			uint32_t flags = extent.flags;
			if (marks[i] != MARK_NONE)
				flags &= ~BLOCK_UNCHANGED;
			else if (map->only)
				flags |= BLOCK_UNCHANGED;
			*full = !block_remap_put(out, max, nr, to - offset, flags);
			if (*full)
				return 0;
			offset = to;
		}
	}
	return 0;
}

int leaves_remap(void *context, uint64_t offset, const struct block_extent *from, size_t nr_from,
	struct block_extent *out, size_t max, size_t *nr, struct err *err)
{
	const struct leaves_map *map = context;
	bool full = false;
	*nr = 0;
	for (size_t i = 0; i < nr_from && !full; offset += from[i++].length)
		if (put_extent(map, offset, from[i], out, max, nr, &full, err) < 0)
			return -1;
	return 0;
}
