/*
 * The NBD client as a block.
 *
 * The connection that opening makes is kept: the first lane takes it over, so
 * that a server for one client at a time is enough.  Blocking calls use it while
 * it is there, and make another one while a lane has it.
 */
#include "client_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define CONNECT_TIMEOUT_MS 10000u
#define RECONNECT_TIMEOUT_MS 60000u
#define IO_TIMEOUT_MS 60000u

static struct client *client_of(struct block *block)
{
	return (struct client *)block;
}

/* --- blocking calls --------------------------------------------------------- */

static struct client_lane *open_lane(struct client *client, struct cancel *cancel, struct err *err)
{
	struct client_lane *lane = client_lane_new(client, err);
	if (lane && client_lane_wait_open(lane, cancel, err) < 0) {
		client_lane_free(lane);
		return NULL;
	}
	return lane;
}

static int drive(struct client_lane *lane, struct cancel *cancel, struct err *err)
{
	while (!block_lane_reap(&lane->head)) {
		struct pollfd fd = client_lane_pollfd(&lane->head);
		struct err why = ERR_INIT;
		int revents = cancel_poll(
			cancel, fd.fd, fd.events, client_lane_wake(&lane->head), "an answer", &why);
		if (revents < 0 && why.code != ERR_TIMEOUT)
			return err_copy(err, &why);
		client_lane_dispatch(&lane->head, revents < 0 ? 0 : (short)revents);
	}
	return 0;
}

/* What a lane's user sees by block_lane_losses(), a blocking caller is told by
 * its next flush. */
static int note_losses(struct client *client, struct block_io *io)
{
	bool changes = io->op == BLOCK_OP_WRITE || io->op == BLOCK_OP_ZERO;
	/* Of what went out in parts, some may have been answered before the loss. */
	client->dirty |= changes && client_lane_has_parts(client, io);
	if (client->spare->head.nr_losses != client->losses) {
		client->losses = client->spare->head.nr_losses;
		client->lost |= client->dirty;
	}
	client->dirty |= changes;
	if (io->op != BLOCK_OP_FLUSH || io->err.code != ERR_NONE)
		return 0;
	bool lost = client->lost;
	client->dirty = client->lost = false;
	if (!lost)
		return 0;
	return err_set(&io->err, ERR_DISCONNECTED,
		"cannot flush %s: its connection was lost, and with it perhaps what was written "
		"before",
		client->uri.label);
}

static int run_blocking(struct client *client, struct block_io *io, struct err *err)
{
	WITH_LOCK(&client->mutex);
	if (!client->spare) {
		client->spare = open_lane(client, client->cancel, err);
		client->losses = 0;
	}
	if (!client->spare)
		return -1;
	block_lane_submit(&client->spare->head, io);
	if (drive(client->spare, client->cancel, err) < 0) {
		client_lane_free(client->spare);
		client->spare = NULL;
		client->lost |= client->dirty;
		return -1;
	}
	note_losses(client, io);
	if (io->err.code == ERR_NONE)
		return 0;
	/* A connection that is given up for good must not fail the next call too. */
	if (!client_lane_idle(client->spare)) {
		client_lane_free(client->spare);
		client->spare = NULL;
	}
	return err_copy(err, &io->err);
}

static int client_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct block_io io = {
		.op = BLOCK_OP_READ, .offset = offset, .length = length, .buffer = buffer};
	return run_blocking(client_of(block), &io, err);
}

static int client_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	struct block_io io = {.op = BLOCK_OP_WRITE,
		.flags = flags,
		.offset = offset,
		.length = length,
		.buffer = (void *)(uintptr_t)buffer};
	return run_blocking(client_of(block), &io, err);
}

static int client_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	struct block_io io = {
		.op = BLOCK_OP_ZERO, .flags = flags, .offset = offset, .length = length};
	return run_blocking(client_of(block), &io, err);
}

static int client_trim(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	struct block_io io = {
		.op = BLOCK_OP_TRIM, .flags = flags, .offset = offset, .length = length};
	return run_blocking(client_of(block), &io, err);
}

static int client_flush(struct block *block, struct err *err)
{
	struct block_io io = {.op = BLOCK_OP_FLUSH};
	return run_blocking(client_of(block), &io, err);
}

static int client_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	struct block_io io = {.op = BLOCK_OP_EXTENTS,
		.offset = offset,
		.length = length,
		.buffer = extents,
		.nr_extents = max};
	if (run_blocking(client_of(block), &io, err) < 0)
		return -1;
	*nr = io.nr_extents;
	return 0;
}

/* --- lanes ------------------------------------------------------------------ */

static struct block_lane *client_lane_open(
	struct block *block, struct cancel *cancel, struct err *err)
{
	struct client *client = client_of(block);
	struct client_lane *lane;
	pthread_mutex_lock(&client->mutex);
	lane = client->spare;
	client->spare = NULL;
	client->lost |= lane && client->dirty && lane->head.nr_losses != client->losses;
	pthread_mutex_unlock(&client->mutex);
	if (!lane)
		lane = open_lane(client, cancel, err);
	if (!lane)
		return NULL;
	lane->head.nr_losses = 0;
	return &lane->head;
}

