/*
 * The thread that owns the helper.  It starts it, because the helper takes the end of the
 * thread that started it for the end of its parent; takes its messages; watches the clock;
 * and sees it to its end.  See vddk_internal.h for the states.
 */
#include "vddk_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* For who gave up opening: long enough for a helper that works. */
#define GIVEN_UP_MS 3000
/* From the end of its socket to that of its process. */
#define LAST_MS 5000

/* --- lists ------------------------------------------------------------------ */

void vddk_work_append(struct vddk_work_list *list, struct vddk_work *work)
{
	work->next = NULL;
	if (list->last)
		list->last->next = work;
	else
		list->first = work;
	list->last = work;
}

struct vddk_work *vddk_work_take(struct vddk_work_list *list)
{
	struct vddk_work *work = list->first;
	if (!work)
		return NULL;
	list->first = work->next;
	if (!list->first)
		list->last = NULL;
	return work;
}

void vddk_work_forget(struct vddk_work_list *list, const struct vddk_lane *lane)
{
	struct vddk_work_list kept = {NULL, NULL};
	for (struct vddk_work *work; (work = vddk_work_take(list)) != NULL;) {
		if (work->lane != lane)
			vddk_work_append(&kept, work);
		else if (work->nr_out > 0)
			work->left = 0; /* freed when its slots are back */
		else
			free(work);
	}
	*list = kept;
}

/* --- requests --------------------------------------------------------------- */

static void ring(int fd)
{
	/* Full (EAGAIN): it rings already. */
	while (eventfd_write(fd, 1) < 0 && errno == EINTR)
		;
}

void vddk_engine_set_state(struct vddk *vddk, enum vddk_state state)
{
#define TO(s) (1u << VDDK_IS_##s)
	static const unsigned allowed[VDDK_NR_STATES] = {
		[VDDK_IS_OPENING] = TO(READY) | TO(FAILED) | TO(ENDING),
		[VDDK_IS_READY] = TO(FAILED) | TO(ENDING),
		[VDDK_IS_FAILED] = TO(ENDING),
		[VDDK_IS_ENDING] = 0,
	};
#undef TO
	assert(allowed[vddk->state] & 1u << state);
	if (vddk->state == VDDK_IS_OPENING)
		ring(vddk->opened);
	vddk->state = state;
	ring(vddk->wake);
}

void vddk_engine_finish(struct vddk *vddk, struct vddk_work *work)
{
	(void)vddk;
	assert(work->nr_out == 0);
	if (!work->lane) {
		free(work);
		return;
	}
	vddk_work_append(&work->lane->finished, work);
	ring(work->lane->ring);
}

/* With the mutex held, when nothing comes any more. */
static void drop_all(struct vddk *vddk)
{
	struct vddk_work *work;
	for (unsigned i = 0; i < vddk->nr_slots; i++) {
		struct vddk_slot *slot = &vddk->slots[i];
		if (slot->busy && slot->work) {
			slot->work->nr_out--;
			/* With something left to ask for it is in the queue too. */
			if (slot->work->nr_out == 0 && slot->work->left == 0) {
				if (slot->work->io)
					err_copy(&slot->work->io->err, &vddk->err);
				vddk_engine_finish(vddk, slot->work);
			}
		}
		slot->busy = false;
	}
	while ((work = vddk_work_take(&vddk->queue)) ||
		(work = vddk_work_take(&vddk->map.waiting))) {
		err_copy(&work->io->err, &vddk->err);
		vddk_engine_finish(vddk, work);
	}
}

void vddk_engine_fail(struct vddk *vddk, const struct err *err)
{
	if (vddk->state != VDDK_IS_OPENING && vddk->state != VDDK_IS_READY)
		return;
	vddk->err = *err;
	vddk_engine_set_state(vddk, VDDK_IS_FAILED);
	drop_all(vddk);
}

struct vddk_slot *vddk_engine_slot(struct vddk *vddk)
{
	for (unsigned i = 0; i < vddk->nr_slots; i++) {
		if (!vddk->slots[i].busy)
			return &vddk->slots[i];
	}
	return NULL;
}

void vddk_engine_ask(struct vddk *vddk, struct vddk_slot *slot, enum vddk_message_type type)
{
	slot->busy = true;
	slot->tag = ++vddk->next_tag;
	slot->until = deadline_after_ms(vddk->call_ms);
	const struct vddk_message message = {
		.type = type,
		.slot = (uint32_t)(slot - vddk->slots),
		.tag = slot->tag,
		.sector = slot->sector,
		.count = slot->count,
	};
	/* A helper that is gone is seen by its socket; this must not hide how it ended. */
	struct err ignored;
	vddk_helper_send(&vddk->helper, &message, NULL, &ignored);
}

