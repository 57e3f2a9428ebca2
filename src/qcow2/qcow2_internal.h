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

#include <sys/uio.h>

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

#define QCOW2_PAGE_BYTES 4096u /* of tables, or a cluster's when that is smaller */

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
	const char *name; /* as for snapshots */
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
	char backing_format[16]; /* "" when not stated */

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
/* Gives back the tables of snapshots and bitmaps; the plain numbers stay. */
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
int qcow2_header_pread(
	int fd, void *buffer, size_t length, uint64_t offset, const char *name, struct err *err);

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
static inline void qcow2_compressed_range(
	const struct qcow2_header *h, uint64_t entry, uint64_t *offset, uint64_t *length)
{
	unsigned x = 62 - (h->cluster_bits - 8);
	uint64_t sectors = (entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> x;
	*offset = entry & (((uint64_t)1 << x) - 1);
	*length = (sectors + 1) * 512 - *offset % 512;
}

/* Refcount number index of a block, and setting it (value fits the width). */
uint64_t qcow2_refcount_get(const uint8_t *block, uint64_t index, unsigned order);
void qcow2_refcount_set(uint8_t *block, uint64_t index, unsigned order, uint64_t value);

/* --- cache.c: pages of L1, L2 and refcount tables --------------------------- */

/*
 * One cache for a whole chain, and one mutex: it also guards every table in
 * memory, the allocator and the pages' content.  "Holding the lock" below means
 * this mutex.  A function that takes pages may release it while it reads from
 * the file: what was read under it before is then stale.
 */
struct qcow2_image;

struct qcow2_page {
	struct qcow2_image *image;
	uint64_t offset; /* in the image's file */
	struct qcow2_page *hash_next;
	struct qcow2_page *previous, *next; /* in the clean or the dirty list */
	uint32_t bytes;
	bool loading; /* in no list, nobody may use it */
	bool dirty;
	bool writing; /* a copy is on its way to the file: must not be dropped */
	bool is_refcount; /* else it maps */
	uint8_t data[];
};

struct qcow2_page_list {
	struct qcow2_page *first, *last;
};

struct qcow2_cache {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct qcow2_page **buckets;
	size_t nr_buckets;
	struct qcow2_page_list clean; /* most recently used first */
	struct qcow2_page_list dirty, writing;
	size_t used_bytes, most_bytes;
	size_t dirty_bytes; /* dirty or writing */
};

int qcow2_cache_init(struct qcow2_cache *cache, size_t most_bytes, struct err *err);
void qcow2_cache_destroy(struct qcow2_cache *cache);

/*
 * The page at offset (a multiple of image->page_bytes).  Called and returns
 * holding the lock, may release it between.  The page is good until the lock is
 * released or another page is asked for.
 */
struct qcow2_page *qcow2_cache_get(
	struct qcow2_cache *cache, struct qcow2_image *image, uint64_t offset, struct err *err);

/* The same for a page whose content in the file is of no interest: zeros. */
struct qcow2_page *qcow2_cache_new(
	struct qcow2_cache *cache, struct qcow2_image *image, uint64_t offset, struct err *err);

void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_page *page, bool is_refcount);

/* Forgets the pages of a range of the file (a table that is gone), dirty or not. */
void qcow2_cache_forget(
	struct qcow2_cache *cache, struct qcow2_image *image, uint64_t offset, uint64_t length);

/* Copies of all pages that were dirty, sorted by offset. */
struct qcow2_batch {
	struct qcow2_page **pages;
	uint8_t *bytes; /* nr_pages * page_bytes */
	size_t nr_pages;
	uint32_t page_bytes;
};

/* Takes what is dirty of one kind; the pages become "writing" until the batch is
 * finished: written, or dirty again. */
int qcow2_cache_take(struct qcow2_cache *cache, bool is_refcount, uint32_t page_bytes,
	struct qcow2_batch *batch, struct err *err);
