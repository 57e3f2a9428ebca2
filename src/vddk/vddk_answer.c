/* What is made of the helper's messages.  It runs somebody else's code: nothing is believed. */
#include "vddk_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const char *vddk_answer_stage_text(enum vddk_stage stage)
{
	static const char *const texts[VDDK_NR_STAGES] = {
		[VDDK_STAGE_START] = "while starting",
		[VDDK_STAGE_LOAD] = "while loading it",
		[VDDK_STAGE_SYMBOLS] = "while looking at what it has",
		[VDDK_STAGE_INIT] = "while it was initialised (InitEx)",
		[VDDK_STAGE_CONNECT] = "while connecting (ConnectEx)",
		[VDDK_STAGE_OPEN] = "while opening the disk (Open)",
		[VDDK_STAGE_INFO] = "while asking for the disk's size (GetInfo)",
		[VDDK_STAGE_READY] = "while the disk was open",
	};
	return texts[stage];
}

/* The helper cuts secrets out of what it says itself, but not out of what the library writes
 * to its standard output. */
void vddk_answer_clean(const struct vddk *vddk, char *text, bool begins)
{
	for (size_t i = 0; i < ARRAY_LENGTH(vddk->secrets); i++) {
		const char *secret = vddk->secrets[i];
		size_t length = secret ? strlen(secret) : 0;
		if (length == 0)
			continue;
		if (!begins) {
			size_t skip = min_size(strlen(text), length - 1);
			memmove(text, text + skip, strlen(text + skip) + 1);
		}
		redact_word(text, secret);
	}
	for (char *c = text; *c; c++)
		*c = (unsigned char)*c < ' ' || *c == 127 ? ' ' : *c;
	for (size_t end = strlen(text); end > 0 && text[end - 1] == ' ';)
		text[--end] = '\0';
}

void vddk_answer_log(struct vddk *vddk, const struct vddk_message *message, const char *text)
{
	static const enum log_level levels[] = {
		[VDDK_LOUD_INFO] = LOG_LEVEL_DEBUG,
		[VDDK_LOUD_WARNING] = LOG_LEVEL_WARNING,
		[VDDK_LOUD_PANIC] = LOG_LEVEL_ERROR,
	};
	bool known = message->slot < ARRAY_LENGTH(levels);
	enum log_level level = known ? levels[message->slot] : LOG_LEVEL_DEBUG;
	if (level <= LOG_LEVEL_WARNING) {
		WITH_LOCK(&vddk->mutex);
		snprintf(vddk->last_warning, sizeof vddk->last_warning, "%s", text);
	}
	if (vddk->log)
		vddk->log(vddk->log_context, level, text);
	else
		log_line(level, "VDDK: %s", text);
	if (message->count && !vddk->log)
		log_debug("VDDK: %" PRIu64 " lines before that one were lost", message->count);
}

void vddk_answer_explain(const struct vddk *vddk, struct err *err)
{
	if (vddk->last_warning[0])
		err_hint(err, "the library's last warning: %s", vddk->last_warning);
	switch (vddk->stage) {
	case VDDK_STAGE_CONNECT:
		err_hint(err, "check server, user and password, and that 443/tcp reaches it");
		break;
	case VDDK_STAGE_OPEN:
		err_hint(err, "often the thumbprint is another one, or 902/tcp does not reach the "
			      "ESXi host that runs the machine");
		break;
	case VDDK_STAGE_LOAD:
		err_hint(err, "it must be VDDK 6.7 to 9 for Linux on x86-64, unpacked whole");
		break;
	default:
		break;
	}
}

static void take_failed(struct vddk *vddk, const struct vddk_message *message, const char *text)
{
	struct err err = ERR_INIT;
	enum vddk_stage stage = message->slot;
	bool library = stage == VDDK_STAGE_LOAD || stage == VDDK_STAGE_SYMBOLS;
	vddk->stage = stage;
	if (library)
		err_set(&err, ERR_UNSUPPORTED, "cannot use VMware's library (VDDK) in %s: %s",
			vddk->folder, text);
	else if (message->code)
		err_set(&err, ERR_REFUSED,
			"cannot open %s: VMware's library failed %s: %s (error %" PRIu64 ")",
			vddk->disk, vddk_answer_stage_text(stage), text, message->code);
	else
		err_set(&err, ERR_REFUSED, "cannot open %s: the helper failed %s: %s", vddk->disk,
			vddk_answer_stage_text(stage), text);
	vddk_answer_explain(vddk, &err);
	vddk_engine_fail(vddk, &err);
}