/* The next part of the first request in the queue. */
static void ask_part(struct vddk *vddk, struct vddk_slot *slot)
{
	struct vddk_work *work = vddk->queue.first;
	uint64_t skip = work->next_offset % VDDK_SECTOR;
	uint64_t length = min_u64(work->left, VDDK_SLOT_BYTES - skip);
	*slot = (struct vddk_slot){
		.work = work,
		.sector = work->next_offset / VDDK_SECTOR,
		.count = div_round_up(skip + length, VDDK_SECTOR),
		.skip = skip,
		.length = length,
		.to = (uint8_t *)work->io->buffer + (work->next_offset - work->io->offset),
	};
	work->next_offset += length;
	work->left -= length;
	work->nr_out++;
	if (work->left == 0)
		vddk_work_take(&vddk->queue);
	vddk_engine_ask(vddk, slot, VDDK_READ);
}

void vddk_engine_pump(struct vddk *vddk)
{
	if (vddk->state != VDDK_IS_READY)
		return;
	vddk_map_pump(vddk);
	struct vddk_slot *slot;
	while (vddk->queue.first && (slot = vddk_engine_slot(vddk)) != NULL)
		ask_part(vddk, slot);
}

/* --- the thread ------------------------------------------------------------- */

/* How the helper ended, and what it wrote last, without secrets. */
static void died(struct vddk *vddk, const struct err *what, bool protocol)
{
	char how[128], said[VDDK_OUTPUT_BYTES];
	struct deadline until = deadline_after_ms(protocol ? 0 : LAST_MS);
	bool badly = vddk_helper_end(&vddk->helper, until, how, sizeof how);
	snprintf(said, sizeof said, "%s", vddk->helper.said);
	vddk_answer_clean(vddk, said, !vddk->helper.said_more);
	struct err err = ERR_INIT;
	WITH_LOCK(&vddk->mutex);
	unsigned nr_out = 0;
	for (unsigned i = 0; i < vddk->nr_slots; i++)
		nr_out += vddk->slots[i].busy;
	if (protocol)
		err_set(&err, ERR_PROTOCOL, "%s: %s", vddk->disk, what->text);
	else
		err_set(&err, ERR_DISCONNECTED, "%s: the process that runs VMware's library %s, %s",
			vddk->disk, badly ? how : "ended", vddk_answer_stage_text(vddk->stage));
	if (!protocol && nr_out)
		err_hint(&err, "with %u requests in flight", nr_out);
	if (said[0])
		err_hint(&err, "it last wrote: %s", said);
	vddk_engine_fail(vddk, &err);
}

/* False: the helper is at its end. */
static bool take_messages(struct vddk *vddk)
{
	struct vddk_message message = {0};
	char text[VDDK_TEXT_BYTES];
	struct err why = ERR_INIT;
	int rc;
	while ((rc = vddk_helper_receive(&vddk->helper, &message, text, &why)) > 0) {
		vddk_answer_clean(vddk, text, true);
		if (message.type == VDDK_LOG) {
			vddk_answer_log(vddk, &message, text);
			continue;
		}
		pthread_mutex_lock(&vddk->mutex);
		bool good = vddk_answer_take(vddk, &message, text);
		vddk_engine_pump(vddk);
		bool goes_on = vddk->state == VDDK_IS_OPENING || vddk->state == VDDK_IS_READY;
		pthread_mutex_unlock(&vddk->mutex);
		if (!good) {
			err_set(&why, ERR_PROTOCOL,
				"the helper's answer breaks the protocol (message %" PRIu32
				", slot %" PRIu32 ")",
				message.type, message.slot);
			died(vddk, &why, true);
			return false;
		}
		if (!goes_on)
			return true;
	}
	if (rc == 0)
		return true;
	died(vddk, &why, why.code == ERR_PROTOCOL);
	return false;
}

static struct deadline next_deadline(struct vddk *vddk)
{
	WITH_LOCK(&vddk->mutex);
	if (vddk->state == VDDK_IS_OPENING)
		return vddk->open_until;
	/* No call that begins while we sleep runs out of time before that. */
	struct deadline until = deadline_after_ms(vddk->call_ms);
	for (unsigned i = 0; i < vddk->nr_slots; i++) {
		if (vddk->slots[i].busy)
			until = deadline_min(until, vddk->slots[i].until);
	}
	return until;
}

