/*
 * Doing requests.
 *
 * Whatever its length, a read passes through one piece of the byte budget at a
 * time.  With structured and extended headers each piece is sent in chunks of
 * its own, and stretches of zeros are sent as holes: looking for them costs
 * next to nothing where there is data, because the first bytes show it, and
 * saves the way through two sockets where there is none.  (The disk's own map
 * of extents is not asked here: a client that cares has asked BLOCK_STATUS.)
 */
#include "nbd_internal.h"

#include <errno.h>
#include <inttypes.h>

/* Zeros are told apart from data in units of this size: a smaller hole costs
 * the client more to take apart than it saves. */
#define HOLE_UNIT_BYTES (32 * KIB)
/* Less than this is not looked at for zeros. */
#define LEAST_HOLE_BYTES (16 * KIB)
/* A read up to so long is small, and a disk that takes up to so long for one is
 * quick: the data was in memory. */
#define SMALL_READ_BYTES (16 * KIB)
#define QUICK_NS 20000
#define MOST_LOGGED_ERRORS 10
#define OUT_OF_MEMORY "the server is out of memory"
/* CACHE is a hint; nobody wants a whole disk for it. */
#define MOST_CACHED_BYTES (64 * MIB)

_Static_assert(256 * KIB / HOLE_UNIT_BYTES <= REPLY_PARTS, "a piece has too many parts");
_Static_assert(BLOCK_HOLE == NBD_STATE_HOLE && BLOCK_ZERO == NBD_STATE_ZERO, "states differ");

/* Tells the client, and the operator where it is the disk's fault. */
static void answer_error(
	struct connection *connection, const struct nbd_request *request, const struct err *err)
{
	char name[32];
	uint32_t error = request_error(err);
	if (error != NBD_ENOTSUP) {
		unsigned nth = atomic_fetch_add(&connection->nr_logged_errors, 1) + 1;
		if (nth <= MOST_LOGGED_ERRORS)
			log_warning("client %s: %s at offset %" PRIu64 " failed: %s%s",
				connection->peer, nbd_wire_command_name(request->type, name),
				request->offset, err->text,
				nth == MOST_LOGGED_ERRORS
					? " (further errors of this client are not logged)"
					: "");
	}
	reply_error(connection, request, error, err->text);
}

static void answer(struct connection *connection, const struct nbd_request *request, int rc,
	const struct err *err)
{
	if (rc < 0)
		answer_error(connection, request, err);
	else
		reply_done(connection, request);
}

/* --- reading ------------------------------------------------------------------ */

/* The length of the next piece: up to a multiple of the piece size, so that
 * large requests meet the disk's clusters whole. */
static size_t piece_length(const struct connection *connection, uint64_t offset, uint64_t left)
{
	size_t piece_bytes = connection->server->pool.piece_bytes;
	return (size_t)min_u64(left, piece_bytes - offset % piece_bytes);
}

/* Cuts a piece into stretches of data and of zeros. */
static size_t find_parts(
	const uint8_t *data, uint64_t offset, size_t length, struct reply_part *parts)
{
	size_t nr_parts = 0;
	bool was_zero = false;
	for (size_t at = 0; at < length;) {
		size_t n = min_size(length - at, HOLE_UNIT_BYTES - (offset + at) % HOLE_UNIT_BYTES);
		bool is_zero = n >= LEAST_HOLE_BYTES && digest_is_zero(data + at, n);
		if (nr_parts > 0 && is_zero == was_zero)
			parts[nr_parts - 1].length += (uint32_t)n;
		else
			parts[nr_parts++] = (struct reply_part){
				is_zero ? NULL : data + at, offset + at, (uint32_t)n};
		was_zero = is_zero;
		at += n;
	}
	return nr_parts;
}

static void read_in_chunks(
	struct connection *connection, const struct nbd_request *request, uint8_t *piece)
{
	struct block *block = connection->export->block;
	uint64_t offset = request->offset, left = request->length;
	struct reply_part parts[REPLY_PARTS];
	struct err err = ERR_INIT;
	while (left > 0 && !atomic_load(&connection->broken)) {
		size_t n = piece_length(connection, offset, left);
		if (block_read(block, piece, n, offset, &err) < 0) {
			answer_error(connection, request, &err);
			return;
		}
		size_t nr_parts = find_parts(piece, offset, n, parts);
		offset += n;
		left -= n;
		reply_parts(connection, request, parts, nr_parts, left == 0);
	}
}

static int read_small(struct connection *connection, const struct nbd_request *request,
	uint8_t *data, struct err *err)
{
	int64_t began_ns = clock_now_ns();
	int rc = block_read(
		connection->export->block, data, (size_t)request->length, request->offset, err);
	int64_t took_ns = clock_now_ns() - began_ns;
	/* Threads may overwrite each other's sums: it is a hint. */
	int64_t mean_ns = atomic_load_explicit(&connection->read_ns, memory_order_relaxed);
	mean_ns += (took_ns - mean_ns) / 8;
	atomic_store_explicit(&connection->read_ns, mean_ns, memory_order_relaxed);
	return rc;
}

