/*
 * The list's file.
 *
 *      | first line | extents ...                                  | end line |
 *                   | block 0     | block 1     | ...  | block n-1 |
 *
 * Checking cuts the extents' lines into blocks of at most block_bytes, and keeps of
 * each where it lies, the disk's offset at which it begins, and a digest of its bytes.
 * Longer files have larger blocks, so that there are never more than some 18,000.
 * To find an extent again its block is read, held against the digest (the file may have
 * been changed under us) and decoded whole; the last one stays decoded, and whoever
 * walks the disk finds the next extent there.
 */
#include "changes_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <xxhash.h>

#define BLOCK_BYTES_LEAST ((uint64_t)CHANGES_FIRST_LINE_BYTES_MAX + 1)
#define BLOCKS_WANTED 16384u
#define EXTENT_LINE_BYTES_LEAST 24u /* {"offset":0,"length":1} and its end */
#define NO_BLOCK SIZE_MAX

struct list_block {
	uint64_t file_offset, bytes; /* its lines */
	uint64_t first_line; /* its number in the file, from 1 */
	uint64_t first_offset; /* of the disk */
	XXH64_hash_t digest;
};

struct changes {
	char *path;
	int fd;
	struct stat as_opened;
	struct changes_header header;
	struct changes_facts facts;
	struct list_block *blocks;
	size_t nr_blocks, room_for_blocks;
	size_t block_bytes;

	pthread_mutex_t mutex; /* what follows */
	char *buffer; /* block_bytes */
	struct changes_extent *extents; /* of the block that is decoded */
	size_t nr_extents, decoded; /* which one, or NO_BLOCK */
};

/* How far checking is. */
struct check {
	uint64_t line; /* the number of the line, from 1 */
	uint64_t reached; /* the end of the extent before */
	uint64_t count, bytes;
	bool ended;
	struct list_block block; /* that grows; bytes 0: none does */
};

/* --- checking -------------------------------------------------------------------- */

static int wrong(const struct changes *c, uint64_t line, struct err *err)
{
	return err_context(err, "cannot use the extents file %s: line %" PRIu64, c->path, line);
}

static int take_header(struct changes *c, const char *line, size_t length, struct err *err)
{
	if (changes_line_header(line, length, &c->header, err) < 0)
		return -1;
	c->facts = (struct changes_facts){
		.key = c->header.key,
		.size_bytes = c->header.size_bytes,
		.from = c->header.from,
		.to = c->header.to,
	};
	return 0;
}

static int take_extent(
	struct changes *c, struct check *check, const struct changes_extent *e, struct err *err)
{
	if (e->length == 0)
		return err_set(err, ERR_FORMAT, "has a length of 0");
	if (e->offset < check->reached)
		return err_set(err, ERR_FORMAT,
			"begins at offset %" PRIu64
			", before the end of the extent before it, %" PRIu64
			": they overlap, or are not sorted",
			e->offset, check->reached);
	if (!range_fits(e->offset, e->length, c->facts.size_bytes))
		return err_set(err, ERR_FORMAT,
			"leads past the end of the disk: %" PRIu64 " bytes at offset %" PRIu64
			" of %" PRIu64,
			e->length, e->offset, c->facts.size_bytes);
	check->reached = e->offset + e->length;
	check->count++;
	check->bytes += e->length;
	return 0;
}

static int take_end(
	struct changes *c, struct check *check, const char *line, size_t length, struct err *err)
{
	uint64_t count, bytes;
	if (changes_line_end(line, length, &count, &bytes, err) < 0)
		return -1;
	if (count != check->count || bytes != check->bytes)
		return err_set(err, ERR_FORMAT,
			"tells of %" PRIu64 " extents with %" PRIu64
			" bytes, and there are %" PRIu64 " with %" PRIu64,
			count, bytes, check->count, check->bytes);
	c->facts.count = count;
	c->facts.bytes = bytes;
	check->ended = true;
	return 0;
}

/* One line at file_offset, with its end (if it has one) line_bytes long. */
static int take_line(struct changes *c, struct check *check, const char *line, size_t line_bytes,
	uint64_t file_offset, struct err *err)
{
	bool whole = line[line_bytes - 1] == '\n';
	size_t length = line_bytes - whole;
	struct changes_extent extent;
	check->line++;
	if (check->ended)
		return err_set(err, ERR_FORMAT, "stands behind the end line");
	if (check->line == 1)
		return take_header(c, line, length, err);
	if (length > CHANGES_LINE_BYTES_MAX)
		return err_set(err, ERR_FORMAT, "is longer than %u bytes", CHANGES_LINE_BYTES_MAX);
	if (!changes_line_extent(line, length, &extent)) {
		if (!whole && line[length - 1] != '}')
			return err_set(err, ERR_FORMAT, "is cut off");
		return take_end(c, check, line, length, err);
	}
	if (take_extent(c, check, &extent, err) < 0)
		return -1;
	if (check->block.bytes == 0)
		check->block = (struct list_block){.file_offset = file_offset,
			.first_line = check->line,
			.first_offset = extent.offset};
	check->block.bytes += line_bytes;
	return 0;
}

