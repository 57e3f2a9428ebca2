/* The checks that hold for all drivers, and lanes on disks that block. */
#include "test_support.h"

#define DISK_BYTES 8192u

/* A driver that offers the least, and writes down what it was asked. */
struct least {
	struct block block;
	uint8_t bytes[DISK_BYTES];
	unsigned nr_writes, nr_flushes, last_flags;
	bool failing;
};

static int least_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct least *l = (struct least *)block;
	if (l->failing)
		return err_set(err, ERR_IO, "broken");
	memcpy(buffer, l->bytes + offset, length);
	return 0;
}

static int least_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	struct least *l = (struct least *)block;
	if (l->failing)
		return err_set(err, ERR_IO, "broken");
	memcpy(l->bytes + offset, buffer, length);
	l->nr_writes++;
	l->last_flags = flags;
	return 0;
}

static int least_flush(struct block *block, struct err *err)
{
	(void)err;
	((struct least *)block)->nr_flushes++;
	return 0;
}

static int least_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	free(block);
	return 0;
}

static const struct block_driver least_driver = {
	.name = "least",
	.read = least_read,
	.write = least_write,
	.flush = least_flush,
	.close = least_close,
};

static struct least *least_open(void)
{
	struct least *l = calloc(1, sizeof *l);
	assert_non_null(l);
	block_init(&l->block, &least_driver, NULL);
	l->block.info = (struct block_info){
		.size_bytes = DISK_BYTES, .multi_lane = true, .granule_bytes = 512};
	memset(l->bytes, 0xaa, sizeof l->bytes);
	return l;
}

static void test_bounds(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct least *l = least_open();
	struct block *b = &l->block;
	uint8_t byte = 1;
	assert_string_equal(block_label(b), "least");
	assert_ok(block_read(b, &byte, 1, DISK_BYTES - 1, &err));
	assert_int_equal(byte, 0xaa);
	assert_ok(block_read(b, &byte, 0, DISK_BYTES, &err));
	assert_fails(block_read(b, &byte, 1, DISK_BYTES, &err), ERR_RANGE);
	assert_string_equal(
		err.text, "cannot read 1 bytes at offset 8192 of least: it ends at 8192");
	assert_fails(block_read(b, &byte, 0, DISK_BYTES + 1, &err), ERR_RANGE);
	assert_fails(block_read(b, &byte, 2, UINT64_MAX, &err), ERR_RANGE);
	assert_fails(block_write(b, &byte, 1, DISK_BYTES, 0, &err), ERR_RANGE);
	assert_fails(block_zero(b, 1, UINT64_MAX, 0, &err), ERR_RANGE);
	assert_fails(block_trim(b, 1, DISK_BYTES, 0, &err), ERR_RANGE);
	struct block_extent e;
	size_t nr;
	assert_fails(block_extents(b, 1, DISK_BYTES, &e, 1, &nr, &err), ERR_RANGE);
	assert_int_equal(l->nr_writes, 0);
	assert_ok(block_close(b, &err));
	assert_ok(block_close(NULL, &err));
}

static void test_read_only(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct least *l = least_open();
	struct block *b = &l->block;
	b->info.read_only = true;
	assert_fails(block_write(b, "x", 1, 0, 0, &err), ERR_DENIED);
	assert_string_equal(err.text, "cannot write least: it is open read-only");
	assert_fails(block_write(b, "", 0, 0, 0, &err), ERR_DENIED);
	assert_fails(block_zero(b, 0, 1, 0, &err), ERR_DENIED);
	assert_fails(block_trim(b, 0, 1, 0, &err), ERR_DENIED);
	assert_ok(block_flush(b, &err));
	assert_int_equal(l->nr_flushes, 0);
	block_close(b, NULL);
}

