/*
 * block: everything that looks like a disk.
 *
 * A struct block is an array of size_bytes bytes with read, and for writable
 * ones write, zero, trim and flush.  Sources and targets implement it, the NBD
 * server serves any of it, and the copy engine knows nothing else.
 *
 * Two ways in:
 *  - block_read() and the like: blocking, from any number of threads at once;
 *  - a lane (struct block_lane): one thread's private way to the disk, on which
 *    many requests can be in flight.  Network disks give each lane a connection
 *    of its own.  For other disks a request on a lane is done when submit
 *    returns; the caller need not know which kind it has.
 *
 * Promises of every driver
 *  - Any offset and length within size_bytes is taken, down to one byte; the
 *    functions below check bounds and flags, so drivers need not.
 *  - What block_flush() returned for is durable, as is a write with BLOCK_FUA
 *    once it returned.  Requests in flight at the same time on overlapping
 *    ranges may land in any order, but never harm bytes outside their ranges.
 *    When the system could not sync a local disk, every later flush fails too:
 *    it may have thrown data away, and tells of it once.
 *  - Short reads and writes do not exist: all or an error.
 */
#ifndef SENDENSE_BLOCK_H
#define SENDENSE_BLOCK_H

#include "base.h"

#include <poll.h>
#include <stdatomic.h>

/* Flags of requests. */
#define BLOCK_FUA 1u /* durable when it returns (write, zero, trim) */
#define BLOCK_NO_HOLE 2u /* zero: the range must stay allocated */
#define BLOCK_FAST_ZERO 4u /* zero: fail with ERR_UNSUPPORTED rather than write bytes */

/* State of an extent.  DATA has none of the flags.  The first two as NBD's base:allocation. */
#define BLOCK_HOLE 1u /* nothing allocated here */
#define BLOCK_ZERO 2u /* reads as zeros */
/* The same as in an earlier state of the disk, whichever the one who opened it
 * asked about; only where info.has_changes. */
#define BLOCK_UNCHANGED 4u

struct block_extent {
	uint64_t length;
	uint32_t flags; /* BLOCK_HOLE | BLOCK_ZERO | BLOCK_UNCHANGED */
};

struct block_info {
	uint64_t size_bytes;
	bool read_only;
	bool has_extents; /* extents tell more than "all is data" */
	bool has_changes; /* extents tell what is BLOCK_UNCHANGED; then has_extents is set */
	bool can_trim;
	bool can_zero; /* zeroing costs less than writing zeros */
	bool can_fast_zero;
	bool can_fua; /* cheaper than a flush behind the write */
	bool multi_lane; /* several lanes see each other's writes (always when read_only) */
	bool starts_zero; /* when it was opened every byte read as zero */
	bool can_vanish; /* behind a network: a lost connection may lose unflushed writes */
	uint32_t granule_bytes; /* data and zeros are best told apart in aligned units of this
				   size (cluster, sector, page): a power of two, 512..2 MiB */
};

struct block;
struct block_lane;

enum block_op {
	BLOCK_OP_READ,
	BLOCK_OP_WRITE,
	BLOCK_OP_ZERO,
	BLOCK_OP_TRIM,
	BLOCK_OP_FLUSH,
	BLOCK_OP_EXTENTS, /* on a lane: block_extents() */
};

/* --- using a disk --------------------------------------------------------- */

/* Valid until close, and never changes. */
const struct block_info *block_info(const struct block *block);

/* For messages: "raw:/srv/a.img", "nbd://localhost/disk".  Holds no secrets. */
const char *block_label(const struct block *block);

int block_read(struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err);
int block_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err);

/* Makes the range read as zeros.  Frees space where it can, unless BLOCK_NO_HOLE. */
int block_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err);

/* A hint that the content of the range is of no more use.  It may read as
 * anything afterwards that it could have held, or zeros. */
int block_trim(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err);

int block_flush(struct block *block, struct err *err);

