/*
 * A source whose map is told differently.
 *
 * Requests go to the source as they are, on a lane of its own for each lane; only
 * questions for the map are asked by a request of ours, whose answer is changed before it
 * is handed on.
 */
#include "block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct remapped {
	struct block block;
	struct block *source;
	block_remap *remap;
	void *context;
};

/* A question on a lane. */
struct map_request {
	struct block_io io; /* the source's lane has it */
	struct block_io *asked; /* the caller's */
	struct map_request *previous, *next;
	struct block_extent extents[];
};

struct remap_lane {
	struct block_lane head;
	struct block_lane *source;
	struct map_request *maps; /* that are under way */
};

static struct remapped *remap_of(const struct block *block)
{
	return (struct remapped *)(uintptr_t)block;
}

/* --- blocking calls ----------------------------------------------------------------- */

static int remap_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	return block_read(remap_of(block)->source, buffer, length, offset, err);
}

static int remap_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	struct remapped *a = remap_of(block);
	struct block_extent *AUTO_FREE from = calloc(max, sizeof *from);
	size_t nr_from;
	if (!from)
		return err_errno(err, ENOMEM, "cannot map %s", block_label(block));
	if (block_extents(a->source, offset, length, from, max, &nr_from, err) < 0)
		return -1;
	return a->remap(a->context, offset, from, nr_from, extents, max, nr, err);
}

static uint64_t remap_stored_bytes(struct block *block)
{
	return block_stored_bytes(remap_of(block)->source);
}

static int remap_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	free(block);
	return 0;
}

/* --- lanes ----------------------------------------------------------------------------- */

static void forget_map(struct remap_lane *lane, struct map_request *map)
{
	if (map->previous)
		map->previous->next = map->next;
	else
		lane->maps = map->next;
	if (map->next)
		map->next->previous = map->previous;
	free(map);
}

static void finish_map(struct remap_lane *lane, struct map_request *map)
{
	struct block_io *asked = map->asked;
	const struct remapped *a = remap_of(lane->head.block);
	size_t nr = 0;
	if (map->io.err.code != ERR_NONE)
		err_copy(&asked->err, &map->io.err);
	else
		a->remap(a->context, asked->offset, map->extents, map->io.nr_extents, asked->buffer,
			asked->nr_extents, &nr, &asked->err);
	asked->nr_extents = nr;
	forget_map(lane, map);
	block_lane_finish(&lane->head, asked);
}

/* Hands on what the source's lane has finished. */
static void hand_on(struct remap_lane *lane)
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

static struct block_lane *remap_lane_open(
	struct block *block, struct cancel *cancel, struct err *err)
{
	struct remap_lane *lane = calloc(1, sizeof *lane);
	if (!lane) {
		err_errno(err, ENOMEM, "cannot open a lane to %s", block_label(block));
		return NULL;
	}
	lane->source = block_lane_open(remap_of(block)->source, cancel, err);
	if (!lane->source) {
		free(lane);
		return NULL;
	}
	return &lane->head;
}

static void remap_lane_close(struct block_lane *head)
{
	struct remap_lane *lane = (struct remap_lane *)head;
	block_lane_close(lane->source);
	for (struct map_request *next, *map = lane->maps; map; map = next) {
		next = map->next;
		free(map);
	}
	free(lane);
}

static void submit_map(struct remap_lane *lane, struct block_io *io)
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

static void remap_lane_submit(struct block_lane *head, struct block_io *io)
{
	struct remap_lane *lane = (struct remap_lane *)head;
	if (io->op == BLOCK_OP_EXTENTS)
		submit_map(lane, io);
	else
		block_lane_submit(lane->source, io);
	hand_on(lane); /* some are done at once */
}

static struct pollfd remap_lane_pollfd(struct block_lane *head)
{
	return block_lane_pollfd(((struct remap_lane *)head)->source);
}

static struct deadline remap_lane_wake(struct block_lane *head)
{
	return block_lane_wake(((struct remap_lane *)head)->source);
}

static void remap_lane_dispatch(struct block_lane *head, short revents)
{
	struct remap_lane *lane = (struct remap_lane *)head;
	block_lane_dispatch(lane->source, revents);
	hand_on(lane);
}

/* --- opening ----------------------------------------------------------------------------- */

/* For sources whose lanes do not queue: the block room's own lanes do. */
static const struct block_driver blocking_driver = {
	.name = "remap",
	.read = remap_read,
	.extents = remap_extents,
	.stored_bytes = remap_stored_bytes,
	.close = remap_close,
};

static const struct block_driver queueing_driver = {
	.name = "remap",
	.read = remap_read,
	.extents = remap_extents,
	.stored_bytes = remap_stored_bytes,
	.close = remap_close,
	.lane_open = remap_lane_open,
	.lane_close = remap_lane_close,
	.lane_submit = remap_lane_submit,
	.lane_pollfd = remap_lane_pollfd,
	.lane_wake = remap_lane_wake,
	.lane_dispatch = remap_lane_dispatch,
};

struct block *block_remap_open(
	struct block *source, block_remap *remap, void *context, struct err *err)
{
	struct remapped *a = calloc(1, sizeof *a);
	char *label = strdup(block_label(source));
	if (!a || !label) {
		free(a);
		free(label);
		err_errno(err, ENOMEM, "cannot open %s", block_label(source));
		return NULL;
	}
	block_init(
		&a->block, block_lanes_queue(source) ? &queueing_driver : &blocking_driver, label);
	a->block.info = *block_info(source);
	a->block.info.read_only = true;
	a->block.info.has_extents = a->block.info.has_changes = true;
	a->source = source;
	a->remap = remap;
	a->context = context;
	return &a->block;
}

bool block_remap_put(
	struct block_extent *out, size_t max, size_t *nr, uint64_t length, uint32_t flags)
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