bool serve_may_be_together(const struct connection *connection, const struct nbd_request *request)
{
	return request->type == NBD_CMD_READ && request->length > 0 &&
	       request->length <= SMALL_READ_BYTES &&
	       connection->server->pool.piece_bytes >= SERVE_TOGETHER * SMALL_READ_BYTES &&
	       atomic_load_explicit(&connection->read_ns, memory_order_relaxed) <= QUICK_NS;
}

void serve_together(
	struct connection *connection, const struct nbd_request *requests, unsigned nr_requests)
{
	struct pool *pool = &connection->server->pool;
	struct reply_read reads[SERVE_TOGETHER];
	size_t nr_reads = 0;
	uint64_t bytes = 0;
	uint8_t *piece = pool_get(pool, &connection->share), *at = piece;
	for (unsigned i = 0; i < nr_requests; i++) {
		struct err err = ERR_INIT;
		if (!piece) {
			reply_error(connection, &requests[i], NBD_ENOMEM, OUT_OF_MEMORY);
		} else if (read_small(connection, &requests[i], at, &err) < 0) {
			answer_error(connection, &requests[i], &err);
		} else {
			reads[nr_reads++] = (struct reply_read){&requests[i], at};
			at += requests[i].length;
			bytes += requests[i].length;
		}
	}
	reply_reads(connection, reads, nr_reads);
	if (piece)
		pool_put(pool, &connection->share, piece);
	atomic_fetch_add_explicit(&connection->read_bytes, bytes, memory_order_relaxed);
}

static void read_whole(
	struct connection *connection, const struct nbd_request *request, uint8_t *piece)
{
	struct block *block = connection->export->block;
	uint64_t offset = request->offset, left = request->length;
	struct err err = ERR_INIT;
	size_t n = piece_length(connection, offset, left);
	if (block_read(block, piece, n, offset, &err) < 0) {
		answer_error(connection, request, &err);
		return;
	}
	reply_whole_begin(connection, request, piece, n);
	for (offset += n, left -= n; left > 0 && !atomic_load(&connection->broken);
		offset += n, left -= n) {
		n = piece_length(connection, offset, left);
		if (block_read(block, piece, n, offset, &err) < 0) {
			err_context(&err, "a read failed after a part of its answer was sent");
			connection_break(connection, &err);
			break;
		}
		reply_whole_more(connection, piece, n);
	}
	reply_whole_end(connection);
}

static void serve_read(struct connection *connection, const struct nbd_request *request)
{
	if (request->length == 0) {
		reply_done(connection, request);
		return;
	}
	struct pool *pool = &connection->server->pool;
	uint8_t *piece = pool_get(pool, &connection->share);
	if (!piece) {
		reply_error(connection, request, NBD_ENOMEM, OUT_OF_MEMORY);
		return;
	}
	struct err err = ERR_INIT;
	if (request->length <= min_u64(SMALL_READ_BYTES, pool->piece_bytes)) {
		if (read_small(connection, request, piece, &err) < 0)
			answer_error(connection, request, &err);
		else
			reply_reads(connection, &(struct reply_read){request, piece}, 1);
	} else if (connection->headers == NBD_HEADERS_SIMPLE ||
		   (request->flags & NBD_CMD_FLAG_DF)) {
		read_whole(connection, request, piece);
	} else {
		read_in_chunks(connection, request, piece);
	}
	pool_put(pool, &connection->share, piece);
	atomic_fetch_add_explicit(&connection->read_bytes, request->length, memory_order_relaxed);
}

static void serve_cache(struct connection *connection, const struct nbd_request *request)
{
	struct pool *pool = &connection->server->pool;
	uint64_t offset = request->offset, left = min_u64(request->length, MOST_CACHED_BYTES);
	struct err err = ERR_INIT;
	int rc = 0;
	uint8_t *piece = pool_get(pool, &connection->share);
	/* Only a hint: without memory nothing is read ahead. */
	while (piece && left > 0 && rc == 0 && !atomic_load(&connection->broken)) {
		size_t n = piece_length(connection, offset, left);
		rc = block_read(connection->export->block, piece, n, offset, &err);
		offset += n;
		left -= n;
	}
	if (piece)
		pool_put(pool, &connection->share, piece);
	answer(connection, request, rc, &err);
}

/* --- the map -------------------------------------------------------------------- */

