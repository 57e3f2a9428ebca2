/*
 * One connection.
 *
 * Its threads take turns: one of them receives a request (and of a write, at
 * most one piece of the payload), passes the turn on, does the request and
 * answers it.  So requests of one connection overlap, and whoever received the
 * data also writes it, from the same cache.  A further thread is started when a
 * request was received and nobody waits for the turn, up to a bound.
 *
 *   connecting --handshake--> serving --> ended --last thread--> closed
 *        \____________________________/
 *   "ended": goodbye, end of the stream, a broken peer, a time-out, the server
 *   stops, the export goes.  Then nothing more is received, while what is being
 *   served is still answered, unless sending has failed.
 */
#include "nbd_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

/* Threads beyond each connection's first, in one server. */
#define MOST_HELPERS 256

/* What a thread received for itself to do. */
struct work {
	struct nbd_request requests[SERVE_TOGETHER]; /* more than one: small reads */
	unsigned nr_requests;
	struct write_job *job; /* of a write */
	void *piece; /* NULL: an empty write */
	size_t length;
	uint64_t offset;
};

static void *helper_main(void *arg);

struct connection *connection_new(
	struct nbd_server *server, int fd, const char *peer, struct err *err)
{
	struct connection *c = calloc(1, sizeof *c);
	if (!c) {
		err_errno(err, ENOMEM, "cannot serve a client");
		close(fd);
		return NULL;
	}
	c->server = server;
	c->since_s = (int64_t)time(NULL);
	c->began_ns = clock_now_ns();
	atomic_init(&c->heard_ns, c->began_ns);
	atomic_init(&c->read_ns, SERVE_READ_NS_AT_FIRST);
	stream_init(&c->stream, fd, server->options.handshake_timeout_ms);
	if (peer)
		snprintf(c->peer, sizeof c->peer, "%s", peer);
	else
		transport_peer_text(fd, c->peer);
	pthread_mutex_init(&c->receive_mutex, NULL);
	pthread_mutex_init(&c->send_mutex, NULL);
	pthread_mutex_init(&c->why_mutex, NULL);
	return c;
}

void connection_free(struct connection *c)
{
	stream_close(&c->stream);
	pthread_mutex_destroy(&c->receive_mutex);
	pthread_mutex_destroy(&c->send_mutex);
	pthread_mutex_destroy(&c->why_mutex);
	free(c);
}

void connection_note_end(struct connection *c, bool is_fault, const char *format, ...)
{
	WITH_LOCK(&c->why_mutex);
	if (c->why[0])
		return;
	va_list ap;
	va_start(ap, format);
	vsnprintf(c->why, sizeof c->why, format, ap);
	va_end(ap);
	c->why_is_fault = is_fault;
}

void connection_break(struct connection *c, const struct err *why)
{
	connection_note_end(c, true, "%s", why->text);
	atomic_store(&c->broken, true);
	stream_shut(&c->stream, true);
}

/* --- receiving ------------------------------------------------------------------ */

static unsigned receive_timeout_ms(const struct connection *c, const struct deadline *until)
{
	if (!until)
		return c->server->options.send_timeout_ms;
	int left_ms = deadline_left_ms(*until);
	return left_ms > 0 ? (unsigned)left_ms : 1;
}

int connection_receive(struct connection *c, void *buffer, size_t length,
	const struct deadline *until, const char *what, struct err *err)
{
	uint8_t *at = buffer;
	for (;;) {
		size_t n = min_size(length, c->ahead_end - c->ahead_start);
		memcpy(at, c->ahead + c->ahead_start, n);
		c->ahead_start += n;
		at += n;
		length -= n;
		if (length == 0)
			return 0;
		if (until && deadline_passed(*until))
			return err_set(err, ERR_TIMEOUT, "%s: it took too long", what);
		struct iovec iov[2] = {{at, length}, {c->ahead, sizeof c->ahead}};
		ssize_t got =
			stream_receive(&c->stream, iov, 2, receive_timeout_ms(c, until), what, err);
		if (got < 0)
			return -1;
		if (until)
			atomic_store(&c->heard_ns, clock_now_ns());
		n = min_size(length, (size_t)got);
		at += n;
		length -= n;
		c->ahead_start = 0;
		c->ahead_end = (size_t)got - n;
	}
}

