/*
 * A process that does not end loses all that it holds, wherever it is held: before its plan, in the
 * rename that commits (which is wrapped), with the guard in its hands; and nobody else does.
 */
#include "points.h"

#include <signal.h>
#include <sys/file.h>

#define SIZE (4 * DIGEST_CHUNK_BYTES)

static struct repository_process self;
static char boot[PROC_BOOT_BYTES];
static struct repository *held_of; /* whose commit is held, until it was revoked */

int __real_renameat(int from_fd, const char *from, int to_fd, const char *to);
int __wrap_renameat(int from_fd, const char *from, int to_fd, const char *to);

int __wrap_renameat(int from_fd, const char *from, int to_fd, const char *to)
{
	struct err err = ERR_INIT;
	if (held_of && path_has_suffix(to, "/manifest.json"))
		SUPPORT_OK(repository_revoke(held_of, &self, NULL, &err), err);
	return __real_renameat(from_fd, from, to_fd, to);
}

static struct repository *open_it(void)
{
	struct err err = ERR_INIT;
	struct repository *repo = repository_open("repo", REPOSITORY_WRITE, &err);
	if (!repo)
		fail_msg("%s", err.text);
	return repo;
}

static struct repository *make_it(void)
{
	struct err err = ERR_INIT;
	struct repository_settings settings;
	repository_settings_default(&settings);
	SUPPORT_OK(repository_init("repo", &settings, &err), err);
	return open_it();
}

static struct repository_backup *begin(struct repository *repo, struct memory_disk *disk)
{
	struct err err = ERR_INIT;
	const struct point_disk one = {.key = "a", .source = disk};
	struct repository_backup *backup = points_begin(repo, "web", &one, 1, &err);
	if (!backup)
		fail_msg("%s", err.text);
	points_copy(backup, 0, disk, NULL);
	return backup;
}

static bool has_point(struct repository *repo)
{
	struct repository_point *point = repository_point_load(repo, "web", NULL, NULL);
	repository_point_free(point);
	return point;
}

static void test_cannot_commit(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct memory_disk disk;
	struct repository *repo = make_it();
	unsigned nr = 7;
	memory_disk_init(&disk, SIZE);
	memory_disk_fill(&disk, 0, SIZE, 1);
	SUPPORT_OK(repository_revoke(repo, &self, &nr, &err), err);
	assert_int_equal(nr, 0);
	struct repository_backup *backup = begin(repo, &disk);
	SUPPORT_OK(repository_revoke(repo, &self, &nr, &err), err);
	assert_int_equal(nr, 1);
	assert_int_equal(repository_backup_commit(backup, &err), -1);
	support_expect(&err, ERR_BUSY, "lost its lock");
	assert_false(has_point(repo));
	/* The machine is free. */
	struct repository_backup *next = begin(repo, &disk);
	assert_string_not_equal(repository_backup_job(next), repository_backup_job(backup));
	repository_backup_abort(backup);
	err_clear(&err);
	SUPPORT_OK(repository_backup_commit(next, &err), err);
	memory_disk_free(&disk);
	repository_close(repo);
}

/* Held behind its last look at its lock: the rename finds nothing. */
static void test_held_in_the_rename(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct memory_disk disk;
	struct repository *repo = make_it(), *other = open_it();
	memory_disk_init(&disk, SIZE);
	memory_disk_fill(&disk, 0, SIZE, 1);
	struct repository_backup *backup = begin(repo, &disk);
	held_of = other;
	assert_int_equal(repository_backup_commit(backup, &err), -1);
	held_of = NULL;
	assert_false(repository_backup_is_committed(backup));
	assert_false(has_point(repo));
	repository_backup_abort(backup);
	memory_disk_free(&disk);
	repository_close(other);
	repository_close(repo);
}

/* What was committed before stays. */
static void test_behind_the_commit(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct memory_disk disk;
	struct repository *repo = make_it();
	memory_disk_init(&disk, SIZE);
	memory_disk_fill(&disk, 0, SIZE, 1);
	struct repository_backup *backup = begin(repo, &disk);
	char manifest[NAME_PATH_BYTES], part[NAME_PATH_BYTES];
	path_point("web", repository_backup_point(backup), "manifest.json", manifest);
	path_point("web", repository_backup_point(backup), "manifest.json.part", part);
	assert_int_equal(close(openat(repo->dir_fd, part, O_WRONLY | O_CREAT, 0600)), 0);
	assert_int_equal(__real_renameat(repo->dir_fd, part, repo->dir_fd, manifest), 0);
	SUPPORT_OK(repository_revoke(repo, &self, NULL, &err), err);
	assert_true(path_exists(repo->dir_fd, manifest));
	repository_backup_leave(backup);
	memory_disk_free(&disk);
	repository_close(repo);
}

/* A lock without a plan, and leases. */
static void test_before_its_plan(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct repository *repo = make_it();
	unsigned nr = 0;
	struct lock *lock = lock_take(
		repo, LOCK_KIND_WRITE, "web", NULL, "20261122T000000Z-00000001", NULL, &err);
	struct lock *lease = lock_take(repo, LOCK_KIND_READ, "db", "20261122T000000Z-000001",
		"20261122T000000Z-00000002", NULL, &err);
	assert_non_null(lock);
	assert_non_null(lease);
	SUPPORT_OK(repository_revoke(repo, &self, &nr, &err), err);
	assert_int_equal(nr, 2);
	assert_int_equal(lock_still_ours(lock, &err), -1);
	lock_release(lease);
	lock_release(lock);
	repository_close(repo);
}

