/* Locks: live owners refuse, dead ones are taken over, others by their heartbeat. */
#include "test_support.h"

#define JOB "20261121T200000Z-0000000"
#define POINT "20261121T200000Z-7f3a9c"

/* ThreadSanitizer would end children that start a thread; these hold nothing shared. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
	return "die_after_fork=0";
}

static struct lock *take(struct repository *repo, const char *job)
{
	struct err err = ERR_INIT;
	struct lock *lock = lock_take(repo, LOCK_KIND_WRITE, "web01", NULL, job, NULL, &err);
	if (!lock)
		fail_msg("%s", err.text);
	return lock;
}

static void test_live_owner(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct lock *lock = take(repo, JOB "1");
	struct err err = ERR_INIT;
	assert_int_equal(mkdir("r/.incoming/" JOB "1", 0700), 0);
	SUPPORT_OK(plan_write_stage(repo, JOB "1", "copy", 1, &err), err);
	assert_null(lock_take(repo, LOCK_KIND_WRITE, "web01", NULL, JOB "2", NULL, &err));
	support_expect(&err, ERR_BUSY, "VM \"web01\" is locked by job " JOB "1 (pid ");
	assert_non_null(strstr(err.text, ", stage copy)"));
	support_bad_input("a VM locked by a live process", &err);
	/* Other VMs are free. */
	struct lock *other = lock_take(repo, LOCK_KIND_WRITE, "web02", NULL, JOB "2", NULL, &err);
	assert_non_null(other);
	lock_release(other);
	lock_release(lock);
	lock_release(take(repo, JOB "2"));
	struct path_names names;
	assert_int_equal(path_names(repo->dir_fd, ".locks", &names, &err), 0);
	assert_int_equal(names.nr, 1);
	assert_string_equal(names.name[0], "guard");
	path_names_free(&names);
	repository_close(repo);
}

