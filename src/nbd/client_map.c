/*
 * Questions for the map.
 *
 * A server answers them by metadata context: base:allocation tells holes and
 * zeros, qemu:dirty-bitmap:NAME what changed.  Each answer has lengths of its own
 * and may end before the other, so both are kept until the request is complete,
 * and laid one over the other then:
 *
 *      base:allocation    | data          | zeros             | data
 *      dirty bitmap       | clean | dirty     | clean |          (ends here)
 *      extents            | U     | data  | Z | U, Z  |
 */
#include "client_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define CHANGES_PREFIX "qemu:dirty-bitmap:"
#define BITMAP_NAME_BYTES_MAX 1023u
/* Lengths of 32 bits, and whole blocks of any size. */
#define MAP_PART_BYTES (4 * GIB - MIB)

enum client_context { CONTEXT_ALLOCATION, CONTEXT_CHANGES, NR_CONTEXTS };

struct client_map {
	size_t most; /* extents of each context that are kept */
	bool bad; /* an empty extent, or a context twice */
	size_t nr[NR_CONTEXTS];
	struct block_extent extents[]; /* most of each context */
};

char *client_map_context(const char *bitmap, struct err *err)
{
	size_t length = strlen(bitmap);
	bool bad = length == 0 || length > BITMAP_NAME_BYTES_MAX;
	for (size_t i = 0; !bad && i < length; i++)
		bad = (unsigned char)bitmap[i] < 0x20 || bitmap[i] == 0x7f;
	if (bad) {
		err_set(err, ERR_USAGE,
			"cannot use a dirty bitmap: its name must have 1..%u bytes and no control "
			"characters",
			BITMAP_NAME_BYTES_MAX);
		return NULL;
	}
	char *context = malloc(sizeof CHANGES_PREFIX + length);
	if (!context) {
		err_errno(err, ENOMEM, "cannot use a dirty bitmap");
		return NULL;
	}
	memcpy(context, CHANGES_PREFIX, sizeof CHANGES_PREFIX - 1);
	memcpy(context + sizeof CHANGES_PREFIX - 1, bitmap, length + 1);
	return context;
}

static struct block_extent *extents_of(struct client_map *map, enum client_context context)
{
	return map->extents + (context == CONTEXT_CHANGES ? map->most : 0);
}

static uint32_t flags_of(enum client_context context, uint32_t state)
{
	if (context == CONTEXT_ALLOCATION)
		return state & (BLOCK_HOLE | BLOCK_ZERO);
	return state == 0 ? BLOCK_UNCHANGED : 0; /* whatever else a state may mean */
}

/* Keeps what lies within the question: servers may be asked for more, in whole
 * blocks, and may answer more. */
static int on_extents(void *user_data, const char *metacontext, uint64_t offset, uint32_t *entries,
	size_t nr_entries, int *error)
{
	struct client_request *request = user_data;
	const char *changes = request->lane->client->changes_context;
	struct client_map *map = request->map;
	enum client_context context = CONTEXT_CHANGES;
	(void)error;
	if (strcmp(metacontext, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0)
		context = CONTEXT_ALLOCATION;
	else if (!changes || strcmp(metacontext, changes) != 0)
		return 0;
	uint64_t at = offset, from = request->io->offset, end = from + request->io->length;
	map->bad |= map->nr[context] != 0;
	for (size_t i = 0; i + 1 < nr_entries && at < end; i += 2) {
		uint64_t next = at + entries[i];
		uint64_t start = max_u64(at, from), stop = min_u64(next, end);
		map->bad |= entries[i] == 0;
		at = next;
		if (stop <= start)
			continue;
		if (map->nr[context] == map->most)
			break;
		extents_of(map, context)[map->nr[context]++] =
			(struct block_extent){stop - start, flags_of(context, entries[i + 1])};
	}
	return 0;
}

/* A context that the server does not have says one thing of all. */
static bool prepare(struct client_lane *lane, struct client_request *request)
{
	const struct client_identity *id = &lane->client->identity;
	const struct block_io *io = request->io;
	struct client_map *map = request->map;
	if (!map)
		map = malloc(sizeof *map + NR_CONTEXTS * io->nr_extents * sizeof map->extents[0]);
	if (!map)
		return false;
	request->map = map;
	*map = (struct client_map){.most = io->nr_extents};
	const bool has[NR_CONTEXTS] = {id->has_allocation, id->has_changes};
	for (enum client_context c = 0; c < NR_CONTEXTS; c++) {
		map->nr[c] = !has[c];
		*extents_of(map, c) = (struct block_extent){.length = io->length};
	}
	return true;
}

int64_t client_map_send(
	struct client_lane *lane, struct client_request *request, nbd_completion_callback done)
{
	const struct client_identity *id = &lane->client->identity;
	const struct block_io *io = request->io;
	uint64_t from = round_down(io->offset, id->block_min);
	uint64_t to = io->offset + min_u64(io->length, MAP_PART_BYTES);
	to = min_u64(round_up(to, id->block_min), id->size_bytes);
	request->part = request->io->length; /* one part is all: the answer may be shorter */
	if (!prepare(lane, request))
		return -1;
	return nbd_aio_block_status(lane->handle, to - from, from,
		(nbd_extent_callback){.callback = on_extents, .user_data = request}, done, 0);
}

/* Lays both over each other, as far as both go and there is room. */
static size_t merge(struct client_map *map, struct block_extent *out)
{
	struct block_extent *states = extents_of(map, CONTEXT_ALLOCATION);
	struct block_extent *changes = extents_of(map, CONTEXT_CHANGES);
	size_t nr = 0;
	for (size_t s = 0, c = 0;
		s < map->nr[CONTEXT_ALLOCATION] && c < map->nr[CONTEXT_CHANGES];) {
		uint64_t length = min_u64(states[s].length, changes[c].length);
		uint32_t flags = states[s].flags | changes[c].flags;
		if (nr > 0 && out[nr - 1].flags == flags)
			out[nr - 1].length += length;
		else if (nr < map->most)
			out[nr++] = (struct block_extent){length, flags};
		else
			break;
		states[s].length -= length;
		changes[c].length -= length;
		s += states[s].length == 0;
		c += changes[c].length == 0;
	}
	return nr;
}

void client_map_take(struct client_lane *lane, struct client_request *request)
{
	struct block_io *io = request->io;
	struct client_map *map = request->map;
	const char *wrong = NULL;
	if (map->bad)
		wrong = "an empty extent, or one context twice";
	else if (map->nr[CONTEXT_ALLOCATION] == 0)
		wrong = "no extents";
	else if (map->nr[CONTEXT_CHANGES] == 0)
		wrong = "no extents of the dirty bitmap";
	if (wrong)
		err_set(&io->err, ERR_PROTOCOL,
			"cannot map %s at offset %" PRIu64 ": the server's answer has %s",
			lane->client->uri.label, io->offset, wrong);
	else
		io->nr_extents = merge(map, io->buffer);
}
