/*
 * A source with its list of changes.
 *
 * Requests go to the source as they are, on a lane of its own for each lane; only
 * questions for the map are asked by a request of ours, whose answer is cut at the
 * borders of what changed:
 *
 *      source     | data              | zeros                 | data
 *      changed         |        |          |      |
 *      extents    | U  | data   | U   | U,Z| Z    | U, zeros  | U
 */
#include "changes_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

struct applied {
	struct block block;
	struct changes *changes;
	struct block *source;
};

/* A question on a lane. */
struct map_request {
	struct block_io io; /* the source's lane has it */
	struct block_io *asked; /* the caller's */
	struct map_request *previous, *next;
	struct block_extent extents[];
};

struct applied_lane {
	struct block_lane head;
	struct block_lane *source;
	struct map_request *maps; /* that are under way */
};

static struct applied *applied_of(const struct block *block)
{
	return (struct applied *)(uintptr_t)block;
}

/* Puts the state of the next bytes into out, joined with its like; false: it is full. */
static bool put(struct block_extent *out, size_t max, size_t *nr, uint64_t length, uint32_t flags)
{
	if (*nr > 0 && out[*nr - 1].flags == flags) {
		out[*nr - 1].length += length;
		return true;
	}
	if (*nr == max)
		return false;
	out[(*nr)++] = (struct block_extent){length, flags};
	return true;
}

/* Cuts the source's answer from offset on. */
static int combine(struct applied *a, uint64_t offset, const struct block_extent *from,
	size_t nr_from, struct block_extent *out, size_t max, size_t *nr, struct err *err)
{
	uint64_t at = offset, start = 0, end = 0;
	*nr = 0;
	for (size_t i = 0; i < nr_from; i++) {
		uint64_t stop = at + from[i].length;
		while (at < stop) {
			if (at >= end && changes_next(a->changes, at, &start, &end, err) < 0)
				return -1;
			bool changed = at >= start;
			uint64_t length = min_u64(stop, changed ? end : start) - at;
			uint32_t flags = from[i].flags & (BLOCK_HOLE | BLOCK_ZERO);
			flags |= changed ? 0 : BLOCK_UNCHANGED;
			if (!put(out, max, nr, length, flags))
				return 0;
			at += length;
		}
	}
	return 0;
}

/* --- blocking calls ----------------------------------------------------------------- */

static int applied_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	return block_read(applied_of(block)->source, buffer, length, offset, err);
}

static int applied_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	struct applied *a = applied_of(block);
	struct block_extent *AUTO_FREE from = calloc(max, sizeof *from);
	size_t nr_from;
	if (!from)
		return err_errno(err, ENOMEM, "cannot map %s", block_label(block));
	if (block_extents(a->source, offset, length, from, max, &nr_from, err) < 0)
		return -1;
	return combine(a, offset, from, nr_from, extents, max, nr, err);
}

static uint64_t applied_stored_bytes(struct block *block)
{
	return block_stored_bytes(applied_of(block)->source);
}

static int applied_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	free(block);
	return 0;
}

/* --- lanes ----------------------------------------------------------------------------- */

static void forget_map(struct applied_lane *lane, struct map_request *map)
{
	if (map->previous)
		map->previous->next = map->next;
	else
		lane->maps = map->next;
	if (map->next)
		map->next->previous = map->previous;
	free(map);
}

static void finish_map(struct applied_lane *lane, struct map_request *map)
{
	struct block_io *asked = map->asked;
	size_t nr = 0;
	if (map->io.err.code != ERR_NONE)
		err_copy(&asked->err, &map->io.err);
	else
		combine(applied_of(lane->head.block), asked->offset, map->extents,
			map->io.nr_extents, asked->buffer, asked->nr_extents, &nr, &asked->err);
	asked->nr_extents = nr;
	forget_map(lane, map);
	block_lane_finish(&lane->head, asked);
}

/* Hands on what the source's lane has finished. */
static void hand_on(struct applied_lane *lane)
{
	struct block_io *io;
	lane->head.nr_losses = block_lane_losses(lane->source);
	while ((io = block_lane_reap(lane->source))) {
		if (io->op == BLOCK_OP_EXTENTS)
			finish_map(lane, io->owner);
		else
			block_lane_finish(&lane->head, io);
	}
}

