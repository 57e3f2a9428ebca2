/*
 * A stream of events, on its connection's thread.  It looks once a second whether the server
 * is being stopped, the client is gone or its token too, and says something every ten seconds, so
 * that both sides (and what is between them) know that the other is there.
 */
#include "rest_internal.h"

#include <poll.h>

#define LOOK_MS 1000
#define KEEP_ALIVE_NS ((int64_t)10 * 1000000000)
#define BLOCK_BYTES 8192
/* Whoever does not read for so long is gone. */
#define STREAM_TIMEOUT_S 60

struct rest_stream {
	struct rest_server *server;
	rest_stream_next *next;
	void (*done)(void *context);
	void *context;
	int fd;
	char token_hash[REST_TOKEN_HASH_BYTES]; /* whose stream it is */
	char *text; /* that is being sent; owned */
	size_t length, at;
	int64_t said_ns;
};

void rest_stream_free(struct rest_stream *stream)
{
	if (!stream)
		return;
	if (stream->done)
		stream->done(stream->context);
	atomic_fetch_sub(&stream->server->nr_streams, 1);
	free(stream->text);
	explicit_bzero(stream->token_hash, sizeof stream->token_hash);
	free(stream);
}

static void say(struct rest_stream *stream, char *text, size_t length)
{
	free(stream->text);
	stream->text = text;
	stream->length = length;
	stream->at = 0;
	stream->said_ns = clock_now_ns();
}

static bool is_over(const struct rest_stream *stream)
{
	struct pollfd poll_fd = {.fd = stream->fd, .events = POLLRDHUP};
	return atomic_load(&stream->server->stopping) ||
	       (poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

/* Asked before each word: what is revoked, or expires, counts for streams that stand too. */
static bool may_hear(const struct rest_stream *stream)
{
	const struct rest_server_options *options = &stream->server->options;
	struct rest_actor actor = {0};
	struct err err = ERR_INIT;
	if (!stream->token_hash[0])
		return true; /* a route for everybody */
	int rc = options->authenticate(options->context, stream->token_hash, &actor, &err);
	rest_actor_clear(&actor);
	return rc == 0;
}

/* False: the stream is over. */
static bool fill(struct rest_stream *stream)
{
	while (!is_over(stream)) {
		const char *name = "";
		uint64_t id = 0;
		json_t *data = NULL;
		size_t length = 0;
		int rc = stream->next(
			stream->context, deadline_after_ms(LOOK_MS), &name, &id, &data);
		if (!may_hear(stream)) {
			json_decref(data);
			return false;
		}
		if (rc == 1) {
			char *text = rest_event_text(name, id, data, &length);
			json_decref(data);
			say(stream, text, length);
			return text != NULL;
		}
		if (rc != 2)
			return false;
		if (clock_now_ns() - stream->said_ns >= KEEP_ALIVE_NS) {
			char *text = strdup(":\n\n");
			say(stream, text, 3);
			return text != NULL;
		}
	}
	return false;
}

static ssize_t read_stream(void *context, uint64_t position, char *buffer, size_t most)
{
	struct rest_stream *stream = context;
	(void)position;
	if (stream->at == stream->length && !fill(stream))
		return MHD_CONTENT_READER_END_OF_STREAM;
	size_t length = min_size(stream->length - stream->at, most);
	memcpy(buffer, stream->text + stream->at, length);
	stream->at += length;
	return (ssize_t)length;
}

static void free_stream(void *stream)
{
	rest_stream_free(stream);
}

struct MHD_Response *rest_stream_response(struct rest_request *request)
{
	struct rest_stream *stream = request->answer.stream;
	struct MHD_Response *response = MHD_create_response_from_callback(
		MHD_SIZE_UNKNOWN, BLOCK_BYTES, read_stream, stream, free_stream);
	if (!response)
		return NULL;
	request->answer.stream = NULL;
	request->answer.close = true;
	MHD_add_response_header(response, "Content-Type", "text/event-stream");
	MHD_set_connection_option(
		request->connection, MHD_CONNECTION_OPTION_TIMEOUT, STREAM_TIMEOUT_S);
	return response;
}

static struct rest_stream *make(struct rest_request *request)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(request->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct rest_stream *stream = calloc(1, sizeof *stream);
	/* The first words show the client at once that it is connected. */
	char *text = strdup("retry: 1000\n\n");
	if (!stream || !text || !info) {
		free(stream);
		free(text);
		return NULL;
	}
	stream->server = request->server;
	stream->fd = info->connect_fd;
	memcpy(stream->token_hash, request->token_hash, sizeof stream->token_hash);
	say(stream, text, strlen(text));
	return stream;
}

int rest_reply_stream(struct rest_request *request, rest_stream_next *next,
	void (*done)(void *context), void *context, struct err *err)
{
	struct rest_server *server = request->server;
	struct rest_stream *stream = NULL;
	if (request->head) {
		if (done)
			done(context);
		return rest_reply_octets(request, "text/event-stream", "", 0, err);
	}
	unsigned nr = atomic_fetch_add(&server->nr_streams, 1);
	if (nr >= server->options.most_connections / 2) {
		err_set(err, ERR_BUSY, "%u streams of events are open, the most there may be", nr);
		rest_problem(request, 503, err);
		request->answer.retry_after_s = 5;
	} else if (request->answer.status) {
		err_set(err, ERR_PROTOCOL, "%s was answered twice",
			request->match.route->operation);
	} else {
		stream = make(request);
		if (!stream)
			err_set(err, ERR_NO_MEMORY, "starting a stream of events: no memory");
	}
	if (!stream) {
		atomic_fetch_sub(&server->nr_streams, 1);
		if (done)
			done(context);
		return -1;
	}
	stream->next = next;
	stream->done = done;
	stream->context = context;
	request->answer.stream = stream;
	request->answer.status = 200;
	return 0;
}
