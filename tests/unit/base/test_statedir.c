/* Where the state between runs is kept, and how it is made. */
#include "test_support.h"

#include "statedir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void forget(void)
{
	unsetenv("SENDENSE_STATE_DIR");
	unsetenv("XDG_STATE_HOME");
	unsetenv("HOME");
}

static const char *found(const char *given)
{
	static char path[STATEDIR_BYTES];
	struct err err = ERR_INIT;
	return statedir_find(given, "what", path, &err) == 0 ? path : NULL;
}

static void test_found(void **state)
{
	(void)state;
	forget();
	setenv("SENDENSE_STATE_DIR", "/env", 1);
	assert_string_equal(found("given"), "given");
	assert_string_equal(found(NULL), "/env");
	setenv("SENDENSE_STATE_DIR", "", 1);
	setenv("HOME", "/home/a", 1);
	if (geteuid() == 0) {
		assert_string_equal(found(NULL), "/var/lib/sendense/what");
		return;
	}
	assert_string_equal(found(NULL), "/home/a/.local/state/sendense/what");
	setenv("XDG_STATE_HOME", "no path", 1);
	assert_string_equal(found(NULL), "/home/a/.local/state/sendense/what");
	setenv("XDG_STATE_HOME", "/state", 1);
	assert_string_equal(found(NULL), "/state/sendense/what");
	forget();
	assert_null(found(NULL));
}

static void test_too_long(void **state)
{
	char longer[STATEDIR_BYTES + 1], path[STATEDIR_BYTES];
	struct err err = ERR_INIT;
	(void)state;
	memset(longer, 'a', STATEDIR_BYTES);
	longer[STATEDIR_BYTES] = '\0';
	assert_int_equal(statedir_find(longer, "what", path, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	longer[STATEDIR_BYTES - 1] = '\0';
	assert_int_equal(statedir_find(longer, "what", path, &err), 0);
}

static void test_made(void **state)
{
	char folder[] = "/tmp/statedir-XXXXXX", path[64];
	struct err err = ERR_INIT;
	struct stat st;
	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof path, "%s/a/b", folder);
	assert_int_equal(statedir_make(path, &err), 0);
	assert_int_equal(statedir_make(path, &err), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	assert_int_equal(rmdir(path), 0);
	*strrchr(path, '/') = '\0';
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(rmdir(folder), 0);
	assert_int_equal(statedir_make("/proc/no/such", &err), -1);
	assert_non_null(strstr(err.text, "the state folder /proc/no/such"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_found),
		cmocka_unit_test(test_too_long),
		cmocka_unit_test(test_made),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
