/* What unit tests of rooms that keep files share: a scratch folder, and messages for the table of
 * bad inputs that ./run test prints. */
#ifndef SENDENSE_TEST_SCRATCH_H
#define SENDENSE_TEST_SCRATCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The current folder of a test is a fresh one, removed behind it. */
static inline int support_setup(void **state)
{
	char *path = strdup("/tmp/sendense-test-XXXXXX");
	if (!path || !mkdtemp(path) || chdir(path) < 0)
		return -1;
	*state = path;
	return 0;
}

static inline int support_remove_one(
	const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

static inline int support_teardown(void **state)
{
	int rc = chdir("/") < 0 ? -1 : nftw(*state, support_remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(*state);
	return rc;
}

#define SUPPORT_TEST(name) cmocka_unit_test_setup_teardown(name, support_setup, support_teardown)

/* A row of the table of bad inputs, when the caller of the tests keeps one. */
static inline void support_bad_input(const char *name, const struct err *err)
{
	const char *table = getenv("SENDENSE_BAD_INPUT_TABLE");
	FILE *file = table ? fopen(table, "a") : NULL;
	if (!file)
		return;
	fprintf(file, "%s\t%s\n", name, err->text);
	fclose(file);
}

static inline void support_expect(const struct err *err, enum err_code code, const char *text)
{
	if (err->code != code || !strstr(err->text, text))
		fail_msg("expected %s with \"%s\", got %s: %s", err_code_name(code), text,
			err_code_name(err->code), err->text);
}

/* Asserts success, showing the error otherwise. */
#define SUPPORT_OK(expression, err)                                  \
	do {                                                         \
		if ((expression) < 0)                                \
			fail_msg("%s: %s", #expression, (err).text); \
	} while (0)

#endif
