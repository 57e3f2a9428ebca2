/*
 * What a QCOW2 file says about itself; see qcow2_internal.h.
 *
 *   0   magic, version, backing name's place, cluster bits, size, encryption
 *   36  L1, refcount table, snapshots
 *   72  features, refcount order, header length        (version 3)
 *   104 compression type                               (when the header is longer)
 *   ..  extensions: type be32, length be32, data, padding to 8
 *
 * Every byte is hostile: each offset and size is bounded by the format's limits
 * and by the file's size before memory is taken for it.
 */
#include "qcow2_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXTENSION_END 0u
#define EXTENSION_BACKING_FORMAT 0xe2792acau
#define EXTENSION_FEATURE_NAMES 0x6803f857u
#define EXTENSION_BITMAPS 0x23852875u
#define EXTENSION_ENCRYPTION 0x0537be77u
#define EXTENSION_DATA_FILE 0x44415441u

#define FEATURE_NAME_BYTES 48

/* What the parsing steps share. */
struct parse {
	int fd;
	const char *name;
	struct qcow2_header *h;
	uint8_t *first; /* the first cluster, cut at the file's end */
	size_t first_bytes;
	uint64_t backing_offset;
	uint32_t backing_bytes;
	uint32_t encryption;
	const uint8_t *feature_names;
	size_t nr_feature_names;
	bool has_bitmaps;
};

int qcow2_header_pread(
	int fd, void *buffer, size_t length, uint64_t offset, const char *name, struct err *err)
{
	uint8_t *at = buffer;
	while (length > 0) {
		ssize_t n = pread(fd, at, length, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, errno,
				"cannot read %zu bytes at offset %" PRIu64 " of %s", length, offset,
				name);
		if (n == 0) {
			memset(at, 0, length);
			break;
		}
		at += n;
		offset += (uint64_t)n;
		length -= (size_t)n;
	}
	return 0;
}

uint64_t qcow2_refcount_get(const uint8_t *block, uint64_t index, unsigned order)
{
	switch (order) {
	case 3:
		return block[index];
	case 4:
		return be16_get(block + 2 * index);
	case 5:
		return be32_get(block + 4 * index);
	case 6:
		return be64_get(block + 8 * index);
	default:
		break;
	}
	unsigned bits = 1u << order;
	uint64_t at = index * bits;
	return ((unsigned)block[at / 8] >> (at % 8)) & ((1u << bits) - 1);
}

void qcow2_refcount_set(uint8_t *block, uint64_t index, unsigned order, uint64_t value)
{
	switch (order) {
	case 3:
		block[index] = (uint8_t)value;
		return;
	case 4:
		be16_put(block + 2 * index, (uint16_t)value);
		return;
	case 5:
		be32_put(block + 4 * index, (uint32_t)value);
		return;
	case 6:
		be64_put(block + 8 * index, value);
		return;
	default:
		break;
	}
	unsigned bits = 1u << order;
	uint64_t at = index * bits;
	unsigned mask = ((1u << bits) - 1) << (at % 8);
	block[at / 8] =
		(uint8_t)(((unsigned)block[at / 8] & ~mask) | ((unsigned)value << (at % 8)));
}

/* The offset and size of a table: aligned, and within the file's last cluster. */
static int check_table(const struct qcow2_header *h, const char *name, const char *what,
	uint64_t offset, uint64_t bytes, struct err *err)
{
	if (offset % h->cluster_bytes != 0)
		return err_set(err, ERR_FORMAT,
			"%s is damaged: its %s is at offset %" PRIu64
			", which is not a cluster's start",
			name, what, offset);
	uint64_t end = round_up(h->file_bytes, h->cluster_bytes);
	if (offset == 0 || !range_fits(offset, bytes, end))
		return err_set(err, ERR_FORMAT,
			"%s is damaged or cut short: its %s of %" PRIu64 " bytes at offset %" PRIu64
			" does not lie within the file's %" PRIu64 " bytes",
			name, what, bytes, offset, h->file_bytes);
	return 0;
}