static void serve_block_status(struct connection *connection, const struct nbd_request *request)
{
	bool one = request->flags & NBD_CMD_FLAG_REQ_ONE;
	/* 32 bits of length, and a multiple of anything that a client may ask for. */
	uint64_t most =
		connection->headers == NBD_HEADERS_EXTENDED ? UINT64_MAX : UINT32_MAX - (GIB - 1);
	struct block_extent extents[REPLY_EXTENTS];
	uint64_t offset = request->offset, left = request->length;
	size_t nr = 0;
	struct err err = ERR_INIT;
	while (left > 0 && nr < (one ? 1 : REPLY_EXTENTS)) {
		struct block_extent found[64];
		size_t nr_found = 0;
		if (block_extents(connection->export->block, offset, left, found,
			    one ? 1 : ARRAY_LENGTH(found), &nr_found, &err) < 0) {
			answer_error(connection, request, &err);
			return;
		}
		for (size_t i = 0; i < nr_found; i++) {
			uint64_t n = found[i].length;
			uint32_t state = found[i].flags & (BLOCK_HOLE | BLOCK_ZERO);
			offset += n;
			left -= n;
			if (nr > 0 && extents[nr - 1].flags == state &&
				n <= most - extents[nr - 1].length) {
				extents[nr - 1].length += n;
				continue;
			}
			if (n > most || nr == REPLY_EXTENTS)
				left = 0; /* an answer may stop early, not have a gap */
			if (nr < REPLY_EXTENTS)
				extents[nr++] = (struct block_extent){min_u64(n, most), state};
			if (left == 0)
				break;
		}
	}
	reply_extents(connection, request, extents, nr);
}

/* --- changes ---------------------------------------------------------------------- */

static unsigned block_flags(const struct nbd_request *request)
{
	unsigned flags = 0;
	if (request->flags & NBD_CMD_FLAG_FUA)
		flags |= BLOCK_FUA;
	if (request->flags & NBD_CMD_FLAG_NO_HOLE)
		flags |= BLOCK_NO_HOLE;
	if (request->flags & NBD_CMD_FLAG_FAST_ZERO)
		flags |= BLOCK_FAST_ZERO;
	return flags;
}

void serve_request(struct connection *connection, const struct nbd_request *request)
{
	struct block *block = connection->export->block;
	struct err err = ERR_INIT;
	switch (request->type) {
	case NBD_CMD_READ:
		serve_read(connection, request);
		return;
	case NBD_CMD_CACHE:
		serve_cache(connection, request);
		return;
	case NBD_CMD_BLOCK_STATUS:
		serve_block_status(connection, request);
		return;
	case NBD_CMD_FLUSH:
		answer(connection, request, block_flush(block, &err), &err);
		return;
	case NBD_CMD_TRIM:
		answer(connection, request,
			block_trim(block, request->offset, request->length,
				block_flags(request) & BLOCK_FUA, &err),
			&err);
		return;
	case NBD_CMD_WRITE_ZEROES:
		answer(connection, request,
			block_zero(block, request->offset, request->length, block_flags(request),
				&err),
			&err);
		return;
	}
}

struct write_job *serve_write_new(const struct nbd_request *request)
{
	struct write_job *job = malloc(sizeof *job);
	if (!job)
		return NULL;
	job->request = *request;
	job->received_bytes = 0;
	job->is_whole = false;
	job->is_abandoned = false;
	job->is_refused = false;
	job->is_answered = false;
	atomic_init(&job->nr_holders, 1);
	atomic_init(&job->error, 0);
	return job;
}

void serve_write_fail(struct write_job *job, uint32_t error, const struct err *err)
{
	unsigned none = 0;
	/* Read by the last holder alone, after all others let go. */
	if (atomic_compare_exchange_strong(&job->error, &none, error))
		err_copy(&job->err, err);
}

void serve_write_piece(struct connection *connection, struct write_job *job, void *piece,
	size_t length, uint64_t offset)
{
	struct block *block = connection->export->block;
	struct err err = ERR_INIT;
	/* In several pieces, one flush behind the last is cheaper than one each. */
	bool fua = (job->request.flags & NBD_CMD_FLAG_FUA) &&
		   (job->is_whole || block_info(block)->can_fua);
	if (!atomic_load(&job->error) &&
		block_write(block, piece, length, offset, fua ? BLOCK_FUA : 0, &err) < 0)
		serve_write_fail(job, request_error(&err), &err);
	pool_put(&connection->server->pool, &connection->share, piece);
	serve_write_drop(connection, job);
}

static void finish_write(struct connection *connection, struct write_job *job)
{
	struct block *block = connection->export->block;
	const struct nbd_request *request = &job->request;
	if (job->is_abandoned || job->is_answered)
		return;
	if (!atomic_load(&job->error) && (request->flags & NBD_CMD_FLAG_FUA) && !job->is_whole &&
		!block_info(block)->can_fua) {
		struct err err = ERR_INIT;
		if (block_flush(block, &err) < 0)
			serve_write_fail(job, request_error(&err), &err);
	}
	uint32_t error = atomic_load(&job->error);
	if (!error) {
		atomic_fetch_add_explicit(
			&connection->written_bytes, request->length, memory_order_relaxed);
		reply_done(connection, request);
	} else if (job->is_refused) {
		reply_error(connection, request, error, job->err.text);
	} else {
		answer_error(connection, request, &job->err);
	}
}

void serve_write_drop(struct connection *connection, struct write_job *job)
{
	if (atomic_fetch_sub(&job->nr_holders, 1) > 1)
		return;
	finish_write(connection, job);
	free(job);
}
