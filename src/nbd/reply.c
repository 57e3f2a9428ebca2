/* The bytes of answers; see nbd_internal.h. */
#include "nbd_internal.h"

#include <assert.h>

/* Callers hold the send lock. */
static void send_locked(struct connection *connection, struct iovec *iov, size_t nr_iov)
{
	struct err err = ERR_INIT;
	if (atomic_load(&connection->broken))
		return;
	atomic_fetch_add_explicit(&connection->nr_sending, 1, memory_order_relaxed);
	if (stream_send(&connection->stream, iov, nr_iov, "sending an answer", &err) < 0)
		connection_break(connection, &err);
	atomic_fetch_sub_explicit(&connection->nr_sending, 1, memory_order_relaxed);
}

static void send_all(struct connection *connection, struct iovec *iov, size_t nr_iov)
{
	WITH_LOCK(&connection->send_mutex);
	send_locked(connection, iov, nr_iov);
}

void reply_done(struct connection *connection, const struct nbd_request *request)
{
	uint8_t header[NBD_REPLY_HEADER_BYTES_MAX];
	size_t length;
	/* In structured style an answer without data may be a simple one, except
	 * to a read. */
	if (connection->headers == NBD_HEADERS_SIMPLE ||
		(connection->headers == NBD_HEADERS_STRUCTURED && request->type != NBD_CMD_READ))
		length = nbd_wire_put_simple_reply(header, request, 0);
	else
		length = nbd_wire_put_chunk(header, connection->headers, request,
			NBD_REPLY_FLAG_DONE, NBD_REPLY_NONE, 0);
	send_all(connection, &(struct iovec){header, length}, 1);
}

void reply_error(struct connection *connection, const struct nbd_request *request, uint32_t error,
	const char *text)
{
	uint8_t header[NBD_REPLY_HEADER_BYTES_MAX + 6];
	size_t text_length = min_size(strlen(text), NBD_NAME_BYTES);
	struct iovec iov[2] = {{header, 0}, {(void *)(uintptr_t)text, text_length}};
	if (connection->headers == NBD_HEADERS_SIMPLE) {
		iov[0].iov_len = nbd_wire_put_simple_reply(header, request, error);
		iov[1].iov_len = 0;
	} else {
		size_t n = nbd_wire_put_chunk(header, connection->headers, request,
			NBD_REPLY_FLAG_DONE, NBD_REPLY_ERROR, (uint32_t)(6 + text_length));
		be32_put(header + n, error);
		be16_put(header + n + 4, (uint16_t)text_length);
		iov[0].iov_len = n + 6;
	}
	send_all(connection, iov, 2);
}

void reply_parts(struct connection *connection, const struct nbd_request *request,
	const struct reply_part *parts, size_t nr_parts, bool is_last)
{
	uint8_t headers[REPLY_PARTS][NBD_REPLY_HEADER_BYTES_MAX + 12];
	struct iovec iov[2 * REPLY_PARTS];
	size_t nr_iov = 0;
	assert(nr_parts <= REPLY_PARTS && connection->headers != NBD_HEADERS_SIMPLE);
	for (size_t i = 0; i < nr_parts; i++) {
		const struct reply_part *part = &parts[i];
		bool done = is_last && i == nr_parts - 1;
		uint16_t type = part->data ? NBD_REPLY_OFFSET_DATA : NBD_REPLY_OFFSET_HOLE;
		size_t n = nbd_wire_put_chunk(headers[i], connection->headers, request,
			done ? NBD_REPLY_FLAG_DONE : 0, type, part->data ? 8 + part->length : 12);
		be64_put(headers[i] + n, part->offset);
		n += 8;
		if (!part->data) {
			be32_put(headers[i] + n, part->length);
			n += 4;
		}
		iov[nr_iov++] = (struct iovec){headers[i], n};
		if (part->data)
			iov[nr_iov++] = (struct iovec){(void *)(uintptr_t)part->data, part->length};
	}
	send_all(connection, iov, nr_iov);
}

/* The header of a read that is answered in one stretch; returns its length. */
static size_t put_whole_header(
	const struct connection *connection, const struct nbd_request *request, uint8_t *out)
{
	if (connection->headers == NBD_HEADERS_SIMPLE)
		return nbd_wire_put_simple_reply(out, request, 0);
	size_t n = nbd_wire_put_chunk(out, connection->headers, request, NBD_REPLY_FLAG_DONE,
		NBD_REPLY_OFFSET_DATA, (uint32_t)(8 + request->length));
	be64_put(out + n, request->offset);
	return n + 8;
}

void reply_reads(struct connection *connection, const struct reply_read *reads, size_t nr_reads)
{
	uint8_t headers[SERVE_TOGETHER][NBD_REPLY_HEADER_BYTES_MAX + 8];
	struct iovec iov[2 * SERVE_TOGETHER];
	assert(nr_reads <= SERVE_TOGETHER);
	for (size_t i = 0; i < nr_reads; i++) {
		const struct nbd_request *request = reads[i].request;
		size_t n = put_whole_header(connection, request, headers[i]);
		iov[2 * i] = (struct iovec){headers[i], n};
		iov[2 * i + 1] =
			(struct iovec){(void *)(uintptr_t)reads[i].data, (size_t)request->length};
	}
	send_all(connection, iov, 2 * nr_reads);
}

void reply_whole_begin(struct connection *connection, const struct nbd_request *request,
	const void *data, size_t length)
{
	uint8_t header[NBD_REPLY_HEADER_BYTES_MAX + 8];
	size_t n = put_whole_header(connection, request, header);
	struct iovec iov[2] = {{header, n}, {(void *)(uintptr_t)data, length}};
	pthread_mutex_lock(&connection->send_mutex);
	send_locked(connection, iov, 2);
}

void reply_whole_more(struct connection *connection, const void *data, size_t length)
{
	send_locked(connection, &(struct iovec){(void *)(uintptr_t)data, length}, 1);
}

void reply_whole_end(struct connection *connection)
{
	pthread_mutex_unlock(&connection->send_mutex);
}

void reply_extents(struct connection *connection, const struct nbd_request *request,
	const struct block_extent *extents, size_t nr_extents)
{
	bool extended = connection->headers == NBD_HEADERS_EXTENDED;
	size_t head_bytes = extended ? 8 : 4, extent_bytes = extended ? 16 : 8;
	size_t payload_bytes = head_bytes + nr_extents * extent_bytes;
	uint8_t header[NBD_REPLY_HEADER_BYTES_MAX];
	uint8_t payload[8 + 16 * REPLY_EXTENTS], *at = payload;
	assert(nr_extents <= REPLY_EXTENTS);
	size_t n = nbd_wire_put_chunk(header, connection->headers, request, NBD_REPLY_FLAG_DONE,
		extended ? NBD_REPLY_BLOCK_STATUS_EXT : NBD_REPLY_BLOCK_STATUS,
		(uint32_t)payload_bytes);
	be32_put(at, ALLOCATION_CONTEXT);
	if (extended)
		be32_put(at + 4, (uint32_t)nr_extents);
	at += head_bytes;
	for (size_t i = 0; i < nr_extents; i++, at += extent_bytes) {
		/* The block room's flags are NBD's. */
		uint32_t state = extents[i].flags;
		if (extended) {
			be64_put(at, extents[i].length);
			be64_put(at + 8, state);
		} else {
			be32_put(at, (uint32_t)extents[i].length);
			be32_put(at + 4, state);
		}
	}
	struct iovec iov[2] = {{header, n}, {payload, payload_bytes}};
	send_all(connection, iov, 2);
}
