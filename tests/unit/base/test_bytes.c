/* Integers in both byte orders, checked arithmetic, the bounded cursor, bitmaps. */
#include "test_support.h"

static void test_big_endian(void **state)
{
	(void)state;
	uint8_t b[9];
	/* At an odd address: no alignment is assumed. */
	be16_put(b + 1, 0x0102);
	assert_int_equal(b[1], 1);
	assert_int_equal(be16_get(b + 1), 0x0102);
	be32_put(b + 1, 0x01020304);
	assert_int_equal(b[4], 4);
	assert_int_equal(be32_get(b + 1), 0x01020304);
	be64_put(b + 1, 0x0102030405060708);
	assert_int_equal(b[1], 1);
	assert_int_equal(b[8], 8);
	assert_true(be64_get(b + 1) == 0x0102030405060708);
}

static void test_rounding(void **state)
{
	(void)state;
	assert_true(div_round_up(0, 7) == 0);
	assert_true(div_round_up(1, 7) == 1);
	assert_true(div_round_up(14, 7) == 2);
	assert_true(div_round_up(UINT64_MAX, 1) == UINT64_MAX);
	assert_true(div_round_up(UINT64_MAX, 65536) == (uint64_t)1 << 48);
	assert_true(round_down(65537, 65536) == 65536);
	assert_true(round_up(65537, 65536) == 131072);
	assert_true(round_up(0, 65536) == 0);
	assert_true(round_up(300, 100) == 300);
}

static void test_ranges(void **state)
{
	(void)state;
	assert_true(range_fits(0, 0, 0));
	assert_true(range_fits(10, 0, 10));
	assert_true(range_fits(4, 6, 10));
	assert_false(range_fits(4, 7, 10));
	assert_false(range_fits(11, 0, 10));
	assert_false(range_fits(UINT64_MAX, 2, UINT64_MAX));
	assert_false(range_fits(2, UINT64_MAX, 10));
	uint64_t r;
	assert_true(add_u64(1, 2, &r) && r == 3);
	assert_false(add_u64(UINT64_MAX, 1, &r));
	assert_true(mul_u64(1u << 31, 2, &r) && r == (uint64_t)1 << 32);
	assert_false(mul_u64((uint64_t)1 << 32, (uint64_t)1 << 32, &r));
}

static void test_cursor(void **state)
{
	(void)state;
	const uint8_t bytes[] = {1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 9};
	struct cursor c = cursor_over(bytes, sizeof bytes);
	assert_int_equal(cursor_u8(&c), 1);
	assert_int_equal(cursor_be16(&c), 2);
	assert_int_equal(cursor_be32(&c), 3);
	assert_true(cursor_be64(&c) == 4);
	assert_int_equal(cursor_left(&c), 1);
	assert_true(cursor_ok(&c));
	/* Past the end: zeros, and bad for good though one byte is left. */
	assert_int_equal(cursor_be16(&c), 0);
	assert_false(cursor_ok(&c));
	assert_int_equal(cursor_u8(&c), 0);
	assert_int_equal(cursor_left(&c), 0);
	assert_null(cursor_take(&c, 0));
	c = cursor_over(bytes, 4);
	assert_null(cursor_take(&c, SIZE_MAX));
	assert_false(cursor_ok(&c));
	c = cursor_over(bytes, 0);
	assert_int_equal(cursor_u8(&c), 0);
	assert_false(cursor_ok(&c));
}

static void test_bitmap(void **state)
{
	(void)state;
	uint64_t words[BITMAP_WORDS(130)] = {0};
	assert_int_equal(ARRAY_LENGTH(words), 3);
	for (size_t bit = 0; bit < 130; bit += 3)
		bitmap_set(words, bit);
	for (size_t bit = 0; bit < 130; bit++)
		assert_int_equal(bitmap_test(words, bit), bit % 3 == 0);
	bitmap_clear(words, 63);
	bitmap_clear(words, 64);
	assert_false(bitmap_test(words, 63));
	assert_true(bitmap_test(words, 66));
}

static void test_hex_pair(void **state)
{
	(void)state;
	assert_int_equal(hex_pair("00"), 0);
	assert_int_equal(hex_pair("a5"), 0xa5);
	assert_int_equal(hex_pair("fF0"), 0xff);
	static const char *const bad[] = {"", "1", "g0", "0g", " 1", "1 ", "0x"};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
		assert_int_equal(hex_pair(bad[i]), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_big_endian),
		cmocka_unit_test(test_rounding),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_cursor),
		cmocka_unit_test(test_bitmap),
		cmocka_unit_test(test_hex_pair),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
