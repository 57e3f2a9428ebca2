/*
 * The handshake: from the greeting to GO or EXPORT_NAME.
 *
 *   greeting -> client flags -> options ... -> GO, EXPORT_NAME   requests follow
 *                                           -> STARTTLS          options again, encrypted
 *                                           -> ABORT             ended in order
 *                                           -> anything odd      ended, logged
 *
 * All of it together has one deadline.  Every option is received whole into a
 * buffer of fixed size before it is looked at.
 *
 *   EXPORT_NAME          name
 *   INFO, GO             u32 length | name | u16 count | count * u16 info
 *   LIST_, SET_META_...  u32 length | name | u32 count | count * (u32 length | query)
 */
#include "nbd_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#define MOST_OPTIONS 128
#define MOST_OPTION_BYTES (16 * KIB)
/* Longer ones are not even skipped. */
#define MOST_SKIPPED_BYTES (1 << 20)
#define REPLY_TEXT_BYTES 1024

static const char allocation_name[] = "base:allocation";

struct handshake {
	struct connection *connection;
	struct deadline until;
	bool is_fixed, no_zeroes;
	bool refusal_logged;
	uint32_t option;
	size_t length;
	char *allocation_export; /* whose base:allocation was selected, or NULL */
	uint8_t data[MOST_OPTION_BYTES + 1];
};

enum step { STEP_FAILED = -1, STEP_NEXT, STEP_ABORTED, STEP_GO };

/* --- sending --------------------------------------------------------------------- */

static enum step send_bytes(struct handshake *h, struct iovec *iov, size_t nr_iov, struct err *err)
{
	return stream_send(&h->connection->stream, iov, nr_iov, "sending in the handshake", err) < 0
		       ? STEP_FAILED
		       : STEP_NEXT;
}

static enum step reply(
	struct handshake *h, uint32_t type, const void *data, size_t length, struct err *err)
{
	uint8_t header[NBD_OPTION_REPLY_BYTES];
	nbd_wire_put_option_reply(header, h->option, type, (uint32_t)length);
	struct iovec iov[2] = {{header, sizeof header}, {(void *)(uintptr_t)data, length}};
	return send_bytes(h, iov, 2, err);
}

static enum step reply_text(struct handshake *h, uint32_t type, const char *text, struct err *err)
{
	return reply(h, type, text, min_size(strlen(text), REPLY_TEXT_BYTES), err);
}

/* Refuses an option, and says so in the log once in a connection. */
static enum step refuse(struct handshake *h, uint32_t type, const struct err *why, struct err *err)
{
	char name[32];
	if (!h->refusal_logged)
		log_warning("client %s: %s refused: %s", h->connection->peer,
			nbd_wire_option_name(h->option, name), why->text);
	h->refusal_logged = true;
	return reply_text(h, type, why->text, err);
}

static enum step malformed(struct handshake *h, const char *what, struct err *err)
{
	struct err why = ERR_INIT;
	char name[32];
	err_set(&why, ERR_PROTOCOL, "malformed %s: %s", nbd_wire_option_name(h->option, name),
		what);
	return refuse(h, NBD_REP_ERR_INVALID, &why, err);
}

/* --- taking apart ---------------------------------------------------------------------- */

/* A string that the protocol allows, as C string the caller frees; NULL when it
 * is too long, holds a zero byte, or there is no memory. */
static char *take_string(struct cursor *c, size_t length)
{
	if (length > NBD_NAME_BYTES)
		return NULL;
	const uint8_t *bytes = cursor_take(c, length);
	if (!bytes || memchr(bytes, 0, length))
		return NULL;
	return strndup((const char *)bytes, length);
}

static bool is_at_end(const struct cursor *c)
{
	return cursor_ok(c) && cursor_left(c) == 0;
}

/* --- options ------------------------------------------------------------------------------ */

