/* Processes of workers: what they are born with, found again, mistaken for no other. */
#include "test_support.h"

#include "process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

static char top[64];

static int set_up(void **state)
{
	(void)state;
	snprintf(top, sizeof top, "/tmp/process-XXXXXX");
	return mkdtemp(top) ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	char command[128];
	snprintf(command, sizeof command, "rm -rf %s", top);
	return system(command);
}

static int start(struct process *process, const char *program, const char *script, struct err *err)
{
	char errors[128];
	snprintf(errors, sizeof errors, "%s/stderr", top);
	const char *const argv[] = {"sh", "-c", script, NULL};
	const struct process_options options = {
		.program = program, .argv = argv, .stderr_path = errors};
	return process_start(process, &options, err);
}

static int wait_end(struct process *process)
{
	int status;
	struct pollfd watch = {.fd = process->pidfd, .events = POLLIN};
	assert_int_equal(poll(&watch, 1, 30000), 1);
	assert_true(process_has_ended(process, &status));
	assert_int_equal(process->pid, 0);
	return status;
}

static void read_errors(char *out, size_t bytes)
{
	char path[128];
	snprintf(path, sizeof path, "%s/stderr", top);
	FILE *file = fopen(path, "re");
	out[file ? fread(out, 1, bytes - 1, file) : 0] = '\0';
	if (file)
		fclose(file);
}

static void test_birth(void **state)
{
	(void)state;
	struct process process;
	struct err err = ERR_INIT;
	char text[4096], path[128];
	int fds[2];
	/* Neither descriptors nor ignored signals are handed on. */
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(fcntl(fds[0], F_DUPFD, 50), 50);
	signal(SIGPIPE, SIG_IGN);
	setenv("NOTIFY_SOCKET", "/nowhere", 1);
	assert_int_equal(start(&process, "/bin/sh",
				 "o=$(readlink /proc/$$/fd/1); ls -l /proc/$$/fd >&2; echo 1 = $o "
				 ">&2; cat /proc/$$/oom_score_adj >&2;"
				 "grep SigIgn /proc/$$/status >&2; echo n=$NOTIFY_SOCKET >&2;"
				 "echo s=$(ps -o sid= -p $$)=$$ | tr -d ' ' >&2; exit 7",
				 &err),
		0);
	snprintf(path, sizeof path, "/proc/%d/cmdline", (int)process.pid);
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(process_let_go(&process, &err), 0);
	int status = wait_end(&process);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 7);
	read_errors(text, sizeof text);
	assert_non_null(strstr(text, "0 -> /dev/null"));
	assert_non_null(strstr(text, "1 = /dev/null"));
	assert_null(strstr(text, "pipe:"));
	assert_null(strstr(text, " 50 ->"));
	assert_non_null(strstr(text, "\n500\n"));
	assert_non_null(strstr(text, "SigIgn:\t0000000000000000"));
	assert_non_null(strstr(text, "n=\n"));
	char how[PROCESS_END_BYTES];
	assert_string_equal(process_end_text(status, how), "ended with status 7");
	unsetenv("NOTIFY_SOCKET");
	close(fds[0]);
	close(fds[1]);
	close(50);
}

/* It does nothing before its caller says so, and ends when that dies. */
static void test_gate(void **state)
{
	(void)state;
	struct process process;
	struct err err = ERR_INIT;
	char text[64];
	assert_int_equal(start(&process, "/bin/sh", "echo ran >&2", &err), 0);
	struct pollfd watch = {.fd = process.pidfd, .events = POLLIN};
	assert_int_equal(poll(&watch, 1, 50), 0);
	close(process.gate);
	process.gate = -1;
	assert_true(WIFEXITED(wait_end(&process)));
	read_errors(text, sizeof text);
	assert_string_equal(text, "");
}

static void test_no_program(void **state)
{
	(void)state;
	struct process process;
	struct err err = ERR_INIT;
	assert_int_equal(start(&process, "/nowhere/sh", "", &err), 0);
	assert_int_equal(process_let_go(&process, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* reaped */
}

static void test_found_again(void **state)
{
	(void)state;
	struct process process, found;
	struct err err = ERR_INIT;
	assert_int_equal(start(&process, "/bin/sh", "exec sleep 60", &err), 0);
	assert_int_equal(process_let_go(&process, &err), 0);
	json_t *who = process_to_json(&process);
	assert_true(process_find(&found, who));
	assert_int_equal(found.pid, process.pid);
	assert_false(process_has_ended(&found, NULL));
	process_drop(&found);
	/* The same pid, another process; another boot; nonsense. */
	json_t *other = json_deep_copy(who);
	json_object_set_new(other, "start", json_integer((json_int_t)process.start + 1));
	assert_false(process_find(&found, other));
	json_object_update(other, who);
	json_object_set_new(other, "boot", json_string("00000000-0000-0000-0000-000000000000"));
	assert_false(process_find(&found, other));
	json_object_update(other, who);
	json_object_set_new(other, "pid", json_integer(-1));
	assert_false(process_find(&found, other));
	assert_false(process_find(&found, NULL));
	/* Ended, and not reaped yet. */
	assert_int_equal(process_signal(&process, SIGKILL, &err), 0);
	struct pollfd watch = {.fd = process.pidfd, .events = POLLIN};
	assert_int_equal(poll(&watch, 1, 30000), 1);
	assert_false(process_find(&found, who));
	int status = wait_end(&process);
	char how[PROCESS_END_BYTES];
	assert_string_equal(process_end_text(status, how), "was killed by signal 9 (Killed)");
	assert_false(process_find(&found, who));
	json_decref(other);
	json_decref(who);
}

static void test_descriptors(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	int before = dup(0);
	close(before);
	for (int i = 0; i < 5; i++) {
		struct process process;
		assert_int_equal(start(&process, "/bin/sh", "exit 0", &err), 0);
		if (i % 2 == 0) {
			process_abandon(&process);
		} else {
			assert_int_equal(process_let_go(&process, &err), 0);
			wait_end(&process);
		}
	}
	int after = dup(0);
	close(after);
	assert_int_equal(before, after);
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_birth),
		cmocka_unit_test(test_gate),
		cmocka_unit_test(test_no_program),
		cmocka_unit_test(test_found_again),
		cmocka_unit_test(test_descriptors),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
