/* The null disk, at sizes where sums would run over. */
#include "test_support.h"

static void test_reads_zeros(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	const uint64_t sizes[] = {1, 512, 64 * TIB, INT64_MAX, UINT64_MAX};
	for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++) {
		struct block *b = block_null_open(sizes[i], &err);
		assert_non_null(b);
		assert_true(block_info(b)->size_bytes == sizes[i]);
		uint8_t byte = 5;
		assert_ok(block_write(b, &byte, 1, sizes[i] - 1, BLOCK_FUA, &err));
		assert_ok(block_read(b, &byte, 1, sizes[i] - 1, &err));
		assert_int_equal(byte, 0);
		assert_ok(block_zero(b, 0, sizes[i], BLOCK_FAST_ZERO, &err));
		assert_ok(block_trim(b, 0, sizes[i], 0, &err));
		assert_ok(block_flush(b, &err));
		struct block_extent e[2];
		size_t nr;
		assert_ok(block_extents(b, 0, sizes[i], e, 2, &nr, &err));
		assert_int_equal(nr, 1);
		assert_true(e[0].length == sizes[i]);
		assert_int_equal(e[0].flags, BLOCK_HOLE | BLOCK_ZERO);
		assert_fails(block_read(b, &byte, 1, sizes[i], &err), ERR_RANGE);
		assert_ok(block_close(b, &err));
	}
}

static void test_empty(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *b = block_null_open(0, &err);
	uint8_t byte;
	assert_string_equal(block_label(b), "null:0");
	assert_ok(block_read(b, &byte, 0, 0, &err));
	assert_fails(block_read(b, &byte, 1, 0, &err), ERR_RANGE);
	block_close(b, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads_zeros),
		cmocka_unit_test(test_empty),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
