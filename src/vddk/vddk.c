/* The block: opening and closing, lanes, blocking calls; see vddk_internal.h for the rest. */
#include "vddk_internal.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define OPEN_TIMEOUT_MS 120000u
#define CALL_TIMEOUT_MS 120000u
#define CLOSE_TIMEOUT_MS 30000u
#define PROBE_TIMEOUT_MS 30000u

static struct vddk *vddk_of(struct block *block)
{
	return (struct vddk *)block;
}

static struct vddk_lane *lane_of(struct block_lane *head)
{
	return (struct vddk_lane *)head;
}

/* --- lanes ------------------------------------------------------------------ */

static struct vddk_lane *new_lane(struct vddk *vddk, struct err *err)
{
	struct vddk_lane *lane = calloc(1, sizeof *lane);
	if (!lane) {
		err_errno(err, ENOMEM, "cannot open a lane to %s", vddk->disk);
		return NULL;
	}
	lane->vddk = vddk;
	lane->head.block = &vddk->block;
	lane->ring = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (lane->ring < 0) {
		err_errno(err, errno, "cannot open a lane to %s", vddk->disk);
		free(lane);
		return NULL;
	}
	return lane;
}

static struct block_lane *vddk_lane_open(
	struct block *block, struct cancel *cancel, struct err *err)
{
	(void)cancel; /* nothing that a lane does waits by itself */
	struct vddk_lane *lane = new_lane(vddk_of(block), err);
	return lane ? &lane->head : NULL;
}

static void vddk_lane_close(struct block_lane *head)
{
	struct vddk_lane *lane = lane_of(head);
	struct vddk *vddk = lane->vddk;
	pthread_mutex_lock(&vddk->mutex);
	vddk_work_forget(&vddk->queue, lane);
	vddk_work_forget(&vddk->map.waiting, lane);
	vddk_work_forget(&lane->finished, lane);
	for (unsigned i = 0; i < vddk->nr_slots; i++) {
		struct vddk_work *work = vddk->slots[i].busy ? vddk->slots[i].work : NULL;
		if (work && work->lane == lane) {
			work->lane = NULL;
			work->io = NULL;
		}
	}
	pthread_mutex_unlock(&vddk->mutex);
	close(lane->ring);
	free(lane);
}

/* With the mutex held. */
static void submit(struct vddk *vddk, struct vddk_work *work)
{
	if (work->io->op == BLOCK_OP_READ) {
		work->next_offset = work->io->offset;
		work->left = work->io->length;
		vddk_work_append(&vddk->queue, work);
	} else {
		vddk_map_submit(vddk, work);
	}
	vddk_engine_pump(vddk);
}

static void vddk_lane_submit(struct block_lane *head, struct block_io *io)
{
	struct vddk_lane *lane = lane_of(head);
	struct vddk *vddk = lane->vddk;
	if (io->op == BLOCK_OP_FLUSH) {
		block_lane_finish(head, io);
		return;
	}
	assert(io->op == BLOCK_OP_READ || io->op == BLOCK_OP_EXTENTS); /* it is read-only */
	struct vddk_work *work = calloc(1, sizeof *work);
	pthread_mutex_lock(&vddk->mutex);
	bool taken = work && vddk->state == VDDK_IS_READY;
	if (taken) {
		*work = (struct vddk_work){.lane = lane, .io = io};
		submit(vddk, work); /* from now on io is the engine's */
	} else if (work) {
		err_copy(&io->err, &vddk->err);
	} else {
		err_errno(&io->err, ENOMEM, "cannot read %s", vddk->disk);
	}
	pthread_mutex_unlock(&vddk->mutex);
	if (taken)
		return;
	free(work);
	block_lane_finish(head, io);
}

static struct pollfd vddk_lane_pollfd(struct block_lane *head)
{
	return (struct pollfd){.fd = lane_of(head)->ring, .events = POLLIN};
}

/* The engine keeps the deadlines, and rings when one has passed. */
static struct deadline vddk_lane_wake(struct block_lane *head)
{
	(void)head;
	return deadline_after_ms(INT_MAX);
}

static void vddk_lane_dispatch(struct block_lane *head, short revents)
{
	(void)revents;
	struct vddk_lane *lane = lane_of(head);
	eventfd_t ignored;
	eventfd_read(lane->ring, &ignored);
	pthread_mutex_lock(&lane->vddk->mutex);
	struct vddk_work_list finished = lane->finished;
	lane->finished = (struct vddk_work_list){NULL, NULL};
	pthread_mutex_unlock(&lane->vddk->mutex);
	for (struct vddk_work *work; (work = vddk_work_take(&finished)) != NULL;) {
		block_lane_finish(head, work->io);
		free(work);
	}
}