/* Ends with the lock held, as a killed process does. */
static void die_holding(const char *job)
{
	fflush(NULL);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct repository *repo = repository_open("r", REPOSITORY_WRITE, NULL);
		_exit(repo && lock_take(repo, LOCK_KIND_WRITE, "web01", NULL, job, NULL, NULL) ? 0
											       : 1);
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_dead_owner(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	char name[NAME_PATH_BYTES];
	struct lock_record record;
	struct err err = ERR_INIT;
	bool alive = true;
	die_holding(JOB "1");
	lock_write_name("web01", name);
	SUPPORT_OK(lock_look(repo, name, &record, &alive, &err), err);
	assert_false(alive);
	assert_string_equal(record.job, JOB "1");
	/* A taker that was killed before its link is swept away. */
	support_write("r/.locks/new-" JOB "9", "x", 1);
	struct lock *lock = take(repo, JOB "2");
	assert_int_equal(access("r/.locks/new-" JOB "9", F_OK), -1);
	SUPPORT_OK(lock_look(repo, name, &record, &alive, &err), err);
	assert_true(alive);
	assert_string_equal(record.job, JOB "2");
	assert_int_equal(lock_still_ours(lock, &err), 0);
	lock_release(lock);

	die_holding(JOB "3");
	SUPPORT_OK(lock_remove_dead(repo, name, &err), err);
	lock_release(take(repo, JOB "4"));
	repository_close(repo);
}

/* A pid that lives, but as another process than the lock's. */
static void change(const char *path, const char *field, json_t *value)
{
	struct err err = ERR_INIT;
	json_t *record = record_load(AT_FDCWD, path, &err);
	assert_non_null(record);
	json_object_set_new(record, field, value);
	SUPPORT_OK(record_store(AT_FDCWD, path, record, &err), err);
	json_decref(record);
}

static void test_owner_identity(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	die_holding(JOB "1");
	change("r/.locks/web01.write", "pid", json_integer(getpid()));
	lock_release(take(repo, JOB "2")); /* same pid, other start time */
	die_holding(JOB "3");
	change("r/.locks/web01.write", "boot_id", json_string("another-boot"));
	lock_release(take(repo, JOB "4"));
	/* Rotten content: it was whole before it had its name. */
	support_write("r/.locks/web01.write", "\0\0\0", 3);
	lock_release(take(repo, JOB "5"));
	repository_close(repo);
}

/* Clones share their machine id: another boot of it on another name is another host. */
static void test_cloned_host(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	die_holding(JOB "1");
	change("r/.locks/web01.write", "boot_id", json_string("another-boot"));
	change("r/.locks/web01.write", "host", json_string("clone"));
	assert_null(lock_take(repo, LOCK_KIND_WRITE, "web01", NULL, JOB "2", NULL, &err));
	support_expect(&err, ERR_BUSY, "on host clone");
	repository_close(repo);
}

/* What was seen of a lock has a name that fits, too. */
static void test_longest_seen(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	struct lock_record record;
	char vm[161], name[NAME_PATH_BYTES], path[NAME_PATH_BYTES + 2];
	bool alive = false;
	memset(vm, 'v', 160);
	vm[160] = '\0';
	struct lock *lock = lock_take(repo, LOCK_KIND_READ, vm, POINT, JOB "1", NULL, &err);
	assert_non_null(lock);
	snprintf(name, sizeof name, ".locks/%s." POINT "." JOB "1.read", vm);
	snprintf(path, sizeof path, "r/%s", name);
	change(path, "host_id", json_string("0123"));
	SUPPORT_OK(lock_look(repo, name, &record, &alive, &err), err);
	assert_true(alive);
	struct path_names names;
	assert_int_equal(path_names(repo->dir_fd, ".locks", &names, &err), 0);
	assert_int_equal(names.nr, 3); /* guard, the lease, what was seen of it */
	path_names_free(&names);
	lock_release(lock);
	repository_close(repo);
}

static void test_other_host(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	die_holding(JOB "1");
	change("r/.locks/web01.write", "host_id", json_string("0123"));
	change("r/.locks/web01.write", "host", json_string("far-away"));
	for (unsigned i = 0; i < 2; i++) {
		assert_null(lock_take(repo, LOCK_KIND_WRITE, "web01", NULL, JOB "2", NULL, &err));
		support_expect(&err, ERR_BUSY, "on host far-away");
	}
	/* What was seen moves back eleven minutes: the clock of the test. */
	struct path_names names;
	char path[NAME_PATH_BYTES] = "";
	assert_int_equal(path_names(repo->dir_fd, ".locks", &names, &err), 0);
	for (size_t i = 0; i < names.nr; i++)
		if (strstr(names.name[i], ".seen-"))
			snprintf(path, sizeof path, "r/.locks/%s", names.name[i]);
	path_names_free(&names);
	assert_string_not_equal(path, "");
	json_t *seen = record_load(AT_FDCWD, path, &err);
	json_int_t at = json_integer_value(json_object_get(seen, "at_s"));
	json_decref(seen);
	change(path, "at_s", json_integer(at - 660));
	/* The heart has beaten since: alive. */
	change("r/.locks/web01.write", "heartbeat", json_integer(7));
	assert_null(lock_take(repo, LOCK_KIND_WRITE, "web01", NULL, JOB "2", NULL, &err));
	change(path, "at_s", json_integer(at - 660));
	lock_release(take(repo, JOB "2"));
	assert_int_equal(access(path, F_OK), -1);
	repository_close(repo);
}

static void test_lost_lock(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	struct lock *lock = take(repo, JOB "1");
	assert_int_equal(unlink("r/.locks/web01.write"), 0);
	assert_int_equal(lock_still_ours(lock, &err), -1);
	support_expect(&err, ERR_BUSY, "lost its lock on VM \"web01\"");
	struct lock *other = take(repo, JOB "2");
	lock_release(lock); /* leaves the other's alone */
	assert_int_equal(lock_still_ours(other, &err), 0);
	lock_release(other);
	repository_close(repo);
}

static void test_leases(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	char vm[256];
	memset(vm, '/', 255);
	vm[255] = '\0'; /* the longest names fit into a file's */
	struct lock *write = lock_take(repo, LOCK_KIND_WRITE, vm, NULL, JOB "1", NULL, &err);
	struct lock *first = lock_take(repo, LOCK_KIND_READ, vm, POINT, JOB "2", NULL, &err);
	struct lock *second = lock_take(repo, LOCK_KIND_READ, vm, POINT, JOB "3", NULL, &err);
	assert_true(write && first && second);
	lock_release(first);
	lock_release(second);
	lock_release(write);
	/* A killed reader's lease goes with the next taker. */
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		struct repository *mine = repository_open("r", REPOSITORY_WRITE, NULL);
		_exit(mine && lock_take(mine, LOCK_KIND_READ, "web01", POINT, JOB "4", NULL, NULL)
				? 0
				: 1);
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(access("r/.locks/web01." POINT "." JOB "4.read", F_OK), 0);
	lock_release(take(repo, JOB "5"));
	assert_int_equal(access("r/.locks/web01." POINT "." JOB "4.read", F_OK), -1);
	repository_close(repo);
}

/* Many processes want the same dead lock: one gets it. */
static void test_race(void **state)
{
	(void)state;
	repository_close(support_repository("r"));
	die_holding(JOB "f");
	int go[2];
	assert_int_equal(pipe(go), 0);
	pid_t pids[8];
	fflush(NULL);
	for (unsigned i = 0; i < 8; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			char job[REPOSITORY_JOB_BYTES], byte;
			struct err err = ERR_INIT;
			snprintf(job, sizeof job, JOB "%u", i);
			close(go[1]);
			ssize_t n = read(go[0], &byte, 1); /* all start when it is closed */
			struct repository *repo = repository_open("r", REPOSITORY_WRITE, &err);
			if (n != 0 || !repo)
				_exit(2);
			_exit(lock_take(repo, LOCK_KIND_WRITE, "web01", NULL, job, NULL, &err) ? 0
				: err.code == ERR_BUSY                                         ? 1
											       : 2);
		}
	}
	close(go[0]);
	close(go[1]);
	/* Winners die with the lock, so it can be won again, but never twice at a
	 * time: whoever wins finds its predecessor dead. */
	unsigned winners = 0;
	for (unsigned i = 0; i < 8; i++) {
		int status;
		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 2);
		winners += WEXITSTATUS(status) == 0;
	}
	assert_true(winners >= 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_live_owner),
		SUPPORT_TEST(test_dead_owner),
		SUPPORT_TEST(test_owner_identity),
		SUPPORT_TEST(test_cloned_host),
		SUPPORT_TEST(test_longest_seen),
		SUPPORT_TEST(test_other_host),
		SUPPORT_TEST(test_lost_lock),
		SUPPORT_TEST(test_leases),
		SUPPORT_TEST(test_race),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