static void test_what_a_driver_lacks(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct least *l = least_open();
	struct block *b = &l->block;
	/* FUA becomes a flush behind the write. */
	assert_ok(block_write(b, "xyz", 3, 10, BLOCK_FUA, &err));
	assert_int_equal(l->nr_flushes, 1);
	assert_int_equal(l->last_flags, 0);
	assert_ok(block_zero(b, 11, 1, BLOCK_FUA | BLOCK_NO_HOLE, &err));
	assert_int_equal(l->nr_flushes, 2);
	assert_memory_equal(l->bytes + 9, "\xaax\0z\xaa", 5);
	assert_fails(block_zero(b, 0, 1, BLOCK_FAST_ZERO, &err), ERR_UNSUPPORTED);
	/* Trim without the driver's help does nothing, extents are all data. */
	assert_ok(block_trim(b, 10, 1, 0, &err));
	assert_int_equal(l->bytes[10], 'x');
	struct block_extent e;
	size_t nr;
	assert_ok(block_extents(b, 5, 100, &e, 1, &nr, &err));
	assert_int_equal(nr, 1);
	assert_int_equal(e.length, 100);
	assert_int_equal(e.flags, 0);
	assert_int_equal(block_stored_bytes(b), 0);
	/* No flush behind a write that failed. */
	l->failing = true;
	assert_fails(block_write(b, "x", 1, 0, BLOCK_FUA, &err), ERR_IO);
	assert_int_equal(l->nr_flushes, 2);
	block_close(b, NULL);
}

static void test_driver_with_fua_gets_it(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct least *l = least_open();
	l->block.info.can_fua = true;
	assert_ok(block_write(&l->block, "x", 1, 0, BLOCK_FUA, &err));
	assert_int_equal(l->last_flags, BLOCK_FUA);
	assert_ok(block_zero(&l->block, 0, DISK_BYTES, BLOCK_FUA, &err));
	assert_int_equal(l->last_flags, BLOCK_FUA);
	assert_int_equal(l->nr_flushes, 0);
	block_close(&l->block, NULL);
}

static void test_lane(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct least *l = least_open();
	struct block_lane *lane = block_lane_open(&l->block, NULL, &err);
	assert_non_null(lane);
	assert_null(block_lane_reap(lane));
	assert_int_equal(block_lane_pollfd(lane).fd, -1);
	char in[] = "hello", out[5];
	struct block_io ios[] = {
		{.op = BLOCK_OP_WRITE, .offset = 100, .length = 5, .buffer = in},
		{.op = BLOCK_OP_ZERO, .offset = 101, .length = 1},
		{.op = BLOCK_OP_READ, .offset = 100, .length = 5, .buffer = out},
		{.op = BLOCK_OP_READ, .offset = DISK_BYTES, .length = 5, .buffer = out},
		{.op = BLOCK_OP_TRIM, .offset = 0, .length = 0},
		{.op = BLOCK_OP_FLUSH},
		{.op = BLOCK_OP_WRITE, .offset = 0, .length = UINT64_MAX, .buffer = in},
	};
	const enum err_code codes[] = {
		ERR_NONE, ERR_NONE, ERR_NONE, ERR_RANGE, ERR_NONE, ERR_NONE, ERR_RANGE};
	for (size_t i = 0; i < ARRAY_LENGTH(ios); i++) {
		ios[i].err.code = ERR_CORRUPT; /* what was there before is forgotten */
		block_lane_submit(lane, &ios[i]);
	}
	assert_int_equal(block_lane_in_flight(lane), ARRAY_LENGTH(ios));
	for (size_t i = 0; i < ARRAY_LENGTH(ios); i++) {
		assert_ptr_equal(block_lane_reap(lane), &ios[i]);
		assert_int_equal(ios[i].err.code, codes[i]);
	}
	assert_null(block_lane_reap(lane));
	assert_int_equal(block_lane_in_flight(lane), 0);
	assert_memory_equal(out, "h\0llo", 5);
	assert_int_equal(l->nr_flushes, 1);
	assert_int_equal(block_lane_losses(lane), 0);
	block_lane_dispatch(lane, 0);
	assert_false(deadline_passed(block_lane_wake(lane)));
	/* Unreaped requests are forgotten. */
	block_lane_submit(lane, &ios[0]);
	block_lane_close(lane);
	block_lane_close(NULL);
	block_close(&l->block, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_read_only),
		cmocka_unit_test(test_what_a_driver_lacks),
		cmocka_unit_test(test_driver_with_fua_gets_it),
		cmocka_unit_test(test_lane),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
