/* The rules for requests, row by row. */
#include "test_support.h"

#include "nbd_internal.h"

#define SIZE (100 * MIB)

static struct gate *gate;
static struct export an_export;

static int make(void **state)
{
	(void)state;
	gate = gate_open(SIZE);
	an_export = (struct export){.block = &gate->block};
	return 0;
}

static int drop(void **state)
{
	(void)state;
	return block_close(&gate->block, NULL);
}

static struct connection *client(enum nbd_headers headers, unsigned flags)
{
	static struct connection c;
	memset(&c, 0, sizeof c);
	c.export = &an_export;
	c.headers = headers;
	c.flags = (uint16_t)flags;
	c.read_only = flags & NBD_FLAG_READ_ONLY;
	c.has_allocation = true;
	return &c;
}

#define ALL                                                                                  \
	(NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_DF | \
		NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |        \
		NBD_FLAG_SEND_FAST_ZERO)

static void test_rules(void **state)
{
	(void)state;
	static const struct {
		unsigned flags; /* of the export */
		uint16_t type, command_flags;
		uint64_t offset, length;
		uint32_t error;
	} rows[] = {
		{ALL, NBD_CMD_READ, 0, 0, 64 * MIB, 0},
		{ALL, NBD_CMD_READ, 0, 0, 64 * MIB + 1, NBD_EINVAL},
		{ALL, NBD_CMD_READ, NBD_CMD_FLAG_DF, SIZE - 1, 1, 0},
		{ALL, NBD_CMD_READ, NBD_CMD_FLAG_FUA, SIZE, 0, 0},
		{ALL, NBD_CMD_READ, 0, SIZE, 1, NBD_EINVAL},
		{ALL, NBD_CMD_READ, 0, UINT64_MAX, 2, NBD_EINVAL},
		{ALL & ~NBD_FLAG_SEND_DF, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 1, NBD_EINVAL},
		{ALL & ~NBD_FLAG_SEND_FUA, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 0, 1, NBD_EINVAL},
		{ALL, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 0, 1, 0},
		{ALL, NBD_CMD_WRITE, NBD_CMD_FLAG_NO_HOLE, 0, 1, NBD_EINVAL},
		{ALL, NBD_CMD_WRITE, 0, SIZE - 1, 2, NBD_ENOSPC},
		{ALL, NBD_CMD_WRITE, 0, 0, 64 * MIB + 1, NBD_EINVAL},
		{ALL | NBD_FLAG_READ_ONLY, NBD_CMD_WRITE, 0, SIZE, 2, NBD_EPERM},
		{ALL | NBD_FLAG_READ_ONLY, NBD_CMD_TRIM, 0, 0, 2, NBD_EPERM},
		{ALL | NBD_FLAG_READ_ONLY, NBD_CMD_WRITE_ZEROES, 0, 0, 2, NBD_EPERM},
		{ALL, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 0, SIZE, 0},
		{ALL, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, SIZE, 0},
		{ALL, NBD_CMD_WRITE_ZEROES, 0, 1, SIZE, NBD_ENOSPC},
		{ALL & ~NBD_FLAG_SEND_FAST_ZERO, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 1,
			NBD_EINVAL},
		{ALL, NBD_CMD_TRIM, 0, 0, SIZE, 0},
		{ALL, NBD_CMD_TRIM, 0, 1, SIZE, NBD_EINVAL},
		{ALL & ~NBD_FLAG_SEND_TRIM, NBD_CMD_TRIM, 0, 0, 1, NBD_EINVAL},
		{ALL, NBD_CMD_FLUSH, 0, 0, 0, 0},
		{ALL, NBD_CMD_FLUSH, 0, 1, 0, NBD_EINVAL},
		{ALL, NBD_CMD_FLUSH, 0, 0, 1, NBD_EINVAL},
		{ALL, NBD_CMD_CACHE, 0, 0, SIZE, 0},
		{ALL, NBD_CMD_CACHE, NBD_CMD_FLAG_DF, 0, SIZE, NBD_EINVAL},
		{ALL, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, SIZE, 0},
		{ALL, NBD_CMD_BLOCK_STATUS, 0, 0, 0, NBD_EINVAL},
		{ALL, NBD_CMD_DISC, 0, 0, 0, NBD_EINVAL},
		{ALL, 8, 0, 0, 0, NBD_EINVAL},
		{ALL, UINT16_MAX, UINT16_MAX, 0, 0, NBD_EINVAL},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		struct err err = ERR_INIT;
		struct nbd_request request = {.type = rows[i].type,
			.flags = rows[i].command_flags,
			.offset = rows[i].offset,
			.length = rows[i].length};
		uint32_t error = request_check(
			client(NBD_HEADERS_STRUCTURED, rows[i].flags), &request, &err);
		if (error != rows[i].error)
			fail_msg("row %zu: %u, not %u (%s)", i, error, rows[i].error, err.text);
		assert_int_equal(error != 0, err.text[0] != '\0');
	}
}