static enum step send_info(struct handshake *h, const struct export_info *info, const char *name,
	unsigned wanted, struct err *err)
{
	uint8_t bytes[14];
	be16_put(bytes, NBD_INFO_EXPORT);
	be64_put(bytes + 2, info->size_bytes);
	be16_put(bytes + 10, info->flags);
	enum step step = reply(h, NBD_REP_INFO, bytes, 12, err);
	const struct {
		uint16_t type;
		const char *text;
	} texts[] = {{NBD_INFO_NAME, name}, {NBD_INFO_DESCRIPTION, info->description}};
	for (size_t i = 0; i < ARRAY_LENGTH(texts) && step == STEP_NEXT; i++) {
		if (!(wanted & 1u << texts[i].type) || !texts[i].text)
			continue;
		size_t length = min_size(strlen(texts[i].text), NBD_NAME_BYTES);
		uint8_t header[NBD_OPTION_REPLY_BYTES + 2];
		size_t n = nbd_wire_put_option_reply(
			header, h->option, NBD_REP_INFO, (uint32_t)(2 + length));
		be16_put(header + n, texts[i].type);
		struct iovec iov[2] = {
			{header, sizeof header}, {(void *)(uintptr_t)texts[i].text, length}};
		step = send_bytes(h, iov, 2, err);
	}
	if (step == STEP_NEXT && (wanted & 1u << NBD_INFO_BLOCK_SIZE)) {
		be16_put(bytes, NBD_INFO_BLOCK_SIZE);
		be32_put(bytes + 2, 1);
		be32_put(bytes + 6, info->preferred_bytes);
		be32_put(bytes + 10, NBD_MOST_PAYLOAD);
		step = reply(h, NBD_REP_INFO, bytes, 14, err);
	}
	return step;
}

/* What the connection keeps from here on. */
static void settle(struct handshake *h, const struct export_info *info, const char *name)
{
	struct connection *c = h->connection;
	c->flags = info->flags;
	c->read_only = info->flags & NBD_FLAG_READ_ONLY;
	/* A selection for another export is void. */
	c->has_allocation = h->allocation_export && strcmp(h->allocation_export, name) == 0;
}

static enum step info_or_go(struct handshake *h, const char *name, unsigned wanted, struct err *err)
{
	struct err why = ERR_INIT;
	struct export_info info = {.size_bytes = 0};
	bool go = h->option == NBD_OPT_GO;
	uint32_t refused = nbd_server_attach(h->connection, name, go, &info, &why);
	enum step step;
	if (refused) {
		step = refuse(h, refused, &why, err);
	} else {
		settle(h, &info, name);
		step = send_info(h, &info, name, wanted, err);
		if (step == STEP_NEXT)
			step = reply(h, NBD_REP_ACK, NULL, 0, err);
		if (step == STEP_NEXT && go)
			step = STEP_GO;
	}
	free(info.description);
	return step;
}

static enum step take_info_or_go(struct handshake *h, struct err *err)
{
	struct cursor c = cursor_over(h->data, h->length);
	char *AUTO_FREE name = take_string(&c, cursor_be32(&c));
	unsigned count = cursor_be16(&c), wanted = 0;
	if (!name || !cursor_ok(&c) || cursor_left(&c) != (size_t)2 * count)
		return malformed(h, "lengths do not fit, or a name that is none", err);
	for (unsigned i = 0; i < count; i++) {
		unsigned type = cursor_be16(&c);
		if (type <= NBD_INFO_BLOCK_SIZE)
			wanted |= 1u << type;
	}
	return info_or_go(h, name, wanted, err);
}

static enum step take_export_name(struct handshake *h, struct err *err)
{
	struct cursor c = cursor_over(h->data, h->length);
	char *AUTO_FREE name = take_string(&c, h->length);
	struct export_info info = {.size_bytes = 0};
	uint8_t bytes[10 + NBD_EXPORT_NAME_ZEROES] = {0};
	if (!name) {
		err_set(err, ERR_PROTOCOL, "EXPORT_NAME with a name that is none");
		return STEP_FAILED;
	}
	/* There is no way to tell the client why not, but to close. */
	if (nbd_server_attach(h->connection, name, true, &info, err)) {
		err_context(err, "EXPORT_NAME refused");
		return STEP_FAILED;
	}
	free(info.description);
	settle(h, &info, name);
	be64_put(bytes, info.size_bytes);
	be16_put(bytes + 8, info.flags);
	struct iovec iov = {bytes, h->no_zeroes ? 10 : sizeof bytes};
	return send_bytes(h, &iov, 1, err) == STEP_NEXT ? STEP_GO : STEP_FAILED;
}