void qcow2_cache_finish(struct qcow2_cache *cache, struct qcow2_batch *batch, bool written);
/* Without the lock. */
int qcow2_cache_write(const struct qcow2_batch *batch, struct qcow2_image *image, struct err *err);

/* --- codec.c: compressed clusters ------------------------------------------- */

struct qcow2_codec; /* contexts and buffers of one thread at a time */

struct qcow2_unpacked { /* a decompressed cluster, kept for the next read */
	const struct qcow2_image *image;
	uint64_t entry;
	uint8_t *data;
	uint32_t bytes; /* allocated */
	unsigned users;
	uint64_t used_at;
};

#define QCOW2_UNPACKED_MAX 16

struct qcow2_codecs {
	pthread_mutex_t mutex;
	struct qcow2_codec *idle;
	struct qcow2_unpacked unpacked[QCOW2_UNPACKED_MAX];
	uint64_t clock;
};

void qcow2_codecs_init(struct qcow2_codecs *codecs);
void qcow2_codecs_destroy(struct qcow2_codecs *codecs);

struct qcow2_codec *qcow2_codec_get(struct qcow2_codecs *codecs, struct err *err);
void qcow2_codec_put(struct qcow2_codecs *codecs, struct qcow2_codec *codec);

/* A buffer that stays with the codec, until it is asked for again; NULL: no memory. */
uint8_t *qcow2_codec_output(struct qcow2_codec *codec, size_t bytes);

/* Compresses one cluster; returns the size, at most most_bytes, or 0 when it does
 * not become as small as that. */
size_t qcow2_codec_compress(struct qcow2_codec *codec, enum qcow2_compression type, int level,
	const void *in, size_t in_bytes, void *out, size_t most_bytes);

/* Reads part of a compressed cluster: at..at+length of its content. */
int qcow2_codec_read(struct qcow2_image *image, uint64_t entry, void *buffer, size_t length,
	size_t at, struct err *err);

/* The entry is no longer in use: its place may get other content. */
void qcow2_codec_forget(struct qcow2_image *image, uint64_t entry);

/* --- check.c ------------------------------------------------------------------- */

/* qcow2_check() of an open file (for writing if repair), which the caller has locked. */
int qcow2_check_file(int fd, const char *path, bool repair, struct cancel *cancel,
	qcow2_finding *finding, void *context, struct qcow2_check_result *result, struct err *err);

/* --- image.c: an open image ------------------------------------------------- */

/* What the images of one chain share. */
struct qcow2_shared {
	struct qcow2_cache cache;
	struct qcow2_codecs codecs;
	unsigned nr_images;
	uint64_t l1_bytes; /* of L1 tables of backing files in memory */
};

struct qcow2_writer;

struct qcow2_image {
	struct block block;
	int fd;
	char *path; /* as given, or as resolved for a backing file */
	char *folder; /* resolved */
	dev_t device;
	ino_t inode;
	struct qcow2_header h;
	struct qcow2_shared *shared;
	struct qcow2_image *backing; /* one of the two, or none */
	struct block *raw_backing;
	uint64_t backing_bytes; /* 0: none */
	uint64_t *l1; /* NULL: read through the cache (large tables of backing files) */
	uint32_t page_bytes;
	unsigned entry_bytes;
	unsigned l2_bits; /* log2 of the entries of an L2 table */
	uint64_t host_end; /* no valid offset leads beyond; guarded by the lock */
	bool own_layer; /* extents tell of this image alone */
	bool merge; /* written to beneath readers that are `merged` */
	bool merged; /* read while such a writer may be at work: the file may grow */
	struct qcow2_flat *flat; /* of the row that begins here; NULL: none does */
	struct qcow2_writer *writer; /* NULL: read-only */
};

/* An L2 entry in host order. */
struct qcow2_entry {
	uint64_t l2;
	uint64_t bitmap; /* extended L2: allocated in the low half, zero in the high half */
};

