/* Whose a folder is, and that one daemon of a kind has it. */
#include "../scratch.h"

#include "folder.h"

static void test_own(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct stat st;
	assert_int_equal(folder_own("none", false, &err), -1);
	support_expect(&err, ERR_NOT_FOUND, "cannot look at none");
	SUPPORT_OK(folder_own("made", true, &err), err);
	SUPPORT_OK(folder_own("made", true, &err), err);
	assert_int_equal(stat("made", &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	assert_int_equal(chmod("made", 0770), 0);
	err_clear(&err);
	assert_int_equal(folder_own("made", true, &err), -1);
	support_expect(&err, ERR_DENIED, "has mode 770: others could change what is in it");
	close(open("file", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	err_clear(&err);
	assert_int_equal(folder_own("file", true, &err), -1);
	support_expect(&err, ERR_USAGE, "file is no folder");
}

static void test_lock(void **state)
{
	struct err err = ERR_INIT;
	char told[128];
	const char *folder = *state;
	int fd = folder_lock(folder, "cat", &err);
	assert_true(fd >= 0);
	assert_int_equal(folder_lock(folder, "cat", &err), -1);
	snprintf(told, sizeof told, "another cat (pid %d) runs on %s", (int)getpid(), folder);
	support_expect(&err, ERR_BUSY, told);
	int other = folder_lock(folder, "dog", &err);
	assert_true(other >= 0);
	close(other);
	close(fd);
	fd = folder_lock(folder, "cat", &err);
	assert_true(fd >= 0);
	close(fd);
	/* Who can put a link there must not have a file of ours written. */
	assert_int_equal(symlink("elsewhere", "mouse.lock"), 0);
	assert_int_equal(folder_lock(folder, "mouse", &err), -1);
	assert_int_equal(access("elsewhere", F_OK), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_own),
		SUPPORT_TEST(test_lock),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