static void check_clock(struct vddk *vddk)
{
	struct err err = ERR_INIT;
	WITH_LOCK(&vddk->mutex);
	if (vddk->state == VDDK_IS_OPENING && deadline_passed(vddk->open_until)) {
		err_set(&err, ERR_TIMEOUT,
			"cannot open %s: no answer from VMware's library in %g s, %s", vddk->disk,
			vddk->open_ms / 1000.0, vddk_answer_stage_text(vddk->stage));
		vddk_answer_explain(vddk, &err);
	}
	for (unsigned i = 0; vddk->state == VDDK_IS_READY && i < vddk->nr_slots; i++) {
		const struct vddk_slot *slot = &vddk->slots[i];
		if (!slot->busy || !deadline_passed(slot->until))
			continue;
		err_set(&err, ERR_TIMEOUT,
			"%s: no answer from VMware's library in %g s, %s %" PRIu64
			" bytes at offset %" PRIu64,
			vddk->disk, vddk->call_ms / 1000.0, slot->work ? "reading" : "mapping",
			slot->count * VDDK_SECTOR, slot->sector * VDDK_SECTOR);
	}
	if (err.code == ERR_NONE)
		return;
	vddk->kill_now = true;
	vddk_engine_fail(vddk, &err);
}

/* Waits for something, and takes it.  False: the helper is at its end. */
static bool step(struct vddk *vddk, struct deadline until)
{
	enum { SOCKET, OUTPUT, WAKE, END, NR };
	struct pollfd fds[NR] = {
		[SOCKET] = {.fd = vddk->helper.socket, .events = POLLIN},
		[OUTPUT] = {.fd = vddk->helper.output, .events = POLLIN},
		[WAKE] = {.fd = vddk->wake, .events = POLLIN},
		[END] = {.fd = vddk->helper.pidfd, .events = POLLIN},
	};
	if (poll(fds, NR, deadline_left_ms(until)) < 0)
		return errno == EINTR;
	eventfd_t ignored;
	if (fds[WAKE].revents)
		eventfd_read(vddk->wake, &ignored);
	if (fds[OUTPUT].revents)
		vddk_helper_drain_output(&vddk->helper);
	if ((fds[SOCKET].revents || fds[END].revents) && !take_messages(vddk))
		return false;
	if (fds[END].revents) { /* with its socket held open by a child of its own */
		died(vddk, &(struct err){.code = ERR_DISCONNECTED}, false);
		return false;
	}
	return true;
}

static enum vddk_state state_of(struct vddk *vddk)
{
	WITH_LOCK(&vddk->mutex);
	return vddk->state;
}

/* The helper is asked to end, and listened to (its log) as long as it takes. */
static void wind_down(struct vddk *vddk, bool was_open)
{
	char how[128], text[VDDK_TEXT_BYTES];
	struct vddk_message message = {.type = VDDK_CLOSE};
	struct err why = ERR_INIT;
	pthread_mutex_lock(&vddk->mutex);
	bool in_order = !vddk->kill_now && vddk->helper.pid > 0;
	struct deadline until = deadline_after_ms(was_open ? vddk->close_ms : GIVEN_UP_MS);
	pthread_mutex_unlock(&vddk->mutex);
	if (in_order && vddk_helper_send(&vddk->helper, &message, NULL, &why) < 0)
		until = deadline_after_ms(LAST_MS);
	int rc = 0;
	while (in_order && !deadline_passed(until) && rc >= 0) {
		while ((rc = vddk_helper_receive(&vddk->helper, &message, text, &why)) > 0) {
			vddk_answer_clean(vddk, text, true);
			if (message.type == VDDK_LOG)
				vddk_answer_log(vddk, &message, text);
		}
		vddk_helper_drain_output(&vddk->helper);
		if (rc == 0 && cancel_poll(NULL, vddk->helper.socket, POLLIN, until,
				       "the helper's end", &why) < 0)
			break;
	}
	if (!in_order)
		until = deadline_after_ms(0);
	if (vddk_helper_end(&vddk->helper, until, how, sizeof how) && in_order && was_open)
		log_warning("%s: the process that runs VMware's library %s", vddk->disk, how);
}

void *vddk_engine_main(void *arg)
{
	struct vddk *vddk = arg;
	struct err err = ERR_INIT;
	int rc =
		vddk_helper_start(&vddk->helper, vddk->program, vddk->folder, vddk->nr_slots, &err);
	if (rc == 0)
		rc = vddk_helper_send(
			&vddk->helper, &vddk->request->head, vddk->request->text, &err);
	explicit_bzero(vddk->request, sizeof *vddk->request);
	if (rc < 0) {
		err_context(&err, "cannot open %s", vddk->disk);
		WITH_LOCK(&vddk->mutex);
		vddk->kill_now = true;
		vddk_engine_fail(vddk, &err);
	}
	enum vddk_state state, last = VDDK_IS_OPENING;
	while ((state = state_of(vddk)) == VDDK_IS_OPENING || state == VDDK_IS_READY) {
		last = state;
		if (!step(vddk, next_deadline(vddk)))
			break;
		check_clock(vddk);
	}
	wind_down(vddk, state == VDDK_IS_FAILED || last == VDDK_IS_READY);
	WITH_LOCK(&vddk->mutex);
	drop_all(vddk); /* what was given up, and is still there because its slot was out */
	return NULL;
}
