/*
 * The NBD wire format: constants, and what is laid out in bytes.  All integers
 * are big-endian.  Source: doc/proto.md of the NBD project.
 *
 * Handshake, server speaks first:
 *
 *   S  u64 "NBDMAGIC" | u64 "IHAVEOPT" | u16 flags
 *   C  u32 flags
 *   C  u64 "IHAVEOPT" | u32 option | u32 length | data           any number of
 *   S  u64 reply magic | u32 option | u32 type | u32 length | data       these
 *
 * Requests, and their answers in the three header styles:
 *
 *   compact   u32 magic | u16 flags | u16 type | u64 cookie | u64 offset | u32 length | payload
 *   extended  u32 magic | u16 flags | u16 type | u64 cookie | u64 offset | u64 length | payload
 *
 *   simple      u32 magic | u32 error | u64 cookie | data of a read
 *   structured  u32 magic | u16 flags | u16 type | u64 cookie | u32 length | payload
 *   extended    u32 magic | u16 flags | u16 type | u64 cookie | u64 offset | u64 length | payload
 *
 * Payloads of chunks:
 *
 *   OFFSET_DATA       u64 offset | data
 *   OFFSET_HOLE       u64 offset | u32 length
 *   BLOCK_STATUS      u32 context | { u32 length | u32 state } ...
 *   BLOCK_STATUS_EXT  u32 context | u32 count | { u64 length | u64 state } ...
 *   ERROR             u32 error | u16 length | text
 */
#ifndef SENDENSE_NBD_WIRE_H
#define SENDENSE_NBD_WIRE_H

#include "base.h"

#define NBD_MAGIC UINT64_C(0x4e42444d41474943)
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054)
#define NBD_OPTION_REPLY_MAGIC UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu
#define NBD_EXTENDED_REPLY_MAGIC 0x6e8a278cu

/* Handshake flags, of the server and of the client alike. */
#define NBD_FLAG_FIXED_NEWSTYLE 1u
#define NBD_FLAG_NO_ZEROES 2u

enum nbd_option {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
	NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ACK 1u
#define NBD_REP_SERVER 2u
#define NBD_REP_INFO 3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_ERR_UNSUP 0x80000001u
#define NBD_REP_ERR_POLICY 0x80000002u
#define NBD_REP_ERR_INVALID 0x80000003u
#define NBD_REP_ERR_TLS_REQD 0x80000005u
#define NBD_REP_ERR_UNKNOWN 0x80000006u
#define NBD_REP_ERR_SHUTDOWN 0x80000007u
#define NBD_REP_ERR_TOO_BIG 0x80000009u
#define NBD_REP_ERR_EXT_HEADER_REQD 0x8000000au

#define NBD_INFO_EXPORT 0
#define NBD_INFO_NAME 1
#define NBD_INFO_DESCRIPTION 2
#define NBD_INFO_BLOCK_SIZE 3

/* Transmission flags. */
#define NBD_FLAG_HAS_FLAGS 1u
#define NBD_FLAG_READ_ONLY 2u
#define NBD_FLAG_SEND_FLUSH 4u
#define NBD_FLAG_SEND_FUA 8u
#define NBD_FLAG_SEND_TRIM 32u
#define NBD_FLAG_SEND_WRITE_ZEROES 64u
#define NBD_FLAG_SEND_DF 128u
#define NBD_FLAG_CAN_MULTI_CONN 256u
#define NBD_FLAG_SEND_CACHE 1024u
#define NBD_FLAG_SEND_FAST_ZERO 2048u

enum nbd_command {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_CACHE = 5,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA 1u
#define NBD_CMD_FLAG_NO_HOLE 2u
#define NBD_CMD_FLAG_DF 4u
#define NBD_CMD_FLAG_REQ_ONE 8u
#define NBD_CMD_FLAG_FAST_ZERO 16u
#define NBD_CMD_FLAG_PAYLOAD_LEN 32u

#define NBD_REPLY_FLAG_DONE 1u
#define NBD_REPLY_NONE 0
#define NBD_REPLY_OFFSET_DATA 1
#define NBD_REPLY_OFFSET_HOLE 2
#define NBD_REPLY_BLOCK_STATUS 5
#define NBD_REPLY_BLOCK_STATUS_EXT 6
#define NBD_REPLY_ERROR 0x8001

#define NBD_STATE_HOLE 1u
#define NBD_STATE_ZERO 2u

/* Errors on the wire; the numbers are Linux's, whatever the system. */
#define NBD_EPERM 1u
#define NBD_EIO 5u
#define NBD_ENOMEM 12u
#define NBD_EINVAL 22u
#define NBD_ENOSPC 28u
#define NBD_ENOTSUP 95u
#define NBD_ESHUTDOWN 108u

#define NBD_NAME_BYTES 4096u /* the longest string of the protocol */
#define NBD_MOST_PAYLOAD (64u << 20) /* of one request or reply */
#define NBD_EXPORT_NAME_ZEROES 124u

/* What the handshake settled on. */
enum nbd_headers { NBD_HEADERS_SIMPLE, NBD_HEADERS_STRUCTURED, NBD_HEADERS_EXTENDED };

struct nbd_request {
	uint16_t flags;
	uint16_t type; /* enum nbd_command, or anything */
	uint64_t cookie;
	uint64_t offset;
	uint64_t length;
};

#define NBD_REQUEST_BYTES_MAX 32
#define NBD_REPLY_HEADER_BYTES_MAX 32
#define NBD_OPTION_BYTES 16
#define NBD_OPTION_REPLY_BYTES 20

size_t nbd_wire_request_bytes(enum nbd_headers headers);

/* bytes: nbd_wire_request_bytes(); false when the magic is another one. */
bool nbd_wire_get_request(
	const uint8_t *bytes, enum nbd_headers headers, struct nbd_request *request);

/* These write a header and return its length. */
size_t nbd_wire_put_simple_reply(uint8_t *out, const struct nbd_request *request, uint32_t error);
/* headers: structured or extended.  length: the payload's. */
size_t nbd_wire_put_chunk(uint8_t *out, enum nbd_headers headers, const struct nbd_request *request,
	uint16_t flags, uint16_t type, uint32_t length);
size_t nbd_wire_put_option_reply(uint8_t *out, uint32_t option, uint32_t type, uint32_t length);

/* "READ", or "command 17" made in text. */
const char *nbd_wire_command_name(unsigned type, char text[32]);
const char *nbd_wire_option_name(uint32_t option, char text[32]);

#endif