/* Waits between two requests: 1 something came, 0 the connection is ended. */
static int wait_for_request(struct connection *c)
{
	const struct nbd_server_options *options = &c->server->options;
	int64_t idle_since_ns = clock_now_ns();
	unsigned timeout_ms = options->send_timeout_ms;
	if (options->idle_timeout_ms && options->idle_timeout_ms < timeout_ms)
		timeout_ms = options->idle_timeout_ms;
	while (c->ahead_start == c->ahead_end) {
		struct err err = ERR_INIT;
		struct iovec iov = {c->ahead, sizeof c->ahead};
		ssize_t got = stream_receive(
			&c->stream, &iov, 1, timeout_ms, "waiting for a request", &err);
		if (got > 0) {
			c->ahead_start = 0;
			c->ahead_end = (size_t)got;
			break;
		}
		if (err.code != ERR_TIMEOUT) {
			bool in_order = err.code == ERR_DISCONNECTED && err.sys_errno == 0;
			if (in_order)
				connection_note_end(c, false, "it closed without a goodbye");
			else
				connection_note_end(c, true, "%s", err.text);
			return 0;
		}
		if (atomic_load(&c->nr_served) > 0)
			idle_since_ns = clock_now_ns();
		int64_t idle_ms = (clock_now_ns() - idle_since_ns) / 1000000;
		if (options->idle_timeout_ms && idle_ms >= options->idle_timeout_ms) {
			connection_note_end(
				c, true, "no request for %u ms", options->idle_timeout_ms);
			return 0;
		}
	}
	return 1;
}

/* The next piece of the write that is coming in. */
static int receive_piece(struct connection *c, struct write_job *job, struct work *work)
{
	struct pool *pool = &c->server->pool;
	struct err err = ERR_INIT;
	uint64_t left = job->request.length - job->received_bytes;
	uint64_t offset = job->request.offset + job->received_bytes;
	size_t n = (size_t)min_u64(left, pool->piece_bytes - offset % pool->piece_bytes);
	void *piece = NULL;
	if (n > 0 && !(piece = pool_get(pool, &c->share))) {
		connection_note_end(c, true, "the server is out of memory for its data");
		goto abandon;
	}
	if (n > 0 &&
		connection_receive(c, piece, n, NULL, "receiving the data of a write", &err) < 0) {
		pool_put(pool, &c->share, piece);
		connection_note_end(c, true, "%s (%" PRIu64 " of %" PRIu64 " bytes came)", err.text,
			job->received_bytes, job->request.length);
		goto abandon;
	}
	if (job->received_bytes == 0)
		job->is_whole = n == left;
	job->received_bytes += n;
	c->rest = n < left ? job : NULL;
	if (c->rest)
		atomic_fetch_add(&job->nr_holders, 1);
	work->job = job;
	work->piece = piece;
	work->length = n;
	work->offset = offset;
	return 1;
abandon:
	c->rest = NULL;
	job->is_abandoned = true;
	serve_write_drop(c, job);
	return 0;
}

/* A write, or anything else with bytes behind it, allowed or not. */
static int receive_write(struct connection *c, const struct nbd_request *request, uint32_t error,
	const struct err *why, struct work *work)
{
	struct write_job *job = serve_write_new(request);
	if (!job) {
		connection_note_end(c, true, "the server is out of memory");
		return 0;
	}
	if (error) {
		job->is_refused = true;
		serve_write_fail(job, error, why);
	}
	if (error && request->length > NBD_MOST_PAYLOAD) {
		/* Nobody need send gigabytes to be told that it was too much. */
		job->is_answered = true;
		reply_error(c, request, error, why->text);
	}
	return receive_piece(c, job, work);
}

static int end_by_garbage(struct connection *c, const uint8_t *bytes, const char *what)
{
	char hex[33];
	digest_hex(bytes, 16, hex);
	connection_note_end(c, true, "%s: it sent %s...", what, hex);
	return 0;
}

/* Adds the small reads that are here already. */
static void receive_more(struct connection *c, struct work *work)
{
	size_t n = nbd_wire_request_bytes(c->headers);
	while (work->nr_requests < SERVE_TOGETHER && c->ahead_end - c->ahead_start >= n) {
		struct nbd_request *next = &work->requests[work->nr_requests];
		struct err ignored = ERR_INIT;
		/* Anything odd is left for its own turn. */
		if (!nbd_wire_get_request(c->ahead + c->ahead_start, c->headers, next) ||
			!serve_may_be_together(c, next) || request_check(c, next, &ignored))
			break;
		c->ahead_start += n;
		work->nr_requests++;
	}
	atomic_fetch_add_explicit(&c->nr_requests, work->nr_requests - 1, memory_order_relaxed);
}

