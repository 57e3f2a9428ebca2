/* The hub's way to its NBD service: found, started, asked, started again, stopped.  The service is
 * the built binary, named by the environment's SENDENSE. */
#include "host.h"
#include "repository.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

static int setup(void **state)
{
	char *path = strdup("/tmp/sd-XXXXXX");
	if (!path || !mkdtemp(path) || chdir(path) < 0 || mkdir("run", 0700) < 0)
		return -1;
	*state = path;
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

static int teardown(void **state)
{
	int rc = chdir("/") < 0 ? -1 : nftw(*state, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(*state);
	return rc;
}

static json_t *settings(int max_sessions)
{
	return json_pack("{s:{s:i}, s:i}", "listen", "port", 0, "max_sessions", max_sessions);
}

static struct host *start(const json_t *config, struct err *err)
{
	const struct host_options options = {
		.runtime_dir = "run", .program = getenv("SENDENSE"), .config = config};
	return host_start(&options, err);
}

static struct host *must_start(int max_sessions)
{
	struct err err = ERR_INIT;
	json_t *config = settings(max_sessions);
	struct host *host = start(config, &err);
	json_decref(config);
	if (!host)
		fail_msg("%s", err.text);
	return host;
}

static json_t *ask(struct host *host, json_t *request, struct err *err)
{
	json_t *answer =
		host_call(host, request, NULL, 0, NULL, NULL, deadline_after_ms(20000), NULL, err);
	json_decref(request);
	return answer;
}

static void must_stop(struct host *host)
{
	struct err err = ERR_INIT;
	if (host_stop(host, deadline_after_ms(20000), &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(host_pid(host), 0);
	host_close(host);
}

/* An open session of a machine in a repository of the test's. */
static void open_session(struct host *host)
{
	struct repository_settings made;
	struct err err = ERR_INIT;
	char path[4096];
	repository_settings_default(&made);
	assert_int_equal(repository_init("repo", &made, &err), 0);
	assert_non_null(realpath("repo", path));
	json_t *answer = ask(host,
		json_pack("{s:s, s:s, s:s, s:s, s:{s:s}, s:[{s:s, s:i}]}", "verb", "session-open",
			"session", "s", "repository", path, "vm", "web", "client", "software",
			"test", "disks", "key", "a", "size_bytes", 1 << 20),
		&err);
	if (!answer)
		fail_msg("%s", err.text);
	json_decref(answer);
}

static void test_found_again(void **state)
{
	(void)state;
	char instance[33], again[33];
	struct host *first = must_start(8);
	pid_t pid = host_pid(first);
	assert_true(pid > 0);
	host_instance(first, instance);
	assert_int_equal(strlen(instance), 32);
	struct host *second = must_start(8);
	assert_int_equal(host_pid(second), pid);
	host_instance(second, again);
	assert_string_equal(instance, again);
	host_close(second);
	assert_int_equal(kill(pid, 0), 0);
	must_stop(first);
	assert_int_equal(kill(pid, 0), -1);
	assert_int_not_equal(access("run/nbd.sock", F_OK), 0);
}

static void test_killed_and_revived(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct host *host = must_start(8);
	pid_t pid = host_pid(host);
	assert_int_equal(host_revive(host, &err), 0);
	assert_int_equal(kill(pid, SIGKILL), 0);
	siginfo_t info;
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	assert_null(ask(host, json_pack("{s:s}", "verb", "status"), &err));
	assert_int_equal(err.code, ERR_DISCONNECTED);
	assert_int_equal(host_revive(host, &err), 1);
	assert_int_not_equal(host_pid(host), pid);
	json_t *answer = ask(host, json_pack("{s:s}", "verb", "status"), &err);
	assert_int_equal(json_integer_value(json_object_get(answer, "pid")), host_pid(host));
	json_decref(answer);
	must_stop(host);
}

/* All the time that a hub has to stop went into waiting for workers. */
static void test_stopped_at_the_last_moment(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct host *host = must_start(8);
	if (host_stop(host, deadline_after_ms(0), &err) < 0)
		fail_msg("%s", err.text);
	host_close(host);
	/* It ended by itself, and was not killed. */
	assert_int_not_equal(access("run/nbd.sock", F_OK), 0);
}

/* Other settings need a new process, which waits until the old one has no work. */
static void test_other_settings(void **state)
{
	(void)state;
	struct host *host = must_start(8);
	pid_t pid = host_pid(host);
	struct host *other = must_start(9);
	assert_int_not_equal(host_pid(other), pid);
	(void)waitpid(pid, NULL, 0);
	host_close(host);
	pid = host_pid(other);
	open_session(other);
	host = must_start(10);
	assert_int_equal(host_pid(host), pid);
	host_close(host);
	must_stop(other);
}

static void test_errors_keep_their_code(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct host *host = must_start(8);
	assert_null(ask(host, json_pack("{s:s, s:s}", "verb", "session", "session", "x"), &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_string_equal(err.text, "there is no session x");
	assert_null(ask(host, json_pack("{s:s}", "verb", "dance"), &err));
	assert_int_equal(err.code, ERR_USAGE);
	open_session(host);
	const json_int_t seen = 1 << 20;
	json_t *request = json_pack("{s:s, s:s, s:I, s:i}", "verb", "session", "session", "s",
		"seen", seen, "wait_ms", 0);
	json_t *answer = ask(host, request, &err);
	json_int_t changes = json_integer_value(json_object_get(answer, "changes"));
	json_decref(answer);
	request = json_pack("{s:s, s:s, s:I, s:i}", "verb", "session", "session", "s", "seen",
		changes, "wait_ms", 60000);
	assert_null(
		host_call(host, request, NULL, 0, NULL, NULL, deadline_after_ms(50), NULL, &err));
	json_decref(request);
	assert_int_equal(err.code, ERR_TIMEOUT);
	must_stop(host);
}

static void test_octets(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	void *octets = NULL;
	size_t length = 0;
	struct host *host = must_start(8);
	open_session(host);
	json_t *request = json_pack("{s:s, s:s, s:s, s:i, s:i}", "verb", "session-digests",
		"session", "s", "key", "a", "first", 0, "count", 100);
	json_t *answer = host_call(
		host, request, NULL, 0, &octets, &length, deadline_after_ms(20000), NULL, &err);
	if (!answer)
		fail_msg("%s", err.text);
	assert_int_equal(json_integer_value(json_object_get(answer, "nr")), 16);
	assert_int_equal(length, 5);
	assert_memory_equal(octets, "\1\0\0\0\20", 5);
	json_decref(answer);
	json_decref(request);
	free(octets);
	request = json_pack(
		"{s:s, s:s, s:s}", "verb", "session-config", "session", "s", "name", "web.xml");
	answer = host_call(
		host, request, "<domain/>", 9, NULL, NULL, deadline_after_ms(20000), NULL, &err);
	if (!answer)
		fail_msg("%s", err.text);
	json_decref(answer);
	json_decref(request);
	must_stop(host);
}

static void test_settings_that_are_wrong(void **state)
{
	(void)state;
	static const char *const wrong[] = {"{\"mode\": \"both\"}", "{\"ports\": 1}",
		"{\"mode\": \"range\", \"port_range\": [9, 8]}", "{\"listen\": {\"port\": 70000}}",
		"{\"listen\": {\"address\": \"0.0.0.0\"}}", "{\"max_connections\": 0}",
		"{\"tls\": {\"certificate\": \"none.pem\", \"key\": \"none.pem\"}}"};
	for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
		struct err err = ERR_INIT;
		json_t *config = json_loads(wrong[i], 0, NULL);
		assert_null(start(config, &err));
		json_decref(config);
		if (err.code != ERR_IO || !strstr(err.text, "ended at once: ") ||
			strstr(err.text, ": ")[2] == '\0')
			fail_msg("%s: %s", wrong[i], err.text);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	/* Without it the service would be /proc/self/exe: this test, again and again. */
	if (!getenv("SENDENSE"))
		return 77; /* skipped */
	const struct CMUnitTest tests[] = {
		TEST(test_found_again),
		TEST(test_killed_and_revived),
		TEST(test_stopped_at_the_last_moment),
		TEST(test_other_settings),
		TEST(test_errors_keep_their_code),
		TEST(test_octets),
		TEST(test_settings_that_are_wrong),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
