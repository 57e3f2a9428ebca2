/*
 * The private parts of the qcow2 room, first of all what the file itself says.
 *
 *   file     | header + extensions + backing name | refcount table | refcount
 *              blocks | L1 table | L2 tables | data ...   all in whole clusters
 *
 * header.c reads and bounds the header and the small tables; nothing that comes
 * from it needs another check of offset, alignment or size.
 */
#ifndef SENDENSE_QCOW2_INTERNAL_H
#define SENDENSE_QCOW2_INTERNAL_H

#include "qcow2.h"

/* --- the format's numbers --------------------------------------------------- */

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_CLUSTER_BITS_MIN 9u
#define QCOW2_CLUSTER_BITS_MAX 21u
#define QCOW2_HEADER_V2_BYTES 72u
#define QCOW2_HEADER_V3_BYTES 104u
#define QCOW2_HEADER_OUR_BYTES 112u

#define QCOW2_L1_BYTES_MAX (32 * MIB)
#define QCOW2_REFCOUNT_TABLE_BYTES_MAX (8 * MIB)
#define QCOW2_SNAPSHOTS_MAX 65536u
#define QCOW2_SNAPSHOT_TABLE_BYTES_MAX (64 * MIB)
#define QCOW2_SNAPSHOT_EXTRA_BYTES_MAX 1024u
#define QCOW2_BITMAPS_MAX 65535u
#define QCOW2_BITMAP_DIRECTORY_BYTES_MAX (64 * MIB)
#define QCOW2_BACKING_NAME_MAX 1023u

#define QCOW2_INCOMPATIBLE_DIRTY ((uint64_t)1 << 0)
#define QCOW2_INCOMPATIBLE_CORRUPT ((uint64_t)1 << 1)
#define QCOW2_INCOMPATIBLE_DATA_FILE ((uint64_t)1 << 2)
#define QCOW2_INCOMPATIBLE_COMPRESSION ((uint64_t)1 << 3)
#define QCOW2_INCOMPATIBLE_EXTENDED_L2 ((uint64_t)1 << 4)
#define QCOW2_COMPATIBLE_LAZY_REFCOUNTS ((uint64_t)1 << 0)
#define QCOW2_AUTOCLEAR_BITMAPS ((uint64_t)1 << 0)

/* Where single fields lie that are rewritten in place. */
#define QCOW2_AT_REFCOUNT_TABLE 48u
#define QCOW2_AT_INCOMPATIBLE 72u
#define QCOW2_AT_AUTOCLEAR 88u

/* L1 and L2 entries. */
#define QCOW2_COPIED ((uint64_t)1 << 63)
#define QCOW2_COMPRESSED ((uint64_t)1 << 62)
#define QCOW2_ZERO ((uint64_t)1 << 0)
#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_REFCOUNT_OFFSET_MASK 0xfffffffffffffe00ull /* refcount table entries */

#define QCOW2_BITMAP_IN_USE 1u
#define QCOW2_BITMAP_AUTO 2u

/* --- header.c --------------------------------------------------------------- */

struct qcow2_snapshot {
	uint64_t l1_offset; /* cluster-aligned; the table lies within the file */
	uint32_t nr_l1_entries;
	const char *name; /* name_bytes long, not terminated; borrowed from the header */
	size_t name_bytes;
};

struct qcow2_bitmap {
	uint64_t table_offset; /* cluster-aligned; the table lies within the file */
	uint32_t nr_table_entries;
	uint32_t flags;
	uint64_t entry_offset; /* of its directory entry in the file */
	const char *name;      /* as for snapshots */
	size_t name_bytes;
};

struct qcow2_header {
	unsigned version;
	unsigned cluster_bits;
	uint32_t cluster_bytes;
	uint64_t size_bytes;
	uint64_t l1_offset; /* 0 only when there are no entries */
	uint32_t nr_l1_entries;
	uint64_t refcount_table_offset;
	uint32_t refcount_table_clusters;
	unsigned refcount_order; /* refcounts have 1 << order bits */
	uint32_t header_bytes;
	uint64_t incompatible, compatible, autoclear;
	enum qcow2_compression compression;
	bool extended_l2;
	char backing_file[QCOW2_BACKING_NAME_MAX + 1]; /* "" when none */
	char backing_format[16];                       /* "" when not stated */

	uint64_t snapshots_offset, snapshots_bytes;
	struct qcow2_snapshot *snapshots;
	uint32_t nr_snapshots;

	/* None when the file says that they are not to be trusted. */
	uint64_t bitmaps_offset, bitmaps_bytes;
	struct qcow2_bitmap *bitmaps;
	uint32_t nr_bitmaps;

	uint64_t file_bytes; /* the file's size when the header was read */

	uint8_t *snapshots_raw, *bitmaps_raw;
};

/*
 * Reads and checks everything above.  name is for messages.  What cannot be read
 * here (encryption, external data, unknown features) is ERR_UNSUPPORTED and
 * named; what breaks the format is ERR_FORMAT.  On failure nothing is held.
 */
int qcow2_header_load(int fd, const char *name, struct qcow2_header *header, struct err *err);
void qcow2_header_free(struct qcow2_header *header);

/*
 * Reads a table of be64 entries (L1, refcount or bitmap table) into host order.
 * Fails with ERR_FORMAT, before allocating, when it is not cluster-aligned or
 * does not lie within the file; what of it lies in the file's last cluster
 * beyond the file's end reads as zeros (QEMU leaves tables so).  The caller
 * frees *table; nr_entries may be 0 (*table is then one unused entry).
 * what: "L1 table", for messages.
 */
int qcow2_header_load_table(int fd, const char *name, const struct qcow2_header *header,
	const char *what, uint64_t offset, uint64_t nr_entries, uint64_t **table, struct err *err);

/* Shorthands of it. */
int qcow2_header_load_l1(int fd, const char *name, const struct qcow2_header *header,
	uint64_t **table, struct err *err);
int qcow2_header_load_refcount_table(int fd, const char *name, const struct qcow2_header *header,
	uint64_t **table, uint64_t *nr_entries, struct err *err);

/* As file_pread(), but what lies beyond the end of the file reads as zeros. */
int qcow2_header_pread(int fd, void *buffer, size_t length, uint64_t offset, const char *name,
	struct err *err);

static inline unsigned qcow2_l2_entry_bytes(const struct qcow2_header *h)
{
	return h->extended_l2 ? 16 : 8;
}

/* Entries of an L2 table, and of a refcount block. */
static inline uint64_t qcow2_l2_entries(const struct qcow2_header *h)
{
	return h->cluster_bytes / qcow2_l2_entry_bytes(h);
}

static inline uint64_t qcow2_refcount_block_entries(const struct qcow2_header *h)
{
	return ((uint64_t)h->cluster_bytes * 8) >> h->refcount_order;
}

/* Where a compressed cluster's bytes lie, from its L2 entry.  The length is in
 * whole sectors' ends: decompression stops before it. */
static inline void qcow2_compressed_range(const struct qcow2_header *h, uint64_t entry,
	uint64_t *offset, uint64_t *length)
{
	unsigned x = 62 - (h->cluster_bits - 8);
	uint64_t sectors = (entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> x;
	*offset = entry & (((uint64_t)1 << x) - 1);
	*length = (sectors + 1) * 512 - *offset % 512;
}

/* Refcount number index of a block, and setting it (value fits the width). */
uint64_t qcow2_refcount_get(const uint8_t *block, uint64_t index, unsigned order);
void qcow2_refcount_set(uint8_t *block, uint64_t index, unsigned order, uint64_t value);

#endif
