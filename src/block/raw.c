/*
 * Raw files and block devices.
 *
 * Holes come from SEEK_DATA/SEEK_HOLE, zeroing is a punched hole where the file
 * system or device can do that.  What it can't is found out by trying, once,
 * and remembered.
 */
#include "block.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define ZERO_PIECE_BYTES (256 * 1024)

struct raw {
	struct block block;
	int fd;
	bool is_device;
	atomic_bool can_punch, can_zero_range;
	atomic_bool lost; /* a sync failed */
};

static struct raw *raw_of(struct block *block)
{
	return (struct raw *)block;
}

static int raw_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	return file_pread(raw_of(block)->fd, buffer, length, offset, block_label(block), err);
}

static int raw_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	(void)flags;
	return file_pwrite(raw_of(block)->fd, buffer, length, offset, block_label(block), err);
}

static int write_zeros(struct raw *raw, uint64_t offset, uint64_t length, struct err *err)
{
	static const uint8_t zeros[ZERO_PIECE_BYTES];
	while (length > 0) {
		size_t n = (size_t)min_u64(length, sizeof zeros);
		if (file_pwrite(raw->fd, zeros, n, offset, block_label(&raw->block), err) < 0)
			return -1;
		offset += n;
		length -= n;
	}
	return 0;
}

static bool not_offered(int errnum)
{
	return errnum == EOPNOTSUPP || errnum == ENOSYS || errnum == ENODEV || errnum == EINVAL;
}

/* Tries one way of fallocate; 1 done, 0 not offered here, -1 failed. */
static int try_fallocate(struct raw *raw, atomic_bool *offered, int mode, uint64_t offset,
	uint64_t length, struct err *err)
{
	if (!atomic_load_explicit(offered, memory_order_relaxed))
		return 0;
	int rc;
	do {
		rc = fallocate(raw->fd, mode, (off_t)offset, (off_t)length);
	} while (rc < 0 && errno == EINTR);
	if (rc == 0)
		return 1;
	if (!not_offered(errno))
		return err_errno(err, errno, "cannot zero %s", block_label(&raw->block));
	/* A device answers EINVAL for a range that is not aligned to its sectors:
	 * that says nothing about the next range. */
	if (errno != EINVAL)
		atomic_store(offered, false);
	return 0;
}

static int raw_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	struct raw *raw = raw_of(block);
	int rc = 0;
	if (!(flags & BLOCK_NO_HOLE))
		rc = try_fallocate(raw, &raw->can_punch, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			offset, length, err);
	if (rc == 0)
		rc = try_fallocate(raw, &raw->can_zero_range,
			FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length, err);
	if (rc != 0)
		return rc < 0 ? -1 : 0;
	if (flags & BLOCK_FAST_ZERO)
		return err_set(err, ERR_UNSUPPORTED, "%s cannot zero faster than by writing zeros",
			block_label(block));
	return write_zeros(raw, offset, length, err);
}

static int raw_trim(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	(void)flags;
	struct raw *raw = raw_of(block);
	int rc = try_fallocate(raw, &raw->can_punch, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		offset, length, err);
	return rc < 0 ? -1 : 0;
}

static int raw_flush(struct block *block, struct err *err)
{
	struct raw *raw = raw_of(block);
	/* The system may have thrown away what it could not write, and says so once. */
	if (atomic_load(&raw->lost))
		return err_set(err, ERR_IO, "%s failed to sync before: what it holds is not known",
			block_label(block));
	if (fdatasync(raw->fd) < 0) {
		atomic_store(&raw->lost, true);
		return err_errno(err, errno, "cannot sync %s", block_label(block));
	}
	return 0;
}

/* No data up to the end of the file: but what was cut off is no hole. */
static int check_not_shrunk(struct raw *raw, struct err *err)
{
	struct stat st;
	if (fstat(raw->fd, &st) < 0)
		return err_errno(err, errno, "cannot stat %s", block_label(&raw->block));
	uint64_t now = (uint64_t)st.st_size, before = raw->block.info.size_bytes;
	if (now < before)
		return err_set(err, ERR_IO,
			"%s ends at offset %llu, and had %llu bytes when it was opened",
			block_label(&raw->block), (unsigned long long)now,
			(unsigned long long)before);
	return 0;
}

static int raw_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	struct raw *raw = raw_of(block);
	uint64_t at = offset, end = offset + length;
	size_t n = 0;
	while (at < end && n < max) {
		off_t data = lseek(raw->fd, (off_t)at, SEEK_DATA);
		if (data < 0 && errno != ENXIO)
			return err_errno(err, errno, "cannot find data in %s", block_label(block));
		if (data < 0 && check_not_shrunk(raw, err) < 0)
			return -1;
		uint64_t hole_end = data < 0 ? end : min_u64((uint64_t)data, end);
		if (hole_end > at) {
			extents[n++] =
				(struct block_extent){hole_end - at, BLOCK_HOLE | BLOCK_ZERO};
			at = hole_end;
			continue;
		}
		off_t hole = lseek(raw->fd, (off_t)at, SEEK_HOLE);
		/* ENXIO: the file was cut shorter meanwhile; reading will say so. */
		if (hole < 0 && errno != ENXIO)
			return err_errno(err, errno, "cannot find holes in %s", block_label(block));
		uint64_t data_end = hole < 0 ? end : min_u64((uint64_t)hole, end);
		if (data_end <= at)
			data_end = end;
		extents[n++] = (struct block_extent){data_end - at, 0};
		at = data_end;
	}
	*nr = n;
	return 0;
}

static uint64_t raw_stored_bytes(struct block *block)
{
	struct stat st;
	if (raw_of(block)->is_device || fstat(raw_of(block)->fd, &st) < 0)
		return 0;
	return (uint64_t)st.st_blocks * 512;
}

