/*
 * qcow2: the image engine.  Creates, reads, writes and checks QCOW2 images.
 *
 * Source: docs/interop/qcow2.txt of QEMU.  Reads what QEMU 7.2 writes: versions
 * 2 and 3, clusters of 512 B to 2 MiB, refcounts of 1 to 64 bits, zlib and zstd
 * clusters, zero clusters, extended L2 entries, backing chains of QCOW2 and raw
 * files, images that were not closed (dirty), internal snapshots and persistent
 * bitmaps (left as they are).  Refused by name: encryption, external data files,
 * incompatible features that are not listed here.
 *
 * An open image is a struct block; any number of threads may use it at once.
 * Nothing is ever guessed: the caller says that a file is QCOW2, and a backing
 * file is only followed when the image states its format as qcow2 or raw.
 */
#ifndef SENDENSE_QCOW2_H
#define SENDENSE_QCOW2_H

#include "block.h"

enum qcow2_compression { QCOW2_ZLIB = 0, QCOW2_ZSTD = 1 }; /* as in the header */

/* --- open ------------------------------------------------------------------- */

struct qcow2_open_options {
	bool read_only;

	/* Where backing files may lie.  They are resolved relative to the folder of
	 * the image that names them, with symbolic links followed, and must end up
	 * in that folder or below one of these (absolute paths, NULL-terminated;
	 * may be NULL).  Anything else is ERR_DENIED naming both paths. */
	const char *const *allow_backing;
	/* The disk's true size, when it is not a number of sectors and so was stored in
	 * an image rounded up: 0, or at most 511 bytes less than the header's. */
	uint64_t size_bytes;

	/*
	 * Read-only: tell of this image's own layer alone.  Extents that it does not
	 * hold itself are BLOCK_HOLE | BLOCK_UNCHANGED (info.has_changes); reads go through
	 * the chain all the same.
	 */
	bool own_layer;

	/*
	 * merge: for writing, while readers that opened with `merged` read images above
	 * this one: the caller promises to write only to what those images hide, whole
	 * clusters of theirs.  Only whole clusters of this image are taken (ERR_USAGE, the
	 * disk's last one ends with it), so it must not have larger ones than theirs.  The
	 * backing chain is read as any other.  ERR_UNSUPPORTED when tables are shared with
	 * snapshots.
	 * merged: for reading, beside such a writer of an image of the chain beneath this one,
	 * opened before, while or after it is at work, whatever state it left its image in.
	 */
	bool merge, merged;

	/* Writable images: how new clusters are written. */
	bool compress; /* with the image's compression type; incompressible data plain */
	int compress_level; /* 0: the library's default */

	size_t cache_bytes; /* metadata cache; 0: 16 MiB */
	size_t assembly_bytes; /* compressed writes that arrive in pieces; 0: 16 MiB */
};

/*
 * Opens an image and its backing chain (at most 1,000 long; a chain that refers
 * to itself is ERR_FORMAT).  A writable image that was not closed cleanly is
 * checked and repaired first; if that is not possible, ERR_CORRUPT.
 *
 * ERR_BUSY when another program writes to one of the images, or for a writable
 * image, has it open at all: sendense (this process too) or QEMU, whose locks are
 * observed and taken until close.  Where the file system has no locks nothing of
 * that is noticed.  A device is only read from: writing is ERR_UNSUPPORTED.
 * path, options: borrowed for the call.
 */
struct block *qcow2_open(
	const char *path, const struct qcow2_open_options *options, struct err *err);

/* --- create ----------------------------------------------------------------- */

struct qcow2_create_options {
	uint64_t size_bytes; /* any number of bytes up to 2^63 - 1 that the L1 limit
				(32 MiB of table) allows for the cluster size; a size that is not a
				multiple of 512 is refused (the format's readers round) */
	uint32_t cluster_bytes; /* power of two, 512..2 MiB; 0: 65536 */
	enum qcow2_compression compression; /* the image's type, used or not */
	const char *backing_file; /* stored as given; NULL: none */
	const char *backing_format; /* "qcow2" or "raw"; required with backing_file */
	bool replace; /* an existing regular file is replaced */
};

/*
 * Makes a version 3 image with 16-bit refcounts.  ERR_EXISTS when there is a
 * file already and !replace, ERR_BUSY when an image to be replaced is open
 * somewhere (it is left alone).  Synced to disk (file, not folder) on return;
 * removed again on failure.
 */
int qcow2_create(const char *path, const struct qcow2_create_options *options, struct err *err);

/* --- facts ------------------------------------------------------------------ */

struct qcow2_facts {
	unsigned version;
	uint64_t size_bytes;
	uint32_t cluster_bytes;
	unsigned refcount_bits;
	enum qcow2_compression compression;
	bool dirty, corrupt, lazy_refcounts, extended_l2;
	unsigned nr_snapshots, nr_bitmaps;
	char backing_file[1024]; /* "" when none */
	char backing_format[16];
};

/* Reads the header alone; follows nothing. */
int qcow2_facts(const char *path, struct qcow2_facts *facts, struct err *err);

/* For an open image: how many images its chain has (1 without backing). */
unsigned qcow2_chain_length(struct block *image);

/*
 * For a writable image: whether the image itself (not its backing) holds anything
 * for the range, data or zeros: *nr_alike (1..length) bytes from offset on are alike in
 * that.  What sits in the assembly buffer counts as held.
 */
int qcow2_own_run(struct block *image, uint64_t offset, uint64_t length, uint64_t *nr_alike,
	bool *held, struct err *err);

/* --- check ------------------------------------------------------------------ */

struct qcow2_check_result {
	uint64_t errors; /* references that are wrong: data may be lost */
	uint64_t leaks; /* clusters that are counted and not used: only space */
	uint64_t repaired; /* of these, mended by this call */
	uint64_t clusters_used, clusters_total; /* guest clusters with data of their own / in all */
	uint64_t compressed;
	uint64_t end_offset; /* end of the last host cluster in use */
};

/* One finding in words, e.g. "cluster at host offset 327680: refcount 1, used 2 times".
 * At most 64 are told. */
typedef void qcow2_finding(void *context, const char *text);

/*
 * Checks one image (not its backing file) in bounded memory (48 MiB), by passes
 * over windows of the file; errors and leaks are counted as qemu-img check does,
 * and clusters with two uses are errors too.  repair: refcounts that are too small
 * are raised, COPIED flags mended, leaks given back; when nothing is left, the
 * dirty and corrupt marks go.  A crash in the middle does no harm.  Guest data is
 * never written to.  Broken references are only reported; beside them leaks stay
 * (they may be what was lost), and where metadata overlaps, or a refcount's width is too
 * small for the uses, nothing is changed.
 * Returns 0 when the check itself could be done, whatever it found.
 * finding may be NULL.  ERR_BUSY when the image is open elsewhere: for writing, or
 * with repair at all.
 */
int qcow2_check(const char *path, bool repair, struct cancel *cancel, qcow2_finding *finding,
	void *context, struct qcow2_check_result *result, struct err *err);

#endif
