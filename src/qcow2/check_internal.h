/*
 * What the parts of qcow2_check() share.
 *
 *   check.c           the passes, what is reported, repair
 *   check_walk.c      follows every reference of the image and counts it
 *   check_refcounts.c compares the counts with those in the file, amends these
 */
#ifndef SENDENSE_QCOW2_CHECK_INTERNAL_H
#define SENDENSE_QCOW2_CHECK_INTERNAL_H

#include "qcow2_internal.h"

/* What a host cluster is used for.  A cluster has one use; L2 tables and data
 * may be shared by several references, the others not. */
#define CHECK_USE_METADATA 1u
#define CHECK_USE_REFBLOCK 2u
#define CHECK_USE_L2 4u
#define CHECK_USE_DATA 8u
#define CHECK_USE_BITMAP 16u
#define CHECK_USE_MASK 31u
/* Metadata or a bitmap's cluster that was referenced twice. */
#define CHECK_USED_TWICE 32u
/* What the COPIED flag of a reference must agree with. */
#define CHECK_ONCE 64u

enum check_pass {
	CHECK_PASS_LOOK, /* report, change nothing */
	CHECK_PASS_RAISE, /* refcounts that are too small */
	CHECK_PASS_FLAGS, /* COPIED flags, by the counts of this pass */
	CHECK_PASS_LOWER, /* refcounts that are too large */
};

/* Lowest and highest host cluster that an L2 table refers to (none: low > high). */
struct check_span {
	uint64_t low, high;
};

struct check {
	int fd;
	const char *name;
	struct qcow2_header header;
	uint64_t *refcount_table;
	uint64_t nr_refcount_table;
	uint64_t nr_clusters; /* of the file, the last perhaps cut short */

	struct cancel *cancel;
	qcow2_finding *finding; /* NULL: not told */
	void *finding_context;
	unsigned nr_told;

	enum check_pass pass;
	struct qcow2_check_result result;
	bool untrusted; /* repair must not write: through these tables, or for want of counts */
	uint64_t nr_broken; /* of result.errors: neither refcounts nor COPIED flags */
	bool uses_end; /* a reference ends in the one cluster behind the end of the file */
	bool set_copied; /* CHECK_PASS_FLAGS may set flags, not only clear them */

	/* The window: host clusters [first, first + nr_window). */
	uint64_t first, nr_window, most_window;
	uint64_t next; /* the lowest cluster behind it that is referred to */
	bool first_window;
	bool wide; /* used32 rather than used16 */
	uint64_t count_max; /* what the refcount's width can say, or the counter */
	uint16_t *used16;
	uint32_t *used32;
	uint8_t *state; /* CHECK_USE_*, ... */

	/* The walk: L2 tables of one batch, and what is known of each table. */
	bool counting; /* else looking at COPIED flags */
	bool active; /* the tables belong to the active L1 table */
	uint64_t *batch;
	size_t nr_batch;
	struct check_span *spans;
	size_t next_span;
	bool spans_known;
	uint8_t *table, *l1_piece;
	uint8_t *refblock;
};

/* --- check.c ---------------------------------------------------------------- */

/* Reports; only CHECK_PASS_LOOK does.  A broken reference counts times. */
void qcow2_check_broken(struct check *c, uint64_t times, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void qcow2_check_wrong(struct check *c, uint64_t times, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void qcow2_check_leak(struct check *c, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static inline uint64_t check_used(const struct check *c, uint64_t i)
{
	return c->wide ? c->used32[i] : c->used16[i];
}

/* --- check_walk.c ----------------------------------------------------------- */

/* Counts all references into the window, or with !counting looks at the COPIED
 * flags of those that are active (and mends them in CHECK_PASS_FLAGS). */
int qcow2_check_walk(struct check *c, struct err *err);

/* --- check_refcounts.c ------------------------------------------------------- */

/* CHECK_ONCE for the window's clusters, by the refcounts in the file. */
int qcow2_check_refcounts_load(struct check *c, struct err *err);
/* The same by the counts of the walk. */
void qcow2_check_refcounts_once(struct check *c);
/* Compares, and in CHECK_PASS_RAISE and _LOWER amends the file. */
int qcow2_check_refcounts_compare(struct check *c, struct err *err);
/* What is counted behind the end of the file is counted no more; c->refblock is lost. */
int qcow2_check_refcounts_cut(struct check *c, struct err *err);
/* The host offset of refcount block index, 0 when there is none that can be used. */
uint64_t qcow2_check_refcounts_block(const struct check *c, uint64_t index);
/* The first cluster >= from that a refcount block stands for, or UINT64_MAX. */
uint64_t qcow2_check_refcounts_next(const struct check *c, uint64_t from);

#endif