/*
 * Tells the state of the range from offset on, in order and without gaps:
 * fills 1..max extents whose lengths add up to at most length.  It may stop
 * before the end of the range; ask again from there.  A disk that does not know
 * answers one data extent.  length > 0, max > 0.
 */
int block_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr_extents, struct err *err);

/* Which units of unit_bytes from offset on are BLOCK_UNCHANGED from end to end, as bits, the first
 * one the lowest; of the last one what is within length counts.  At most 32 units. */
int block_unchanged(struct block *block, uint64_t offset, uint64_t length, uint64_t unit_bytes,
	uint32_t *unchanged, struct err *err);

/* Bytes that the disk takes where it is stored; 0 when unknown. */
uint64_t block_stored_bytes(struct block *block);

/*
 * Gives everything back; the block is gone whatever the answer.  A writable
 * image is flushed and closed cleanly; an error says that it may not have been.
 * No request is running and no lane is open (asserted).  NULL is harmless.
 */
int block_close(struct block *block, struct err *err);

/* --- lanes ------------------------------------------------------------------ */

/*
 * One request.  The caller fills op .. buffer and owns the struct; from submit
 * until reap it and the buffer belong to the lane.  After reap, err.code is
 * ERR_NONE or says why it failed.
 */
struct block_io {
	enum block_op op;
	unsigned flags;
	uint64_t offset;
	uint64_t length; /* of a read or write: at most 32 MiB; of a flush: 0 */
	void *buffer; /* of EXTENTS: an array of struct block_extent */
	size_t nr_extents; /* EXTENTS: room in the array, > 0; then how many are filled */
	void *owner; /* the caller's */
	struct err err;
	struct block_io *next; /* the lane's */
};

/*
 * Opens a lane.  It may take as long as a connection takes (the driver's
 * deadline) and heeds cancel, also later while it reconnects; borrows cancel
 * until the lane is closed.  A disk may refuse more lanes than it can serve
 * (ERR_BUSY, ERR_REFUSED, ERR_TIMEOUT): the caller goes on with those it has.
 */
struct block_lane *block_lane_open(struct block *block, struct cancel *cancel, struct err *err);

/* True when requests on a lane stay in flight, so that more of them at a time
 * are faster; false when each is done before submit returns. */
bool block_lanes_queue(const struct block *block);

/* Cancels and forgets what is in flight: the requests are not reaped any more,
 * and their buffers are free again when this returns.  NULL is harmless. */
void block_lane_close(struct block_lane *lane);

/* Never fails by itself: errors come with the request.  Bounds are checked.
 * Here BLOCK_FUA and BLOCK_FAST_ZERO are for disks that have them (block_info). */
void block_lane_submit(struct block_lane *lane, struct block_io *io);

/* A finished request, in any order, or NULL when none is finished now. */
struct block_io *block_lane_reap(struct block_lane *lane);

/* Submitted and not reaped yet. */
unsigned block_lane_in_flight(const struct block_lane *lane);

/* What to poll for while requests are in flight (fd -1: nothing), and until
 * when at most; then dispatch, with revents 0 if it was the time. */
struct pollfd block_lane_pollfd(struct block_lane *lane);
struct deadline block_lane_wake(struct block_lane *lane);
void block_lane_dispatch(struct block_lane *lane, short revents);

/* Counts how often acknowledged but unflushed writes may have been lost since
 * the lane was opened, because its connection was (can_vanish).  When it
 * changes, whatever was written since the last flush must be written again. */
unsigned block_lane_losses(const struct block_lane *lane);

/* --- writing a driver ------------------------------------------------------- */

/*
 * Bounds, read-only and flags are checked before a driver is called: writes
 * only when !read_only, length > 0 (zero-length requests are answered at once),
 * BLOCK_FUA only when can_fua, BLOCK_FAST_ZERO only when can_fast_zero.
 * NULL members: zero -> written as zeros in pieces; trim -> nothing; flush ->
 * nothing to do; extents -> all data; lane functions -> blocking calls.
 * Required: read, close.  write unless read_only.
 */
