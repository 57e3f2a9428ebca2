/*
 * One connection of the NBD client.
 *
 *   from        to          when
 *   CONNECT     HANDSHAKE   the socket is connected
 *   HANDSHAKE   READY       the export is the expected one: everything in flight goes out
 *   CONNECT,
 *   HANDSHAKE   PAUSE       the attempt failed, while reconnecting or with a full queue
 *               FAILED      the attempt failed, the first time or past the deadline
 *   PAUSE       CONNECT     the pause is over
 *   READY       CONNECT     the connection is lost
 *               PAUSE       it is lost before it has answered anything
 *               FAILED      it is lost, and must not be made again (no_reconnect)
 *               FAILED      it is lost again, and something in flight has had no
 *                           answer since it was lost first, past the deadline
 *   any         FAILED      the export is another one now; everything in flight fails
 *
 * set_state() is the one place where the state changes.  A lane belongs to one
 * thread at a time.  libnbd's callbacks run inside its calls and may not call it
 * again: they put the request on a list that settle() deals with afterwards.
 */
#include "client_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define PAUSE_FIRST_MS 100u
#define PAUSE_MOST_MS 5000u
#define LAST_ATTEMPT_MS 1000u
/* Zeroing and trimming go out in parts of this size. */
#define ZERO_PART_BYTES GIB
#define ZEROS_BYTES (256 * KIB)

static const uint8_t zeros[ZEROS_BYTES];

static struct client_lane *lane_of(struct block_lane *head)
{
	return (struct client_lane *)head;
}

static void set_state(struct client_lane *lane, enum client_lane_state state)
{
#define TO(s) (1u << CLIENT_##s)
	static const unsigned allowed[CLIENT_NR_STATES] = {
		[CLIENT_PAUSE] = TO(CONNECT) | TO(FAILED),
		[CLIENT_CONNECT] = TO(CONNECT) | TO(HANDSHAKE) | TO(PAUSE) | TO(FAILED),
		[CLIENT_HANDSHAKE] = TO(READY) | TO(PAUSE) | TO(FAILED),
		[CLIENT_READY] = TO(CONNECT) | TO(PAUSE) | TO(FAILED),
		[CLIENT_FAILED] = 0,
	};
#undef TO
	assert(allowed[lane->state] & 1u << state);
	lane->state = state;
}

static const char *label(const struct client_lane *lane)
{
	return lane->client->uri.label;
}

/* --- requests --------------------------------------------------------------- */

static void unlink_request(struct client_lane *lane, struct client_request *request)
{
	if (request->previous)
		request->previous->next = request->next;
	else
		lane->first = request->next;
	if (request->next)
		request->next->previous = request->previous;
	else
		lane->last = request->previous;
}

static void finish_request(struct client_lane *lane, struct client_request *request)
{
	unlink_request(lane, request);
	free(request->bounce);
	free(request->map);
	request->bounce = NULL;
	request->map = NULL;
	block_lane_finish(&lane->head, request->io);
	request->next = lane->unused;
	lane->unused = request;
}

static const char *op_name(enum block_op op)
{
	static const char *const names[] = {
		[BLOCK_OP_READ] = "read",
		[BLOCK_OP_WRITE] = "write",
		[BLOCK_OP_ZERO] = "zero",
		[BLOCK_OP_TRIM] = "trim",
		[BLOCK_OP_FLUSH] = "flush",
		[BLOCK_OP_EXTENTS] = "map",
	};
	return names[op];
}

static void fail_request(struct client_lane *lane, struct client_request *request, int error)
{
	struct block_io *io = request->io;
	if (io->op == BLOCK_OP_FLUSH)
		err_errno(&io->err, error, "cannot flush %s: the server answered", label(lane));
	else
		err_errno(&io->err, error,
			"cannot %s %" PRIu64 " bytes at offset %" PRIu64
			" of %s: the server answered",
			op_name(io->op), io->length, io->offset, label(lane));
	if (io->op == BLOCK_OP_ZERO && (io->flags & BLOCK_FAST_ZERO) && error == ENOTSUP)
		io->err.code = ERR_UNSUPPORTED;
	finish_request(lane, request);
}