/* The block that grew is whole; its lines are in the buffer, which begins at file_offset. */
static int add_block(struct changes *c, struct check *check, uint64_t file_offset, struct err *err)
{
	if (check->block.bytes == 0)
		return 0;
	if (c->nr_blocks == c->room_for_blocks) {
		size_t room = c->room_for_blocks ? 2 * c->room_for_blocks : 64;
		struct list_block *blocks = reallocarray(c->blocks, room, sizeof *blocks);
		if (!blocks)
			return err_errno(err, ENOMEM, "cannot check %s", c->path);
		c->blocks = blocks;
		c->room_for_blocks = room;
	}
	const char *text = c->buffer + (check->block.file_offset - file_offset);
	check->block.digest = XXH3_64bits(text, (size_t)check->block.bytes);
	c->blocks[c->nr_blocks++] = check->block;
	check->block.bytes = 0;
	return 0;
}

/* The whole lines in the buffer, which holds `bytes` from file_offset on; tells in
 * *used how many bytes they are. */
static int take_lines(struct changes *c, struct check *check, size_t bytes, uint64_t file_offset,
	size_t *used, struct err *err)
{
	bool last = file_offset + bytes == (uint64_t)c->as_opened.st_size;
	*used = 0;
	while (*used < bytes) {
		const char *line = c->buffer + *used;
		const char *end = memchr(line, '\n', bytes - *used);
		size_t line_bytes = end ? (size_t)(end - line) + 1 : bytes - *used;
		if (!end && !last)
			break;
		if (take_line(c, check, line, line_bytes, file_offset + *used, err) < 0)
			return wrong(c, check->line, err);
		*used += line_bytes;
	}
	if (*used == 0) {
		err_set(err, ERR_FORMAT, "is longer than %u bytes",
			check->line ? CHANGES_LINE_BYTES_MAX : CHANGES_FIRST_LINE_BYTES_MAX);
		return wrong(c, check->line + 1, err);
	}
	return add_block(c, check, file_offset, err);
}

static int check_all(struct changes *c, struct cancel *cancel, struct err *err)
{
	struct check check = {.line = 0};
	uint64_t size = (uint64_t)c->as_opened.st_size, at = 0;
	while (at < size) {
		size_t bytes = min_size(c->block_bytes, size - at), used;
		if (cancel_check(cancel, err) < 0 ||
			file_pread(c->fd, c->buffer, bytes, at, c->path, err) < 0 ||
			take_lines(c, &check, bytes, at, &used, err) < 0)
			return -1;
		at += used;
	}
	if (check.ended)
		return 0;
	return err_set(err, ERR_FORMAT,
		"cannot use the extents file %s: it ends behind line %" PRIu64
		" without an end line: it was cut off, or is not finished yet",
		c->path, check.line);
}

/* --- finding again ------------------------------------------------------------------- */

static int not_the_same(const struct changes *c, struct err *err)
{
	return err_set(err, ERR_FORMAT,
		"cannot use the extents file %s: it was changed after it had been checked",
		c->path);
}

static int check_file(struct changes *c, struct err *err)
{
	struct stat now;
	if (fstat(c->fd, &now) < 0)
		return err_errno(err, errno, "cannot look at %s", c->path);
	if (now.st_size != c->as_opened.st_size ||
		now.st_mtim.tv_sec != c->as_opened.st_mtim.tv_sec ||
		now.st_mtim.tv_nsec != c->as_opened.st_mtim.tv_nsec)
		return not_the_same(c, err);
	return 0;
}

static int decode(struct changes *c, size_t index, struct err *err)
{
	const struct list_block *block = &c->blocks[index];
	if (c->decoded == index)
		return 0;
	c->decoded = NO_BLOCK;
	c->nr_extents = 0;
	if (check_file(c, err) < 0 || file_pread(c->fd, c->buffer, (size_t)block->bytes,
					      block->file_offset, c->path, err) < 0)
		return -1;
	if (XXH3_64bits(c->buffer, (size_t)block->bytes) != block->digest)
		return not_the_same(c, err);
	const char *line = c->buffer, *end = line + block->bytes;
	while (line < end) {
		const char *stop = memchr(line, '\n', (size_t)(end - line));
		if (!stop)
			stop = end;
		if (!changes_line_extent(line, (size_t)(stop - line), &c->extents[c->nr_extents]))
			return not_the_same(c, err);
		c->nr_extents++;
		line = stop + 1;
	}
	c->decoded = index;
	return 0;
}

