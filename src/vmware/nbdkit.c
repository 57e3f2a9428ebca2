/* nbdkit with its vddk plugin: the block; see nbdkit.h.  Its process: nbdkit_process.c. */
#include "nbdkit.h"

#include "nbd.h"
#include "nbdkit_process.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define OPEN_TIMEOUT_MS 120000u
#define CALL_TIMEOUT_MS 120000u
#define CLOSE_TIMEOUT_MS 30000u
#define FAILED_MS 1000u /* of one whose disk could not be opened */

struct nbdkit {
	struct block block;
	struct nbdkit_process *process;
	struct block *client;
	unsigned close_ms;
};

struct nbdkit_lane {
	struct block_lane head;
	struct block_lane *client;
};

static struct nbdkit *nbdkit_of(const struct block *block)
{
	return (struct nbdkit *)(uintptr_t)block;
}

/* --- requests -------------------------------------------------------------------------------- */

/* NBD carries a number; what it means stands in what nbdkit wrote. */
static int explain(struct nbdkit *nbdkit, struct err *err)
{
	return nbdkit_process_explain(nbdkit->process, err);
}

static int nbdkit_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct nbdkit *nbdkit = nbdkit_of(block);
	if (block_read(nbdkit->client, buffer, length, offset, err) < 0)
		return explain(nbdkit, err);
	return 0;
}

static void hand_on(struct nbdkit_lane *lane)
{
	struct block_io *io;
	while ((io = block_lane_reap(lane->client))) {
		if (io->err.code != ERR_NONE)
			explain(nbdkit_of(lane->head.block), &io->err);
		block_lane_finish(&lane->head, io);
	}
}

static struct block_lane *nbdkit_lane_open(
	struct block *block, struct cancel *cancel, struct err *err)
{
	struct nbdkit_lane *lane = calloc(1, sizeof *lane);
	if (!lane) {
		err_errno(err, ENOMEM, "cannot open a lane to %s", block_label(block));
		return NULL;
	}
	lane->client = block_lane_open(nbdkit_of(block)->client, cancel, err);
	if (!lane->client) {
		explain(nbdkit_of(block), err);
		free(lane);
		return NULL;
	}
	return &lane->head;
}

static void nbdkit_lane_close(struct block_lane *head)
{
	struct nbdkit_lane *lane = (struct nbdkit_lane *)head;
	block_lane_close(lane->client);
	free(lane);
}

/* What is allocated is better known by the caller, and slow to ask for. */
static void answer_extents(struct block_lane *head, struct block_io *io)
{
	*(struct block_extent *)io->buffer = (struct block_extent){.length = io->length};
	io->nr_extents = 1;
	block_lane_finish(head, io);
}

static void nbdkit_lane_submit(struct block_lane *head, struct block_io *io)
{
	struct nbdkit_lane *lane = (struct nbdkit_lane *)head;
	if (io->op == BLOCK_OP_EXTENTS) {
		answer_extents(head, io);
		return;
	}
	block_lane_submit(lane->client, io);
	hand_on(lane);
}

static struct pollfd nbdkit_lane_pollfd(struct block_lane *head)
{
	return block_lane_pollfd(((struct nbdkit_lane *)head)->client);
}

static struct deadline nbdkit_lane_wake(struct block_lane *head)
{
	return block_lane_wake(((struct nbdkit_lane *)head)->client);
}

static void nbdkit_lane_dispatch(struct block_lane *head, short revents)
{
	struct nbdkit_lane *lane = (struct nbdkit_lane *)head;
	block_lane_dispatch(lane->client, revents);
	hand_on(lane);
}

/* --- opening and closing --------------------------------------------------------------------- */

static int nbdkit_close(struct block *block, struct err *err)
{
	(void)err; /* nothing is lost by one that did not end well; the log has it */
	struct nbdkit *nbdkit = nbdkit_of(block);
	block_close(nbdkit->client, NULL);
	nbdkit_process_end(nbdkit->process, deadline_after_ms(nbdkit->close_ms));
	block_fini(block);
	free(nbdkit);
	return 0;
}

static const struct block_driver nbdkit_driver = {
	.name = "nbdkit",
	.read = nbdkit_read,
	.close = nbdkit_close,
	.lane_open = nbdkit_lane_open,
	.lane_close = nbdkit_lane_close,
	.lane_submit = nbdkit_lane_submit,
	.lane_pollfd = nbdkit_lane_pollfd,
	.lane_wake = nbdkit_lane_wake,
	.lane_dispatch = nbdkit_lane_dispatch,
};

static int connect_client(struct nbdkit *nbdkit, const struct vddk_options *options,
	struct deadline until, struct err *err)
{
	unsigned call_ms = options->call_timeout_ms ? options->call_timeout_ms : CALL_TIMEOUT_MS;
	const struct nbd_client_options client = {
		.read_only = true,
		.connect_timeout_ms = (unsigned)deadline_left_ms(until),
		.io_timeout_ms = call_ms,
		.no_reconnect = true, /* one that died is not started again */
		.label = block_label(&nbdkit->block),
	};
	char uri[NBDKIT_URI_BYTES];
	nbdkit_process_uri(nbdkit->process, uri);
	nbdkit->client = nbd_client_open(uri, &client, options->cancel, err);
	/* For nbdkit a disk that the plugin cannot open is no export. */
	if (!nbdkit->client && err->code == ERR_NOT_FOUND)
		err_set(err, ERR_REFUSED, "%s: the vddk plugin could not open it",
			block_label(&nbdkit->block));
	if (!nbdkit->client)
		return explain(nbdkit, err);
	const struct block_info *info = block_info(nbdkit->client);
	if (options->size_bytes && info->size_bytes != options->size_bytes)
		return err_set(err, ERR_REFUSED,
			"%s: nbdkit says that it has %" PRIu64 " bytes, the server %" PRIu64,
			block_label(&nbdkit->block), info->size_bytes, options->size_bytes);
	nbdkit->block.info = *info;
	nbdkit->block.info.has_extents = nbdkit->block.info.has_changes = false;
	return 0;
}

struct block *nbdkit_open(const char *program, const struct vddk_options *options, struct err *err)
{
	struct nbdkit *nbdkit = calloc(1, sizeof *nbdkit);
	char *label = NULL;
	if (!nbdkit || asprintf(&label, "nbdkit-vddk:%s/%s/%s", options->server, options->vm,
			       options->path) < 0) {
		free(nbdkit);
		err_errno(err, ENOMEM, "cannot start nbdkit");
		return NULL;
	}
	struct deadline until = deadline_after_ms(
		options->open_timeout_ms ? options->open_timeout_ms : OPEN_TIMEOUT_MS);
	block_init(&nbdkit->block, &nbdkit_driver, label);
	nbdkit->close_ms = options->close_timeout_ms ? options->close_timeout_ms : CLOSE_TIMEOUT_MS;
	nbdkit->process = nbdkit_process_start(program, options, until, err);
	if (nbdkit->process && connect_client(nbdkit, options, until, err) == 0)
		return &nbdkit->block;
	nbdkit->close_ms = FAILED_MS;
	nbdkit_close(&nbdkit->block, NULL);
	return NULL;
}