static int on_answer(void *context, int *error)
{
	struct client_request *request = context;
	request->answered = true;
	request->error = *error;
	request->next_answered = request->lane->answered;
	request->lane->answered = request;
	return 1; /* libnbd forgets the command */
}

static uint32_t wire_flags(const struct block_io *io)
{
	uint32_t flags = 0;
	if (io->flags & BLOCK_FUA)
		flags |= LIBNBD_CMD_FLAG_FUA;
	if (io->flags & BLOCK_NO_HOLE)
		flags |= LIBNBD_CMD_FLAG_NO_HOLE;
	if (io->flags & BLOCK_FAST_ZERO)
		flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
	return flags;
}

/* A read that the server would refuse as unaligned is widened into a buffer. */
static int64_t read_widened(struct client_lane *lane, struct client_request *request,
	uint64_t offset, nbd_completion_callback done)
{
	const struct client_identity *id = &lane->client->identity;
	uint64_t from = round_down(offset, id->block_min);
	uint64_t to = min_u64(round_up(offset + request->part, id->block_min), id->size_bytes);
	if (to - from > id->payload_max) {
		to = from + id->payload_max;
		request->part = to - offset;
	}
	free(request->bounce);
	request->bounce = malloc((size_t)(to - from));
	if (!request->bounce)
		return -1;
	request->bounce_offset = offset - from;
	return nbd_aio_pread(lane->handle, request->bounce, (size_t)(to - from), from, done, 0);
}

static int64_t send_read(struct client_lane *lane, struct client_request *request, uint64_t offset,
	nbd_completion_callback done)
{
	const struct client_identity *id = &lane->client->identity;
	uint8_t *buffer = request->io->buffer;
	request->part = min_u64(request->part, id->payload_max);
	if ((offset | request->part) % id->block_min != 0)
		return read_widened(lane, request, offset, done);
	return nbd_aio_pread(
		lane->handle, buffer + request->done, (size_t)request->part, offset, done, 0);
}

static int64_t send_write(struct client_lane *lane, struct client_request *request, uint64_t offset,
	nbd_completion_callback done)
{
	const uint8_t *buffer = request->io->buffer;
	request->part = min_u64(request->part, lane->client->identity.payload_max);
	return nbd_aio_pwrite(lane->handle, buffer + request->done, (size_t)request->part, offset,
		done, wire_flags(request->io));
}

static int64_t send_zero(struct client_lane *lane, struct client_request *request, uint64_t offset,
	nbd_completion_callback done)
{
	const struct client_identity *id = &lane->client->identity;
	if (id->can_zero) {
		request->part = min_u64(request->part, ZERO_PART_BYTES);
		return nbd_aio_zero(
			lane->handle, request->part, offset, done, wire_flags(request->io));
	}
	request->part = min_u64(request->part, min_u64(ZEROS_BYTES, id->payload_max));
	return nbd_aio_pwrite(lane->handle, zeros, (size_t)request->part, offset, done,
		wire_flags(request->io) & LIBNBD_CMD_FLAG_FUA);
}

static int64_t send_part(struct client_lane *lane, struct client_request *request)
{
	const struct block_io *io = request->io;
	nbd_completion_callback done = {.callback = on_answer, .user_data = request};
	uint64_t offset = io->offset + request->done;
	request->part = io->length - request->done;
	switch (io->op) {
	case BLOCK_OP_READ:
		return send_read(lane, request, offset, done);
	case BLOCK_OP_WRITE:
		return send_write(lane, request, offset, done);
	case BLOCK_OP_ZERO:
		return send_zero(lane, request, offset, done);
	case BLOCK_OP_TRIM:
		request->part = min_u64(request->part, ZERO_PART_BYTES);
		return nbd_aio_trim(lane->handle, request->part, offset, done, wire_flags(io));
	case BLOCK_OP_FLUSH:
		return nbd_aio_flush(lane->handle, done, 0);
	case BLOCK_OP_EXTENTS:
		return client_map_send(lane, request, done);
	}
	return -1;
}

static bool handle_gone(struct client_lane *lane)
{
	return nbd_aio_is_dead(lane->handle) > 0 || nbd_aio_is_closed(lane->handle) > 0;
}

