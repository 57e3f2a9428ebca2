/* Processes told from each other. */
#include "test_support.h"

#include <signal.h>
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_this_process),
		cmocka_unit_test(test_zombie),
		cmocka_unit_test(test_words),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