static enum step list_one(
	struct handshake *h, const char *name, const char *description, struct err *err)
{
	size_t name_length = strlen(name);
	size_t rest_length = description ? min_size(strlen(description), NBD_NAME_BYTES) : 0;
	uint8_t header[NBD_OPTION_REPLY_BYTES + 4];
	size_t n = nbd_wire_put_option_reply(
		header, h->option, NBD_REP_SERVER, (uint32_t)(4 + name_length + rest_length));
	be32_put(header + n, (uint32_t)name_length);
	struct iovec iov[3] = {{header, sizeof header}, {(void *)(uintptr_t)name, name_length},
		{(void *)(uintptr_t)description, rest_length}};
	return send_bytes(h, iov, 3, err);
}

static enum step take_list(struct handshake *h, struct err *err)
{
	struct err why = ERR_INIT;
	char *name, *description;
	enum step step = STEP_NEXT;
	if (h->length != 0)
		return malformed(h, "it has data", err);
	uint32_t refused = nbd_server_check_place(h->connection, &why);
	if (refused)
		return refuse(h, refused, &why, err);
	for (unsigned i = 0;
		step == STEP_NEXT && nbd_server_nth_export(h->connection, i, &name, &description);
		i++) {
		step = list_one(h, name, description, err);
		free(name);
		free(description);
	}
	return step == STEP_NEXT ? reply(h, NBD_REP_ACK, NULL, 0, err) : step;
}

