/* The wire format; see nbd_wire.h. */
#include "nbd_wire.h"

#include <stdio.h>

size_t nbd_wire_request_bytes(enum nbd_headers headers)
{
	return headers == NBD_HEADERS_EXTENDED ? 32 : 28;
}

bool nbd_wire_get_request(
	const uint8_t *bytes, enum nbd_headers headers, struct nbd_request *request)
{
	bool extended = headers == NBD_HEADERS_EXTENDED;
	struct cursor c = cursor_over(bytes, nbd_wire_request_bytes(headers));
	uint32_t magic = cursor_be32(&c);
	request->flags = cursor_be16(&c);
	request->type = cursor_be16(&c);
	request->cookie = cursor_be64(&c);
	request->offset = cursor_be64(&c);
	request->length = extended ? cursor_be64(&c) : cursor_be32(&c);
	return cursor_ok(&c) &&
	       magic == (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
}

size_t nbd_wire_put_simple_reply(uint8_t *out, const struct nbd_request *request, uint32_t error)
{
	be32_put(out, NBD_SIMPLE_REPLY_MAGIC);
	be32_put(out + 4, error);
	be64_put(out + 8, request->cookie);
	return 16;
}

size_t nbd_wire_put_chunk(uint8_t *out, enum nbd_headers headers, const struct nbd_request *request,
	uint16_t flags, uint16_t type, uint32_t length)
{
	bool extended = headers == NBD_HEADERS_EXTENDED;
	be32_put(out, extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
	be16_put(out + 4, flags);
	be16_put(out + 6, type);
	be64_put(out + 8, request->cookie);
	if (!extended) {
		be32_put(out + 16, length);
		return 20;
	}
	be64_put(out + 16, request->offset);
	be64_put(out + 24, length);
	return 32;
}

size_t nbd_wire_put_option_reply(uint8_t *out, uint32_t option, uint32_t type, uint32_t length)
{
	be64_put(out, NBD_OPTION_REPLY_MAGIC);
	be32_put(out + 8, option);
	be32_put(out + 12, type);
	be32_put(out + 16, length);
	return NBD_OPTION_REPLY_BYTES;
}

const char *nbd_wire_command_name(unsigned type, char text[32])
{
	static const char *const names[] = {
		"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"};
	if (type < ARRAY_LENGTH(names))
		return names[type];
	snprintf(text, 32, "command %u", type);
	return text;
}

const char *nbd_wire_option_name(uint32_t option, char text[32])
{
	static const char *const names[] = {NULL, "EXPORT_NAME", "ABORT", "LIST", NULL, "STARTTLS",
		"INFO", "GO", "STRUCTURED_REPLY", "LIST_META_CONTEXT", "SET_META_CONTEXT",
		"EXTENDED_HEADERS"};
	if (option < ARRAY_LENGTH(names) && names[option])
		return names[option];
	snprintf(text, 32, "option %u", option);
	return text;
}