#define QCOW2_BITMAP_ALL_DATA 0x00000000ffffffffull
#define QCOW2_BITMAP_ALL_ZERO 0xffffffff00000000ull

static inline struct qcow2_image *qcow2_image_of(struct block *block)
{
	return (struct qcow2_image *)block;
}

static inline pthread_mutex_t *qcow2_lock(struct qcow2_image *image)
{
	return &image->shared->cache.mutex;
}

/* "... is damaged: <text>", ERR_CORRUPT. */
int qcow2_image_corrupt(const struct qcow2_image *image, struct err *err, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* Whether a range lies within the file.  Holding the lock. */
bool qcow2_image_fits(struct qcow2_image *image, uint64_t offset, uint64_t length);
#ifdef __clang_analyzer__ /* as in err.h */
#define qcow2_image_corrupt(...) (qcow2_image_corrupt(__VA_ARGS__), -1)
#endif

/* --- map.c: guest clusters to host clusters --------------------------------- */

/* Reads 1..max entries from a guest cluster on (fewer at the end of a page).
 * Holding the lock. */
int qcow2_map_get(struct qcow2_image *image, uint64_t cluster, size_t max,
	struct qcow2_entry *entries, size_t *nr, struct err *err);

/* Sets entries; makes or copies the L2 table where needed.  Holding the lock. */
int qcow2_map_set(struct qcow2_image *image, uint64_t cluster, size_t nr,
	const struct qcow2_entry *entries, struct err *err);

enum qcow2_kind {
	QCOW2_KIND_HOLE, /* not allocated in this image, or in the whole chain */
	QCOW2_KIND_ZERO, /* says that it reads as zeros */
	QCOW2_KIND_ZERO_HOST, /* the same, with host clusters kept */
	QCOW2_KIND_DATA,
	QCOW2_KIND_COMPRESSED,
	QCOW2_KIND_RAW, /* in the raw backing file, at the same offset */
};

/* A stretch of guest bytes that is stored alike. */
struct qcow2_run {
	enum qcow2_kind kind;
	struct qcow2_image *image; /* whose it is */
	uint64_t length;
	uint64_t host; /* of DATA: the first byte's place in the file */
	uint64_t entry; /* of COMPRESSED: one cluster's */
};

/* The kind of one entry that is checked: alignment, bounds, reserved forms.  With
 * extended L2 the kind is that of the first subcluster. */
int qcow2_map_check(struct qcow2_image *image, uint64_t cluster, struct qcow2_entry entry,
	enum qcow2_kind *kind, struct err *err);

/* The run from byte `at` of one cluster on, within that cluster; all but run->image. */
int qcow2_map_entry(struct qcow2_image *image, uint64_t cluster, struct qcow2_entry entry,
	uint32_t at, struct qcow2_run *run, struct err *err);
/* Whether the run that begins where another ends goes on with it. */
bool qcow2_map_continues(const struct qcow2_run *run, const struct qcow2_run *next);

/* Where the page with a cluster's entry is in the file; 0: there is no L2 table.  Holding
 * the lock. */
int qcow2_map_find_page(
	struct qcow2_image *image, uint64_t cluster, uint64_t *offset, struct err *err);

/* The run at offset in this image alone; length > 0.  Holding the lock. */
int qcow2_map_run(struct qcow2_image *image, uint64_t offset, uint64_t length,
	struct qcow2_run *run, struct err *err);

/* The run at offset in the chain from image on.  Takes the lock. */
int qcow2_map_chain(struct qcow2_image *image, uint64_t offset, uint64_t length,
	struct qcow2_run *run, struct err *err);

/* --- flat.c: a row of images as one ------------------------------------------ */

struct qcow2_flat;

/* Of nr_images read-only images from first down, with clusters of one size and no
 * extended L2; most_bytes: of memory. */
struct qcow2_flat *qcow2_flat_new(
	struct qcow2_image *first, unsigned nr_images, size_t most_bytes, struct err *err);
void qcow2_flat_free(struct qcow2_flat *flat);

struct qcow2_image *qcow2_flat_last(const struct qcow2_flat *flat);
/* From here on nothing beneath the row shows: an image of it is shorter. */
uint64_t qcow2_flat_reach(const struct qcow2_flat *flat);

/* The run at offset in the row; HOLE: no image of it holds that.  1: the images have to
 * be asked one by one.  Holding the lock. */
int qcow2_flat_run(struct qcow2_flat *flat, uint64_t offset, uint64_t length, struct qcow2_run *run,
	struct err *err);

/* --- read.c ------------------------------------------------------------------ */

/* Reads through the chain, without the assembly buffer and without range locks. */
int qcow2_read_chain(
	struct qcow2_image *image, void *buffer, size_t length, uint64_t offset, struct err *err);
/* The same, for what may reach beyond the end of the disk: zeros there. */
int qcow2_read_padded(
	struct qcow2_image *image, void *buffer, size_t length, uint64_t offset, struct err *err);
/* Whether the range reads as zeros as far as can be told without reading. */
int qcow2_read_is_zero(
	struct qcow2_image *image, uint64_t offset, uint64_t length, bool *zero, struct err *err);

int qcow2_read(struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err);

/* --- extents.c --------------------------------------------------------------- */

int qcow2_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err);