static enum step take_headers(struct handshake *h, enum nbd_headers headers, struct err *err)
{
	struct connection *c = h->connection;
	if (h->length != 0)
		return malformed(h, "it has data", err);
	if (headers == NBD_HEADERS_STRUCTURED && c->headers == NBD_HEADERS_EXTENDED)
		return reply_text(
			h, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers are in use already", err);
	if (c->headers == headers)
		return reply_text(h, NBD_REP_ERR_INVALID, "that is in use already", err);
	c->headers = headers;
	return reply(h, NBD_REP_ACK, NULL, 0, err);
}

/* Whether a query names base:allocation; only a listing knows wildcards. */
static bool query_matches(const uint8_t *query, size_t length, bool is_list)
{
	static const char space[] = "base:";
	if (is_list &&
		(length == 0 || (length == strlen(space) && memcmp(query, space, length) == 0)))
		return true;
	return length == strlen(allocation_name) && memcmp(query, allocation_name, length) == 0;
}

static enum step take_meta_context(struct handshake *h, struct err *err)
{
	bool is_list = h->option == NBD_OPT_LIST_META_CONTEXT;
	struct cursor c = cursor_over(h->data, h->length);
	char *AUTO_FREE name = take_string(&c, cursor_be32(&c));
	uint32_t nr_queries = cursor_be32(&c);
	bool found = is_list && nr_queries == 0;
	/* Whatever comes of it, an older selection is gone. */
	if (!is_list) {
		free(h->allocation_export);
		h->allocation_export = NULL;
	}
	if (h->connection->headers == NBD_HEADERS_SIMPLE)
		return malformed(h, "structured replies were not negotiated", err);
	for (uint32_t i = 0; i < nr_queries && cursor_ok(&c); i++) {
		uint32_t length = cursor_be32(&c);
		const uint8_t *query = cursor_take(&c, length);
		if (query && query_matches(query, length, is_list))
			found = true;
	}
	if (!name || !is_at_end(&c))
		return malformed(h, "lengths do not fit, or a name that is none", err);
	if (!nbd_server_has_export(h->connection, name)) {
		struct err why = ERR_INIT;
		nbd_server_no_export(h->connection->server, name, &why);
		return refuse(h, NBD_REP_ERR_UNKNOWN, &why, err);
	}
	enum step step = STEP_NEXT;
	if (found) {
		uint8_t bytes[4 + sizeof allocation_name - 1];
		be32_put(bytes, is_list ? 0 : ALLOCATION_CONTEXT);
		memcpy(bytes + 4, allocation_name, sizeof allocation_name - 1);
		step = reply(h, NBD_REP_META_CONTEXT, bytes, sizeof bytes, err);
		if (!is_list) {
			h->allocation_export = name;
			name = NULL;
		}
	}
	return step == STEP_NEXT ? reply(h, NBD_REP_ACK, NULL, 0, err) : step;
}

static enum step take_abort(struct handshake *h)
{
	struct err ignored = ERR_INIT;
	/* The client may be gone without waiting for this. */
	(void)reply(h, NBD_REP_ACK, NULL, 0, &ignored);
	return STEP_ABORTED;
}

/*
 * Nothing that was said in the clear counts afterwards: somebody on the way may have
 * put it there.  For the same reason nothing may stand behind this option yet.
 */
static enum step take_starttls(struct handshake *h, struct err *err)
{
	struct connection *c = h->connection;
	char text[TLS_TEXT_BYTES];
	if (c->server->options.tls == NBD_TLS_OFF)
		return reply_text(h, NBD_REP_ERR_POLICY,
			"TLS is not configured on this server; connect without it", err);
	if (c->stream.tls)
		return reply_text(h, NBD_REP_ERR_INVALID, "TLS is in use already", err);
	if (h->length != 0)
		return malformed(h, "it has data", err);
	if (c->ahead_start != c->ahead_end) {
		err_set(err, ERR_PROTOCOL, "bytes in the clear behind STARTTLS");
		return STEP_FAILED;
	}
	if (reply(h, NBD_REP_ACK, NULL, 0, err) == STEP_FAILED ||
		stream_tls_start(&c->stream, c->server->options.tls_server, h->until, err) < 0)
		return STEP_FAILED;
	c->headers = NBD_HEADERS_SIMPLE;
	free(h->allocation_export);
	h->allocation_export = NULL;
	atomic_store(&c->known, stream_tls_identity(&c->stream)[0] != '\0');
	stream_tls_text(&c->stream, text);
	log_debug("client %s: %s", c->peer, text);
	return STEP_NEXT;
}

static enum step demand_tls(struct handshake *h, struct err *err)
{
	struct err why = ERR_INIT;
	err_set(&why, ERR_DENIED,
		"this server is to be reached with TLS only (nbds:// and the credentials that "
		"belong to it)");
	/* No warning: whoever looks whether the server is there is told so each time. */
	if (h->option != NBD_OPT_EXPORT_NAME) {
		log_info("client %s: refused without TLS", h->connection->peer);
		return reply_text(h, NBD_REP_ERR_TLS_REQD, why.text, err);
	}
	err_copy(err, &why);
	return STEP_FAILED;
}

static enum step take_option(struct handshake *h, struct err *err)
{
	if (!h->is_fixed && h->option != NBD_OPT_EXPORT_NAME) {
		err_set(err, ERR_PROTOCOL, "option %u without the fixed newstyle handshake",
			h->option);
		return STEP_FAILED;
	}
	if (h->connection->server->options.tls == NBD_TLS_REQUIRED && !h->connection->stream.tls &&
		h->option != NBD_OPT_STARTTLS && h->option != NBD_OPT_ABORT)
		return demand_tls(h, err);
	switch (h->option) {
	case NBD_OPT_EXPORT_NAME:
		return take_export_name(h, err);
	case NBD_OPT_ABORT:
		return take_abort(h);
	case NBD_OPT_LIST:
		return take_list(h, err);
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		return take_info_or_go(h, err);
	case NBD_OPT_STARTTLS:
		return take_starttls(h, err);
	case NBD_OPT_STRUCTURED_REPLY:
		return take_headers(h, NBD_HEADERS_STRUCTURED, err);
	case NBD_OPT_EXTENDED_HEADERS:
		return take_headers(h, NBD_HEADERS_EXTENDED, err);
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		return take_meta_context(h, err);
	default:
		return reply_text(
			h, NBD_REP_ERR_UNSUP, "this server does not know the option", err);
	}
}

/* --- the course of it ---------------------------------------------------------------------- */

static enum step greet(struct handshake *h, struct err *err)
{
	uint8_t bytes[18];
	be64_put(bytes, NBD_MAGIC);
	be64_put(bytes + 8, NBD_OPTION_MAGIC);
	be16_put(bytes + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
	if (send_bytes(h, &(struct iovec){bytes, sizeof bytes}, 1, err) == STEP_FAILED)
		return STEP_FAILED;
	if (connection_receive(h->connection, bytes, 4, &h->until,
		    "waiting for the client's handshake flags", err) < 0)
		return STEP_FAILED;
	uint32_t flags = be32_get(bytes);
	if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
		err_set(err, ERR_PROTOCOL,
			"unknown handshake flags 0x%08" PRIx32 ": not an NBD client?", flags);
		return STEP_FAILED;
	}
	h->is_fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
	h->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
	return STEP_NEXT;
}

static enum step skip_option(struct handshake *h, size_t length, struct err *err)
{
	while (length > 0) {
		size_t n = min_size(length, MOST_OPTION_BYTES);
		if (connection_receive(h->connection, h->data, n, &h->until,
			    "skipping an option's data", err) < 0)
			return STEP_FAILED;
		length -= n;
	}
	return reply_text(h, NBD_REP_ERR_TOO_BIG, "the option's data is too long", err);
}

static enum step next_option(struct handshake *h, struct err *err)
{
	struct connection *c = h->connection;
	uint8_t bytes[NBD_OPTION_BYTES];
	char name[32];
	if (connection_receive(c, bytes, sizeof bytes, &h->until, "waiting for an option", err) < 0)
		return STEP_FAILED;
	struct cursor cursor = cursor_over(bytes, sizeof bytes);
	uint64_t magic = cursor_be64(&cursor);
	h->option = cursor_be32(&cursor);
	uint32_t length = cursor_be32(&cursor);
	if (magic != NBD_OPTION_MAGIC) {
		err_set(err, ERR_PROTOCOL, "what should be an option has magic 0x%016" PRIx64,
			magic);
		return STEP_FAILED;
	}
	if (length > MOST_SKIPPED_BYTES) {
		err_set(err, ERR_PROTOCOL, "%s with %" PRIu32 " bytes of data",
			nbd_wire_option_name(h->option, name), length);
		return STEP_FAILED;
	}
	if (length > MOST_OPTION_BYTES)
		return skip_option(h, length, err);
	h->length = length;
	if (connection_receive(c, h->data, length, &h->until, "receiving an option's data", err) <
		0)
		return STEP_FAILED;
	return take_option(h, err);
}

static int run(struct handshake *h, struct err *err)
{
	enum step step = greet(h, err);
	for (unsigned i = 0; step == STEP_NEXT; i++) {
		if (i == MOST_OPTIONS) {
			err_set(err, ERR_PROTOCOL, "%u options and no end", MOST_OPTIONS);
			return -1;
		}
		step = next_option(h, err);
	}
	return step == STEP_GO ? 1 : step == STEP_ABORTED ? 0 : -1;
}

int handshake_run(struct connection *connection, struct err *err)
{
	struct handshake *h = calloc(1, sizeof *h);
	if (!h)
		return err_errno(err, ENOMEM, "cannot begin the handshake");
	h->connection = connection;
	h->until = deadline_after_ms(connection->server->options.handshake_timeout_ms);
	int rc = run(h, err);
	free(h->allocation_export);
	free(h);
	if (rc < 0)
		return err_context(err, "handshake");
	return rc;
}
