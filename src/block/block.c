/* The disk interface: checks that hold for all drivers, and the blocking lane. */
#include "block.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>

#define ZERO_PIECE_BYTES (256 * 1024)
#define EXTENTS_AT_ONCE 64u

void block_init(struct block *block, const struct block_driver *driver, char *label)
{
	assert(driver->read && driver->close);
	block->driver = driver;
	block->label = label;
	if (label)
		redact_uris(label);
	atomic_init(&block->nr_lanes, 0);
}

void block_fini(struct block *block)
{
	free(block->label);
	block->label = NULL;
}

const struct block_info *block_info(const struct block *block)
{
	return &block->info;
}

const char *block_label(const struct block *block)
{
	return block->label ? block->label : block->driver->name;
}

static int check_range(const struct block *block, const char *verb, uint64_t offset,
	uint64_t length, struct err *err)
{
	if (!range_fits(offset, length, block->info.size_bytes))
		return err_set(err, ERR_RANGE,
			"cannot %s %" PRIu64 " bytes at offset %" PRIu64
			" of %s: it ends at %" PRIu64,
			verb, length, offset, block_label(block), block->info.size_bytes);
	return 0;
}

static int check_change(const struct block *block, const char *verb, uint64_t offset,
	uint64_t length, struct err *err)
{
	if (block->info.read_only)
		return err_set(err, ERR_DENIED, "cannot %s %s: it is open read-only", verb,
			block_label(block));
	return check_range(block, verb, offset, length, err);
}

/* Runs a flush behind a request whose FUA the driver can't do itself. */
static int after_change(struct block *block, bool flush_after, int rc, struct err *err)
{
	if (rc == 0 && flush_after)
		rc = block_flush(block, err);
	return rc;
}

int block_read(struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	if (check_range(block, "read", offset, length, err) < 0)
		return -1;
	if (length == 0)
		return 0;
	return block->driver->read(block, buffer, length, offset, err);
}

int block_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	if (check_change(block, "write", offset, length, err) < 0)
		return -1;
	if (length == 0)
		return 0;
	bool flush_after = (flags & BLOCK_FUA) && !block->info.can_fua;
	if (flush_after)
		flags &= ~BLOCK_FUA;
	int rc = block->driver->write(block, buffer, length, offset, flags, err);
	return after_change(block, flush_after, rc, err);
}

static int write_zeros(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	static const uint8_t zeros[ZERO_PIECE_BYTES];
	while (length > 0) {
		size_t n = (size_t)min_u64(length, sizeof zeros);
		if (block->driver->write(block, zeros, n, offset, flags & BLOCK_FUA, err) < 0)
			return -1;
		offset += n;
		length -= n;
	}
	return 0;
}

int block_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	if (check_change(block, "zero", offset, length, err) < 0)
		return -1;
	if (length == 0)
		return 0;
	if ((flags & BLOCK_FAST_ZERO) && !block->info.can_fast_zero)
		return err_set(err, ERR_UNSUPPORTED, "%s cannot zero faster than by writing zeros",
			block_label(block));
	bool flush_after = (flags & BLOCK_FUA) && !block->info.can_fua;
	if (flush_after)
		flags &= ~BLOCK_FUA;
	int rc = block->driver->zero ? block->driver->zero(block, offset, length, flags, err)
				     : write_zeros(block, offset, length, flags, err);
	return after_change(block, flush_after, rc, err);
}

int block_trim(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	if (check_change(block, "trim", offset, length, err) < 0)
		return -1;
	if (length == 0 || !block->driver->trim)
		return 0;
	bool flush_after = (flags & BLOCK_FUA) && !block->info.can_fua;
	if (flush_after)
		flags &= ~BLOCK_FUA;
	int rc = block->driver->trim(block, offset, length, flags, err);
	return after_change(block, flush_after, rc, err);
}

int block_flush(struct block *block, struct err *err)
{
	if (block->info.read_only || !block->driver->flush)
		return 0;
	return block->driver->flush(block, err);
}

/* Callers walk by these lengths: none may be 0 or lead past the range. */
static void assert_extents(
	const struct block_extent *extents, size_t nr, size_t max, uint64_t length)
{
	uint64_t sum = 0;
	assert(nr >= 1 && nr <= max);
	for (size_t i = 0; i < nr; i++) {
		assert(extents[i].length > 0 && extents[i].length <= length - sum);
		sum += extents[i].length;
	}
}

int block_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr_extents, struct err *err)
{
	assert(length > 0 && max > 0);
	if (check_range(block, "map", offset, length, err) < 0)
		return -1;
	if (!block->driver->extents || !block->info.has_extents) {
		extents[0] = (struct block_extent){.length = length};
		*nr_extents = 1;
		return 0;
	}
	if (block->driver->extents(block, offset, length, extents, max, nr_extents, err) < 0)
		return -1;
	assert_extents(extents, *nr_extents, max, length);
	return 0;
}

int block_unchanged(struct block *block, uint64_t offset, uint64_t length, uint64_t unit_bytes,
	uint32_t *unchanged, struct err *err)
{
	uint64_t nr_units = div_round_up(length, unit_bytes);
	assert(nr_units <= 32);
	*unchanged = (uint32_t)((UINT64_C(1) << nr_units) - 1);
	for (uint64_t at = 0; at < length;) {
		struct block_extent extents[EXTENTS_AT_ONCE];
		size_t nr;
		if (block_extents(block, offset + at, length - at, extents, EXTENTS_AT_ONCE, &nr,
			    err) < 0)
			return -1;
		for (size_t i = 0; i < nr; at += extents[i++].length) {
			if (extents[i].flags & BLOCK_UNCHANGED)
				continue;
			uint64_t first = at / unit_bytes;
			uint64_t end = div_round_up(at + extents[i].length, unit_bytes);
			*unchanged &= (uint32_t) ~(((UINT64_C(1) << (end - first)) - 1) << first);
		}
	}
	return 0;
}