static struct block_lane *applied_lane_open(
	struct block *block, struct cancel *cancel, struct err *err)
{
	struct applied_lane *lane = calloc(1, sizeof *lane);
	if (!lane) {
		err_errno(err, ENOMEM, "cannot open a lane to %s", block_label(block));
		return NULL;
	}
	lane->source = block_lane_open(applied_of(block)->source, cancel, err);
	if (!lane->source) {
		free(lane);
		return NULL;
	}
	return &lane->head;
}

static void applied_lane_close(struct block_lane *head)
{
	struct applied_lane *lane = (struct applied_lane *)head;
	block_lane_close(lane->source);
	while (lane->maps)
		forget_map(lane, lane->maps);
	free(lane);
}

static void submit_map(struct applied_lane *lane, struct block_io *io)
{
	struct map_request *map = malloc(sizeof *map + io->nr_extents * sizeof map->extents[0]);
	if (!map) {
		err_errno(&io->err, ENOMEM, "cannot map %s", block_label(lane->head.block));
		block_lane_finish(&lane->head, io);
		return;
	}
	*map = (struct map_request){.asked = io, .next = lane->maps};
	map->io = (struct block_io){
		.op = BLOCK_OP_EXTENTS,
		.offset = io->offset,
		.length = io->length,
		.buffer = map->extents,
		.nr_extents = io->nr_extents,
		.owner = map,
	};
	if (lane->maps)
		lane->maps->previous = map;
	lane->maps = map;
	block_lane_submit(lane->source, &map->io);
}

static void applied_lane_submit(struct block_lane *head, struct block_io *io)
{
	struct applied_lane *lane = (struct applied_lane *)head;
	if (io->op == BLOCK_OP_EXTENTS)
		submit_map(lane, io);
	else
		block_lane_submit(lane->source, io);
	hand_on(lane); /* some are done at once */
}

static struct pollfd applied_lane_pollfd(struct block_lane *head)
{
	return block_lane_pollfd(((struct applied_lane *)head)->source);
}

static struct deadline applied_lane_wake(struct block_lane *head)
{
	return block_lane_wake(((struct applied_lane *)head)->source);
}

static void applied_lane_dispatch(struct block_lane *head, short revents)
{
	struct applied_lane *lane = (struct applied_lane *)head;
	block_lane_dispatch(lane->source, revents);
	hand_on(lane);
}

/* --- opening ----------------------------------------------------------------------------- */

/* For sources whose lanes do not queue: the block room's own lanes do. */
static const struct block_driver blocking_driver = {
	.name = "changes",
	.read = applied_read,
	.extents = applied_extents,
	.stored_bytes = applied_stored_bytes,
	.close = applied_close,
};

static const struct block_driver queueing_driver = {
	.name = "changes",
	.read = applied_read,
	.extents = applied_extents,
	.stored_bytes = applied_stored_bytes,
	.close = applied_close,
	.lane_open = applied_lane_open,
	.lane_close = applied_lane_close,
	.lane_submit = applied_lane_submit,
	.lane_pollfd = applied_lane_pollfd,
	.lane_wake = applied_lane_wake,
	.lane_dispatch = applied_lane_dispatch,
};

struct block *changes_apply(struct changes *changes, struct block *source, struct err *err)
{
	const struct block_info *info = block_info(source);
	const struct changes_facts *facts = changes_facts(changes);
	if (info->size_bytes != facts->size_bytes) {
		err_set(err, ERR_RANGE,
			"cannot use the extents file %s: it is for a disk of %" PRIu64
			" bytes, and %s has %" PRIu64,
			changes_path(changes), facts->size_bytes, block_label(source),
			info->size_bytes);
		return NULL;
	}
	struct applied *a = calloc(1, sizeof *a);
	char *label = strdup(block_label(source));
	if (!a || !label) {
		free(a);
		free(label);
		err_errno(err, ENOMEM, "cannot use the extents file %s", changes_path(changes));
		return NULL;
	}
	bool queues = block_lanes_queue(source);
	block_init(&a->block, queues ? &queueing_driver : &blocking_driver, label);
	a->block.info = *info;
	a->block.info.read_only = true;
	a->block.info.has_extents = a->block.info.has_changes = true;
	a->changes = changes;
	a->source = source;
	return &a->block;
}
