/* The wire format against bytes written down by hand from the specification. */
#include "test_support.h"

#include "nbd_wire.h"

static void test_requests(void **state)
{
	(void)state;
	static const uint8_t compact[28] = {0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 7,
		8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 9};
	static const uint8_t extended[32] = {0x21, 0xe4, 0x1c, 0x71, 0, 33, 0, 1, 1, 2, 3, 4, 5, 6,
		7, 8, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0, 0, 0, 0, 0, 0, 9};
	struct nbd_request r;
	assert_int_equal(nbd_wire_request_bytes(NBD_HEADERS_STRUCTURED), sizeof compact);
	assert_int_equal(nbd_wire_request_bytes(NBD_HEADERS_EXTENDED), sizeof extended);
	assert_true(nbd_wire_get_request(compact, NBD_HEADERS_SIMPLE, &r));
	assert_int_equal(r.flags, NBD_CMD_FLAG_FUA);
	assert_int_equal(r.type, NBD_CMD_WRITE_ZEROES);
	assert_int_equal(r.cookie, 0x0102030405060708);
	assert_int_equal(r.offset, 0x100000002);
	assert_int_equal(r.length, 9);
	assert_true(nbd_wire_get_request(extended, NBD_HEADERS_EXTENDED, &r));
	assert_int_equal(r.flags, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_PAYLOAD_LEN);
	assert_int_equal(r.length, 0x8000000000000009);
	assert_false(nbd_wire_get_request(extended, NBD_HEADERS_SIMPLE, &r));
	uint8_t padded[sizeof extended] = {0};
	memcpy(padded, compact, sizeof compact);
	assert_false(nbd_wire_get_request(padded, NBD_HEADERS_EXTENDED, &r));
}

static void test_replies(void **state)
{
	(void)state;
	static const uint8_t simple[16] = {
		0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8};
	static const uint8_t structured[20] = {
		0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 1, 0};
	static const uint8_t extended[32] = {0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0x80, 1, 1, 2, 3, 4, 5,
		6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 0};
	static const uint8_t option[20] = {
		0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0x80, 0, 0, 2, 0, 0, 0, 4};
	struct nbd_request r = {.cookie = 0x0102030405060708, .offset = 5};
	uint8_t out[NBD_REPLY_HEADER_BYTES_MAX];
	assert_int_equal(nbd_wire_put_simple_reply(out, &r, NBD_EINVAL), sizeof simple);
	assert_memory_equal(out, simple, sizeof simple);
	assert_int_equal(nbd_wire_put_chunk(out, NBD_HEADERS_STRUCTURED, &r, NBD_REPLY_FLAG_DONE,
				 NBD_REPLY_ERROR, 256),
		sizeof structured);
	assert_memory_equal(out, structured, sizeof structured);
	assert_int_equal(nbd_wire_put_chunk(out, NBD_HEADERS_EXTENDED, &r, NBD_REPLY_FLAG_DONE,
				 NBD_REPLY_ERROR, 256),
		sizeof extended);
	assert_memory_equal(out, extended, sizeof extended);
	assert_int_equal(
		nbd_wire_put_option_reply(out, NBD_OPT_GO, NBD_REP_ERR_POLICY, 4), sizeof option);
	assert_memory_equal(out, option, sizeof option);
}

static void test_names(void **state)
{
	(void)state;
	char text[32];
	assert_string_equal(nbd_wire_command_name(NBD_CMD_WRITE_ZEROES, text), "WRITE_ZEROES");
	assert_string_equal(nbd_wire_command_name(8, text), "command 8");
	assert_string_equal(nbd_wire_option_name(NBD_OPT_GO, text), "GO");
	assert_string_equal(nbd_wire_option_name(4, text), "option 4");
	assert_string_equal(nbd_wire_option_name(UINT32_MAX, text), "option 4294967295");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_requests),
		cmocka_unit_test(test_replies),
		cmocka_unit_test(test_names),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
