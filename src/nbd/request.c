/*
 * The rules for requests, all of them, in one place.
 *
 *   command       payload  range       beyond the end  flags, beside FUA
 *   READ          -        <= 64 MiB   EINVAL          DF (structured, extended)
 *   WRITE         length   <= 64 MiB   ENOSPC          -
 *   FLUSH         -        0, 0        -               -
 *   TRIM          -        any         EINVAL          -
 *   CACHE         -        any         EINVAL          -
 *   WRITE_ZEROES  -        any         ENOSPC          NO_HOLE FAST_ZERO
 *   BLOCK_STATUS  -        any, not 0  EINVAL          REQ_ONE
 *
 * Where FUA is offered every command may carry it; it means something to those
 * that change data.  A command or flag that the export did not offer is EINVAL, a change of a
 * read-only one EPERM.  An empty range is otherwise fine and does nothing.
 */
#include "nbd_internal.h"

#include <inttypes.h>

uint16_t request_export_flags(
	const struct block_info *info, bool read_only, enum nbd_headers headers)
{
	unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_CACHE;
	if (headers != NBD_HEADERS_SIMPLE)
		flags |= NBD_FLAG_SEND_DF;
	/* All connections see one block, whose flush covers all that was written. */
	if (read_only || info->multi_lane)
		flags |= NBD_FLAG_CAN_MULTI_CONN;
	if (read_only)
		return (uint16_t)(flags | NBD_FLAG_READ_ONLY);
	flags |= NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_WRITE_ZEROES;
	if (info->can_trim)
		flags |= NBD_FLAG_SEND_TRIM;
	if (info->can_fast_zero)
		flags |= NBD_FLAG_SEND_FAST_ZERO;
	return (uint16_t)flags;
}

struct rule {
	bool changes;
	unsigned needs; /* a transmission flag */
	unsigned flags; /* command flags that it takes */
	uint64_t most_bytes;
	uint32_t beyond_end; /* the error */
};

static const struct rule rules[] = {
	[NBD_CMD_READ] = {.most_bytes = NBD_MOST_PAYLOAD,
		.flags = NBD_CMD_FLAG_DF,
		.beyond_end = NBD_EINVAL},
	[NBD_CMD_WRITE] = {.changes = true,
		.most_bytes = NBD_MOST_PAYLOAD,
		.beyond_end = NBD_ENOSPC},
	[NBD_CMD_FLUSH] = {.needs = NBD_FLAG_SEND_FLUSH, .beyond_end = NBD_EINVAL},
	[NBD_CMD_TRIM] = {.changes = true,
		.needs = NBD_FLAG_SEND_TRIM,
		.most_bytes = UINT64_MAX,
		.beyond_end = NBD_EINVAL},
	[NBD_CMD_CACHE] = {.needs = NBD_FLAG_SEND_CACHE,
		.most_bytes = UINT64_MAX,
		.beyond_end = NBD_EINVAL},
	[NBD_CMD_WRITE_ZEROES] = {.changes = true,
		.needs = NBD_FLAG_SEND_WRITE_ZEROES,
		.most_bytes = UINT64_MAX,
		.flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
		.beyond_end = NBD_ENOSPC},
	[NBD_CMD_BLOCK_STATUS] = {.most_bytes = UINT64_MAX,
		.flags = NBD_CMD_FLAG_REQ_ONE,
		.beyond_end = NBD_EINVAL},
};

bool request_has_payload(const struct connection *connection, const struct nbd_request *request)
{
	/* Some clients forget the flag on writes, none sends a write without data. */
	if (request->type == NBD_CMD_WRITE)
		return true;
	return connection->headers == NBD_HEADERS_EXTENDED &&
	       (request->flags & NBD_CMD_FLAG_PAYLOAD_LEN);
}

static unsigned allowed_flags(
	const struct connection *connection, const struct nbd_request *request)
{
	unsigned flags = rules[request->type].flags;
	if (!(connection->flags & NBD_FLAG_SEND_DF))
		flags &= ~NBD_CMD_FLAG_DF;
	if (connection->flags & NBD_FLAG_SEND_FUA)
		flags |= NBD_CMD_FLAG_FUA;
	if (!(connection->flags & NBD_FLAG_SEND_FAST_ZERO))
		flags &= ~NBD_CMD_FLAG_FAST_ZERO;
	if (connection->headers == NBD_HEADERS_EXTENDED && request->type == NBD_CMD_WRITE)
		flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
	return flags;
}

static uint32_t refuse(uint32_t error, struct err *err, const char *command, const char *why)
{
	err_set(err, ERR_PROTOCOL, "%s: %s", command, why);
	return error;
}

static uint32_t check_range(const struct connection *connection, const struct nbd_request *request,
	const char *name, struct err *err)
{
	const struct rule *rule = &rules[request->type];
	uint64_t size_bytes = block_info(connection->export->block)->size_bytes;
	if (request->length > rule->most_bytes) {
		err_set(err, ERR_RANGE, "%s of %" PRIu64 " bytes: the most is %" PRIu64, name,
			request->length, rule->most_bytes);
		return NBD_EINVAL;
	}
	if (!range_fits(request->offset, request->length, size_bytes)) {
		err_set(err, ERR_RANGE,
			"%s of %" PRIu64 " bytes at offset %" PRIu64
			": the export ends at %" PRIu64,
			name, request->length, request->offset, size_bytes);
		return rule->beyond_end;
	}
	return 0;
}

uint32_t request_check(
	const struct connection *connection, const struct nbd_request *request, struct err *err)
{
	char text[32];
	const char *name = nbd_wire_command_name(request->type, text);
	if (request->type >= ARRAY_LENGTH(rules) || request->type == NBD_CMD_DISC)
		return refuse(NBD_EINVAL, err, name, "there is no such command here");
	const struct rule *rule = &rules[request->type];
	if (rule->changes && connection->read_only)
		return refuse(NBD_EPERM, err, name, "the export is read-only");
	if (rule->needs && !(connection->flags & rule->needs))
		return refuse(NBD_EINVAL, err, name, "the export does not offer it");
	if (request->flags & ~allowed_flags(connection, request))
		return refuse(NBD_EINVAL, err, name, "it has a flag that was not offered");
	if (request->type == NBD_CMD_FLUSH && (request->offset || request->length))
		return refuse(NBD_EINVAL, err, name, "offset and length must be 0");
	if (request->type == NBD_CMD_BLOCK_STATUS && !connection->has_allocation)
		return refuse(NBD_EINVAL, err, name, "base:allocation was not negotiated");
	if (request->type == NBD_CMD_BLOCK_STATUS && request->length == 0)
		return refuse(NBD_EINVAL, err, name, "the length must not be 0");
	return check_range(connection, request, name, err);
}

uint32_t request_error(const struct err *err)
{
	switch (err->code) {
	case ERR_NO_SPACE:
		return NBD_ENOSPC;
	case ERR_DENIED:
		return NBD_EPERM;
	case ERR_UNSUPPORTED:
		return NBD_ENOTSUP;
	case ERR_RANGE:
	case ERR_USAGE:
		return NBD_EINVAL;
	case ERR_NO_MEMORY:
		return NBD_ENOMEM;
	case ERR_CANCELLED:
		return NBD_ESHUTDOWN;
	default:
		return NBD_EIO;
	}
}