static void client_lane_close(struct block_lane *head)
{
	struct client_lane *lane = (struct client_lane *)head;
	struct client *client = lane->client;
	bool keep = false;
	pthread_mutex_lock(&client->mutex);
	/* What blocking calls wrote may have been on this connection. */
	client->lost |= client->dirty && head->nr_losses != 0;
	if (client_lane_idle(lane) && !client->spare) {
		head->cancel = NULL;
		head->nr_in_flight = 0;
		head->done_first = head->done_last = NULL;
		client->losses = head->nr_losses;
		client->spare = lane;
		keep = true;
	}
	pthread_mutex_unlock(&client->mutex);
	if (keep)
		return;
	client_lane_free(lane);
}

/* --- opening and closing ---------------------------------------------------- */

static void free_client(struct client *client)
{
	client_lane_free(client->spare);
	client_uri_free(&client->uri);
	client_tls_fini(&client->tls);
	free(client->changes_context);
	pthread_mutex_destroy(&client->mutex);
	pthread_mutex_destroy(&client->lanes_mutex);
	block_fini(&client->block);
	free(client);
}

static int client_close(struct block *block, struct err *err)
{
	(void)err;
	free_client(client_of(block));
	return 0;
}

static const struct block_driver client_driver = {
	.name = "nbd",
	.read = client_read,
	.write = client_write,
	.zero = client_zero,
	.trim = client_trim,
	.flush = client_flush,
	.extents = client_extents,
	.close = client_close,
	.lane_open = client_lane_open,
	.lane_close = client_lane_close,
	.lane_submit = client_lane_submit,
	.lane_pollfd = client_lane_pollfd,
	.lane_wake = client_lane_wake,
	.lane_dispatch = client_lane_dispatch,
};

static void set_options(struct client *client, const struct nbd_client_options *options)
{
	struct nbd_client_options *o = &client->options;
	if (options)
		*o = *options;
	/* The caller's. */
	o->bitmap = o->label = NULL;
	o->tls_certificates = o->tls_psk_file = o->tls_username = o->tls_psk_hex = NULL;
	if (o->connect_timeout_ms == 0)
		o->connect_timeout_ms = CONNECT_TIMEOUT_MS;
	if (o->reconnect_timeout_ms == 0)
		o->reconnect_timeout_ms = RECONNECT_TIMEOUT_MS;
	if (o->io_timeout_ms == 0)
		o->io_timeout_ms = IO_TIMEOUT_MS;
}

static int set_info(struct client *client, struct err *err)
{
	const struct client_identity *id = &client->identity;
	bool read_only = client->options.read_only;
	uint32_t granule = id->block_preferred;
	if (!read_only && id->read_only)
		return err_set(err, ERR_DENIED,
			"cannot write to %s: the server offers it read-only", client->uri.label);
	if ((granule & (granule - 1)) != 0)
		granule = 4096;
	client->block.info = (struct block_info){
		.size_bytes = id->size_bytes,
		.read_only = read_only,
		.has_extents = id->has_allocation || id->has_changes,
		.has_changes = id->has_changes,
		.can_trim = id->can_trim,
		.can_zero = id->can_zero,
		.can_fast_zero = id->can_fast_zero,
		.can_fua = id->can_fua,
		.multi_lane = read_only || id->can_multi_conn,
		.can_vanish = true,
		.granule_bytes = granule,
	};
	return 0;
}

static int open_first(struct client *client, struct err *err)
{
	struct deadline until = deadline_after_ms(client->options.connect_timeout_ms);
	if (client_address_find(&client->uri, client->addresses, &client->nr_addresses, until,
		    client->cancel, err) < 0)
		return err_context(err, "%s", client->uri.label);
	client->spare = open_lane(client, client->cancel, err);
	if (!client->spare)
		return -1;
	return set_info(client, err);
}

struct block *nbd_client_open(const char *uri, const struct nbd_client_options *options,
	struct cancel *cancel, struct err *err)
{
	struct client *client = calloc(1, sizeof *client);
	if (!client) {
		err_errno(err, ENOMEM, "cannot open an NBD disk");
		return NULL;
	}
	block_init(&client->block, &client_driver, NULL);
	pthread_mutex_init(&client->mutex, NULL);
	pthread_mutex_init(&client->lanes_mutex, NULL);
	set_options(client, options);
	client->cancel = cancel;
	client->block.info.read_only = client->options.read_only;
	client->tls.psk_fd = -1;
	if (client_uri_parse(&client->uri, uri, options ? options->label : NULL, err) < 0 ||
		client_tls_init(&client->tls, &client->uri, options, err) < 0)
		goto fail;
	if (options && options->bitmap) {
		client->changes_context = client_map_context(options->bitmap, err);
		if (!client->changes_context)
			goto fail;
	}
	client->block.label = strdup(client->uri.label);
	if (!client->block.label) {
		err_errno(err, ENOMEM, "cannot open %s", client->uri.label);
		goto fail;
	}
	if (open_first(client, err) < 0)
		goto fail;
	return &client->block;
fail:
	free_client(client);
	return NULL;
}