int qcow2_header_load_table(int fd, const char *name, const struct qcow2_header *header,
	const char *what, uint64_t offset, uint64_t nr_entries, uint64_t **table, struct err *err)
{
	uint64_t bytes;
	*table = NULL;
	if (!mul_u64(nr_entries, 8, &bytes) || bytes > SIZE_MAX / 2)
		return err_set(err, ERR_FORMAT, "%s is damaged: its %s has %" PRIu64 " entries",
			name, what, nr_entries);
	if (nr_entries > 0 && check_table(header, name, what, offset, bytes, err) < 0)
		return -1;
	uint64_t *entries = malloc(bytes > 0 ? bytes : 8);
	if (!entries)
		return err_errno(err, ENOMEM, "cannot load the %s of %s", what, name);
	if (qcow2_header_pread(fd, entries, bytes, offset, name, err) < 0) {
		free(entries);
		return -1;
	}
	for (uint64_t i = 0; i < nr_entries; i++)
		entries[i] = be64toh(entries[i]);
	*table = entries;
	return 0;
}

int qcow2_header_load_l1(int fd, const char *name, const struct qcow2_header *header,
	uint64_t **table, struct err *err)
{
	return qcow2_header_load_table(
		fd, name, header, "L1 table", header->l1_offset, header->nr_l1_entries, table, err);
}

int qcow2_header_load_refcount_table(int fd, const char *name, const struct qcow2_header *header,
	uint64_t **table, uint64_t *nr_entries, struct err *err)
{
	*nr_entries = (uint64_t)header->refcount_table_clusters * header->cluster_bytes / 8;
	return qcow2_header_load_table(fd, name, header, "refcount table",
		header->refcount_table_offset, *nr_entries, table, err);
}

/* --- the fixed part --------------------------------------------------------- */

