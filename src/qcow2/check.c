/*
 * Checks one image, and mends what can be mended without loss.
 *
 * The file's host clusters are taken in windows (one for files up to 512 GiB
 * with clusters of 64 KiB).  For each window one walk over all references
 * counts how often each cluster is used, then the counts are compared with the
 * refcounts in the file.  The most that is held: a window (24 MiB), the refcount
 * table (8 MiB), spans of L2 tables (4 MiB), a batch of L2 offsets (2 MiB), an
 * L2 table and a refcount block (2 MiB each).
 *
 * Repair is a row of passes, each durable before the next begins, so that a
 * crash leaves the image no worse than any of them found it:
 *
 *   1 raise refcounts   nothing that is in use can be allocated any more
 *   2 COPIED flags      cleared where a cluster is used more than once; set
 *                       where it is used once, though its refcount may still be
 *                       too large
 *   3 lower refcounts   leaks go back
 *   4 look again
 *   5 cut               what is counted behind the end of the file, which is no leak (nor is it
 *                       one for QEMU) until the file grows over it; then dirty and corrupt bits
 *                       go when nothing is left
 *
 * With a broken reference in the file, what looks unused may be the data that it
 * stood for: nothing is lowered then, no COPIED flag is set, no refcount block is added.
 *
 * With metadata where something else lies as well, or a broken refcount table,
 * nothing is written at all: a "refcount block" may be guest data.  Nor is it with
 * a cluster that is used more often than its refcount can say: with refcounts of
 * one bit it would look as if each user were its only one.
 */
#include "check_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define WINDOW_BYTES (24 * MIB)
#define BATCH_BYTES ((size_t)256 * 1024 * sizeof(uint64_t))
#define SPANS_BYTES ((size_t)256 * 1024 * sizeof(struct check_span))
#define PIECE_BYTES 65536u
#define MAX_TOLD 64u

/* --- findings ------------------------------------------------------------------ */

__attribute__((format(printf, 2, 0))) static void tell(
	struct check *c, const char *format, va_list ap)
{
	char text[256];
	if (!c->finding || c->nr_told >= MAX_TOLD)
		return;
	c->nr_told++;
	vsnprintf(text, sizeof text, format, ap);
	c->finding(c->finding_context, text);
}

void qcow2_check_broken(struct check *c, uint64_t times, const char *format, ...)
{
	if (c->pass != CHECK_PASS_LOOK)
		return;
	c->result.errors += times;
	c->nr_broken += times;
	va_list ap;
	va_start(ap, format);
	tell(c, format, ap);
	va_end(ap);
}

void qcow2_check_wrong(struct check *c, uint64_t times, const char *format, ...)
{
	if (c->pass != CHECK_PASS_LOOK)
		return;
	c->result.errors += times;
	va_list ap;
	va_start(ap, format);
	tell(c, format, ap);
	va_end(ap);
}

void qcow2_check_leak(struct check *c, const char *format, ...)
{
	c->result.leaks++;
	va_list ap;
	va_start(ap, format);
	tell(c, format, ap);
	va_end(ap);
}

/* --- passes ---------------------------------------------------------------------- */

static int run_window(struct check *c, struct err *err)
{
	size_t nr = (size_t)c->nr_window;
	memset(c->state, 0, nr);
	if (c->wide)
		memset(c->used32, 0, nr * sizeof *c->used32);
	else
		memset(c->used16, 0, nr * sizeof *c->used16);
	if (c->pass == CHECK_PASS_LOOK && qcow2_check_refcounts_load(c, err) < 0)
		return -1;
	c->counting = true;
	if (qcow2_check_walk(c, err) < 0)
		return -1;
	if (c->pass != CHECK_PASS_FLAGS)
		return qcow2_check_refcounts_compare(c, err);
	qcow2_check_refcounts_once(c);
	c->counting = false;
	return qcow2_check_walk(c, err);
}

static int run_pass(struct check *c, enum check_pass pass, struct err *err)
{
	c->pass = pass;
	c->spans_known = false;
	c->first_window = true;
	if (pass == CHECK_PASS_LOOK) {
		c->result = (struct qcow2_check_result){
			.clusters_total =
				div_round_up(c->header.size_bytes, c->header.cluster_bytes)};
		c->nr_broken = 0;
		c->untrusted = false;
	}
	/* One cluster more than the file has: a reference may end in it. */
	for (c->first = 0; c->first <= c->nr_clusters;) {
		c->nr_window = min_u64(c->most_window, c->nr_clusters + 1 - c->first);
		c->next = UINT64_MAX;
		uint64_t end = c->first + c->nr_window;
		if (run_window(c, err) < 0)
			return -1;
		c->first_window = false;
		c->first = min_u64(c->next, qcow2_check_refcounts_next(c, end));
	}
	if (pass != CHECK_PASS_LOOK && fdatasync(c->fd) < 0)
		return err_errno(err, errno, "cannot sync %s", c->name);
	return 0;
}

