/* What the tests of catalogue share. */
#ifndef SENDENSE_TEST_SUPPORT_H
#define SENDENSE_TEST_SUPPORT_H

#include "../scratch.h"

#include "index_internal.h"
#include "state_internal.h"

#include <sys/wait.h>

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