static int raw_close(struct block *block, struct err *err)
{
	struct raw *raw = raw_of(block);
	int rc = 0;
	/* NFS tells of lost writes here at the latest. */
	if (close(raw->fd) < 0 && !block->info.read_only)
		rc = err_errno(err, errno, "cannot close %s", block_label(block));
	block_fini(block);
	free(raw);
	return rc;
}

static const struct block_driver raw_driver = {
	.name = "raw",
	.read = raw_read,
	.write = raw_write,
	.zero = raw_zero,
	.trim = raw_trim,
	.flush = raw_flush,
	.extents = raw_extents,
	.stored_bytes = raw_stored_bytes,
	.close = raw_close,
};

static int device_size(int fd, uint64_t *size_bytes, uint32_t *sector_bytes)
{
	int sector = 0;
	if (ioctl(fd, BLKGETSIZE64, size_bytes) < 0)
		return -1;
	if (ioctl(fd, BLKSSZGET, &sector) == 0 && sector >= 512)
		*sector_bytes = (uint32_t)sector;
	return 0;
}

/* Takes fd, also on failure. */
static struct block *raw_over_fd(
	int fd, const char *path, bool read_only, bool fresh, struct err *err)
{
	struct raw *raw = calloc(1, sizeof *raw);
	char *label = NULL;
	struct stat st;
	uint64_t size_bytes = 0;
	uint32_t granule = 4096;
	if (!raw || asprintf(&label, "raw:%s", path) < 0) {
		label = NULL;
		err_errno(err, ENOMEM, "cannot open raw:%s", path);
		goto fail;
	}
	if (fstat(fd, &st) < 0) {
		err_errno(err, errno, "cannot stat raw:%s", path);
		goto fail;
	}
	if (S_ISREG(st.st_mode)) {
		size_bytes = (uint64_t)st.st_size;
	} else if (!S_ISBLK(st.st_mode)) {
		err_set(err, ERR_FORMAT, "raw:%s is neither a regular file nor a block device",
			path);
		goto fail;
	} else if (device_size(fd, &size_bytes, &granule) < 0) {
		err_errno(err, errno, "cannot get the size of device raw:%s", path);
		goto fail;
	}
	if (filelock_take(fd, label, read_only ? FILELOCK_READ : FILELOCK_WRITE, err) < 0)
		goto fail;
	raw->fd = fd;
	raw->is_device = S_ISBLK(st.st_mode);
	atomic_init(&raw->can_punch, true);
	atomic_init(&raw->can_zero_range, true);
	atomic_init(&raw->lost, false);
	block_init(&raw->block, &raw_driver, label);
	raw->block.info = (struct block_info){
		.size_bytes = size_bytes,
		.read_only = read_only,
		.has_extents = !raw->is_device,
		.can_trim = true,
		.can_zero = true,
		.can_fast_zero = true,
		.multi_lane = true,
		.starts_zero = fresh,
		.granule_bytes = granule < 4096 ? 4096 : granule,
	};
	return &raw->block;
fail:
	free(label);
	free(raw);
	close(fd);
	return NULL;
}

struct block *block_raw_open(const char *path, bool read_only, struct err *err)
{
	/* O_NONBLOCK: a FIFO must not hang the open; it has no effect on files. */
	int fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0) {
		err_errno(err, errno, "cannot open raw:%s", path);
		return NULL;
	}
	if (guard_ask(fd, path, NULL, err) < 0) {
		close(fd);
		return NULL;
	}
	return raw_over_fd(fd, path, read_only, false, err);
}

/* An existing file without its content: emptied when nobody else has it open. */
static int open_emptied(const char *path, struct err *err)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return err_errno(err, errno, "cannot open raw:%s", path);
	int rc = guard_ask(fd, path, NULL, err);
	if (rc == 0)
		rc = filelock_take(fd, path, FILELOCK_WRITE, err);
	if (rc == 0 && ftruncate(fd, 0) < 0)
		rc = err_errno(err, errno, "cannot empty raw:%s", path);
	if (rc == 0)
		return fd;
	close(fd);
	return -1;
}

/* Opens path as a new or emptied regular file; *created tells which. */
static int open_fresh(const char *path, bool replace, bool *created, struct err *err)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	*created = fd >= 0;
	if (fd >= 0 && guard_ask(fd, path, NULL, err) < 0) {
		close(fd);
		unlink(path);
		return -1;
	}
	if (fd >= 0)
		return fd;
	if (errno != EEXIST)
		return err_errno(err, errno, "cannot create raw:%s", path);
	if (!replace)
		return err_set(err, ERR_EXISTS, "raw:%s exists already", path);
	struct stat st;
	if (stat(path, &st) < 0)
		return err_errno(err, errno, "cannot stat raw:%s", path);
	if (!S_ISREG(st.st_mode))
		return err_set(err, ERR_EXISTS, "raw:%s is not a regular file", path);
	return open_emptied(path, err);
}

struct block *block_raw_create(const char *path, uint64_t size_bytes, bool replace, struct err *err)
{
	bool created;
	int fd = open_fresh(path, replace, &created, err);
	if (fd < 0)
		return NULL;
	struct block *block = NULL;
	if (size_bytes > INT64_MAX || ftruncate(fd, (off_t)size_bytes) < 0) {
		err_errno(err, size_bytes > INT64_MAX ? EFBIG : errno,
			"cannot make raw:%s %llu bytes long", path, (unsigned long long)size_bytes);
		close(fd);
	} else {
		block = raw_over_fd(fd, path, false, true, err);
	}
	if (!block && created)
		unlink(path);
	return block;
}