static int load_first_cluster(struct parse *p, struct err *err)
{
	uint8_t start[24];
	struct stat st;
	if (fstat(p->fd, &st) < 0)
		return err_errno(err, errno, "cannot stat %s", p->name);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return err_set(err, ERR_FORMAT, "%s is not a regular file", p->name);
	off_t end = lseek(p->fd, 0, SEEK_END); /* of a device too */
	if (end < 0)
		return err_errno(err, errno, "cannot find the end of %s", p->name);
	p->h->file_bytes = (uint64_t)end;
	if (p->h->file_bytes < QCOW2_HEADER_V2_BYTES)
		return err_set(err, ERR_FORMAT,
			"%s is not a QCOW2 image: it has %" PRIu64 " bytes, less than a header",
			p->name, p->h->file_bytes);
	if (file_pread(p->fd, start, sizeof start, 0, p->name, err) < 0)
		return -1;
	if (be32_get(start) != QCOW2_MAGIC)
		return err_set(err, ERR_FORMAT,
			"%s is not a QCOW2 image: it does not start like one", p->name);
	p->h->version = be32_get(start + 4);
	if (p->h->version != 2 && p->h->version != 3)
		return err_set(err, ERR_UNSUPPORTED,
			"%s is a QCOW2 image of version %u; versions 2 and 3 are read", p->name,
			p->h->version);
	p->h->cluster_bits = be32_get(start + 20);
	if (p->h->cluster_bits < QCOW2_CLUSTER_BITS_MIN ||
		p->h->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		return err_set(err, ERR_UNSUPPORTED,
			"%s has clusters of 2^%u bytes; 512 bytes to 2 MiB are read", p->name,
			p->h->cluster_bits);
	p->h->cluster_bytes = 1u << p->h->cluster_bits;
	p->first_bytes = (size_t)min_u64(p->h->cluster_bytes, p->h->file_bytes);
	p->first = malloc(p->first_bytes);
	if (!p->first)
		return err_errno(err, ENOMEM, "cannot open %s", p->name);
	if (file_pread(p->fd, p->first, p->first_bytes, 0, p->name, err) < 0)
		return -1;
	/* Who writes beneath us may have moved a table to where the file ends only now. */
	end = lseek(p->fd, 0, SEEK_END);
	p->h->file_bytes = max_u64(p->h->file_bytes, end < 0 ? 0 : (uint64_t)end);
	return 0;
}

static void parse_version_3(struct qcow2_header *h, struct cursor *c)
{
	h->incompatible = cursor_be64(c);
	h->compatible = cursor_be64(c);
	h->autoclear = cursor_be64(c);
	h->refcount_order = cursor_be32(c);
	h->header_bytes = cursor_be32(c);
}

static int parse_fixed(struct parse *p, uint8_t *compression, struct err *err)
{
	struct qcow2_header *h = p->h;
	struct cursor c = cursor_over(p->first, p->first_bytes);
	cursor_take(&c, 8);
	p->backing_offset = cursor_be64(&c);
	p->backing_bytes = cursor_be32(&c);
	cursor_be32(&c); /* cluster bits */
	h->size_bytes = cursor_be64(&c);
	p->encryption = cursor_be32(&c);
	h->nr_l1_entries = cursor_be32(&c);
	h->l1_offset = cursor_be64(&c);
	h->refcount_table_offset = cursor_be64(&c);
	h->refcount_table_clusters = cursor_be32(&c);
	h->nr_snapshots = cursor_be32(&c);
	h->snapshots_offset = cursor_be64(&c);
	h->refcount_order = 4;
	h->header_bytes = QCOW2_HEADER_V2_BYTES;
	if (h->version >= 3)
		parse_version_3(h, &c);
	*compression = h->header_bytes > QCOW2_HEADER_V3_BYTES ? cursor_u8(&c) : 0;
	if (!cursor_ok(&c))
		return err_set(
			err, ERR_FORMAT, "%s is cut short: its header does not fit in", p->name);
	if (h->version >= 3 &&
		(h->header_bytes < QCOW2_HEADER_V3_BYTES || h->header_bytes % 8 != 0 ||
			h->header_bytes > p->first_bytes))
		return err_set(err, ERR_FORMAT, "%s is damaged: its header claims %u bytes",
			p->name, h->header_bytes);
	if (h->refcount_order > 6)
		return err_set(err, ERR_FORMAT,
			"%s is damaged: refcounts of 2^%u bits do not exist", p->name,
			h->refcount_order);
	return 0;
}

/* --- extensions ------------------------------------------------------------- */

static int parse_backing_format(
	struct parse *p, const uint8_t *data, size_t length, struct err *err)
{
	if (length >= sizeof p->h->backing_format)
		return err_set(err, ERR_FORMAT,
			"%s is damaged: the name of its backing file's format has %zu bytes",
			p->name, length);
	memcpy(p->h->backing_format, data, length);
	p->h->backing_format[length] = '\0';
	return 0;
}

static int parse_bitmaps_extension(
	struct parse *p, const uint8_t *data, size_t length, struct err *err)
{
	struct cursor c = cursor_over(data, length);
	struct qcow2_header *h = p->h;
	h->nr_bitmaps = cursor_be32(&c);
	uint32_t reserved = cursor_be32(&c);
	h->bitmaps_bytes = cursor_be64(&c);
	h->bitmaps_offset = cursor_be64(&c);
	p->has_bitmaps = true;
	if (!cursor_ok(&c) || length != 24 || reserved != 0 || h->nr_bitmaps == 0 ||
		h->nr_bitmaps > QCOW2_BITMAPS_MAX || h->bitmaps_bytes == 0 ||
		h->bitmaps_bytes > QCOW2_BITMAP_DIRECTORY_BYTES_MAX)
		return err_set(err, ERR_FORMAT,
			"%s is damaged: its bitmaps extension (%u bitmaps, %" PRIu64
			" bytes) breaks the format",
			p->name, h->nr_bitmaps, h->bitmaps_bytes);
	return 0;
}

static int parse_extension(
	struct parse *p, uint32_t type, const uint8_t *data, size_t length, struct err *err)
{
	switch (type) {
	case EXTENSION_BACKING_FORMAT:
		return parse_backing_format(p, data, length, err);
	case EXTENSION_FEATURE_NAMES:
		p->feature_names = data;
		p->nr_feature_names = length / FEATURE_NAME_BYTES;
		return 0;
	case EXTENSION_BITMAPS:
		return parse_bitmaps_extension(p, data, length, err);
	case EXTENSION_ENCRYPTION:
		return err_set(
			err, ERR_UNSUPPORTED, "%s is encrypted; such images are not read", p->name);
	case EXTENSION_DATA_FILE:
		return err_set(err, ERR_UNSUPPORTED,
			"%s keeps its data in an external data file; such images are not read",
			p->name);
	default:
		return 0; /* may be ignored, says the format */
	}
}

static int parse_extensions(struct parse *p, struct err *err)
{
	/* The area ends at the backing name, or at the first cluster's end. */
	size_t end = p->first_bytes;
	if (p->backing_offset > p->h->header_bytes && p->backing_offset < end)
		end = (size_t)p->backing_offset;
	struct cursor c = cursor_over(p->first, end);
	cursor_take(&c, p->h->header_bytes);
	while (cursor_left(&c) >= 8) {
		uint32_t type = cursor_be32(&c);
		uint32_t length = cursor_be32(&c);
		if (type == EXTENSION_END)
			return 0;
		const uint8_t *data = cursor_take(&c, length);
		if (!data)
			return err_set(err, ERR_FORMAT,
				"%s is damaged: header extension 0x%08x of %u bytes leads past its "
				"area",
				p->name, type, length);
		cursor_take(&c, min_size((8 - length % 8) % 8, cursor_left(&c)));
		if (parse_extension(p, type, data, length, err) < 0)
			return -1;
	}
	return 0;
}

/* --- what is refused -------------------------------------------------------- */

static int refuse_feature(const struct parse *p, unsigned bit, struct err *err)
{
	for (size_t i = 0; i < p->nr_feature_names; i++) {
		const uint8_t *entry = p->feature_names + i * FEATURE_NAME_BYTES;
		if (entry[0] != 0 || entry[1] != bit)
			continue;
		char text[FEATURE_NAME_BYTES - 1] = {0};
		for (size_t k = 0; k + 2 < FEATURE_NAME_BYTES && entry[k + 2]; k++)
			text[k] = entry[k + 2] >= ' ' && entry[k + 2] < 127 ? (char)entry[k + 2]
									    : '?';
		return err_set(err, ERR_UNSUPPORTED,
			"%s uses the feature \"%s\" (incompatible bit %u), which is not known here",
			p->name, text, bit);
	}
	return err_set(err, ERR_UNSUPPORTED,
		"%s uses the incompatible feature bit %u, which is not known here", p->name, bit);
}

static int check_features(struct parse *p, uint8_t compression, struct err *err)
{
	struct qcow2_header *h = p->h;
	if (p->encryption != 0)
		return err_set(
			err, ERR_UNSUPPORTED, "%s is encrypted; such images are not read", p->name);
	if (h->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE)
		return err_set(err, ERR_UNSUPPORTED,
			"%s keeps its data in an external data file; such images are not read",
			p->name);
	uint64_t unknown = h->incompatible & ~(uint64_t)0x1f;
	if (unknown != 0)
		return refuse_feature(p, (unsigned)__builtin_ctzll(unknown), err);
	bool other = h->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION;
	if (other != (compression != QCOW2_ZLIB))
		return err_set(err, ERR_FORMAT,
			"%s is damaged: compression type %u and its feature bit contradict each "
			"other",
			p->name, compression);
	if (compression > QCOW2_ZSTD)
		return err_set(err, ERR_UNSUPPORTED,
			"%s uses compression type %u; zlib (0) and zstd (1) are read", p->name,
			compression);
	h->compression = (enum qcow2_compression)compression;
	h->extended_l2 = h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2;
	if (h->extended_l2 && h->cluster_bits < 14)
		return err_set(err, ERR_FORMAT,
			"%s is damaged: extended L2 entries need clusters of 16 KiB or more",
			p->name);
	if (!p->has_bitmaps && (h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return err_set(err, ERR_FORMAT,
			"%s is damaged: it claims bitmaps and has no bitmaps extension", p->name);
	if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		h->nr_bitmaps = 0;
	return 0;
}

/* --- tables ----------------------------------------------------------------- */

static int check_geometry(struct parse *p, struct err *err)
{
	struct qcow2_header *h = p->h;
	uint64_t l1_bytes = (uint64_t)h->nr_l1_entries * 8;
	uint64_t refcount_bytes = (uint64_t)h->refcount_table_clusters * h->cluster_bytes;
	if (h->size_bytes > INT64_MAX)
		return err_set(err, ERR_FORMAT,
			"%s is damaged: it claims a disk of %" PRIu64 " bytes", p->name,
			h->size_bytes);
	if (l1_bytes > QCOW2_L1_BYTES_MAX)
		return err_set(err, ERR_FORMAT,
			"%s is damaged: its L1 table of %" PRIu64 " bytes is larger than 32 MiB",
			p->name, l1_bytes);
	uint64_t l1_reach = (uint64_t)h->cluster_bytes * qcow2_l2_entries(h);
	if (div_round_up(h->size_bytes, l1_reach) > h->nr_l1_entries)
		return err_set(err, ERR_FORMAT,
			"%s is damaged: its L1 table of %u entries is too small for a disk of "
			"%" PRIu64 " bytes",
			p->name, h->nr_l1_entries, h->size_bytes);
	if (h->nr_l1_entries > 0 &&
		check_table(h, p->name, "L1 table", h->l1_offset, l1_bytes, err) < 0)
		return -1;
	if (refcount_bytes == 0 || refcount_bytes > QCOW2_REFCOUNT_TABLE_BYTES_MAX)
		return err_set(err, ERR_FORMAT,
			"%s is damaged: its refcount table has %" PRIu64
			" bytes, not 1 cluster to 8 MiB",
			p->name, refcount_bytes);
	return check_table(
		h, p->name, "refcount table", h->refcount_table_offset, refcount_bytes, err);
}

static int load_backing_name(struct parse *p, struct err *err)
{
	struct qcow2_header *h = p->h;
	if (p->backing_offset == 0)
		return 0;
	if (p->backing_bytes > QCOW2_BACKING_NAME_MAX || p->backing_bytes == 0 ||
		!range_fits(p->backing_offset, p->backing_bytes, p->first_bytes))
		return err_set(err, ERR_FORMAT,
			"%s is damaged: its backing file's name (%u bytes at offset %" PRIu64
			") does not lie in the first cluster",
			p->name, p->backing_bytes, p->backing_offset);
	memcpy(h->backing_file, p->first + p->backing_offset, p->backing_bytes);
	h->backing_file[p->backing_bytes] = '\0';
	if (strlen(h->backing_file) != p->backing_bytes)
		return err_set(err, ERR_FORMAT,
			"%s is damaged: its backing file's name holds a zero byte", p->name);
	return 0;
}

static int parse_snapshot(struct parse *p, struct cursor *c, struct qcow2_snapshot *s)
{
	size_t start = c->at;
	s->l1_offset = cursor_be64(c);
	s->nr_l1_entries = cursor_be32(c);
	size_t id_bytes = cursor_be16(c);
	s->name_bytes = cursor_be16(c);
	cursor_take(c, 20); /* time, running time, size of the VM's state */
	uint32_t extra_bytes = cursor_be32(c);
	if (extra_bytes > QCOW2_SNAPSHOT_EXTRA_BYTES_MAX)
		return -1;
	cursor_take(c, extra_bytes);
	cursor_take(c, id_bytes);
	s->name = (const char *)cursor_take(c, s->name_bytes);
	size_t used = c->at - start;
	cursor_take(c, min_size((8 - used % 8) % 8, cursor_left(c)));
	if (!cursor_ok(c) || (uint64_t)s->nr_l1_entries * 8 > QCOW2_L1_BYTES_MAX)
		return -1;
	if (s->nr_l1_entries == 0)
		return 0;
	return check_table(p->h, p->name, "snapshot's L1 table", s->l1_offset,
		(uint64_t)s->nr_l1_entries * 8, NULL);
}

static int load_snapshots(struct parse *p, struct err *err)
{
	struct qcow2_header *h = p->h;
	if (h->nr_snapshots == 0)
		return 0;
	if (h->nr_snapshots > QCOW2_SNAPSHOTS_MAX)
		return err_set(err, ERR_FORMAT, "%s is damaged: it claims %u snapshots", p->name,
			h->nr_snapshots);
	/* Only the entries tell how long the table is: at least 40 bytes each. */
	if (check_table(h, p->name, "snapshot table", h->snapshots_offset,
		    (uint64_t)h->nr_snapshots * 40, err) < 0)
		return -1;
	uint64_t most = round_up(h->file_bytes, h->cluster_bytes) - h->snapshots_offset;
	uint64_t each = 40 + QCOW2_SNAPSHOT_EXTRA_BYTES_MAX + 2 * 65536;
	most = min_u64(most, QCOW2_SNAPSHOT_TABLE_BYTES_MAX);
	most = min_u64(most, each * h->nr_snapshots);
	h->snapshots_raw = malloc(most);
	h->snapshots = calloc(h->nr_snapshots, sizeof *h->snapshots);
	if (!h->snapshots_raw || !h->snapshots)
		return err_errno(err, ENOMEM, "cannot load the snapshot table of %s", p->name);
	if (qcow2_header_pread(p->fd, h->snapshots_raw, most, h->snapshots_offset, p->name, err) <
		0)
		return -1;
	struct cursor c = cursor_over(h->snapshots_raw, most);
	for (uint32_t i = 0; i < h->nr_snapshots; i++)
		if (parse_snapshot(p, &c, &h->snapshots[i]) < 0)
			return err_set(err, ERR_FORMAT,
				"%s is damaged: entry %u of its snapshot table breaks the format",
				p->name, i);
	h->snapshots_bytes = c.at;
	return 0;
}

static int parse_bitmap(struct parse *p, struct cursor *c, struct qcow2_bitmap *b)
{
	size_t start = c->at;
	b->entry_offset = p->h->bitmaps_offset + start;
	b->table_offset = cursor_be64(c);
	b->nr_table_entries = cursor_be32(c);
	b->flags = cursor_be32(c);
	cursor_take(c, 2); /* type, granularity */
	b->name_bytes = cursor_be16(c);
	uint32_t extra_bytes = cursor_be32(c);
	cursor_take(c, extra_bytes);
	b->name = (const char *)cursor_take(c, b->name_bytes);
	size_t used = c->at - start;
	cursor_take(c, min_size((8 - used % 8) % 8, cursor_left(c)));
	if (!cursor_ok(c) || b->name_bytes == 0)
		return -1;
	if (b->nr_table_entries == 0)
		return 0;
	return check_table(p->h, p->name, "bitmap table", b->table_offset,
		(uint64_t)b->nr_table_entries * 8, NULL);
}

static int load_bitmaps(struct parse *p, struct err *err)
{
	struct qcow2_header *h = p->h;
	if (h->nr_bitmaps == 0)
		return 0;
	if (check_table(h, p->name, "bitmap directory", h->bitmaps_offset, h->bitmaps_bytes, err) <
		0)
		return -1;
	h->bitmaps_raw = malloc(h->bitmaps_bytes);
	h->bitmaps = calloc(h->nr_bitmaps, sizeof *h->bitmaps);
	if (!h->bitmaps_raw || !h->bitmaps)
		return err_errno(err, ENOMEM, "cannot load the bitmap directory of %s", p->name);
	if (qcow2_header_pread(
		    p->fd, h->bitmaps_raw, h->bitmaps_bytes, h->bitmaps_offset, p->name, err) < 0)
		return -1;
	struct cursor c = cursor_over(h->bitmaps_raw, h->bitmaps_bytes);
	for (uint32_t i = 0; i < h->nr_bitmaps; i++)
		if (parse_bitmap(p, &c, &h->bitmaps[i]) < 0)
			return err_set(err, ERR_FORMAT,
				"%s is damaged: entry %u of its bitmap directory breaks the format",
				p->name, i);
	return 0;
}

/* --- all of it -------------------------------------------------------------- */

static int load(struct parse *p, struct err *err)
{
	uint8_t compression;
	if (load_first_cluster(p, err) < 0 || parse_fixed(p, &compression, err) < 0)
		return -1;
	/* Features first: what they change must not be told as damage. */
	if (p->encryption != 0 || (p->h->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE))
		return check_features(p, compression, err);
	if (parse_extensions(p, err) < 0 || check_features(p, compression, err) < 0)
		return -1;
	if (check_geometry(p, err) < 0 || load_backing_name(p, err) < 0)
		return -1;
	if (load_snapshots(p, err) < 0 || load_bitmaps(p, err) < 0)
		return -1;
	return 0;
}

int qcow2_header_load(int fd, const char *name, struct qcow2_header *header, struct err *err)
{
	*header = (struct qcow2_header){0};
	struct parse parse = {.fd = fd, .name = name, .h = header};
	int rc = load(&parse, err);
	free(parse.first);
	if (rc < 0)
		qcow2_header_free(header);
	return rc;
}

void qcow2_header_free(struct qcow2_header *header)
{
	free(header->snapshots);
	free(header->snapshots_raw);
	free(header->bitmaps);
	free(header->bitmaps_raw);
	header->snapshots = NULL;
	header->bitmaps = NULL;
	header->snapshots_raw = header->bitmaps_raw = NULL;
	header->nr_snapshots = header->nr_bitmaps = 0;
}

int qcow2_facts(const char *path, struct qcow2_facts *facts, struct err *err)
{
	int AUTO_CLOSE fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return err_errno(err, errno, "cannot open %s", path);
	struct qcow2_header h;
	if (qcow2_header_load(fd, path, &h, err) < 0)
		return -1;
	*facts = (struct qcow2_facts){
		.version = h.version,
		.size_bytes = h.size_bytes,
		.cluster_bytes = h.cluster_bytes,
		.refcount_bits = 1u << h.refcount_order,
		.compression = h.compression,
		.dirty = h.incompatible & QCOW2_INCOMPATIBLE_DIRTY,
		.corrupt = h.incompatible & QCOW2_INCOMPATIBLE_CORRUPT,
		.lazy_refcounts = h.compatible & QCOW2_COMPATIBLE_LAZY_REFCOUNTS,
		.extended_l2 = h.extended_l2,
		.nr_snapshots = h.nr_snapshots,
		.nr_bitmaps = h.nr_bitmaps,
	};
	memcpy(facts->backing_file, h.backing_file, sizeof facts->backing_file);
	memcpy(facts->backing_format, h.backing_format, sizeof facts->backing_format);
	qcow2_header_free(&h);
	return 0;
}
