/* Processes told from each other. */
#include "test_support.h"

#include <poll.h>
#include <signal.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_this_process(void **state)
{
	(void)state;
	struct proc_stat one, two;
	assert_true(proc_stat(getpid(), &one));
	/* The program's name is a field of its own choice. */
	assert_int_equal(prctl(PR_SET_NAME, ") Z 1 2 ("), 0);
	assert_true(proc_stat(getpid(), &two));
	assert_int_equal(one.start, two.start);
	assert_int_equal(two.state, 'R');
	assert_true(one.start > 0);
}

static void test_zombie(void **state)
{
	(void)state;
	struct proc_stat stat;
	siginfo_t info;
	pid_t child = fork();
	if (child == 0)
		_exit(0);
	assert_true(child > 0);
	/* Until it has ended; it is kept. */
	assert_int_equal(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0);
	assert_true(proc_stat(child, &stat));
	assert_int_equal(stat.state, 'Z');
	assert_int_equal(waitpid(child, NULL, 0), child);
	assert_false(proc_stat(child, &stat));
}

static void test_words(void **state)
{
	(void)state;
	char boot[PROC_BOOT_BYTES], again[PROC_BOOT_BYTES], word[8] = "before";
	proc_boot(boot);
	proc_boot(again);
	assert_int_equal(strlen(boot), 36);
	assert_string_equal(boot, again);
	proc_word("/proc/sys/kernel/random/boot_id", word, sizeof word);
	assert_int_equal(strlen(word), sizeof word - 1);
	proc_word("/proc/self/nothing", word, sizeof word);
	assert_string_equal(word, "");
}

/* A child that waits for a signal, or has ended with that status. */
static pid_t child_of(int status, int *pidfd)
{
	pid_t pid = fork();
	assert_true(pid >= 0);
	while (pid == 0 && status < 0)
		pause();
	if (pid == 0)
		_exit(status);
	*pidfd = pidfd_open(pid, 0);
	assert_true(*pidfd >= 0);
	return pid;
}

static void test_ends(void **state)
{
	(void)state;
	static const struct {
		int status;
		bool badly;
		const char *how;
	} cases[] = {
		{0, false, "ended with status 0"},
		{3, true, "ended with status 3"},
		{-1, true, "did not end in time, and was killed"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		char how[128] = "";
		int fd, wait_ms = cases[i].status < 0 ? 0 : 60000;
		pid_t pid = child_of(cases[i].status, &fd);
		if (cases[i].status < 0)
			assert_false(proc_ended(pid, how, sizeof how));
		assert_int_equal(proc_end(pid, fd, deadline_after_ms(wait_ms), how, sizeof how),
			cases[i].badly);
		assert_string_equal(how, cases[i].how);
		close(fd);
	}
	char how[128];
	int fd;
	pid_t pid = child_of(-1, &fd);
	kill(pid, SIGUSR1);
	assert_int_equal(
		cancel_poll(NULL, fd, POLLIN, deadline_after_ms(60000), "its end", NULL), POLLIN);
	assert_true(proc_ended(pid, how, sizeof how));
	assert_string_equal(how, "was killed by signal 10 (SIGUSR1)");
	assert_true(proc_end(pid, fd, deadline_after_ms(0), how, sizeof how));
	assert_string_equal(how, "was killed by signal 10 (SIGUSR1)");
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_this_process),
		cmocka_unit_test(test_zombie),
		cmocka_unit_test(test_words),
		cmocka_unit_test(test_ends),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