/* Takes the dirty and corrupt bits away. */
static int mark_sound(struct check *c, struct err *err)
{
	uint64_t marks = QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT;
	uint8_t features[8];
	if (!(c->header.incompatible & marks))
		return 0;
	c->header.incompatible &= ~marks;
	be64_put(features, c->header.incompatible);
	if (file_pwrite(c->fd, features, sizeof features, QCOW2_AT_INCOMPATIBLE, c->name, err) < 0)
		return -1;
	if (fdatasync(c->fd) < 0)
		return err_errno(err, errno, "cannot sync %s", c->name);
	return 0;
}

static int repair_image(struct check *c, struct qcow2_check_result *found, struct err *err)
{
	if (c->untrusted)
		return 0;
	/* What was found has been told. */
	c->finding = NULL;
	c->set_copied = c->nr_broken == 0;
	if (found->errors > 0 &&
		(run_pass(c, CHECK_PASS_RAISE, err) < 0 || run_pass(c, CHECK_PASS_FLAGS, err) < 0))
		return -1;
	if (found->leaks > 0 && c->nr_broken == 0) {
		/* A cluster whose refcount sinks to 1 must have its flag. */
		if (found->errors == 0 && run_pass(c, CHECK_PASS_FLAGS, err) < 0)
			return -1;
		if (run_pass(c, CHECK_PASS_LOWER, err) < 0)
			return -1;
	}
	if (found->errors + found->leaks > 0 && run_pass(c, CHECK_PASS_LOOK, err) < 0)
		return -1;
	uint64_t before = found->errors + found->leaks;
	uint64_t after = c->result.errors + c->result.leaks;
	found->repaired = before > after ? before - after : 0;
	found->end_offset = c->result.end_offset;
	if (after > 0)
		return 0;
	return qcow2_check_refcounts_cut(c, err) < 0 ? -1 : mark_sound(c, err);
}

/* --- the frame --------------------------------------------------------------------- */

static int take_memory(struct check *c, struct err *err)
{
	unsigned bits = 1u << c->header.refcount_order;
	c->wide = bits > 16;
	c->count_max = bits >= 32 ? UINT32_MAX : ((uint64_t)1 << bits) - 1;
	size_t counter = c->wide ? sizeof *c->used32 : sizeof *c->used16;
	c->most_window = min_u64(WINDOW_BYTES / (counter + 1), c->nr_clusters + 1);
	bool several = c->most_window < c->nr_clusters + 1;
	size_t nr = (size_t)c->most_window;
	if (c->wide)
		c->used32 = malloc(nr * counter);
	else
		c->used16 = malloc(nr * counter);
	c->state = malloc(nr);
	c->batch = malloc(BATCH_BYTES);
	c->spans = several ? malloc(SPANS_BYTES) : NULL;
	c->table = malloc(c->header.cluster_bytes);
	c->refblock = malloc(c->header.cluster_bytes);
	c->l1_piece = malloc(PIECE_BYTES);
	if ((!c->used16 && !c->used32) || !c->state || !c->batch || (several && !c->spans) ||
		!c->table || !c->refblock || !c->l1_piece)
		return err_errno(err, ENOMEM, "cannot check %s", c->name);
	return 0;
}

static void give_memory(struct check *c)
{
	free(c->used16);
	free(c->used32);
	free(c->state);
	free(c->batch);
	free(c->spans);
	free(c->table);
	free(c->refblock);
	free(c->l1_piece);
	free(c->refcount_table);
}

static int check_image(
	struct check *c, bool repair, struct qcow2_check_result *result, struct err *err)
{
	c->nr_clusters = div_round_up(c->header.file_bytes, c->header.cluster_bytes);
	if (qcow2_header_load_refcount_table(c->fd, c->name, &c->header, &c->refcount_table,
		    &c->nr_refcount_table, err) < 0 ||
		take_memory(c, err) < 0 || run_pass(c, CHECK_PASS_LOOK, err) < 0)
		return -1;
	*result = c->result;
	return repair ? repair_image(c, result, err) : 0;
}

int qcow2_check_file(int fd, const char *path, bool repair, struct cancel *cancel,
	qcow2_finding *finding, void *context, struct qcow2_check_result *result, struct err *err)
{
	struct check c = {
		.fd = fd,
		.name = path,
		.cancel = cancel,
		.finding = finding,
		.finding_context = context,
	};
	*result = (struct qcow2_check_result){0};
	int rc = qcow2_header_load(fd, path, &c.header, err);
	if (rc == 0) {
		rc = check_image(&c, repair, result, err);
		give_memory(&c);
		qcow2_header_free(&c.header);
	}
	return rc < 0 ? err_context(err, "cannot check qcow2:%s", path) : 0;
}

int qcow2_check(const char *path, bool repair, struct cancel *cancel, qcow2_finding *finding,
	void *context, struct qcow2_check_result *result, struct err *err)
{
	/* What is written is synced: close has nothing to tell. */
	int AUTO_CLOSE fd =
		open(path, (repair ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return err_errno(err, errno, "cannot open qcow2:%s", path);
	if (filelock_take(fd, path, repair ? FILELOCK_WRITE : FILELOCK_READ, err) < 0)
		return -1;
	return qcow2_check_file(fd, path, repair, cancel, finding, context, result, err);
}
