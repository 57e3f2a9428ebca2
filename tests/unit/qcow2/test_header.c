/* The format's small arithmetic: refcounts of all widths, compressed descriptors. */
#include "test_support.h"

#include "qcow2_internal.h"

static void refcounts_of_all_widths(void **state)
{
	(void)state;
	uint8_t block[512];
	for (unsigned order = 0; order <= 6; order++) {
		unsigned bits = 1u << order;
		uint64_t most = bits == 64 ? UINT64_MAX : ((uint64_t)1 << bits) - 1;
		size_t nr = sizeof block * 8 / bits;
		memset(block, 0xa5, sizeof block);
		for (size_t i = 0; i < nr; i++)
			qcow2_refcount_set(block, i, order, (i * 0x9e3779b97f4a7c15ull) & most);
		for (size_t i = 0; i < nr; i++)
			assert_true(qcow2_refcount_get(block, i, order) ==
				    ((i * 0x9e3779b97f4a7c15ull) & most));
	}
	/* Bit 0 is the least significant one; wider ones are big-endian. */
	memset(block, 0, sizeof block);
	qcow2_refcount_set(block, 9, 0, 1);
	assert_int_equal(block[1], 2);
	qcow2_refcount_set(block, 3, 2, 7);
	assert_int_equal(block[1], 0x72);
	qcow2_refcount_set(block, 1, 4, 0x1234);
	assert_int_equal(block[2], 0x12);
}

static void compressed_descriptors(void **state)
{
	(void)state;
	for (unsigned bits = 9; bits <= 21; bits++) {
		struct qcow2_header h = {.cluster_bits = bits};
		unsigned x = 62 - (bits - 8);
		uint64_t offset, length;
		qcow2_compressed_range(&h, QCOW2_COMPRESSED | 1000, &offset, &length);
		assert_int_equal(offset, 1000);
		assert_int_equal(length, 24); /* to the end of its sector */
		qcow2_compressed_range(
			&h, QCOW2_COMPRESSED | (uint64_t)1 << x | 1024, &offset, &length);
		assert_int_equal(offset, 1024);
		assert_int_equal(length, 1024);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refcounts_of_all_widths),
		cmocka_unit_test(compressed_descriptors),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
