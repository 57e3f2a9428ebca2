/*
 * Allocated areas.  The library is slow to tell them, and tells them for large stretches at
 * once: the last stretch is kept, and requests for another one wait until it is here.
 */
#include "vddk_internal.h"

#include <inttypes.h>
#include <stdlib.h>

#define MAP_BYTES ((uint64_t)VDDK_MAP_SECTORS * VDDK_SECTOR)
#define CHUNK_BYTES ((uint64_t)VDDK_CHUNK_SECTORS * VDDK_SECTOR)

/* The library tells nothing about a tail that is smaller than a chunk: it counts as data. */
static uint64_t mapped_end(const struct vddk *vddk)
{
	return round_down(vddk->block.info.size_bytes, CHUNK_BYTES);
}

/* The extent that the offset, which is in the map, lies in. */
static size_t find(const struct vddk_map *map, uint64_t offset, uint64_t *start)
{
	*start = map->from;
	size_t i = 0;
	while (offset - *start >= map->extents[i].length)
		*start += map->extents[i++].length;
	return i;
}

static void answer(struct vddk *vddk, struct vddk_work *work)
{
	const struct vddk_map *map = &vddk->map;
	struct block_io *io = work->io;
	struct block_extent *out = io->buffer;
	bool is_known = !map->useless && io->offset < map->to && io->offset >= map->from;
	size_t nr = 0;
	if (!is_known) {
		out[nr++] = (struct block_extent){.length = io->length};
	} else {
		uint64_t start, left = min_u64(io->length, map->to - io->offset);
		size_t i = find(map, io->offset, &start);
		uint64_t skip = io->offset - start;
		for (; left > 0 && nr < io->nr_extents; i++, skip = 0) {
			uint64_t length = min_u64(map->extents[i].length - skip, left);
			out[nr++] = (struct block_extent){length, map->extents[i].flags};
			left -= length;
		}
	}
	io->nr_extents = nr;
	vddk_engine_finish(vddk, work);
}

static bool can_answer(const struct vddk *vddk, const struct vddk_work *work)
{
	uint64_t offset = work->io->offset;
	return vddk->map.useless || offset >= mapped_end(vddk) ||
	       (offset >= vddk->map.from && offset < vddk->map.to);
}

void vddk_map_submit(struct vddk *vddk, struct vddk_work *work)
{
	if (can_answer(vddk, work))
		answer(vddk, work);
	else
		vddk_work_append(&vddk->map.waiting, work);
}

void vddk_map_pump(struct vddk *vddk)
{
	struct vddk_map *map = &vddk->map;
	struct vddk_slot *slot;
	if (map->asked || !map->waiting.first || !(slot = vddk_engine_slot(vddk)))
		return;
	map->asked = true;
	map->asked_from = round_down(map->waiting.first->io->offset, MAP_BYTES);
	map->asked_to = min_u64(map->asked_from + MAP_BYTES, mapped_end(vddk));
	*slot = (struct vddk_slot){
		.sector = map->asked_from / VDDK_SECTOR,
		.count = (map->asked_to - map->asked_from) / VDDK_SECTOR,
	};
	vddk_engine_ask(vddk, slot, VDDK_MAP);
}

static void put(struct block_extent *extents, size_t *nr, uint64_t length, uint32_t flags)
{
	if (length > 0)
		extents[(*nr)++] = (struct block_extent){length, flags};
}

/* False: areas that are not sorted, or outside of what was asked. */
static bool take_areas(struct vddk *vddk, const struct vddk_slot *slot, uint64_t count)
{
	struct vddk_map *map = &vddk->map;
	const uint8_t *at = vddk->helper.memory + (size_t)(slot - vddk->slots) * VDDK_SLOT_BYTES;
	struct block_extent *extents = calloc(2 * count + 1, sizeof *extents);
	if (!extents) {
		map->useless = true;
		return true;
	}
	uint64_t sector = slot->sector, end = slot->sector + slot->count;
	size_t nr = 0;
	for (uint64_t i = 0; i < count; i++) {
		struct vddk_area area; /* a copy: the helper can still write to the slot */
		memcpy(&area, at + i * sizeof area, sizeof area);
		if (area.sector < sector || area.count == 0 ||
			!range_fits(area.sector, area.count, end)) {
			free(extents);
			return false;
		}
		put(extents, &nr, (area.sector - sector) * VDDK_SECTOR, BLOCK_HOLE | BLOCK_ZERO);
		put(extents, &nr, area.count * VDDK_SECTOR, 0);
		sector = area.sector + area.count;
	}
	put(extents, &nr, (end - sector) * VDDK_SECTOR, BLOCK_HOLE | BLOCK_ZERO);
	free(map->extents);
	map->extents = extents;
	map->nr = nr;
	map->from = map->asked_from;
	map->to = map->asked_to;
	return true;
}

bool vddk_map_answer(struct vddk *vddk, struct vddk_slot *slot, uint64_t code, uint64_t count)
{
	struct vddk_map *map = &vddk->map;
	map->asked = false;
	if (count > VDDK_SLOT_BYTES / sizeof(struct vddk_area))
		return false;
	if (code) {
		log_warning("%s: VMware's library does not tell what is allocated (error %" PRIu64
			    "): all of it is read",
			vddk->disk, code);
		map->useless = true;
	} else if (!take_areas(vddk, slot, count)) {
		return false;
	}
	struct vddk_work_list waiting = map->waiting;
	map->waiting = (struct vddk_work_list){NULL, NULL};
	for (struct vddk_work *work; (work = vddk_work_take(&waiting)) != NULL;)
		vddk_map_submit(vddk, work);
	return true;
}

void vddk_map_fini(struct vddk_map *map)
{
	free(map->extents);
	map->extents = NULL;
}