bool client_lane_has_parts(const struct client *client, const struct block_io *io)
{
	const struct client_identity *id = &client->identity;
	if (io->op == BLOCK_OP_ZERO)
		return io->length >
		       (id->can_zero ? ZERO_PART_BYTES : min_u64(ZEROS_BYTES, id->payload_max));
	return io->op == BLOCK_OP_WRITE && io->length > id->payload_max;
}

/* Sends the request's next part; a loss shows in settle(). */
static void send_request(struct client_lane *lane, struct client_request *request)
{
	if (lane->state != CLIENT_READY || handle_gone(lane))
		return;
	if (!lane->first->next)
		lane->active_ns = clock_now_ns(); /* it was idle until now */
	request->out = true;
	if (send_part(lane, request) >= 0)
		return;
	request->out = false;
	if (handle_gone(lane))
		return;
	struct block_io *io = request->io;
	int error = nbd_get_errno();
	const char *why = nbd_get_error();
	err_set(&io->err, error ? err_code_from_errno(error) : ERR_IO,
		"cannot %s %" PRIu64 " bytes at offset %" PRIu64 " of %s: %s", op_name(io->op),
		io->length, io->offset, label(lane), why ? why : "no memory");
	if ((io->offset | io->length) % lane->client->identity.block_min != 0)
		err_hint(&io->err, "the server takes whole blocks of %u bytes only",
			lane->client->identity.block_min);
	finish_request(lane, request);
}

static void take_answer(struct client_lane *lane, struct client_request *request)
{
	struct block_io *io = request->io;
	if (request->error != 0) {
		fail_request(lane, request, request->error);
		return;
	}
	if (request->bounce && io->op == BLOCK_OP_READ)
		memcpy((uint8_t *)io->buffer + request->done,
			request->bounce + request->bounce_offset, (size_t)request->part);
	request->done += request->part;
	if (request->done < io->length) {
		send_request(lane, request);
		return;
	}
	if (io->op == BLOCK_OP_EXTENTS)
		client_map_take(lane, request);
	finish_request(lane, request);
}

/* --- connecting ------------------------------------------------------------- */

static void fail_all(struct client_lane *lane)
{
	while (lane->first) {
		err_copy(&lane->first->io->err, &lane->err);
		finish_request(lane, lane->first);
	}
}

static bool is_lost_for_good(const struct client_lane *lane)
{
	return lane->client->options.no_reconnect && !client_identity_is_same_server(lane->client);
}

static void drop_connection(struct client_lane *lane)
{
	client_identity_leave(lane);
	if (lane->fd >= 0)
		close(lane->fd);
	lane->fd = -1;
	nbd_close(lane->handle);
	lane->handle = NULL;
	/* What was out has no answer any more and will be sent again. */
	lane->answered = NULL;
	for (struct client_request *r = lane->first; r; r = r->next)
		r->out = r->answered = false;
}

static void give_up(struct client_lane *lane, const struct err *why)
{
	err_copy(&lane->err, why);
	if (lane->reconnecting && why->code != ERR_RANGE) {
		lane->err.code = ERR_DISCONNECTED;
		err_context(&lane->err,
			"the connection was lost, and could not be made again within %g s",
			lane->client->options.reconnect_timeout_ms / 1000.0);
	} else if (why->code != ERR_DISCONNECTED && is_lost_for_good(lane)) {
		lane->err.code = ERR_DISCONNECTED;
		err_context(&lane->err, "the connection was lost");
	}
	drop_connection(lane);
	set_state(lane, CLIENT_FAILED);
	fail_all(lane);
}

static void pause_lane(struct client_lane *lane)
{
	unsigned pause = lane->pause_ms ? lane->pause_ms * 2 : PAUSE_FIRST_MS;
	lane->pause_ms = pause < PAUSE_MOST_MS ? pause : PAUSE_MOST_MS;
	lane->pause_until = deadline_min(deadline_after_ms(lane->pause_ms),
		lane->reconnecting ? lane->give_up : lane->attempt_until);
	drop_connection(lane);
	set_state(lane, CLIENT_PAUSE);
}

