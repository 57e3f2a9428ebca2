/* What an image holds itself, beside what shows through from beneath. */
#include "test_support.h"

#define SIZE (8 * MIB)

static struct block *open_disk(struct qcow2_open_options options)
{
	struct err err = ERR_INIT;
	struct block *disk = qcow2_open(test_path("disk"), &options, &err);
	if (!disk)
		fail_msg("%s", err.text);
	return disk;
}

/* A disk over a base that is full of data. */
static void make_chain(void)
{
	struct err err = ERR_INIT;
	struct qcow2_create_options options = {.size_bytes = SIZE};
	uint8_t *AUTO_FREE bytes = malloc(SIZE);
	memset(bytes, 'b', SIZE);
	assert_ok(qcow2_create(test_path("base"), &options, &err));
	struct block *base = qcow2_open(test_path("base"), &(struct qcow2_open_options){0}, &err);
	assert_non_null(base);
	assert_ok(block_write(base, bytes, SIZE, 0, 0, &err));
	assert_ok(block_close(base, &err));
	options.backing_file = "base";
	options.backing_format = "qcow2";
	assert_ok(qcow2_create(test_path("disk"), &options, &err));
}

static void assert_extents(struct block *disk, const struct block_extent *expected, size_t nr)
{
	struct err err = ERR_INIT;
	struct block_extent found[8];
	size_t nr_found;
	assert_ok(block_extents(disk, 0, SIZE, found, ARRAY_LENGTH(found), &nr_found, &err));
	assert_int_equal(nr_found, nr);
	for (size_t i = 0; i < nr; i++) {
		assert_int_equal(found[i].length, expected[i].length);
		assert_int_equal(found[i].flags, expected[i].flags);
	}
}

static void tells_of_its_own_layer(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	uint8_t bytes[4096];
	const uint32_t unchanged = BLOCK_HOLE | BLOCK_UNCHANGED;
	const struct block_extent own[] = {
		{MIB, unchanged},
		{65536, 0},
		{MIB - 65536, unchanged},
		{128 * KIB, BLOCK_HOLE | BLOCK_ZERO},
		{64 * KIB, BLOCK_ZERO},
		{6 * MIB - 192 * KIB, unchanged},
	};
	const struct block_extent all[] = {
		{2 * MIB, 0},
		{128 * KIB, BLOCK_HOLE | BLOCK_ZERO},
		{64 * KIB, BLOCK_ZERO},
		{6 * MIB - 192 * KIB, 0},
	};
	make_chain();
	struct block *disk = open_disk((struct qcow2_open_options){0});
	assert_ok(block_write(disk, "data", 4, MIB + 5000, 0, &err));
	assert_ok(block_zero(disk, 2 * MIB, 128 * KIB, 0, &err));
	assert_ok(block_zero(disk, 2 * MIB + 128 * KIB, 64 * KIB, BLOCK_NO_HOLE, &err));
	assert_ok(block_close(disk, &err));

	disk = open_disk((struct qcow2_open_options){.read_only = true, .own_layer = true});
	assert_true(block_info(disk)->has_changes);
	assert_extents(disk, own, ARRAY_LENGTH(own));
	/* Reads go through the chain all the same. */
	assert_ok(block_read(disk, bytes, sizeof bytes, 0, &err));
	assert_int_equal(bytes[0], 'b');
	assert_ok(block_close(disk, &err));

	disk = open_disk((struct qcow2_open_options){.read_only = true});
	assert_false(block_info(disk)->has_changes);
	assert_extents(disk, all, ARRAY_LENGTH(all));
	assert_ok(block_close(disk, &err));
}

static void assert_own(struct block *disk, uint64_t offset, uint64_t length, bool held)
{
	struct err err = ERR_INIT;
	uint64_t nr_alike = 0;
	bool is_held = !held;
	assert_ok(qcow2_own_run(disk, offset, SIZE - offset, &nr_alike, &is_held, &err));
	assert_int_equal(nr_alike, length);
	assert_int_equal(is_held, held);
}

static void knows_what_it_holds_while_it_is_written(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	make_chain();
	struct block *disk = open_disk((struct qcow2_open_options){.compress = true});
	assert_own(disk, 0, SIZE, false);
	/* Waits in the assembly buffer for the rest of its cluster. */
	assert_ok(block_write(disk, "data", 4, MIB + 5000, 0, &err));
	assert_own(disk, 5, MIB - 5, false);
	assert_own(disk, MIB, 65536, true);
	assert_ok(block_zero(disk, MIB + 65536, 65536, 0, &err));
	assert_own(disk, MIB + 1, 131071, true);
	assert_ok(block_flush(disk, &err));
	assert_own(disk, MIB, 131072, true);
	assert_own(disk, MIB + 131072, 7 * MIB - 131072, false);
	assert_ok(block_close(disk, &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		test_in_folder(tells_of_its_own_layer),
		test_in_folder(knows_what_it_holds_while_it_is_written),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