/* --- blocking calls --------------------------------------------------------- */

/* On a lane of its own, so that any number of threads can be here. */
static int run_blocking(struct vddk *vddk, struct block_io *io, struct err *err)
{
	struct vddk_lane *lane = new_lane(vddk, err);
	if (!lane)
		return -1;
	int rc = 0;
	block_lane_submit(&lane->head, io);
	while (rc == 0 && !block_lane_reap(&lane->head)) {
		if (cancel_poll(vddk->cancel, lane->ring, POLLIN, deadline_after_ms(INT_MAX),
			    "an answer of VMware's library", err) < 0)
			rc = -1;
		else
			vddk_lane_dispatch(&lane->head, POLLIN);
	}
	if (rc == 0 && io->err.code != ERR_NONE)
		rc = err_copy(err, &io->err);
	vddk_lane_close(&lane->head);
	return rc;
}

static int vddk_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct block_io io = {
		.op = BLOCK_OP_READ, .offset = offset, .length = length, .buffer = buffer};
	return run_blocking(vddk_of(block), &io, err);
}

static int vddk_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	struct block_io io = {.op = BLOCK_OP_EXTENTS,
		.offset = offset,
		.length = length,
		.buffer = extents,
		.nr_extents = max};
	if (run_blocking(vddk_of(block), &io, err) < 0)
		return -1;
	*nr = io.nr_extents;
	return 0;
}

/* --- opening and closing ---------------------------------------------------- */

static void free_vddk(struct vddk *vddk)
{
	vddk_helper_fini(&vddk->helper);
	vddk_map_fini(&vddk->map);
	if (vddk->wake >= 0)
		close(vddk->wake);
	if (vddk->opened >= 0)
		close(vddk->opened);
	if (vddk->request)
		explicit_bzero(vddk->request, sizeof *vddk->request);
	for (size_t i = 0; i < ARRAY_LENGTH(vddk->secrets); i++) {
		if (vddk->secrets[i])
			explicit_bzero(vddk->secrets[i], strlen(vddk->secrets[i]));
		free(vddk->secrets[i]);
	}
	free(vddk->request);
	free(vddk->disk);
	pthread_mutex_destroy(&vddk->mutex);
	block_fini(&vddk->block);
	free(vddk);
}

static void end_vddk(struct vddk *vddk)
{
	if (vddk->has_thread) {
		pthread_mutex_lock(&vddk->mutex);
		vddk_engine_set_state(vddk, VDDK_IS_ENDING);
		pthread_mutex_unlock(&vddk->mutex);
		pthread_join(vddk->thread, NULL);
	}
	free_vddk(vddk);
}

static int vddk_close(struct block *block, struct err *err)
{
	(void)err; /* nothing is lost by a helper that did not end well; the log has it */
	end_vddk(vddk_of(block));
	return 0;
}

static const struct block_driver vddk_driver = {
	.name = "vddk",
	.read = vddk_read,
	.extents = vddk_extents,
	.close = vddk_close,
	.lane_open = vddk_lane_open,
	.lane_close = vddk_lane_close,
	.lane_submit = vddk_lane_submit,
	.lane_pollfd = vddk_lane_pollfd,
	.lane_wake = vddk_lane_wake,
	.lane_dispatch = vddk_lane_dispatch,
};

/* Takes label and disk. */
static struct vddk *new_vddk(char *label, char *disk, struct err *err)
{
	struct vddk *vddk = calloc(1, sizeof *vddk);
	if (!vddk || !disk || !label) {
		free(vddk);
		free(label);
		free(disk);
		err_errno(err, ENOMEM, "cannot use VMware's library");
		return NULL;
	}
	block_init(&vddk->block, &vddk_driver, label);
	pthread_mutex_init(&vddk->mutex, NULL);
	vddk_helper_init(&vddk->helper);
	vddk->disk = disk;
	vddk->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vddk->opened = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vddk->request = calloc(1, sizeof *vddk->request);
	if (vddk->wake >= 0 && vddk->opened >= 0 && vddk->request)
		return vddk;
	err_errno(err, errno, "cannot open %s", disk);
	free_vddk(vddk);
	return NULL;
}

