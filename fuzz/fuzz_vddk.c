/*
 * Bytes as what a helper process of vddk says and leaves in the shared memory, between requests
 * of a lane's.  Nothing is written outside of what was asked for, maps have no gaps, and every
 * request ends once.
 */
#include "vddk_internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NR_SLOTS 4u
#define MOST_BYTES (3 * (size_t)VDDK_SLOT_BYTES)
#define NR_EXTENTS 3u
#define GUARD 0xa5

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct asked {
	struct block_io io;
	uint8_t *bytes; /* one more than asked for, as a guard */
	struct block_extent extents[NR_EXTENTS];
	struct asked *next;
};

static struct vddk vddk;
static struct vddk_lane lane;
static struct asked *out; /* those that did not end */
static uint8_t memory[NR_SLOTS * (size_t)VDDK_SLOT_BYTES];

static void check(const struct asked *a)
{
	const struct block_io *io = &a->io;
	if (a->bytes)
		assert(a->bytes[io->length] == GUARD);
	if (io->op != BLOCK_OP_EXTENTS || io->err.code != ERR_NONE)
		return;
	uint64_t sum = 0;
	assert(io->nr_extents >= 1 && io->nr_extents <= NR_EXTENTS);
	for (size_t i = 0; i < io->nr_extents; i++) {
		assert(a->extents[i].length > 0 && a->extents[i].length <= io->length - sum);
		sum += a->extents[i].length;
	}
}

static void take_finished(void)
{
	for (struct vddk_work *work; (work = vddk_work_take(&lane.finished)) != NULL;) {
		struct asked **at = &out;
		while (*at && &(*at)->io != work->io)
			at = &(*at)->next;
		struct asked *a = *at;
		assert(a);
		*at = a->next;
		check(a);
		free(a->bytes);
		free(a);
		free(work);
	}
}

static void ask(struct cursor *in)
{
	uint8_t how = cursor_u8(in);
	uint64_t size = vddk.block.info.size_bytes;
	uint64_t offset = cursor_be64(in) % size;
	uint64_t length = min_u64(cursor_be32(in) % MOST_BYTES + 1, size - offset);
	struct asked *a = calloc(1, sizeof *a);
	struct vddk_work *work = calloc(1, sizeof *work);
	assert(a && work);
	a->io.offset = offset;
	a->io.length = length;
	a->next = out;
	out = a;
	*work = (struct vddk_work){.lane = &lane, .io = &a->io};
	if (how & 1) {
		a->io.op = BLOCK_OP_EXTENTS;
		a->io.length = size - offset;
		a->io.buffer = a->extents;
		a->io.nr_extents = NR_EXTENTS;
		vddk_map_submit(&vddk, work);
	} else {
		a->io.op = BLOCK_OP_READ;
		a->bytes = malloc(length + 1);
		assert(a->bytes);
		a->bytes[length] = GUARD;
		a->io.buffer = a->bytes;
		work->next_offset = offset;
		work->left = length;
		vddk_work_append(&vddk.queue, work);
	}
}

/* False: it was caught. */
static bool say(struct cursor *in)
{
	char text[VDDK_TEXT_BYTES];
	struct vddk_message message = {
		.type = cursor_u8(in) % 11u, .slot = cursor_u8(in), .flags = cursor_u8(in)};
	uint8_t shape = cursor_u8(in);
	if (message.slot < NR_SLOTS && !(shape & 1))
		message.tag = vddk.slots[message.slot].tag;
	message.count = shape & 2 ? cursor_be64(in) : cursor_u8(in);
	message.code = shape & 4 ? cursor_u8(in) : 0;
	snprintf(text, sizeof text, "%s", shape & 8 ? "NFC\001alloc secret secret" : "");
	vddk_answer_clean(&vddk, text, true);
	assert(!strstr(text, "secret"));
	if (message.type == VDDK_LOG) {
		vddk_answer_log(&vddk, &message, text);
		return true;
	}
	return vddk_answer_take(&vddk, &message, text);
}

static void leave(struct cursor *in)
{
	size_t at = cursor_u8(in) % NR_SLOTS * (size_t)VDDK_SLOT_BYTES;
	for (unsigned i = cursor_u8(in) % 8; i > 0; i--, at += sizeof(struct vddk_area)) {
		uint32_t pair[2] = {0};
		const uint8_t *bytes = cursor_take(in, sizeof pair);
		if (bytes)
			memcpy(pair, bytes, sizeof pair);
		struct vddk_area area = {pair[0], pair[1]};
		if (cursor_u8(in) == 0)
			area.count = cursor_be64(in);
		memcpy(memory + at, &area, sizeof area);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cursor in = cursor_over(data, size);
	struct err err = ERR_INIT;
	vddk = (struct vddk){.wake = -1, .opened = -1, .nr_slots = NR_SLOTS, .call_ms = 1000};
	vddk.disk = (char *)(uintptr_t) "disk";
	vddk.secrets[1] = (char *)(uintptr_t) "secret";
	vddk.want_allocated = true;
	pthread_mutex_init(&vddk.mutex, NULL);
	vddk_helper_init(&vddk.helper);
	vddk.helper.memory = memory;
	lane = (struct vddk_lane){.vddk = &vddk, .ring = -1};
	for (unsigned i = 0; i < NR_SLOTS; i++) /* all that leave() reaches */
		memset(memory + i * (size_t)VDDK_SLOT_BYTES, 0, 8 * sizeof(struct vddk_area));
	bool good = true;
	while (good && cursor_left(&in) > 0 &&
		(vddk.state == VDDK_IS_OPENING || vddk.state == VDDK_IS_READY)) {
		uint8_t step = cursor_u8(&in) % 4;
		if (step == 0 && vddk.state == VDDK_IS_READY)
			ask(&in);
		else if (step == 1)
			leave(&in);
		else
			good = say(&in);
		vddk_engine_pump(&vddk);
		take_finished();
	}
	err_set(&err, ERR_PROTOCOL, "the end");
	vddk_engine_fail(&vddk, &err);
	take_finished();
	assert(!out);
	vddk_map_fini(&vddk.map);
	pthread_mutex_destroy(&vddk.mutex);
	return 0;
}