static bool take_opened(struct vddk *vddk, const struct vddk_message *message, const char *text)
{
	struct err err = ERR_INIT;
	uint64_t size = message->count * VDDK_SECTOR;
	vddk->facts.major = message->slot;
	vddk->facts.allocated = (message->flags & VDDK_FLAG_ALLOCATED) != 0;
	vddk->facts.asynchronous = (message->flags & VDDK_FLAG_ASYNC) != 0;
	if (vddk->probe) {
		snprintf(vddk->loaded, sizeof vddk->loaded, "%s", text);
		vddk_engine_set_state(vddk, VDDK_IS_READY);
		return true;
	}
	snprintf(vddk->facts.transport, sizeof vddk->facts.transport, "%s", text);
	if (message->count == 0 || message->count > INT64_MAX / VDDK_SECTOR)
		err_set(&err, ERR_REFUSED,
			"cannot open %s: VMware's library tells a size of %" PRIu64 " sectors",
			vddk->disk, message->count);
	else if (vddk->expected_bytes && vddk->expected_bytes != size)
		err_set(&err, ERR_REFUSED,
			"cannot open %s: it has %" PRIu64 " bytes, but vCenter says %" PRIu64,
			vddk->disk, size, vddk->expected_bytes);
	if (err.code != ERR_NONE) {
		vddk_engine_fail(vddk, &err);
		return true;
	}
	vddk->block.info = (struct block_info){
		.size_bytes = size,
		.read_only = true,
		.multi_lane = true,
		.has_extents = vddk->want_allocated && vddk->facts.allocated,
		.granule_bytes = VDDK_CHUNK_SECTORS * VDDK_SECTOR,
	};
	vddk->stage = VDDK_STAGE_READY;
	vddk_engine_set_state(vddk, VDDK_IS_READY);
	return true;
}

static void read_failed(const struct vddk *vddk, const struct vddk_slot *slot, uint64_t code,
	const char *text, struct err *err)
{
	if (err->code != ERR_NONE)
		return;
	err_set(err, ERR_IO,
		"cannot read %" PRIu64 " bytes at offset %" PRIu64
		" of %s: VMware's library says: %s "
		"(error %" PRIu64 ")",
		slot->count * VDDK_SECTOR, slot->sector * VDDK_SECTOR, vddk->disk,
		text[0] ? text : "nothing", code);
	if (strstr(text, "NFC") && strstr(text, "alloc"))
		err_hint(err, "the ESXi host's memory for such reads is used up: fewer disks at a "
			      "time, or smaller and fewer NFC buffers");
}

static bool take_done(struct vddk *vddk, const struct vddk_message *message, const char *text)
{
	if (message->slot >= vddk->nr_slots)
		return false;
	struct vddk_slot *slot = &vddk->slots[message->slot];
	if (!slot->busy || slot->tag != message->tag)
		return false;
	slot->busy = false;
	struct vddk_work *work = slot->work;
	if (!work)
		return vddk_map_answer(vddk, slot, message->code, message->count);
	work->nr_out--;
	if (work->io && message->code)
		read_failed(vddk, slot, message->code, text, &work->io->err);
	else if (work->io)
		memcpy(slot->to,
			vddk->helper.memory + (size_t)message->slot * VDDK_SLOT_BYTES + slot->skip,
			slot->length);
	if (work->nr_out == 0 && work->left == 0)
		vddk_engine_finish(vddk, work);
	return true;
}

bool vddk_answer_take(struct vddk *vddk, const struct vddk_message *message, char *text)
{
	bool opening = vddk->state == VDDK_IS_OPENING;
	switch (message->type) {
	case VDDK_STAGE:
		if (!opening || message->slot >= VDDK_STAGE_READY)
			return false;
		vddk->stage = message->slot;
		return true;
	case VDDK_FAILED:
		if (!opening || message->slot >= VDDK_STAGE_READY)
			return false;
		take_failed(vddk, message, text);
		return true;
	case VDDK_OPENED:
		return opening && take_opened(vddk, message, text);
	case VDDK_DONE:
		return vddk->state == VDDK_IS_READY && take_done(vddk, message, text);
	default:
		return false;
	}
}