/* Starts the thread, and waits until the disk is open. */
static int begin(struct vddk *vddk, struct err *err)
{
	vddk->nr_slots = vddk->request->head.slot;
	vddk->open_until = deadline_after_ms(vddk->open_ms);
	if (thread_start(&vddk->thread, "vddk", vddk_engine_main, vddk, err) < 0)
		return -1;
	vddk->has_thread = true;
	/* The engine keeps the deadline; it knows what it waits for. */
	if (cancel_poll(vddk->cancel, vddk->opened, POLLIN, deadline_after_ms(INT_MAX),
		    "VMware's library", err) < 0)
		return err_context(err, "cannot open %s", vddk->disk);
	WITH_LOCK(&vddk->mutex);
	return vddk->state == VDDK_IS_FAILED ? err_copy(err, &vddk->err) : 0;
}

static int take_options(struct vddk *vddk, const struct vddk_options *options, struct err *err)
{
	const char *const secrets[2] = {options->password, options->cookie};
	vddk->open_ms = options->open_timeout_ms ? options->open_timeout_ms : OPEN_TIMEOUT_MS;
	vddk->call_ms = options->call_timeout_ms ? options->call_timeout_ms : CALL_TIMEOUT_MS;
	vddk->close_ms = options->close_timeout_ms ? options->close_timeout_ms : CLOSE_TIMEOUT_MS;
	vddk->expected_bytes = options->size_bytes;
	vddk->want_allocated = options->allocated;
	vddk->cancel = options->cancel;
	vddk->log = options->log;
	vddk->log_context = options->log_context;
	if (vddk_folder_choose(options->folder, vddk->folder, err) < 0 ||
		vddk_folder_helper(options->helper, vddk->program, err) < 0 ||
		vddk_request_fill(vddk->request, options, vddk->folder, err) < 0)
		return -1;
	for (size_t i = 0; i < ARRAY_LENGTH(secrets); i++) {
		vddk->secrets[i] = secrets[i] ? strdup(secrets[i]) : NULL;
		if (secrets[i] && !vddk->secrets[i])
			return err_errno(err, ENOMEM, "cannot open %s", vddk->disk);
	}
	return 0;
}

struct block *vddk_open(const struct vddk_options *options, struct err *err)
{
	char *label = NULL, *disk = NULL;
	const char *path = options->path ? options->path : "";
	const char *vm = options->vm ? options->vm : "";
	const char *server = options->server ? options->server : "";
	if (asprintf(&label, "vddk:%s/%s/%s", server, vm, path) < 0)
		label = NULL;
	if (asprintf(&disk, "%s of %s at %s", path, vm, server) < 0)
		disk = NULL;
	struct vddk *vddk = new_vddk(label, disk, err);
	if (!vddk)
		return NULL;
	if (take_options(vddk, options, err) < 0 || begin(vddk, err) < 0) {
		end_vddk(vddk);
		return NULL;
	}
	return &vddk->block;
}

void vddk_facts(const struct block *block, struct vddk_facts *facts)
{
	assert(block->driver == &vddk_driver);
	*facts = ((const struct vddk *)block)->facts; /* constant since it was opened */
}

int vddk_find_folder(const char *named, char path[VDDK_PATH_BYTES], struct err *err)
{
	return vddk_folder_choose(named, path, err);
}

int vddk_probe(const char *folder, const char *helper, struct vddk_facts *facts,
	char loaded[VDDK_PATH_BYTES], struct cancel *cancel, struct err *err)
{
	struct vddk *vddk = new_vddk(strdup("vddk:"), strdup("VMware's library"), err);
	if (!vddk)
		return -1;
	vddk->probe = true;
	vddk->cancel = cancel;
	vddk->open_ms = vddk->call_ms = vddk->close_ms = PROBE_TIMEOUT_MS;
	int rc = -1;
	if (vddk_folder_choose(folder, vddk->folder, err) == 0 &&
		vddk_folder_helper(helper, vddk->program, err) == 0 &&
		vddk_request_fill_probe(vddk->request, vddk->folder, err) == 0)
		rc = begin(vddk, err);
	if (rc == 0) {
		WITH_LOCK(&vddk->mutex);
		*facts = vddk->facts;
		snprintf(loaded, VDDK_PATH_BYTES, "%s", vddk->loaded);
	}
	end_vddk(vddk);
	return rc;
}