struct block_driver {
	const char *name;
	int (*read)(struct block *, void *buffer, size_t length, uint64_t offset, struct err *);
	int (*write)(struct block *, const void *buffer, size_t length, uint64_t offset,
		unsigned flags, struct err *);
	int (*zero)(struct block *, uint64_t offset, uint64_t length, unsigned flags, struct err *);
	int (*trim)(struct block *, uint64_t offset, uint64_t length, unsigned flags, struct err *);
	int (*flush)(struct block *, struct err *);
	int (*extents)(struct block *, uint64_t offset, uint64_t length, struct block_extent *,
		size_t max, size_t *nr, struct err *);
	uint64_t (*stored_bytes)(struct block *);
	int (*close)(struct block *, struct err *); /* frees the block itself as well */

	struct block_lane *(*lane_open)(struct block *, struct cancel *, struct err *);
	void (*lane_close)(struct block_lane *);
	void (*lane_submit)(struct block_lane *, struct block_io *);
	struct pollfd (*lane_pollfd)(struct block_lane *);
	struct deadline (*lane_wake)(struct block_lane *);
	void (*lane_dispatch)(struct block_lane *, short revents);
};

/* The head of every driver's own struct. */
struct block {
	const struct block_driver *driver;
	struct block_info info;
	char *label; /* freed by block_fini() */
	atomic_uint nr_lanes;
};

struct block_lane {
	struct block *block;
	struct cancel *cancel;
	unsigned nr_in_flight;
	unsigned nr_losses;
	struct block_io *done_first, *done_last;
};

/* Fills the head; takes label (allocated; may be NULL when out of memory). */
void block_init(struct block *block, const struct block_driver *driver, char *label);
void block_fini(struct block *block);

/* A driver's lane says that a request is finished; io->err is set. */
void block_lane_finish(struct block_lane *lane, struct block_io *io);

/* --- drivers of this room --------------------------------------------------- */

/*
 * A raw file or block device; the size is the file's or device's.
 * A raw file is never created here; see block_raw_create().
 */
struct block *block_raw_open(const char *path, bool read_only, struct err *err);

/*
 * Makes a raw file of that size, one hole.  ERR_EXISTS when something is there,
 * unless replace: then a regular file is emptied first.  A block device is
 * refused here (open it).  On failure after creation the file is removed.
 */
struct block *block_raw_create(
	const char *path, uint64_t size_bytes, bool replace, struct err *err);

/* Reads zeros, swallows writes; one hole.  For measuring. */
struct block *block_null_open(uint64_t size_bytes, struct err *err);

/*
 * Tells the map of a source differently: from are the nr_from extents that the source told
 * from offset on; fills 1..max of out, for all that they cover or a first part of it.
 * Called by several lanes at once.
 */
typedef int block_remap(void *context, uint64_t offset, const struct block_extent *from,
	size_t nr_from, struct block_extent *out, size_t max, size_t *nr, struct err *err);

/*
 * source, read-only, with a map that remap() tells (info.has_changes: it may say
 * BLOCK_UNCHANGED).  Lanes and all else are the source's own.  Borrows source and context;
 * close the result first.
 */
struct block *block_remap_open(
	struct block *source, block_remap *remap, void *context, struct err *err);

/* For remap(): puts the state of the next bytes into out, joined with its like; false when it
 * is full. */
bool block_remap_put(
	struct block_extent *out, size_t max, size_t *nr, uint64_t length, uint32_t flags);

/*
 * base, with writes going to unnamed scratch files in folder, which are gone
 * when the block is closed or the process ends.  base: up to 1 PiB, else
 * ERR_UNSUPPORTED.  At most limit_bytes of scratch
 * are used (0: no limit); beyond it writes fail with ERR_NO_SPACE.
 * Borrows base (read-only use, any number of threads); close the overlay first.
 */
struct block *block_overlay_open(
	struct block *base, const char *folder, uint64_t limit_bytes, struct err *err);

#endif
