/* Whole reads and writes, durable replacement, bounded loading. */
#include "test_support.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];
static int folder_fd;

static int make_folder(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/test_file.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return folder_fd < 0 ? -1 : 0;
}

static int drop_folder(void **state)
{
	(void)state;
	static const char *const names[] = {"a", "a.new", "b", "pipe", "sub/a", "sub/a.new"};
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		unlinkat(folder_fd, names[i], 0);
	unlinkat(folder_fd, "sub", AT_REMOVEDIR);
	unlinkat(folder_fd, "a", AT_REMOVEDIR);
	close(folder_fd);
	return rmdir(folder);
}

static void expect_content(const char *name, const char *content)
{
	char *AUTO_FREE bytes = NULL;
	size_t length = 0;
	struct err err = ERR_INIT;
	assert_int_equal(file_load(folder_fd, name, 1000, &bytes, &length, &err), 0);
	assert_int_equal(length, strlen(content));
	/* One zero byte follows: text can be used as it is. */
	assert_string_equal(bytes, content);
}

static void test_pread_pwrite(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	char buffer[8] = {0};
	int AUTO_CLOSE fd = openat(folder_fd, "a", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(file_pwrite(fd, "world", 5, 6, "a", &err), 0);
	assert_int_equal(file_pwrite(fd, "hello ", 6, 0, "a", &err), 0);
	assert_int_equal(file_pread(fd, buffer, 7, 2, "a", &err), 0);
	assert_string_equal(buffer, "llo wor");
	assert_int_equal(file_pread(fd, buffer, 8, 8, "the disk", &err), -1);
	assert_int_equal(err.code, ERR_IO);
	assert_string_equal(err.text,
		"the disk ends at offset 11, 5 bytes before the end of what was to be read");
	assert_int_equal(file_pread(fd, buffer, 0, 1000, "a", &err), 0);
	assert_int_equal(file_pread(folder_fd, buffer, 1, 0, "the folder", &err), -1);
	assert_int_equal(err.sys_errno, EISDIR);
	int AUTO_CLOSE read_only = openat(folder_fd, "a", O_RDONLY | O_CLOEXEC);
	assert_int_equal(file_pwrite(read_only, "x", 1, 0, "a", &err), -1);
	assert_string_equal(err.text, "cannot write 1 bytes at offset 0 of a: Bad file descriptor");
}

static void test_replace(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_int_equal(file_replace(folder_fd, "a", "one", 3, 0640, &err), 0);
	expect_content("a", "one");
	struct stat st;
	assert_int_equal(fstatat(folder_fd, "a", &st, 0), 0);
	assert_int_equal(st.st_mode & 0137, 0);
	/* A left-over of a crash is in nobody's way. */
	assert_int_equal(
		file_replace(folder_fd, "a.new", "left over, and longer", 21, 0600, &err), 0);
	assert_int_equal(file_replace(folder_fd, "a", "two", 3, 0600, &err), 0);
	expect_content("a", "two");
	assert_int_equal(faccessat(folder_fd, "a.new", F_OK, 0), -1);
	assert_int_equal(file_replace(folder_fd, "a", "", 0, 0600, &err), 0);
	expect_content("a", "");
	/* By absolute path, and below a folder. */
	assert_int_equal(file_make_dir(folder_fd, "sub", 0700, &err), 0);
	assert_int_equal(file_make_dir(folder_fd, "sub", 0700, &err), 0);
	assert_int_equal(file_replace(folder_fd, "sub/a", "x", 1, 0600, &err), 0);
	char path[128];
	snprintf(path, sizeof path, "%s/sub/a", folder);
	assert_int_equal(file_replace(AT_FDCWD, path, "three", 5, 0600, &err), 0);
	expect_content("sub/a", "three");
}

static void test_replace_fails_whole(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_int_equal(file_replace(folder_fd, "none/a", "x", 1, 0600, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	/* The name is taken by a folder: nothing is left beside it. */
	assert_int_equal(file_make_dir(folder_fd, "a", 0700, &err), 0);
	assert_int_equal(file_replace(folder_fd, "a", "x", 1, 0600, &err), -1);
	assert_string_equal(err.text, "cannot rename a.new to a: Is a directory");
	assert_int_equal(faccessat(folder_fd, "a.new", F_OK, 0), -1);
	/* A link planted at the temporary name is not followed. */
	assert_int_equal(symlinkat("b", folder_fd, "a.new"), 0);
	assert_int_equal(file_replace(folder_fd, "a", "x", 1, 0600, &err), -1);
	assert_int_equal(err.sys_errno, ELOOP);
	assert_int_equal(faccessat(folder_fd, "b", F_OK, 0), -1);
	unlinkat(folder_fd, "a.new", 0);
}

static void test_load_bounds(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	char *bytes = (char *)folder;
	size_t length;
	assert_int_equal(file_load(folder_fd, "none", 10, &bytes, &length, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_null(bytes);
	assert_int_equal(file_replace(folder_fd, "a", "0123456789", 10, 0600, &err), 0);
	assert_int_equal(file_load(folder_fd, "a", 9, &bytes, &length, &err), -1);
	assert_int_equal(err.code, ERR_FORMAT);
	assert_string_equal(err.text, "a has 10 bytes, more than the 9 it may have");
	assert_int_equal(file_load(folder_fd, "a", 10, &bytes, NULL, &err), 0);
	free(bytes);
	/* Neither a FIFO (which must not hang) nor a folder is a file. */
	assert_int_equal(mkfifoat(folder_fd, "pipe", 0600), 0);
	assert_int_equal(file_load(folder_fd, "pipe", 10, &bytes, &length, &err), -1);
	assert_string_equal(err.text, "pipe is not a regular file");
	assert_int_equal(file_load(folder_fd, ".", 10, &bytes, &length, &err), -1);
	assert_int_equal(err.code, ERR_FORMAT);
}

static void test_folders_and_random(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_int_equal(file_sync_dir(folder_fd, ".", &err), 0);
	assert_int_equal(file_sync_dir(AT_FDCWD, folder, &err), 0);
	assert_int_equal(file_sync_dir(folder_fd, "none", &err), -1);
	assert_int_equal(file_make_dir(folder_fd, "none/sub", 0700, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	uint8_t a[1000], b[1000];
	assert_int_equal(file_random(a, sizeof a, &err), 0);
	assert_int_equal(file_random(b, sizeof b, &err), 0);
	assert_memory_not_equal(a, b, sizeof a);
	assert_memory_not_equal(a + 968, b + 968, 32);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_pread_pwrite, make_folder, drop_folder),
		cmocka_unit_test_setup_teardown(test_replace, make_folder, drop_folder),
		cmocka_unit_test_setup_teardown(test_replace_fails_whole, make_folder, drop_folder),
		cmocka_unit_test_setup_teardown(test_load_bounds, make_folder, drop_folder),
		cmocka_unit_test_setup_teardown(test_folders_and_random, make_folder, drop_folder),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
