/* What the tests of repository share: a scratch folder, and messages for the table
 * of bad inputs that ./run test prints. */
#ifndef SENDENSE_TEST_SUPPORT_H
#define SENDENSE_TEST_SUPPORT_H

#include "repository_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
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

static inline struct repository *support_repository(const char *path)
{
	struct repository_settings settings;
	struct err err = ERR_INIT;
	repository_settings_default(&settings);
	SUPPORT_OK(repository_init(path, &settings, &err), err);
	struct repository *repo = repository_open(path, REPOSITORY_WRITE, &err);
	if (!repo)
		fail_msg("%s", err.text);
	return repo;
}

static inline void support_write(const char *path, const void *bytes, size_t length)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, length), (ssize_t)length);
	close(fd);
}

#endif