uint64_t block_stored_bytes(struct block *block)
{
	return block->driver->stored_bytes ? block->driver->stored_bytes(block) : 0;
}

int block_close(struct block *block, struct err *err)
{
	if (!block)
		return 0;
	assert(atomic_load(&block->nr_lanes) == 0);
	return block->driver->close(block, err);
}

/* --- lanes ------------------------------------------------------------------ */

struct block_lane *block_lane_open(struct block *block, struct cancel *cancel, struct err *err)
{
	struct block_lane *lane;
	if (block->driver->lane_open) {
		lane = block->driver->lane_open(block, cancel, err);
		if (!lane)
			return NULL;
	} else {
		lane = calloc(1, sizeof *lane);
		if (!lane) {
			err_errno(err, ENOMEM, "cannot open a lane to %s", block_label(block));
			return NULL;
		}
	}
	lane->block = block;
	lane->cancel = cancel;
	atomic_fetch_add(&block->nr_lanes, 1);
	return lane;
}

bool block_lanes_queue(const struct block *block)
{
	return block->driver->lane_submit != NULL;
}

void block_lane_close(struct block_lane *lane)
{
	if (!lane)
		return;
	struct block *block = lane->block;
	if (block->driver->lane_close)
		block->driver->lane_close(lane);
	else
		free(lane);
	atomic_fetch_sub(&block->nr_lanes, 1);
}

void block_lane_finish(struct block_lane *lane, struct block_io *io)
{
	io->next = NULL;
	if (lane->done_last)
		lane->done_last->next = io;
	else
		lane->done_first = io;
	lane->done_last = io;
}

static int run_blocking(struct block *block, struct block_io *io)
{
	switch (io->op) {
	case BLOCK_OP_READ:
		return block_read(block, io->buffer, (size_t)io->length, io->offset, &io->err);
	case BLOCK_OP_WRITE:
		return block_write(
			block, io->buffer, (size_t)io->length, io->offset, io->flags, &io->err);
	case BLOCK_OP_ZERO:
		return block_zero(block, io->offset, io->length, io->flags, &io->err);
	case BLOCK_OP_TRIM:
		return block_trim(block, io->offset, io->length, io->flags, &io->err);
	case BLOCK_OP_FLUSH:
		return block_flush(block, &io->err);
	case BLOCK_OP_EXTENTS:
		return block_extents(block, io->offset, io->length, io->buffer, io->nr_extents,
			&io->nr_extents, &io->err);
	}
	return err_set(&io->err, ERR_USAGE, "unknown request %d", (int)io->op);
}

static int check_io(const struct block *block, struct block_io *io)
{
	switch (io->op) {
	case BLOCK_OP_READ:
		return check_range(block, "read", io->offset, io->length, &io->err);
	case BLOCK_OP_WRITE:
		return check_change(block, "write", io->offset, io->length, &io->err);
	case BLOCK_OP_ZERO:
		return check_change(block, "zero", io->offset, io->length, &io->err);
	case BLOCK_OP_TRIM:
		return check_change(block, "trim", io->offset, io->length, &io->err);
	case BLOCK_OP_EXTENTS:
		assert(io->length > 0 && io->nr_extents > 0);
		return check_range(block, "map", io->offset, io->length, &io->err);
	case BLOCK_OP_FLUSH:
		break;
	}
	return 0;
}

void block_lane_submit(struct block_lane *lane, struct block_io *io)
{
	struct block *block = lane->block;
	err_clear(&io->err);
	lane->nr_in_flight++;
	bool nothing_to_do = io->length == 0 && io->op != BLOCK_OP_FLUSH;
	if (check_io(block, io) < 0 || nothing_to_do) {
		block_lane_finish(lane, io);
		return;
	}
	bool all_data = io->op == BLOCK_OP_EXTENTS && !block->info.has_extents;
	if (block->driver->lane_submit && !all_data) {
		block->driver->lane_submit(lane, io);
		return;
	}
	run_blocking(block, io);
	block_lane_finish(lane, io);
}

struct block_io *block_lane_reap(struct block_lane *lane)
{
	struct block_io *io = lane->done_first;
	if (!io)
		return NULL;
	lane->done_first = io->next;
	if (!lane->done_first)
		lane->done_last = NULL;
	assert(lane->nr_in_flight > 0);
	lane->nr_in_flight--;
	return io;
}

unsigned block_lane_in_flight(const struct block_lane *lane)
{
	return lane->nr_in_flight;
}

struct pollfd block_lane_pollfd(struct block_lane *lane)
{
	if (lane->block->driver->lane_pollfd)
		return lane->block->driver->lane_pollfd(lane);
	return (struct pollfd){.fd = -1};
}

struct deadline block_lane_wake(struct block_lane *lane)
{
	if (lane->block->driver->lane_wake)
		return lane->block->driver->lane_wake(lane);
	return deadline_after_ms(INT_MAX);
}

void block_lane_dispatch(struct block_lane *lane, short revents)
{
	if (lane->block->driver->lane_dispatch)
		lane->block->driver->lane_dispatch(lane, revents);
}

unsigned block_lane_losses(const struct block_lane *lane)
{
	return lane->nr_losses;
}
