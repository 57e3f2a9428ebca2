/* Who bears whom with an image file, beside the table in filelock.c. */
#include "test_support.h"

#include "filelock.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static char path[] = "/tmp/test_filelock.XXXXXX";

static int make_file(void **state)
{
	(void)state;
	int fd = mkstemp(path);
	return fd < 0 ? -1 : close(fd);
}

static int drop_file(void **state)
{
	(void)state;
	return unlink(path);
}

static int take(enum filelock_kind kind, bool *taken)
{
	struct err err = ERR_INIT;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	*taken = filelock_take(fd, path, kind, &err) == 0;
	assert_int_equal(err.code, *taken ? ERR_NONE : ERR_BUSY);
	return fd;
}

static void who_bears_whom(void **state)
{
	(void)state;
	const enum filelock_kind kinds[] = {
		FILELOCK_READ, FILELOCK_WRITE, FILELOCK_READ_MERGED, FILELOCK_MERGE};
	const bool bears[4][4] = {
		{true, false, true, false},
		{false, false, false, false},
		{true, false, true, true},
		{false, false, true, false},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++)
		for (size_t k = 0; k < ARRAY_LENGTH(kinds); k++) {
			bool first, second;
			int a = take(kinds[i], &first), b = take(kinds[k], &second);
			assert_true(first);
			if (second != bears[i][k])
				fail_msg("kind %zu, and then %zu: %d", i, k, second);
			close(a);
			close(b);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(who_bears_whom, make_file, drop_file),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
