/* What the tests of catalogue share: a scratch folder, and messages for the table of bad
 * inputs that ./run test prints. */
#ifndef SENDENSE_TEST_SUPPORT_H
#define SENDENSE_TEST_SUPPORT_H

#include "index_internal.h"
#include "state_internal.h"

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

/* An error of that code whose text holds the words; cleared for the next. */
static inline void support_expect(struct err *err, enum err_code code, const char *words)
{
	if (err->code != code || !strstr(err->text, words))
		fail_msg("expected %s with \"%s\", got %s: %s", err_code_name(code), words,
			err_code_name(err->code), err->text);
	err_clear(err);
}

#define SUPPORT_OK(call, err)                                  \
	do {                                                   \
		if ((call) != 0)                               \
			fail_msg("%s: %s", #call, (err).text); \
	} while (0)

static inline struct state *support_state(const char *path)
{
	struct err err = ERR_INIT;
	struct state *state = state_open(path, &err);
	if (!state)
		fail_msg("%s", err.text);
	return state;
}

/* One column of the first row that the sqlite3 command prints: another program's view. */
static inline void support_sqlite(const char *path, const char *sql, const char *expected)
{
	char command[1024], answer[1024] = "";
	snprintf(command, sizeof command, "sqlite3 -readonly '%s' \"%s\"", path, sql);
	FILE *pipe = popen(command, "r"); // NOLINT(cert-env33-c): a test's own words
	assert_non_null(pipe);
	if (!fgets(answer, sizeof answer, pipe))
		answer[0] = '\0';
	assert_int_equal(pclose(pipe), 0);
	answer[strcspn(answer, "\n")] = '\0';
	assert_string_equal(answer, expected);
}

#endif
