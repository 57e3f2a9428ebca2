/* Copies of a hub's state: the newest three, whole whenever a writer ends. */
#include "test_support.h"

#include <signal.h>
#include <sys/file.h>

#define FOLDER "r/hub/main/"

static void store(struct repository *repo, const char *text)
{
	struct err err = ERR_INIT;
	int fd = open("copy", O_RDWR | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	SUPPORT_OK(repository_hub_state_store(repo, "main", fd, &err), err);
	close(fd);
}

static void expect(const char *path, const char *text)
{
	char *bytes;
	size_t length;
	struct err err = ERR_INIT;
	if (!text) {
		assert_int_equal(access(path, F_OK), -1);
		return;
	}
	SUPPORT_OK(file_load(AT_FDCWD, path, 1 << 20, &bytes, &length, &err), err);
	assert_string_equal(bytes, text);
	free(bytes);
}

static void test_newest_three(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct stat st;
	store(repo, "one");
	expect(FOLDER "state.db", "one");
	expect(FOLDER "state.db.1", NULL);
	store(repo, "two");
	store(repo, "three");
	store(repo, "4");
	expect(FOLDER "state.db", "4");
	expect(FOLDER "state.db.1", "three");
	expect(FOLDER "state.db.2", "two");
	expect(FOLDER "state.db.part", NULL);
	assert_int_equal(stat(FOLDER "state.db", &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	/* One that was killed when it had written a part, and one when it had made room. */
	assert_int_equal(rename("copy", FOLDER "state.db.part"), 0);
	store(repo, "five");
	expect(FOLDER "state.db.1", "4");
	assert_int_equal(unlink(FOLDER "state.db.1"), 0);
	assert_int_equal(link(FOLDER "state.db", FOLDER "state.db.1"), 0);
	store(repo, "six");
	expect(FOLDER "state.db", "six");
	expect(FOLDER "state.db.1", "five");
	expect(FOLDER "state.db.2", "three");
	store(repo, "seven");
	expect(FOLDER "state.db.1", "six");
	expect(FOLDER "state.db.2", "five");
	repository_close(repo);
}

static void test_refused(void **state)
{
	(void)state;
	static const char *const names[] = {"", ".", "..", ".a", "a/b", "a b", "../x",
		"01234567890123456789012345678901234567890123456789012345678901234"};
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	int fd = open("/dev/null", O_RDONLY);
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
		assert_int_equal(repository_hub_state_store(repo, names[i], fd, &err), -1);
		support_expect(&err, ERR_USAGE, "a hub's name");
	}
	/* Somebody else is at it. */
	store(repo, "one");
	int part = open(FOLDER "state.db.part", O_RDWR | O_CREAT, 0600);
	assert_true(part >= 0);
	assert_int_equal(flock(part, LOCK_EX), 0);
	assert_int_equal(repository_hub_state_store(repo, "main", fd, &err), -1);
	support_bad_input("two hubs of one name", &err);
	support_expect(&err, ERR_BUSY, "two hubs must not have the same name");
	close(part);
	close(fd);
	store(repo, "two");
	expect(FOLDER "state.db", "two");
	repository_close(repo);
}

static void test_killed(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	store(repo, "first");
	for (unsigned round = 0; round < 10; round++) {
		int ends[2], status;
		char byte;
		assert_int_equal(pipe(ends), 0);
		pid_t pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) {
			int fd = open("copy", O_RDONLY);
			while (repository_hub_state_store(repo, "main", fd, NULL) == 0 &&
				write(ends[1], "", 1) == 1)
				;
			_exit(1);
		}
		close(ends[1]);
		for (unsigned i = 0; i <= round; i++)
			assert_int_equal(read(ends[0], &byte, 1), 1);
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		close(ends[0]);
		expect(FOLDER "state.db", "first");
	}
	store(repo, "last");
	expect(FOLDER "state.db", "last");
	expect(FOLDER "state.db.1", "first");
	repository_close(repo);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_newest_three),
		SUPPORT_TEST(test_refused),
		SUPPORT_TEST(test_killed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