static void test_allocation_must_be_selected(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct connection *c = client(NBD_HEADERS_STRUCTURED, ALL);
	struct nbd_request request = {.type = NBD_CMD_BLOCK_STATUS, .length = 1};
	c->has_allocation = false;
	assert_int_equal(request_check(c, &request, &err), NBD_EINVAL);
}

static void test_payloads(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct nbd_request write = {.type = NBD_CMD_WRITE, .length = 1};
	struct nbd_request odd = {
		.type = NBD_CMD_TRIM, .flags = NBD_CMD_FLAG_PAYLOAD_LEN, .length = 1};
	assert_true(request_has_payload(client(NBD_HEADERS_SIMPLE, ALL), &write));
	assert_false(request_has_payload(client(NBD_HEADERS_STRUCTURED, ALL), &odd));
	assert_true(request_has_payload(client(NBD_HEADERS_EXTENDED, ALL), &odd));
	assert_int_equal(request_check(client(NBD_HEADERS_EXTENDED, ALL), &odd, &err), NBD_EINVAL);
	write.flags = NBD_CMD_FLAG_PAYLOAD_LEN;
	assert_int_equal(request_check(client(NBD_HEADERS_EXTENDED, ALL), &write, &err), 0);
	assert_int_equal(
		request_check(client(NBD_HEADERS_STRUCTURED, ALL), &write, &err), NBD_EINVAL);
}

static void test_flags_are_offered_when_they_hold(void **state)
{
	(void)state;
	struct block_info info = {.size_bytes = 1};
	unsigned flags = request_export_flags(&info, false, NBD_HEADERS_SIMPLE);
	assert_int_equal(flags, NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_CACHE |
					NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_WRITE_ZEROES);
	info.can_trim = info.can_fast_zero = info.multi_lane = true;
	flags = request_export_flags(&info, false, NBD_HEADERS_EXTENDED);
	assert_int_equal(flags, ALL | NBD_FLAG_CAN_MULTI_CONN);
	flags = request_export_flags(&info, true, NBD_HEADERS_STRUCTURED);
	assert_int_equal(flags, NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH |
					NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_DF |
					NBD_FLAG_CAN_MULTI_CONN);
}

static void test_errors_have_names(void **state)
{
	(void)state;
	static const struct {
		enum err_code code;
		uint32_t error;
	} rows[] = {{ERR_NO_SPACE, 28}, {ERR_DENIED, 1}, {ERR_UNSUPPORTED, 95}, {ERR_RANGE, 22},
		{ERR_NO_MEMORY, 12}, {ERR_CANCELLED, 108}, {ERR_IO, 5}, {ERR_CORRUPT, 5}};
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++)
		assert_int_equal(request_error(&(struct err){.code = rows[i].code}), rows[i].error);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rules),
		cmocka_unit_test(test_allocation_must_be_selected),
		cmocka_unit_test(test_payloads),
		cmocka_unit_test(test_flags_are_offered_when_they_hold),
		cmocka_unit_test(test_errors_have_names),
	};
	return cmocka_run_group_tests(tests, make, drop);
}