/* This attempt came to nothing. */
static void attempt_failed(struct client_lane *lane, const struct err *why)
{
	/* A full queue in front of a Unix socket empties; it is no refusal. */
	bool queue_full = lane->state == CLIENT_CONNECT && why->sys_errno == EAGAIN;
	struct deadline until = lane->reconnecting ? lane->give_up : lane->attempt_until;
	if ((lane->reconnecting || queue_full) && !deadline_passed(until))
		pause_lane(lane);
	else
		give_up(lane, why);
}

/* libnbd tells the server's own words to its debug log alone. */
static int on_debug(void *context, const char *function, const char *message)
{
	static const char mark[] = "server error message: ";
	struct client_lane *lane = context;
	(void)function;
	const char *words = strstr(message, mark);
	if (!words)
		return 0;
	snprintf(lane->words, sizeof lane->words, "%s", words + sizeof mark - 1);
	for (char *c = lane->words; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			*c = ' ';
	return 0;
}

static bool set_up_handle(struct client_lane *lane)
{
	struct nbd_handle *h = nbd_create();
	lane->handle = h;
	if (!h)
		return false;
	const char *changes = lane->client->changes_context;
	nbd_debug_callback debug = {.callback = on_debug, .user_data = lane};
	return nbd_set_export_name(h, lane->client->uri.name) == 0 &&
	       client_tls_prepare(&lane->client->tls, h) &&
	       nbd_set_pread_initialize(h, false) == 0 &&
	       nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
	       (!changes || nbd_add_meta_context(h, changes) == 0) &&
	       nbd_set_debug_callback(h, debug) == 0 && nbd_set_debug(h, true) == 0;
}

static void handshake_failed(struct client_lane *lane)
{
	int error = nbd_get_errno();
	const char *said = nbd_get_error();
	struct err why = ERR_INIT;
	if (!lane->words[0] && client_tls_explain(&lane->client->uri, said, error, &why)) {
		attempt_failed(lane, &why);
		return;
	}
	if (lane->words[0])
		err_set(&why, error == ENOENT ? ERR_NOT_FOUND : ERR_REFUSED,
			"%s: refused by the server: %s", label(lane), lane->words);
	else if (error == ENOENT)
		err_set(&why, ERR_NOT_FOUND, "%s: the server has no export of this name",
			label(lane));
	else if (!said || strstr(said, "disconnected") || strstr(said, "closed") ||
		 error == ECONNRESET)
		err_set(&why, ERR_REFUSED,
			"%s: the server closed the connection during the handshake, without a "
			"reason "
			"(it may take no more connections)",
			label(lane));
	else
		err_set(&why, ERR_PROTOCOL, "%s: the handshake failed: %s", label(lane), said);
	attempt_failed(lane, &why);
}

static void become_ready(struct client_lane *lane)
{
	struct err why = ERR_INIT;
	nbd_set_debug(lane->handle, false);
	if (client_tls_needs_host(&lane->client->tls))
		transport_prepare_socket(nbd_aio_get_fd(lane->handle));
	if (client_identity_check(lane->client, lane->handle, &why) < 0) {
		give_up(lane, &why);
		return;
	}
	if (is_lost_for_good(lane)) {
		err_set(&why, ERR_DISCONNECTED,
			"%s: the connection was lost (the server was started again)", label(lane));
		give_up(lane, &why);
		return;
	}
	set_state(lane, CLIENT_READY);
	client_identity_join(lane);
	if (lane->reconnecting)
		log_info("%s: connected again", label(lane));
	lane->reconnecting = lane->shutting_down = lane->has_answered = false;
	lane->active_ns = clock_now_ns();
	for (struct client_request *next, *r = lane->first; r; r = next) {
		next = r->next;
		if (!r->out)
			send_request(lane, r);
	}
}

static void begin_handshake(struct client_lane *lane)
{
	int fd = lane->fd;
	lane->fd = -1; /* libnbd's from here on, also when it fails */
	lane->words[0] = '\0';
	set_state(lane, CLIENT_HANDSHAKE);
	if (!set_up_handle(lane)) {
		close(fd);
		handshake_failed(lane);
	} else if (nbd_aio_connect_socket(lane->handle, fd) < 0) {
		handshake_failed(lane);
	}
}

/* Tries the addresses from next_address on until one is at least on its way. */
static void connect_next(struct client_lane *lane, struct err *why)
{
	struct client *client = lane->client;
	while (lane->next_address < client->nr_addresses) {
		bool connected = false;
		struct client_address *address = &client->addresses[lane->next_address++];
		lane->fd = client_address_connect(address, &connected, why);
		if (lane->fd >= 0 && connected)
			begin_handshake(lane);
		if (lane->fd >= 0 || connected)
			return;
	}
	err_context(why, "%s", label(lane));
	if (why->sys_errno == ECONNREFUSED || why->sys_errno == ENOENT)
		err_hint(why, "is the server running?");
	else if (why->sys_errno == EAGAIN)
		err_hint(why, "the server's queue of new connections is full");
	attempt_failed(lane, why);
}

/* libnbd connects by itself: its look-up of the name is not ours to call back, which is
 * why this is only done where it must be. */
static void connect_by_name(struct client_lane *lane)
{
	const struct client_uri *uri = &lane->client->uri;
	lane->words[0] = '\0';
	set_state(lane, CLIENT_HANDSHAKE);
	if (!set_up_handle(lane) || nbd_aio_connect_tcp(lane->handle, uri->host, uri->port) < 0)
		handshake_failed(lane);
}

static void begin_attempt(struct client_lane *lane)
{
	struct err why = ERR_INIT;
	lane->next_address = 0;
	if (lane->reconnecting) {
		/* The last attempt begins when the time is up, and has a chance too. */
		unsigned left_ms = (unsigned)deadline_left_ms(lane->give_up);
		unsigned most_ms = lane->client->options.connect_timeout_ms;
		left_ms = left_ms > LAST_ATTEMPT_MS ? left_ms : LAST_ATTEMPT_MS;
		lane->attempt_until = deadline_after_ms(left_ms < most_ms ? left_ms : most_ms);
	}
	set_state(lane, CLIENT_CONNECT);
	if (client_tls_needs_host(&lane->client->tls))
		connect_by_name(lane);
	else
		connect_next(lane, &why);
}

/* The time by which all that is in flight must have had its answer.  It counts
 * from each request's first loss: a server that takes every new connection and
 * ends it at the same request is not asked for ever. */
static struct deadline patience(struct client_lane *lane)
{
	int64_t timeout_ns = (int64_t)lane->client->options.reconnect_timeout_ms * 1000000;
	int64_t now_ns = clock_now_ns();
	struct deadline until = {now_ns + timeout_ns};
	for (struct client_request *r = lane->first; r; r = r->next) {
		if (r->lost_ns == 0)
			r->lost_ns = now_ns;
		until = deadline_min(until, (struct deadline){r->lost_ns + timeout_ns});
	}
	return until;
}

static void lost(struct client_lane *lane, const char *why)
{
	struct err err = ERR_INIT;
	if (lane->client->options.no_reconnect) {
		err_set(&err, ERR_DISCONNECTED, "%s: the connection was lost (%s)", label(lane),
			why);
		give_up(lane, &err);
		return;
	}
	lane->give_up = patience(lane);
	if (!lane->client->block.info.read_only)
		lane->head.nr_losses++;
	if (deadline_passed(lane->give_up)) {
		err_set(&err, ERR_DISCONNECTED,
			"%s: the connection is lost again and again (%s), and a request has had no "
			"answer for %g s",
			label(lane), why, lane->client->options.reconnect_timeout_ms / 1000.0);
		give_up(lane, &err);
		return;
	}
	log_warning("%s: lost the connection (%s), connecting again", label(lane), why);
	lane->reconnecting = true;
	if (lane->has_answered) {
		drop_connection(lane);
		begin_attempt(lane);
	} else {
		pause_lane(lane);
	}
}

/* --- moving on -------------------------------------------------------------- */

/* After each call of libnbd in READY: deals with what was answered, and with the
 * end of the connection. */
static void settle(struct client_lane *lane)
{
	while (lane->state == CLIENT_READY && lane->answered) {
		struct client_request *request = lane->answered;
		lane->answered = request->next_answered;
		request->answered = false;
		lane->active_ns = clock_now_ns();
		/* ENOTCONN is libnbd's own: the connection ended first. */
		if (request->error == ENOTCONN || request->error == ESHUTDOWN) {
			lane->shutting_down |= request->error == ESHUTDOWN;
			continue;
		}
		request->out = false;
		lane->has_answered = true;
		lane->pause_ms = 0;
		take_answer(lane, request);
	}
	if (lane->state != CLIENT_READY)
		return;
	if (lane->shutting_down)
		lost(lane, "the server is shutting down");
	else if (handle_gone(lane))
		lost(lane, "the server closed it");
}

static void notify(struct client_lane *lane, short revents)
{
	unsigned direction = nbd_aio_get_direction(lane->handle);
	if ((direction & LIBNBD_AIO_DIRECTION_READ) && (revents & (POLLIN | POLLHUP | POLLERR)))
		nbd_aio_notify_read(lane->handle);
	else if ((direction & LIBNBD_AIO_DIRECTION_WRITE) &&
		 (revents & (POLLOUT | POLLHUP | POLLERR)))
		nbd_aio_notify_write(lane->handle);
	lane->active_ns = clock_now_ns();
}

static struct deadline quiet_until(const struct client_lane *lane)
{
	return (struct deadline){
		lane->active_ns + (int64_t)lane->client->options.io_timeout_ms * 1000000};
}

static void move_ready(struct client_lane *lane, short revents)
{
	if (revents)
		notify(lane, revents);
	settle(lane);
	if (lane->state == CLIENT_READY && lane->first && deadline_passed(quiet_until(lane)))
		lost(lane, "no answer in time");
}

static void move_handshake(struct client_lane *lane, short revents)
{
	struct err why = ERR_INIT;
	int rc = 0;
	if (revents & (POLLIN | POLLHUP | POLLERR) &&
		nbd_aio_get_direction(lane->handle) & LIBNBD_AIO_DIRECTION_READ)
		rc = nbd_aio_notify_read(lane->handle);
	else if (revents)
		rc = nbd_aio_notify_write(lane->handle);
	if (rc < 0 || handle_gone(lane)) {
		handshake_failed(lane);
	} else if (nbd_aio_is_ready(lane->handle) > 0) {
		become_ready(lane);
		settle(lane);
	} else if (deadline_passed(lane->attempt_until)) {
		err_set(&why, ERR_TIMEOUT,
			"%s: connected, but no answer to the handshake in %u s (a server for one "
			"client at a time lets the next one wait)",
			label(lane), lane->client->options.connect_timeout_ms / 1000);
		attempt_failed(lane, &why);
	}
}

static void move_connect(struct client_lane *lane, short revents)
{
	struct err why = ERR_INIT;
	if (revents && client_address_connected(lane->fd, &why) == 0) {
		begin_handshake(lane);
	} else if (revents) {
		close(lane->fd);
		lane->fd = -1;
		connect_next(lane, &why);
	} else if (deadline_passed(lane->attempt_until)) {
		err_set(&why, ERR_TIMEOUT, "%s: no connection in %u s", label(lane),
			lane->client->options.connect_timeout_ms / 1000);
		attempt_failed(lane, &why);
	}
}

void client_lane_dispatch(struct block_lane *head, short revents)
{
	struct client_lane *lane = lane_of(head);
	switch (lane->state) {
	case CLIENT_READY:
		move_ready(lane, revents);
		break;
	case CLIENT_HANDSHAKE:
		move_handshake(lane, revents);
		break;
	case CLIENT_CONNECT:
		move_connect(lane, revents);
		break;
	case CLIENT_PAUSE:
		if (deadline_passed(lane->pause_until))
			begin_attempt(lane);
		break;
	case CLIENT_FAILED:
	case CLIENT_NR_STATES:
		break;
	}
}

struct pollfd client_lane_pollfd(struct block_lane *head)
{
	struct client_lane *lane = lane_of(head);
	struct pollfd fd = {.fd = -1};
	if (lane->state == CLIENT_CONNECT) {
		fd.fd = lane->fd;
		fd.events = POLLOUT;
	} else if (lane->handle) {
		unsigned direction = nbd_aio_get_direction(lane->handle);
		fd.fd = nbd_aio_get_fd(lane->handle);
		if (direction & LIBNBD_AIO_DIRECTION_READ)
			fd.events |= POLLIN;
		if (direction & LIBNBD_AIO_DIRECTION_WRITE)
			fd.events |= POLLOUT;
	}
	return fd;
}

struct deadline client_lane_wake(struct block_lane *head)
{
	struct client_lane *lane = lane_of(head);
	switch (lane->state) {
	case CLIENT_READY:
		return handle_gone(lane) || lane->answered ? deadline_after_ms(0)
							   : quiet_until(lane);
	case CLIENT_HANDSHAKE:
		/* A server that was quick has answered all within one call of libnbd:
		 * there will be no event to wait for. */
		if (nbd_aio_is_ready(lane->handle) > 0 || handle_gone(lane))
			return deadline_after_ms(0);
		return lane->attempt_until;
	case CLIENT_CONNECT:
		return lane->attempt_until;
	case CLIENT_PAUSE:
		return lane->pause_until;
	case CLIENT_FAILED:
	case CLIENT_NR_STATES:
		break;
	}
	return deadline_after_ms(0);
}

static struct client_request *new_request(struct client_lane *lane, struct block_io *io)
{
	struct client_request *request = lane->unused;
	if (request)
		lane->unused = request->next;
	else
		request = malloc(sizeof *request);
	if (!request)
		return NULL;
	*request = (struct client_request){.lane = lane, .io = io, .previous = lane->last};
	if (lane->last)
		lane->last->next = request;
	else
		lane->first = request;
	lane->last = request;
	return request;
}

void client_lane_submit(struct block_lane *head, struct block_io *io)
{
	struct client_lane *lane = lane_of(head);
	const struct client_identity *id = &lane->client->identity;
	bool nothing = (io->op == BLOCK_OP_FLUSH && !id->can_flush) ||
		       (io->op == BLOCK_OP_TRIM && !id->can_trim);
	if (lane->state == CLIENT_FAILED)
		err_copy(&io->err, &lane->err);
	if (nothing || lane->state == CLIENT_FAILED) {
		block_lane_finish(head, io);
		return;
	}
	struct client_request *request = new_request(lane, io);
	if (!request) {
		err_errno(&io->err, ENOMEM, "cannot %s %s", op_name(io->op), label(lane));
		block_lane_finish(head, io);
		return;
	}
	send_request(lane, request);
}

/* --- beginning and end ------------------------------------------------------ */

struct client_lane *client_lane_new(struct client *client, struct err *err)
{
	struct client_lane *lane = calloc(1, sizeof *lane);
	if (!lane) {
		err_errno(err, ENOMEM, "cannot connect to %s", client->uri.label);
		return NULL;
	}
	lane->client = client;
	lane->head.block = &client->block;
	lane->fd = lane->ready_fd = -1;
	lane->state = CLIENT_CONNECT;
	lane->attempt_until = deadline_after_ms(client->options.connect_timeout_ms);
	begin_attempt(lane);
	return lane;
}

int client_lane_wait_open(struct client_lane *lane, struct cancel *cancel, struct err *err)
{
	while (lane->state != CLIENT_READY && lane->state != CLIENT_FAILED) {
		struct pollfd fd = client_lane_pollfd(&lane->head);
		struct err why = ERR_INIT;
		int revents = cancel_poll(cancel, fd.fd, fd.events, client_lane_wake(&lane->head),
			"connecting", &why);
		if (revents < 0 && why.code != ERR_TIMEOUT)
			return err_copy(err, &why);
		client_lane_dispatch(&lane->head, revents < 0 ? 0 : (short)revents);
	}
	return lane->state == CLIENT_READY ? 0 : err_copy(err, &lane->err);
}

void client_lane_free(struct client_lane *lane)
{
	if (!lane)
		return;
	client_identity_leave(lane); /* before the server sees that it ends */
	if (lane->state == CLIENT_READY && !lane->first)
		nbd_aio_disconnect(lane->handle, 0); /* as far as it goes without waiting */
	drop_connection(lane);
	for (struct client_request *next, *r = lane->first; r; r = next) {
		next = r->next;
		free(r->bounce);
		free(r->map);
		free(r);
	}
	for (struct client_request *next, *r = lane->unused; r; r = next) {
		next = r->next;
		free(r);
	}
	free(lane);
}

bool client_lane_idle(const struct client_lane *lane)
{
	return lane->state == CLIENT_READY && !lane->first && !lane->answered;
}