/* --- refcount.c: host clusters ---------------------------------------------- */

/* References to be given up once no table in the file holds them. */
struct qcow2_drop {
	uint64_t cluster;
	uint64_t nr_clusters;
};

/* Bits of a table in memory that are not in the file yet, one for 64 entries. */
struct qcow2_table {
	uint64_t *entries; /* the L1 table's are image->l1 */
	uint64_t nr_entries;
	uint64_t *dirty;
	bool any_dirty;
};

struct qcow2_writer {
	struct rangelock ranges; /* of guest bytes, in whole clusters */
	bool compress;
	int compress_level;
	atomic_bool marked; /* the file says that it is being written to */
	pthread_mutex_t marking;
	atomic_bool expects_new; /* the last write needed new clusters */

	/* Guarded by the lock. */
	struct qcow2_table l1, refcounts;
	uint64_t end_cluster; /* never used from here on */
	uint64_t hint_cluster; /* no free cluster below it is known */
	uint64_t pack_at, pack_end; /* compressed clusters go here; taken up to pack_end */
	struct qcow2_drop *drops;
	size_t nr_drops, room_drops;
	bool making_table; /* one thread makes an L2 table */

	/* commit.c */
	bool committing;
	uint64_t commits_begun, commits_done;
	struct err commit_err; /* of the last one */
	bool lost; /* a sync failed: what is in the file is not known any more */

	struct qcow2_assembly *assembly; /* compress only */
};

int qcow2_table_init(
	struct qcow2_table *table, uint64_t *entries, uint64_t nr_entries, struct err *err);
void qcow2_table_set(struct qcow2_table *table, uint64_t index, uint64_t value);

/* All of these hold the lock. */

int qcow2_refcount_open(struct qcow2_image *image, struct err *err);

/* Takes 1..want clusters in a row, with a refcount of 1.  fresh: they read as
 * zeros in the file. */
int qcow2_refcount_alloc(struct qcow2_image *image, uint64_t want, uint64_t *cluster,
	uint64_t *nr_clusters, bool *fresh, struct err *err);

/* Gives back what was never referred to. */
void qcow2_refcount_undo(struct qcow2_image *image, uint64_t cluster, uint64_t nr_clusters);

/* A place for a compressed cluster; its host clusters' refcounts are raised. */
int qcow2_refcount_pack(struct qcow2_image *image, size_t bytes, uint64_t *offset, struct err *err);

