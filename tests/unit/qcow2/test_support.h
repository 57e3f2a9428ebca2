/* What cmocka's header wants before it, the room under test, a folder for scratch. */
#ifndef TEST_SUPPORT_H
#define TEST_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "qcow2.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char test_folder[64];

/* A path in the test's folder; valid until the next call but three. */
static inline const char *test_path(const char *name)
{
	static char paths[4][128];
	static unsigned turn;
	turn = (turn + 1) % 4;
	snprintf(paths[turn], sizeof paths[turn], "%s/%s", test_folder, name);
	return paths[turn];
}

static inline int test_make_folder(void **state)
{
	(void)state;
	strcpy(test_folder, "/tmp/test_qcow2.XXXXXX");
	return mkdtemp(test_folder) ? 0 : -1;
}

/* The tests make these files and no others. */
static inline int test_drop_folder(void **state)
{
	(void)state;
	unlink(test_path("disk"));
	unlink(test_path("base"));
	return rmdir(test_folder);
}

#define assert_ok(call)                                      \
	do {                                                 \
		err_clear(&err);                             \
		if ((call) != 0)                             \
			fail_msg("%s: %s", #call, err.text); \
	} while (0)

#define assert_fails(call, expected)                  \
	do {                                          \
		err_clear(&err);                      \
		assert_int_equal(call, -1);           \
		assert_int_equal(err.code, expected); \
		assert_true(strlen(err.text) > 10);   \
	} while (0)

#define test_in_folder(name) \
	cmocka_unit_test_setup_teardown(name, test_make_folder, test_drop_folder)

#endif
