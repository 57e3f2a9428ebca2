/* What cmocka's header wants before it, the room under test, a folder for scratch. */
#ifndef TEST_SUPPORT_H
#define TEST_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "block.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char test_folder[64];

/* A path in the test's folder; valid until the next call but one. */
static inline const char *test_path(const char *name)
{
	static char paths[2][128];
	static unsigned turn;
	turn = !turn;
	snprintf(paths[turn], sizeof paths[turn], "%s/%s", test_folder, name);
	return paths[turn];
}

static inline int test_make_folder(void **state)
{
	(void)state;
	strcpy(test_folder, "/tmp/test_block.XXXXXX");
	return mkdtemp(test_folder) ? 0 : -1;
}

/* The tests make these files and no others. */
static inline int test_drop_folder(void **state)
{
	(void)state;
	unlink(test_path("disk"));
	unlink(test_path("other"));
	return rmdir(test_folder);
}

/* Counts and checks, so that a failure names the error's own words. */
#define assert_ok(call)                                      \
	do {                                                 \
		err_clear(&err);                             \
		if ((call) != 0)                             \
			fail_msg("%s: %s", #call, err.text); \
	} while (0)

#define assert_fails(call, wanted)                                                         \
	do {                                                                               \
		err_clear(&err);                                                           \
		if ((call) == 0)                                                           \
			fail_msg("%s succeeded", #call);                                   \
		if (err.code != (wanted))                                                  \
			fail_msg("%s: %s (%s)", #call, err_code_name(err.code), err.text); \
	} while (0)

#endif
