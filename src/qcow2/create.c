/*
 * Makes an empty image:
 *
 *   cluster 0        header, extension with the backing file's format, its name
 *   1 ..             refcount table, large enough for the whole disk, so that
 *                    it never has to move
 *   ..               the refcount blocks for the clusters up to here and the
 *                    L1 table
 *   ..               L1 table (a hole)
 */
#include "qcow2_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define REFCOUNT_ORDER 4u

struct layout {
	struct qcow2_header h; /* only the plain numbers are used */
	const struct qcow2_create_options *options;
	uint64_t nr_refcount_blocks;
	uint64_t l1_clusters;
	uint64_t nr_clusters; /* of the empty image */
};

static int check_options(const char *path, const struct qcow2_create_options *o,
	uint32_t cluster_bytes, struct err *err)
{
	if (cluster_bytes < 512 || cluster_bytes > 2 * MIB ||
		(cluster_bytes & (cluster_bytes - 1)) != 0)
		return err_set(err, ERR_USAGE,
			"cannot create %s: a cluster size of %u is not a power of two from 512 "
			"bytes to "
			"2 MiB",
			path, cluster_bytes);
	if (o->size_bytes % 512 != 0 || o->size_bytes > INT64_MAX)
		return err_set(err, ERR_USAGE,
			"cannot create %s: a disk of %" PRIu64
			" bytes is not a number of 512-byte sectors",
			path, o->size_bytes);
	if (o->compression != QCOW2_ZLIB && o->compression != QCOW2_ZSTD)
		return err_set(err, ERR_USAGE, "cannot create %s: unknown compression type %d",
			path, (int)o->compression);
	if (!o->backing_file)
		return 0;
	if (!o->backing_format ||
		(strcmp(o->backing_format, "qcow2") != 0 && strcmp(o->backing_format, "raw") != 0))
		return err_set(err, ERR_USAGE,
			"cannot create %s: its backing file's format must be stated as qcow2 or "
			"raw",
			path);
	size_t length = strlen(o->backing_file);
	size_t room = cluster_bytes - QCOW2_HEADER_OUR_BYTES - 24;
	if (length == 0 || length > min_size(QCOW2_BACKING_NAME_MAX, room))
		return err_set(err, ERR_USAGE,
			"cannot create %s: a backing file's name of %zu bytes does not fit (1 to "
			"%zu)",
			path, length, min_size(QCOW2_BACKING_NAME_MAX, room));
	return 0;
}

/* The table covers the whole disk, its L2 tables and itself, up to the limit. */
static uint64_t refcount_table_clusters(const struct qcow2_header *h, uint64_t l1_clusters)
{
	uint64_t per_block = qcow2_refcount_block_entries(h);
	uint64_t data = div_round_up(h->size_bytes, h->cluster_bytes);
	uint64_t all = data + h->nr_l1_entries + l1_clusters + 1;
	uint64_t blocks = div_round_up(all, per_block);
	blocks = div_round_up(all + blocks + div_round_up(blocks * 8, h->cluster_bytes), per_block);
	uint64_t bytes = min_u64(blocks * 8, QCOW2_REFCOUNT_TABLE_BYTES_MAX);
	return max_u64(div_round_up(bytes, h->cluster_bytes), 1);
}

static int plan(struct layout *l, const char *path, struct err *err)
{
	const struct qcow2_create_options *o = l->options;
	struct qcow2_header *h = &l->h;
	h->cluster_bytes = o->cluster_bytes ? o->cluster_bytes : 65536;
	if (check_options(path, o, h->cluster_bytes, err) < 0)
		return -1;
	h->cluster_bits = (unsigned)__builtin_ctz(h->cluster_bytes);
	h->refcount_order = REFCOUNT_ORDER;
	h->size_bytes = o->size_bytes;
	uint64_t l1_entries =
		div_round_up(o->size_bytes, (uint64_t)h->cluster_bytes * qcow2_l2_entries(h));
	if (l1_entries * 8 > QCOW2_L1_BYTES_MAX)
		return err_set(err, ERR_USAGE,
			"cannot create %s: a disk of %" PRIu64
			" bytes is too large for clusters of %u",
			path, o->size_bytes, h->cluster_bytes);
	h->nr_l1_entries = (uint32_t)max_u64(l1_entries, 1);
	l->l1_clusters = div_round_up((uint64_t)h->nr_l1_entries * 8, h->cluster_bytes);
	h->refcount_table_offset = h->cluster_bytes;
	h->refcount_table_clusters = (uint32_t)refcount_table_clusters(h, l->l1_clusters);

	uint64_t per_block = qcow2_refcount_block_entries(h);
	uint64_t others = 1 + h->refcount_table_clusters + l->l1_clusters;
	l->nr_refcount_blocks = 1;
	while (l->nr_refcount_blocks * per_block < others + l->nr_refcount_blocks)
		l->nr_refcount_blocks++;
	l->nr_clusters = others + l->nr_refcount_blocks;
	h->l1_offset = (l->nr_clusters - l->l1_clusters) * h->cluster_bytes;
	return 0;
}