/* The last block that begins at or before offset, or the first. */
static size_t find_block(const struct changes *c, uint64_t offset)
{
	size_t low = 0, high = c->nr_blocks;
	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;
		if (c->blocks[middle].first_offset <= offset)
			low = middle;
		else
			high = middle;
	}
	return low;
}

/* The first decoded extent that ends behind offset, or nr_extents. */
static size_t find_extent(const struct changes *c, uint64_t offset)
{
	size_t low = 0, high = c->nr_extents;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (c->extents[middle].offset + c->extents[middle].length <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

int changes_next(
	struct changes *c, uint64_t offset, uint64_t *start, uint64_t *end, struct err *err)
{
	WITH_LOCK(&c->mutex);
	*start = *end = c->facts.size_bytes;
	for (size_t i = find_block(c, offset); i < c->nr_blocks; i++) {
		if (decode(c, i, err) < 0)
			return -1;
		size_t found = find_extent(c, offset);
		if (found == c->nr_extents)
			continue; /* then it is the next one's first */
		*start = c->extents[found].offset;
		*end = *start + c->extents[found].length;
		break;
	}
	return 0;
}

/* --- opening and closing --------------------------------------------------------------- */

static int take_file(struct changes *c, struct err *err)
{
	if (c->fd < 0 || fstat(c->fd, &c->as_opened) < 0)
		return err_errno(err, errno, "cannot open the extents file %s", c->path);
	if (!S_ISREG(c->as_opened.st_mode))
		return err_set(err, ERR_USAGE,
			"cannot use the extents file %s: it is not a regular file, and it is read "
			"twice",
			c->path);
	return 0;
}

static int open_file(struct changes *c, struct err *err)
{
	/* Not to wait for the writer of a pipe. */
	c->fd = open(c->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (c->fd >= 0 && guard_ask(c->fd, c->path, NULL, err) < 0)
		return -1;
	return take_file(c, err);
}

static int allocate(struct changes *c, struct err *err)
{
	uint64_t wanted = (uint64_t)c->as_opened.st_size / BLOCKS_WANTED;
	c->block_bytes = (size_t)max_u64(wanted, BLOCK_BYTES_LEAST);
	c->buffer = malloc(c->block_bytes);
	c->extents = calloc(c->block_bytes / EXTENT_LINE_BYTES_LEAST + 1, sizeof *c->extents);
	if (!c->buffer || !c->extents)
		return err_errno(err, ENOMEM, "cannot open the extents file %s", c->path);
	return 0;
}

static struct changes *make(const char *path, struct err *err)
{
	struct changes *c = calloc(1, sizeof *c);
	if (c)
		c->path = strdup(path);
	if (!c || !c->path) {
		free(c);
		err_errno(err, ENOMEM, "cannot open the extents file %s", path);
		return NULL;
	}
	pthread_mutex_init(&c->mutex, NULL);
	c->fd = -1;
	c->decoded = NO_BLOCK;
	return c;
}

static struct changes *check_whole(struct changes *c, struct cancel *cancel, struct err *err)
{
	if (allocate(c, err) == 0 && check_all(c, cancel, err) == 0)
		return c;
	changes_close(c);
	return NULL;
}

struct changes *changes_open(const char *path, struct cancel *cancel, struct err *err)
{
	struct changes *c = make(path, err);
	if (c && open_file(c, err) == 0)
		return check_whole(c, cancel, err);
	changes_close(c);
	return NULL;
}

struct changes *changes_open_own(int fd, const char *name, struct cancel *cancel, struct err *err)
{
	struct changes *c = make(name, err);
	if (c)
		c->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (c && take_file(c, err) == 0)
		return check_whole(c, cancel, err);
	changes_close(c);
	return NULL;
}

void changes_close(struct changes *c)
{
	if (!c)
		return;
	if (c->fd >= 0)
		close(c->fd);
	pthread_mutex_destroy(&c->mutex);
	free(c->extents);
	free(c->buffer);
	free(c->blocks);
	free(c->path);
	free(c);
}

const struct changes_facts *changes_facts(const struct changes *c)
{
	return &c->facts;
}

const char *changes_path(const struct changes *c)
{
	return c->path;
}