/* The entry was replaced in its table: its references go with a later commit. */
int qcow2_refcount_drop(struct qcow2_image *image, struct qcow2_entry old, struct err *err);
int qcow2_refcount_drop_clusters(
	struct qcow2_image *image, uint64_t cluster, uint64_t nr_clusters, struct err *err);
/* Lowers the refcounts. */
int qcow2_refcount_apply(
	struct qcow2_image *image, const struct qcow2_drop *drops, size_t nr, struct err *err);
/* Whether the refcount is nr and nothing can raise it. */
int qcow2_refcount_is(
	struct qcow2_image *image, uint64_t cluster, uint64_t nr, bool *is, struct err *err);

/* The end of the last cluster in use, in clusters. */
int qcow2_refcount_end(struct qcow2_image *image, uint64_t *end, struct err *err);

/* --- commit.c ------------------------------------------------------------------ */

/* Makes everything that completed before the call durable. */
int qcow2_commit(struct qcow2_image *image, struct err *err);
/* To be called without any lock before a change: commits when much is dirty, and
 * says in the file, once, that it is being written to. */
int qcow2_commit_make_room(struct qcow2_image *image, struct err *err);
/* The last commit: drops applied, file cut to its end, marked as closed. */
int qcow2_commit_close(struct qcow2_image *image, struct err *err);

/* --- write.c ------------------------------------------------------------------- */

int qcow2_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err);

/* Writes without the assembly buffer. */
int qcow2_write_through(struct qcow2_image *image, const void *buffer, size_t length,
	uint64_t offset, struct err *err);

/* The same for 1.. clusters or parts of them whose range is held by the caller.
 * Returns 1 when an exclusive hold is needed and it is not; compress: whole
 * clusters may be compressed. */
int qcow2_write_held(struct qcow2_image *image, const uint8_t *buffer, size_t length,
	uint64_t offset, bool exclusive, bool compress, struct err *err);

/* The clusters first..end that a range covers whole (the last up to the disk's end);
 * false when there are none. */
bool qcow2_write_covers(const struct qcow2_image *image, uint64_t offset, uint64_t length,
	uint64_t *first, uint64_t *end);

/* An image that is merged into takes whole clusters (the disk's last one up to its end)
 * and nothing else: what beside them is in the same cluster may be seen by readers, and
 * would move.  ERR_USAGE. */
int qcow2_write_refuse_part(
	const struct qcow2_image *image, uint64_t offset, uint64_t length, struct err *err);

/* The cluster-aligned range around offset..offset+length. */
void qcow2_write_hold(struct qcow2_image *image, struct rangelock_hold *hold, uint64_t offset,
	uint64_t length, bool exclusive);

/* --- zero.c ---------------------------------------------------------------------- */

int qcow2_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err);
int qcow2_trim(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err);

/* --- assembly.c: parts of clusters that will be compressed ------------------------ */

struct qcow2_assembly *qcow2_assembly_new(
	struct qcow2_image *image, size_t most_bytes, struct err *err);
void qcow2_assembly_free(struct qcow2_assembly *assembly);

/* A write within one cluster.  Holding no range. */
int qcow2_assembly_write(struct qcow2_image *image, const void *buffer, size_t length,
	uint64_t offset, struct err *err);
/* Lays what is assembled over bytes that were read; the range is held. */
void qcow2_assembly_overlay(
	struct qcow2_image *image, void *buffer, size_t length, uint64_t offset);
/* Forgets what is assembled in whole clusters; the range is held exclusively. */
void qcow2_assembly_discard(struct qcow2_image *image, uint64_t cluster, uint64_t nr_clusters);
/* The first cluster in the range that has bytes assembled, or the range's end. */
uint64_t qcow2_assembly_next(struct qcow2_image *image, uint64_t cluster, uint64_t end);
/* Writes everything out.  last: the disk is being closed, so parts may be compressed. */
int qcow2_assembly_flush(struct qcow2_image *image, bool last, struct err *err);

#endif