static size_t fill_header(const struct layout *l, uint8_t *out)
{
	const struct qcow2_header *h = &l->h;
	const struct qcow2_create_options *o = l->options;
	be32_put(out, QCOW2_MAGIC);
	be32_put(out + 4, 3);
	be32_put(out + 20, h->cluster_bits);
	be64_put(out + 24, h->size_bytes);
	be32_put(out + 36, h->nr_l1_entries);
	be64_put(out + 40, h->l1_offset);
	be64_put(out + 48, h->refcount_table_offset);
	be32_put(out + 56, h->refcount_table_clusters);
	if (o->compression != QCOW2_ZLIB)
		be64_put(out + QCOW2_AT_INCOMPATIBLE, QCOW2_INCOMPATIBLE_COMPRESSION);
	be32_put(out + 96, REFCOUNT_ORDER);
	be32_put(out + 100, QCOW2_HEADER_OUR_BYTES);
	out[104] = (uint8_t)o->compression;
	size_t at = QCOW2_HEADER_OUR_BYTES;
	if (!o->backing_file)
		return at + 8; /* the end of the extensions is 8 zero bytes */
	size_t format_bytes = strlen(o->backing_format);
	be32_put(out + at, 0xe2792acau);
	be32_put(out + at + 4, (uint32_t)format_bytes);
	memcpy(out + at + 8, o->backing_format, format_bytes);
	at += 16 + 8;
	size_t name_bytes = strlen(o->backing_file);
	be64_put(out + 8, at);
	be32_put(out + 16, (uint32_t)name_bytes);
	memcpy(out + at, o->backing_file, name_bytes);
	return at + name_bytes;
}

static int write_tables(int fd, const char *path, const struct layout *l, struct err *err)
{
	const struct qcow2_header *h = &l->h;
	uint64_t per_block = qcow2_refcount_block_entries(h);
	uint64_t first_block =
		h->refcount_table_offset / h->cluster_bytes + h->refcount_table_clusters;
	uint8_t *AUTO_FREE block = calloc(1, h->cluster_bytes);
	uint8_t *AUTO_FREE table = calloc(l->nr_refcount_blocks, 8);
	if (!block || !table)
		return err_errno(err, ENOMEM, "cannot create %s", path);
	for (uint64_t b = 0; b < l->nr_refcount_blocks; b++) {
		uint64_t first = b * per_block;
		uint64_t n = min_u64(l->nr_clusters - min_u64(first, l->nr_clusters), per_block);
		memset(block, 0, h->cluster_bytes);
		for (uint64_t i = 0; i < n; i++)
			qcow2_refcount_set(block, i, REFCOUNT_ORDER, 1);
		uint64_t offset = (first_block + b) * h->cluster_bytes;
		be64_put(table + 8 * b, offset);
		if (file_pwrite(fd, block, h->cluster_bytes, offset, path, err) < 0)
			return -1;
	}
	if (file_pwrite(fd, table, l->nr_refcount_blocks * 8, h->refcount_table_offset, path, err) <
		0)
		return -1;
	uint8_t header[QCOW2_HEADER_OUR_BYTES + 24 + QCOW2_BACKING_NAME_MAX] = {0};
	size_t header_bytes = fill_header(l, header);
	return file_pwrite(fd, header, header_bytes, 0, path, err);
}

static int empty(int fd, const char *path, struct err *err)
{
	return ftruncate(fd, 0) < 0 ? err_errno(err, errno, "cannot replace %s", path) : 0;
}

static int open_new(const char *path, bool replace, struct err *err)
{
	struct stat st;
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 && errno == EEXIST && replace && stat(path, &st) == 0) {
		if (!S_ISREG(st.st_mode))
			return err_set(err, ERR_EXISTS,
				"cannot create %s: it is not a regular file", path);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			return err_errno(err, errno, "cannot replace %s", path);
		if (guard_ask(fd, path, NULL, err) < 0 ||
			filelock_take(fd, path, FILELOCK_WRITE, err) < 0 ||
			empty(fd, path, err) < 0) {
			close(fd);
			return -1;
		}
	} else if (fd < 0) {
		return err_errno(err, errno, "cannot create %s", path);
	} else if (guard_ask(fd, path, NULL, err) < 0) {
		close(fd);
		unlink(path);
		return -1;
	}
	return fd;
}

int qcow2_create(const char *path, const struct qcow2_create_options *options, struct err *err)
{
	struct layout layout = {.options = options};
	if (plan(&layout, path, err) < 0)
		return -1;
	int fd = open_new(path, options->replace, err);
	if (fd < 0)
		return -1;
	uint64_t file_bytes = layout.nr_clusters * layout.h.cluster_bytes;
	int rc = 0;
	if (ftruncate(fd, (off_t)file_bytes) < 0)
		rc = err_errno(
			err, errno, "cannot make %s %" PRIu64 " bytes long", path, file_bytes);
	if (rc == 0)
		rc = write_tables(fd, path, &layout, err);
	if (rc == 0 && fsync(fd) < 0)
		rc = err_errno(err, errno, "cannot sync %s", path);
	if (close(fd) < 0 && rc == 0)
		rc = err_errno(err, errno, "cannot close %s", path);
	if (rc < 0)
		unlink(path);
	return rc;
}
