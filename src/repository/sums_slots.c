/*
 * Where the segments of a file lie while it is being written.
 *
 *   never stored ─► first slot, of the size it needs ─► outgrown: one of full size
 *
 * Between two checkpoints a slot is written over in place.  One that a checkpoint made
 * durable is not: what replaces it gets another place, and the old one is free when the
 * next checkpoint is done.  So whatever a crash tears, all that was told up to the last
 * checkpoint is whole somewhere in the file; of two copies the later one counts, by the
 * sequence number behind each.  Slots are neither cut nor joined: each place in the file
 * keeps its capacity, and a scan finds its way from one to the next.
 */
#include "sums_internal.h"

#define PAGE_ENTRIES 4096u
#define SMALLEST_BYTES 2048u

int sums_slots_init(struct sums_slots *slots, const struct sums_facts *facts)
{
	memset(slots, 0, sizeof *slots);
	slots->end = SUMS_BLOCK;
	slots->slot_bytes = (uint32_t)round_up(
		SUMS_SEGMENT_HEAD + SUMS_KINDS +
			SUMS_SEGMENT_CHUNKS * digest_leaf_bytes(facts->algorithm) + SUMS_SEAL,
		SUMS_BLOCK);
	slots->nr_pages = div_round_up(sums_nr_segments(facts), PAGE_ENTRIES);
	slots->pages = calloc(slots->nr_pages, sizeof(struct sums_slot *));
	return slots->pages ? 0 : -1;
}

void sums_slots_destroy(struct sums_slots *slots)
{
	for (uint64_t i = 0; slots->pages && i < slots->nr_pages; i++)
		free(slots->pages[i]);
	free(slots->pages);
	for (unsigned i = 0; i < SUMS_SPACE_CLASSES; i++)
		free(slots->free[i].items);
	free(slots->superseded.items);
}

struct sums_slot *sums_slots_find(const struct sums_slots *slots, uint64_t segment)
{
	struct sums_slot *page = slots->pages[segment / PAGE_ENTRIES];
	return page ? &page[segment % PAGE_ENTRIES] : NULL;
}

struct sums_slot *sums_slots_make(struct sums_slots *slots, uint64_t segment)
{
	struct sums_slot **page = &slots->pages[segment / PAGE_ENTRIES];
	if (!*page)
		*page = calloc(PAGE_ENTRIES, sizeof **page);
	return *page ? &(*page)[segment % PAGE_ENTRIES] : NULL;
}

/* --- space ----------------------------------------------------------------------- */

static int give(struct sums_spaces *to, struct sums_space space)
{
	if (to->nr == to->room) {
		size_t room = to->room ? 2 * to->room : 16;
		struct sums_space *items = realloc(to->items, room * sizeof *items);
		if (!items)
			return -1;
		to->items = items;
		to->room = room;
	}
	to->items[to->nr++] = space;
	return 0;
}

/* Powers of two from the smallest on, and full ones. */
static unsigned class_of(const struct sums_slots *slots, uint32_t length, uint32_t *capacity)
{
	unsigned nr = 0;
	uint32_t bytes = SMALLEST_BYTES;
	for (; bytes < length && bytes < slots->slot_bytes; nr++)
		bytes *= 2;
	*capacity = bytes < slots->slot_bytes ? bytes : slots->slot_bytes;
	return nr;
}

void sums_slots_free(struct sums_slots *slots, struct sums_space space)
{
	uint32_t capacity;
	struct sums_spaces *spaces = &slots->free[class_of(slots, space.capacity, &capacity)];
	/* Of another writer's sizes, or without memory for it, it is lost, no more. */
	if (capacity == space.capacity)
		(void)give(spaces, space);
}

static struct sums_space take(struct sums_slots *slots, uint32_t length)
{
	uint32_t capacity;
	struct sums_spaces *spaces = &slots->free[class_of(slots, length, &capacity)];
	if (spaces->nr > 0)
		return spaces->items[--spaces->nr];
	struct sums_space space = {slots->end, capacity};
	slots->end += capacity;
	return space;
}

int sums_slots_leave(struct sums_slots *slots, struct sums_slot *slot)
{
	struct sums_space space = {slot->offset, slot->capacity};
	if (slot->offset == 0)
		return 0;
	slot->offset = 0;
	slot->length = 0;
	if (slot->sequence <= slots->durable)
		return give(&slots->superseded, space);
	sums_slots_free(slots, space);
	return 0;
}

int sums_slots_place(struct sums_slots *slots, struct sums_slot *slot, uint32_t length)
{
	uint32_t need = length + SUMS_SEAL;
	bool fits = slot->offset && need <= slot->capacity;
	if (!fits || slot->sequence <= slots->durable) {
		/* One that grew may grow again. */
		uint32_t want = slot->offset && !fits ? slots->slot_bytes : need;
		if (slot->offset && fits && slot->capacity > want)
			want = slot->capacity;
		if (sums_slots_leave(slots, slot) < 0)
			return -1;
		struct sums_space space = take(slots, want);
		slot->offset = space.offset;
		slot->capacity = space.capacity;
	}
	slot->sequence = ++slots->sequence;
	return 0;
}

struct sums_spaces sums_slots_before_sync(struct sums_slots *slots)
{
	struct sums_spaces superseded = slots->superseded;
	slots->superseded = (struct sums_spaces){0};
	slots->durable = slots->sequence;
	return superseded;
}

void sums_slots_behind_sync(struct sums_slots *slots, struct sums_spaces *superseded)
{
	for (size_t i = 0; i < superseded->nr; i++)
		sums_slots_free(slots, superseded->items[i]);
	free(superseded->items);
	*superseded = (struct sums_spaces){0};
}
