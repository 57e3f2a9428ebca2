/*
 *   block of 512 bytes     0 100 name             156   1 kind: '0', or 0
 *                        100   8 mode             257   6 "ustar\0"
 *                        108  16 uid, gid         263   2 "00"
 *                        124  12 length, octal    148   8 checksum: sum of all bytes, with
 *                        136  12 time, octal              these as spaces
 *   the bytes, padded with zeros to whole blocks; two blocks of zeros at the end
 */
#include "tar.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#define BLOCK 512u
#define LENGTH_MOST ((uint64_t)8 << 30) /* of a member; eleven octal digits hold it */
#define COPY_BYTES ((size_t)256 << 10)

static unsigned checksum(const uint8_t block[BLOCK])
{
	unsigned sum = 0;
	for (unsigned i = 0; i < BLOCK; i++)
		sum += i >= 148 && i < 156 ? ' ' : block[i];
	return sum;
}

static int write_header(
	struct tar_writer *tar, const char *name, uint64_t length, int64_t time, struct err *err)
{
	static const char magic[8] = {'u', 's', 't', 'a', 'r', '\0', '0', '0'};
	uint8_t block[BLOCK] = {0};
	if (strlen(name) >= TAR_NAME_BYTES - 1 || length >= LENGTH_MOST)
		return err_set(
			err, ERR_USAGE, "%s: \"%s\" does not fit into an archive", tar->path, name);
	memcpy(block, name, strlen(name) + 1);
	memcpy(block + 100, "0000600\0000000000\0000000000", 24);
	snprintf((char *)block + 124, 12, "%011" PRIo64, length);
	snprintf((char *)block + 136, 12, "%011" PRIo64, (uint64_t)time & 077777777777);
	block[156] = '0';
	memcpy(block + 257, magic, sizeof magic);
	snprintf((char *)block + 148, 7, "%06o", checksum(block));
	block[155] = ' ';
	int rc = file_pwrite(tar->fd, block, BLOCK, tar->at, tar->path, err);
	tar->at += BLOCK;
	return rc;
}

static int copy_bytes(
	struct tar_writer *tar, const char *name, uint64_t length, int from, struct err *err)
{
	char *AUTO_FREE buffer = malloc(COPY_BYTES);
	if (!buffer)
		return err_errno(err, ENOMEM, "cannot write %s", tar->path);
	for (uint64_t at = 0; at < length;) {
		size_t part = (size_t)min_u64(COPY_BYTES, length - at);
		if (file_pread(from, buffer, part, at, name, err) < 0 ||
			file_pwrite(tar->fd, buffer, part, tar->at + at, tar->path, err) < 0)
			return -1;
		at += part;
	}
	return 0;
}

int tar_add(struct tar_writer *tar, const char *name, uint64_t length, int64_t time, int from,
	const void *bytes, struct err *err)
{
	static const uint8_t zeros[BLOCK];
	if (write_header(tar, name, length, time, err) < 0)
		return -1;
	int rc = from >= 0 ? copy_bytes(tar, name, length, from, err)
			   : file_pwrite(tar->fd, bytes, (size_t)length, tar->at, tar->path, err);
	if (rc < 0)
		return -1;
	uint64_t end = round_up(length, BLOCK);
	rc = file_pwrite(tar->fd, zeros, (size_t)(end - length), tar->at + length, tar->path, err);
	tar->at += end;
	return rc;
}

int tar_end(struct tar_writer *tar, struct err *err)
{
	static const uint8_t zeros[2 * BLOCK];
	return file_pwrite(tar->fd, zeros, sizeof zeros, tar->at, tar->path, err);
}

/* --- reading -------------------------------------------------------------------------------- */

/* Octal digits, ended by a zero, a blank or the field's end. */
static bool parse_octal(const uint8_t *field, size_t bytes, uint64_t *value)
{
	size_t i = 0;
	*value = 0;
	while (i < bytes && field[i] == ' ')
		i++;
	size_t first = i;
	for (; i < bytes && field[i] >= '0' && field[i] <= '7'; i++)
		*value = *value << 3 | (uint64_t)(field[i] - '0');
	return i > first && (i == bytes || field[i] == ' ' || field[i] == 0);
}

static bool is_zero(const uint8_t block[BLOCK])
{
	for (unsigned i = 0; i < BLOCK; i++)
		if (block[i])
			return false;
	return true;
}

int tar_next(struct tar_reader *tar, struct tar_member *member, struct err *err)
{
	uint8_t block[BLOCK];
	uint64_t sum, length;
	struct stat st;
	struct err why = ERR_INIT;
	if (fstat(tar->fd, &st) < 0)
		return err_errno(err, errno, "cannot read %s", tar->path);
	uint64_t size = (uint64_t)st.st_size;
	if (!range_fits(tar->at, BLOCK, size))
		return err_set(err, ERR_FORMAT, "%s ends in the middle: it was cut", tar->path);
	if (file_pread(tar->fd, block, BLOCK, tar->at, tar->path, &why) < 0)
		return err_copy(err, &why);
	if (is_zero(block))
		return 0;
	if (memcmp(block + 257, "ustar", 5) != 0 || !parse_octal(block + 148, 8, &sum) ||
		sum != checksum(block))
		return err_set(err, ERR_FORMAT, "%s is no tar archive, or damaged at %" PRIu64,
			tar->path, tar->at);
	if (!parse_octal(block + 124, 12, &length) || length >= LENGTH_MOST || block[345] != 0 ||
		(block[156] != '0' && block[156] != 0))
		return err_set(err, ERR_FORMAT,
			"%s holds what an export never does: no plain file at %" PRIu64, tar->path,
			tar->at);
	memcpy(member->name, block, TAR_NAME_BYTES - 1);
	member->name[TAR_NAME_BYTES - 1] = '\0';
	member->offset = tar->at + BLOCK;
	member->length = length;
	if (!range_fits(member->offset, length, size))
		return err_set(err, ERR_FORMAT, "%s ends in the middle of %.100s: it was cut",
			tar->path, member->name);
	tar->at = member->offset + round_up(length, BLOCK);
	return 1;
}