/* The same pid on another host, in another boot, or given out anew is another process. */
static void test_others_keep_theirs(void **state)
{
	(void)state;
	static const char *const fields[] = {"host_id", "boot_id", "pid_start", "pid"};
	struct err err = ERR_INIT;
	struct repository *repo = make_it();
	char name[NAME_PATH_BYTES];
	lock_write_name("web", name);
	for (size_t i = 0; i < ARRAY_LENGTH(fields); i++) {
		unsigned nr = 7;
		struct lock *lock = lock_take(repo, LOCK_KIND_WRITE, "web", NULL,
			"20261122T000000Z-00000001", NULL, &err);
		assert_non_null(lock);
		json_t *record = record_load(repo->dir_fd, name, &err);
		json_t *value = json_object_get(record, fields[i]);
		json_object_set_new(record, fields[i],
			json_is_integer(value) ? json_integer(json_integer_value(value) + 1)
					       : json_string("another"));
		SUPPORT_OK(record_store(repo->dir_fd, name, record, &err), err);
		json_decref(record);
		SUPPORT_OK(repository_revoke(repo, &self, &nr, &err), err);
		assert_int_equal(nr, 0);
		assert_true(path_exists(repo->dir_fd, name));
		assert_int_equal(unlinkat(repo->dir_fd, name, 0), 0);
		lock_release(lock);
	}
	repository_close(repo);
}

/* Whoever is held while it takes a lock holds up nobody else. */
static void test_held_with_the_guard(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct repository *repo = make_it();
	int told[2];
	char byte;
	assert_int_equal(pipe(told), 0);
	pid_t pid = fork();
	if (pid == 0) {
		int fd = openat(repo->dir_fd, ".locks/guard", O_RDWR | O_CREAT, 0600);
		if (fd < 0 || flock(fd, LOCK_EX) < 0 || write(told[1], "h", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(told[0], &byte, 1), 1);
	struct proc_stat stat;
	assert_true(proc_stat(pid, &stat));
	const struct repository_process held = {.boot_id = boot, .pid = pid, .start = stat.start};
	int64_t began = clock_now_ns();
	SUPPORT_OK(repository_revoke(repo, &held, NULL, &err), err);
	struct lock *lock = lock_take(
		repo, LOCK_KIND_WRITE, "web", NULL, "20261122T000000Z-00000001", NULL, &err);
	if (!lock)
		fail_msg("%s", err.text);
	assert_true(clock_now_ns() - began < INT64_C(5000000000));
	lock_release(lock);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(told[0]);
	close(told[1]);
	repository_close(repo);
}

/* The restore point that a hub's job made is found by the job. */
static void test_point_of_job(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct repository *repo = make_it();
	struct memory_disk disk;
	char point[REPOSITORY_POINT_BYTES] = "", made[REPOSITORY_POINT_BYTES];
	memory_disk_init(&disk, SIZE);
	memory_disk_fill(&disk, 0, SIZE, 1);
	const struct point_disk one = {.key = "a", .source = &disk};
	assert_int_equal(repository_point_of_job(repo, "web", "job-1", point, &err), 0);
	points_make(repo, "web", &one, 1, NULL);
	const struct repository_disk_spec spec = {
		.key = "a", .size_bytes = SIZE, .source = {"raw", "raw:x", NULL, 0}};
	const struct repository_backup_options options = {.vm = "web",
		.source = {"raw", "web", NULL, 0},
		.disks = &spec,
		.nr_disks = 1,
		.hub_job = "job-1"};
	struct repository_backup *backup = repository_backup_begin(repo, &options, &err);
	if (!backup)
		fail_msg("%s", err.text);
	snprintf(made, sizeof made, "%s", repository_backup_point(backup));
	points_copy(backup, 0, &disk, NULL);
	assert_int_equal(repository_point_of_job(repo, "web", "job-1", point, &err), 0);
	SUPPORT_OK(repository_backup_commit(backup, &err), err);
	points_make(repo, "web", &one, 1, NULL);
	assert_int_equal(repository_point_of_job(repo, "web", "job-1", point, &err), 1);
	assert_string_equal(point, made);
	assert_int_equal(repository_point_of_job(repo, "web", "job-2", point, &err), 0);
	/* What is damaged is passed over; what cannot be read may be the one. */
	char manifest[NAME_PATH_BYTES];
	path_point("web", made, "manifest.json", manifest);
	assert_int_equal(close(openat(repo->dir_fd, manifest, O_WRONLY | O_TRUNC)), 0);
	assert_int_equal(repository_point_of_job(repo, "web", "job-1", point, &err), 0);
	assert_int_equal(err.code, ERR_NONE);
	assert_int_equal(unlinkat(repo->dir_fd, manifest, 0), 0);
	assert_int_equal(symlinkat("manifest.json", repo->dir_fd, manifest), 0);
	assert_int_equal(repository_point_of_job(repo, "web", "job-1", point, &err), -1);
	support_expect(&err, ERR_IO, "manifest.json");
	memory_disk_free(&disk);
	repository_close(repo);
}

int main(void)
{
	struct proc_stat stat;
	proc_boot(boot);
	if (!proc_stat(getpid(), &stat))
		return 77;
	self = (struct repository_process){.boot_id = boot, .pid = getpid(), .start = stat.start};
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_cannot_commit),
		SUPPORT_TEST(test_held_in_the_rename),
		SUPPORT_TEST(test_behind_the_commit),
		SUPPORT_TEST(test_before_its_plan),
		SUPPORT_TEST(test_others_keep_theirs),
		SUPPORT_TEST(test_held_with_the_guard),
		SUPPORT_TEST(test_point_of_job),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