/* Receives what this thread is to do: 1, or 0 when the connection is ended. */
static int receive_work(struct connection *c, struct work *work)
{
	uint8_t bytes[NBD_REQUEST_BYTES_MAX];
	struct nbd_request request;
	struct err err = ERR_INIT;
	char name[32];
	for (;;) {
		if (c->rest)
			return receive_piece(c, c->rest, work);
		if (cancel_requested(c->server->stop)) {
			connection_note_end(c, false, "the server stops");
			return 0;
		}
		if (!wait_for_request(c))
			return 0;
		if (connection_receive(c, bytes, nbd_wire_request_bytes(c->headers), NULL,
			    "receiving a request", &err) < 0) {
			connection_note_end(c, true, "%s in the middle of one", err.text);
			return 0;
		}
		if (!nbd_wire_get_request(bytes, c->headers, &request))
			return end_by_garbage(
				c, bytes, "what should be a request has another magic");
		atomic_fetch_add_explicit(&c->nr_requests, 1, memory_order_relaxed);
		if (request.type == NBD_CMD_DISC) {
			connection_note_end(c, false, "it said goodbye");
			return 0;
		}
		uint32_t error = request_check(c, &request, &err);
		if (error)
			log_debug("client %s: %s refused: %s", c->peer,
				nbd_wire_command_name(request.type, name), err.text);
		if (request_has_payload(c, &request))
			return receive_write(c, &request, error, &err, work);
		if (!error) {
			work->job = NULL;
			work->requests[0] = request;
			work->nr_requests = 1;
			if (serve_may_be_together(c, &request))
				receive_more(c, work);
			return 1;
		}
		reply_error(c, &request, error, err.text);
	}
}

/* --- threads --------------------------------------------------------------------------- */

/* With the turn in hand: sees to it that somebody can take it over. */
static void ensure_follower(struct connection *c)
{
	struct err err = ERR_INIT;
	if (atomic_load(&c->nr_idle) > 0 || c->nr_helpers == ARRAY_LENGTH(c->helpers))
		return;
	if (atomic_fetch_add(&c->server->nr_helpers, 1) >= MOST_HELPERS) {
		atomic_fetch_sub(&c->server->nr_helpers, 1);
		return;
	}
	if (thread_start(&c->helpers[c->nr_helpers], "nbd-helper", helper_main, c, &err) < 0) {
		atomic_fetch_sub(&c->server->nr_helpers, 1);
		/* It goes on with the threads it has. */
		log_warning("client %s: %s", c->peer, err.text);
		return;
	}
	c->nr_helpers++;
}

static bool take_turn(struct connection *c, struct work *work)
{
	atomic_fetch_add(&c->nr_idle, 1);
	WITH_LOCK(&c->receive_mutex);
	atomic_fetch_sub(&c->nr_idle, 1);
	if (c->ended)
		return false;
	if (!receive_work(c, work)) {
		c->ended = true;
		return false;
	}
	atomic_fetch_add(&c->nr_served, 1);
	ensure_follower(c);
	return true;
}

static void serve(struct connection *c)
{
	struct work work;
	unsigned slot = watch_enter(c);
	while (take_turn(c, &work)) {
		watch_begin(c, slot, work.job ? &work.job->request : &work.requests[0]);
		if (!work.job && work.nr_requests > 1)
			serve_together(c, work.requests, work.nr_requests);
		else if (!work.job)
			serve_request(c, &work.requests[0]);
		else if (work.piece)
			serve_write_piece(c, work.job, work.piece, work.length, work.offset);
		else
			serve_write_drop(c, work.job);
		watch_end(c, slot);
		atomic_fetch_sub(&c->nr_served, 1);
	}
}

static void *helper_main(void *arg)
{
	serve(arg);
	return NULL;
}

static void join_helpers(struct connection *c)
{
	/* Ended: none is started any more, by whoever still held the turn. */
	pthread_mutex_lock(&c->receive_mutex);
	assert(c->ended);
	pthread_mutex_unlock(&c->receive_mutex);
	for (unsigned i = 0; i < c->nr_helpers; i++)
		pthread_join(c->helpers[i], NULL);
	atomic_fetch_sub(&c->server->nr_helpers, c->nr_helpers);
	assert(!c->rest && c->share.nr_held == 0);
}

void connection_run(struct connection *c)
{
	struct err err = ERR_INIT;
	int rc = handshake_run(c, &err);
	if (rc > 0) {
		serve(c);
		join_helpers(c);
	} else if (rc < 0) {
		connection_note_end(c, true, "%s", err.text);
	}
	connection_note_end(c, false, "the handshake was ended by the client");
	log_line(c->why_is_fault ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO,
		"client %s: connection ended: %s (%" PRIuFAST64 " requests, %" PRIuFAST64
		" bytes read, %" PRIuFAST64 " bytes written)",
		c->peer, c->why, atomic_load(&c->nr_requests), atomic_load(&c->read_bytes),
		atomic_load(&c->written_bytes));
}
