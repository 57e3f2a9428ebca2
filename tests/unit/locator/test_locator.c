/* Opening disks and making targets by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "locator.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

struct place {
	char folder[32];
	char raw[64], image[64];
};

static int set_up(void **state)
{
	static struct place place;
	snprintf(place.folder, sizeof place.folder, "/tmp/locator-XXXXXX");
	if (!mkdtemp(place.folder))
		return -1;
	snprintf(place.raw, sizeof place.raw, "raw:%s/disk", place.folder);
	snprintf(place.image, sizeof place.image, "qcow2:%s/image", place.folder);
	*state = &place;
	return 0;
}

static int tear_down(void **state)
{
	struct place *place = *state;
	unlink(locator_path(place->raw));
	unlink(locator_path(place->image));
	return rmdir(place->folder);
}

static void made_and_discarded(void **state)
{
	struct place *place = *state;
	const char *names[] = {place->raw, place->image};
	for (size_t i = 0; i < 2; i++) {
		struct locator_create_options options = {.size_bytes = MIB};
		struct err err = ERR_INIT;
		bool created;
		struct block *block = locator_create(names[i], &options, &created, &err);
		assert_non_null(block);
		assert_true(created);
		assert_int_equal(block_info(block)->size_bytes, MIB);
		assert_true(block_info(block)->starts_zero);
		assert_int_equal(block_write(block, "data", 4, 4096, 0, &err), 0);
		assert_int_equal(block_close(block, &err), 0);
		assert_int_equal(locator_settle(names[i], &err), 0);

		/* It is there now. */
		assert_null(locator_create(names[i], &options, &created, &err));
		assert_int_equal(err.code, ERR_EXISTS);
		assert_false(created);

		struct locator_options reading = {.read_only = true};
		char bytes[4];
		block = locator_open(names[i], &reading, &err);
		assert_non_null(block);
		assert_int_equal(block_read(block, bytes, 4, 4096, &err), 0);
		assert_memory_equal(bytes, "data", 4);

		/* While it is open here, it is not replaced. */
		options.replace = true;
		assert_null(locator_create(names[i], &options, &created, &err));
		assert_int_equal(err.code, ERR_BUSY);
		assert_int_equal(block_close(block, &err), 0);

		block = locator_create(names[i], &options, &created, &err);
		assert_non_null(block);
		assert_true(created);
		assert_int_equal(block_read(block, bytes, 4, 4096, &err), 0);
		assert_memory_equal(bytes, "\0\0\0\0", 4);
		assert_int_equal(block_close(block, &err), 0);
		locator_discard(names[i]);
		assert_int_equal(access(locator_path(names[i]), F_OK), -1);
	}
}

static void sizes_must_agree(void **state)
{
	(void)state;
	struct locator_create_options options = {.size_bytes = MIB};
	struct err err = ERR_INIT;
	bool created;
	struct block *block = locator_create("null:1M", &options, &created, &err);
	assert_non_null(block);
	assert_false(created);
	assert_int_equal(block_close(block, &err), 0);
	assert_null(locator_create("null:2M", &options, &created, &err));
	assert_int_equal(err.code, ERR_RANGE);
	assert_non_null(strstr(err.text, "2097152"));
	assert_non_null(strstr(err.text, "1048576"));
}

static void other_files_are_let_be(void **state)
{
	struct place *place = *state;
	struct locator_create_options options = {.size_bytes = MIB, .replace = true};
	struct err err = ERR_INIT;
	bool created;
	assert_null(locator_create("raw:/dev/null", &options, &created, &err));
	assert_int_equal(err.code, ERR_FORMAT);
	char name[64];
	snprintf(name, sizeof name, "raw:%s", place->folder);
	assert_null(locator_create(name, &options, &created, &err));
	assert_int_equal(err.code, ERR_FORMAT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(made_and_discarded, set_up, tear_down),
		cmocka_unit_test(sizes_must_agree),
		cmocka_unit_test_setup_teardown(other_files_are_let_be, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
