/* Backups through the interface: begin, copy, commit, abort, leave; reading back. */
#include "disk_internal.h"
#include "sums_internal.h"
#include "test_support.h"

#define SIZE_A (3 * MIB + 700)
#define SIZE_B 100

static const struct repository_pair identity[] = {{"disk-uuid", "6000C29\n"}};

static struct repository_backup *begin(struct repository *repo, const char *vm, struct err *err)
{
	const struct repository_disk_spec disks[] = {
		{.key = "b", .size_bytes = SIZE_B, .source = {"raw", "raw:/b", identity, 1}},
		{.key = "a",
			.size_bytes = SIZE_A,
			.change_id = "52 de/4",
			.reason = "first backup",
			.source = {"raw", "raw:/a", NULL, 0}},
	};
	const struct repository_backup_options options = {.vm = vm,
		.source = {"raw", "web", NULL, 0},
		.disks = disks,
		.nr_disks = 2,
		.software = "test"};
	return repository_backup_begin(repo, &options, err);
}

static uint8_t byte_at(uint64_t offset)
{
	return (uint8_t)(offset * 2654435761u >> 13);
}

/* Disk 1 (key a): its first 2 MiB and its last 700 bytes are data. */
static void fill(struct repository_backup *backup)
{
	struct err err = ERR_INIT;
	struct block *source = block_raw_create("source", SIZE_A, true, &err);
	assert_non_null(source);
	uint8_t *bytes = malloc(2 * MIB);
	for (uint64_t i = 0; i < 2 * MIB; i++)
		bytes[i] = byte_at(i);
	SUPPORT_OK(block_write(source, bytes, 2 * MIB, 0, 0, &err), err);
	SUPPORT_OK(block_write(source, bytes, 700, 3 * MIB, 0, &err), err);
	struct copy_options copy = {.nr_lanes = 0};
	struct block *from, *to;
	SUPPORT_OK(repository_backup_copy(backup, 1, source, &copy, &from, &to, &err), err);
	SUPPORT_OK(copy_run(from, to, &copy, &err), err);
	assert_int_equal(block_info(to)->size_bytes, SIZE_A);
	SUPPORT_OK(block_close(source, &err), err);
	free(bytes);
}

static void make_point(struct repository *repo, char point[REPOSITORY_POINT_BYTES])
{
	struct err err = ERR_INIT;
	struct repository_backup *backup = begin(repo, "web", &err);
	if (!backup)
		fail_msg("%s", err.text);
	snprintf(point, REPOSITORY_POINT_BYTES, "%s", repository_backup_point(backup));
	fill(backup);
	repository_backup_stage(backup, REPOSITORY_STAGE_COPY);
	repository_backup_figures(
		backup, 1, &(struct repository_figures){.logical_bytes = SIZE_A, .read_bytes = 7});
	SUPPORT_OK(repository_backup_config(backup, "vm.xml", "<domain/>", 9, &err), err);
	assert_int_equal(repository_backup_config(backup, "../x", "", 0, &err), -1);
	assert_int_equal(repository_backup_config(backup, "vm.xml", "", 0, &err), -1);
	SUPPORT_OK(repository_backup_commit(backup, &err), err);
}

static int count_point(void *context, const struct repository_point *point)
{
	assert_null(point->damage);
	++*(unsigned *)context;
	return 0;
}

static unsigned nr_points(struct repository *repo, const char *vm)
{
	unsigned nr = 0;
	repository_list_points(repo, vm, count_point, &nr, NULL);
	return nr;
}

static void test_there_and_back(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	char first[REPOSITORY_POINT_BYTES], second[REPOSITORY_POINT_BYTES];
	struct err err = ERR_INIT;
	make_point(repo, first);
	make_point(repo, second);
	/* Within one second: the order of ids is the order of commits all the same. */
	assert_true(strcmp(first, second) < 0);
	assert_int_equal(nr_points(repo, "web"), 2);
	struct repository_point *point = repository_point_load(repo, "web", NULL, &err);
	assert_non_null(point);
	assert_string_equal(point->id, second);
	assert_int_equal(point->nr_disks, 2);
	const struct repository_disk_info *a = &point->disks[0], *b = &point->disks[1];
	assert_string_equal(a->key, "a");
	assert_string_equal(a->change_id, "52 de/4");
	assert_int_equal(a->figures.read_bytes, 7);
	assert_int_equal(a->size_bytes, SIZE_A);
	assert_null(b->change_id);
	assert_null(b->parent);
	assert_string_equal(b->source.identity[0].name, "disk-uuid");
	assert_string_equal(b->source.identity[0].value, "6000C29?");
	assert_true(point->stored_bytes > 0);
	repository_point_free(point);
	assert_int_equal(access("r/vms/web/points", F_OK), 0);
	assert_null(repository_point_load(repo, "web", first + 1, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_null(repository_point_load(repo, "none", NULL, &err));
	support_expect(&err, ERR_NOT_FOUND, "has no VM \"none\"");
	repository_close(repo);
}

static void read_check(struct block *block, uint64_t offset, size_t length)
{
	uint8_t *bytes = malloc(length);
	struct err err = ERR_INIT;
	SUPPORT_OK(block_read(block, bytes, length, offset, &err), err);
	for (size_t i = 0; i < length; i++) {
		uint64_t at = offset + i;
		uint8_t expect = at < 2 * MIB    ? byte_at(at)
				 : at >= 3 * MIB ? byte_at(at - 3 * MIB)
						 : 0;
		assert_int_equal(bytes[i], expect);
	}
	free(bytes);
}

static void test_verifying_block(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	char point[REPOSITORY_POINT_BYTES], path[NAME_PATH_BYTES];
	const struct repository_disk_options options = {.verify = true, .cache_bytes = 65536};
	struct err err = ERR_INIT;
	make_point(repo, point);
	struct repository_disk *disk =
		repository_disk_open(repo, "web", point, "a", &options, &err);
	assert_non_null(disk);
	struct block *block = repository_disk_block(disk);
	read_check(block, 0, SIZE_A);
	read_check(block, 1, 1);
	read_check(block, 65535, 2);
	read_check(block, 2 * MIB - 100, 200000);
	read_check(block, SIZE_A - 1, 1);
	read_check(block, SIZE_A - 700, 700);
	struct block_extent extents[8];
	size_t nr;
	SUPPORT_OK(block_extents(block, 2 * MIB, 500000, extents, 8, &nr, &err), err);
	assert_true(extents[0].flags & BLOCK_ZERO);
	/* A lease stands while it is open. */
	struct path_names locks;
	SUPPORT_OK(path_names(repo->dir_fd, ".locks", &locks, &err), err);
	assert_int_equal(locks.nr, 2);
	path_names_free(&locks);
	repository_disk_close(disk);
	assert_null(repository_disk_open(repo, "web", point, NULL, NULL, &err));
	support_expect(&err, ERR_USAGE, "has several disks: name one of a, b");
	assert_null(repository_disk_open(repo, "web", point, "c", NULL, &err));
	support_expect(&err, ERR_NOT_FOUND, "has no disk \"c\" (it has a, b)");

	/* Where the image lost its data, neither map nor bytes pass for zeros. */
	struct qcow2_create_options fresh = {.size_bytes = round_up(SIZE_A, 512), .replace = true};
	path_disk("web", "a", point, ".qcow2", path);
	char *full = NULL;
	assert_true(asprintf(&full, "r/%s", path) > 0);
	struct stat st;
	assert_int_equal(stat(full, &st), 0);
	SUPPORT_OK(qcow2_create(full, &fresh, &err), err);
	assert_int_equal(truncate(full, st.st_size), 0); /* else its size would tell */
	free(full);
	disk = repository_disk_open(repo, "web", point, "a", &options, &err);
	assert_non_null(disk);
	block = repository_disk_block(disk);
	uint8_t byte;
	assert_int_equal(block_read(block, &byte, 1, 70000, &err), -1);
	support_expect(&err, ERR_CORRUPT, "disk a of restore point");
	assert_non_null(strstr(err.text, "is damaged at offset 65536"));
	assert_int_equal(err_to_errno(&err), EIO);
	SUPPORT_OK(block_extents(block, 0, SIZE_A, extents, 8, &nr, &err), err);
	assert_int_equal(extents[0].flags, 0);
	read_check(block, 2 * MIB + 5, 100);
	repository_disk_close(disk);
	repository_close(repo);
}

static int take_job(void *context, const struct repository_job *job)
{
	*(struct repository_job *)context = *job;
	return 0;
}

static void test_abort_and_leave(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	struct repository_job job = {0};
	unsigned nr_jobs;
	uint64_t freed_bytes;
	struct repository_backup *backup = begin(repo, "web", &err);
	assert_non_null(backup);
	assert_null(begin(repo, "web", &err));
	support_expect(&err, ERR_BUSY, "is locked by job");
	SUPPORT_OK(repository_jobs(repo, take_job, &job, &err), err);
	assert_true(job.alive);
	assert_string_equal(job.vm, "web");
	assert_string_equal(job.stage, "create");
	SUPPORT_OK(repository_clean(repo, REPOSITORY_CLEAN_DEAD, NULL, &nr_jobs, NULL, &err), err);
	assert_int_equal(nr_jobs, 0); /* it lives */
	repository_backup_abort(backup);
	assert_int_equal(access("r/vms/web", F_OK), -1);
	struct path_names left;
	SUPPORT_OK(path_names(repo->dir_fd, ".incoming", &left, &err), err);
	assert_int_equal(left.nr, 0);
	path_names_free(&left);

	backup = begin(repo, "web", &err);
	fill(backup);
	repository_backup_stage(backup, REPOSITORY_STAGE_COPY);
	repository_backup_leave(backup);
	SUPPORT_OK(repository_jobs(repo, take_job, &job, &err), err);
	assert_false(job.alive);
	assert_string_equal(job.stage, "left");
	assert_int_equal(
		name_seconds_utc(job.keep_until) - name_seconds_utc(job.stage_since), 86400);
	assert_true(job.stored_bytes > 0);
	assert_int_equal(nr_points(repo, "web"), 0);
	SUPPORT_OK(repository_clean(
			   repo, REPOSITORY_CLEAN_EXPIRED, NULL, &nr_jobs, &freed_bytes, &err),
		err);
	assert_int_equal(nr_jobs, 0); /* its time has not passed */
	SUPPORT_OK(
		repository_clean(repo, REPOSITORY_CLEAN_DEAD, "other", &nr_jobs, NULL, &err), err);
	assert_int_equal(nr_jobs, 0);
	SUPPORT_OK(
		repository_clean(repo, REPOSITORY_CLEAN_DEAD, "web", &nr_jobs, &freed_bytes, &err),
		err);
	assert_int_equal(nr_jobs, 1);
	assert_true(freed_bytes > 0);
	assert_int_equal(access("r/vms/web", F_OK), -1);
	repository_close(repo);
}

/* Declared dead and taken over, a late job commits nothing and removes nothing. */
static struct repository_backup *begin_point(
	struct repository *repo, char point[REPOSITORY_POINT_BYTES])
{
	struct err err = ERR_INIT;
	struct repository_backup *backup = begin(repo, "web", &err);
	if (!backup)
		fail_msg("%s", err.text);
	snprintf(point, REPOSITORY_POINT_BYTES, "%s", repository_backup_point(backup));
	return backup;
}

static bool is_there(const char *before, const char *point, const char *behind)
{
	char path[NAME_PATH_BYTES];
	snprintf(path, sizeof path, "%s%s%s", before, point, behind);
	return access(path, F_OK) == 0;
}

static bool has_image_part(const char *point)
{
	return is_there("r/vms/web/disks/a/", point, ".qcow2.part");
}

/* A rename whose answer was lost: what is committed is not removed, by nobody. */
static void test_abort_of_a_committed_point(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	char point[REPOSITORY_POINT_BYTES], path[NAME_PATH_BYTES];
	struct repository *repo = support_repository("r");
	struct repository_backup *backup = begin_point(repo, point);
	snprintf(path, sizeof path, "r/vms/web/points/%s/manifest.json", point);
	support_write(path, "{}", 2);
	repository_backup_abort(backup);
	assert_true(has_image_part(point));
	assert_int_equal(unlink(path), 0);
	SUPPORT_OK(repository_clean(repo, REPOSITORY_CLEAN_DEAD, NULL, NULL, NULL, &err), err);
	assert_false(has_image_part(point));
	repository_close(repo);
}

/* Where one cannot tell whether a point was committed, nothing of it is removed. */
static void test_clean_without_an_answer(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	char point[REPOSITORY_POINT_BYTES], folder[NAME_PATH_BYTES];
	struct repository *repo = support_repository("r");
	struct repository_backup *backup = begin_point(repo, point);
	snprintf(folder, sizeof folder, "r/vms/web/points/%s", point);
	repository_backup_leave(backup);
	assert_int_equal(rename(folder, "aside"), 0);
	assert_int_equal(symlink(point, folder), 0); /* to itself: "too many levels" */
	unsigned nr_jobs = 7;
	SUPPORT_OK(repository_clean(repo, REPOSITORY_CLEAN_DEAD, NULL, &nr_jobs, NULL, &err), err);
	assert_int_equal(nr_jobs, 0);
	assert_true(has_image_part(point));
	assert_int_equal(unlink(folder), 0);
	assert_int_equal(rename("aside", folder), 0);
	SUPPORT_OK(repository_clean(repo, REPOSITORY_CLEAN_DEAD, NULL, &nr_jobs, NULL, &err), err);
	assert_int_equal(nr_jobs, 1);
	assert_false(is_there("r/vms/web", "", ""));
	repository_close(repo);
}

/* The manifest's draft goes first: an owner that was declared dead cannot rename it any
 * more when the images begin to go. */
static void test_draft_goes_first(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	char point[REPOSITORY_POINT_BYTES], path[NAME_PATH_BYTES];
	struct repository *repo = support_repository("r");
	struct repository_backup *backup = begin_point(repo, point);
	repository_backup_leave(backup);
	snprintf(path, sizeof path, "r/vms/web/points/%s/manifest.json.part", point);
	support_write(path, "{}", 2);
	/* An image that cannot be removed ends the removal there. */
	snprintf(path, sizeof path, "r/vms/web/disks/a/%s.qcow2.part", point);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(repository_clean(repo, REPOSITORY_CLEAN_DEAD, NULL, NULL, NULL, &err), -1);
	assert_false(is_there("r/vms/web/points/", point, "/manifest.json.part"));
	assert_true(is_there("r/vms/web/disks/a/", point, ".sums.part"));
	repository_close(repo);
}

static void count_finding(void *context, const struct repository_finding *finding)
{
	if (finding->file && strstr(finding->file, "/config/"))
		++*(unsigned *)context;
}

static void test_damaged_config(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	char point[REPOSITORY_POINT_BYTES], path[NAME_PATH_BYTES];
	unsigned nr = 0;
	make_point(repo, point);
	snprintf(path, sizeof path, "r/vms/web/points/%s/config/vm.xml", point);
	const struct repository_verify_options verify = {.finding = count_finding, .context = &nr};
	struct repository_verify_result result;
	SUPPORT_OK(repository_verify(repo, &verify, &result, &err), err);
	assert_int_equal(result.points_good, 1);
	for (unsigned i = 0; i < 2; i++) {
		if (i == 0)
			support_write(path, "<DOMAIN/>", 9);
		else
			assert_int_equal(unlink(path), 0);
		SUPPORT_OK(repository_verify(repo, &verify, &result, &err), err);
		assert_int_equal(result.points_damaged, 1);
		assert_int_equal(nr, i + 1);
	}
	repository_close(repo);
}

/* Sums that are sound in themselves, but of another content than the manifest's. */
static void test_sums_with_another_root(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	char point[REPOSITORY_POINT_BYTES], path[NAME_PATH_BYTES];
	uint8_t trailer[SUMS_BLOCK];
	make_point(repo, point);
	snprintf(path, sizeof path, "r/vms/web/disks/a/%s.sums", point);
	int fd = open(path, O_RDWR);
	off_t at = lseek(fd, -(off_t)SUMS_BLOCK, SEEK_END);
	assert_int_equal(pread(fd, trailer, sizeof trailer, at), SUMS_BLOCK);
	trailer[56] ^= 1;
	be64_put(trailer + 504, XXH3_64bits(trailer, 504));
	assert_int_equal(pwrite(fd, trailer, sizeof trailer, at), SUMS_BLOCK);
	close(fd);
	assert_null(repository_disk_open(repo, "web", point, "a", NULL, &err));
	support_expect(&err, ERR_CORRUPT, "has another root digest than the manifest");
	repository_close(repo);
}

/* A state that is damaged may have protected its point. */
static void test_damaged_state(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	char point[REPOSITORY_POINT_BYTES], path[NAME_PATH_BYTES];
	make_point(repo, point);
	snprintf(path, sizeof path, "r/vms/web/points/%s/state.json", point);
	support_write(path, "{\"prot", 6);
	for (unsigned i = 0; i < 2; i++) {
		struct repository_point *loaded = repository_point_load(repo, "web", NULL, &err);
		assert_non_null(loaded);
		assert_true(loaded->is_protected);
		repository_point_free(loaded);
		SUPPORT_OK(manifest_update_state(
				   repo, "web", point, json_pack("{s:n}", "verifying"), &err),
			err);
	}
	repository_close(repo);
}

static void test_lost_lease(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	struct repository_backup *late = begin(repo, "web", &err);
	assert_int_equal(unlink("r/.locks/web.write"), 0);
	char point[REPOSITORY_POINT_BYTES];
	make_point(repo, point);
	assert_int_equal(repository_backup_commit(late, &err), -1);
	repository_backup_abort(late);
	assert_int_equal(nr_points(repo, "web"), 1);
	struct repository_disk *disk = repository_disk_open(
		repo, "web", NULL, "a", &(struct repository_disk_options){.verify = true}, &err);
	assert_non_null(disk);
	read_check(repository_disk_block(disk), 0, SIZE_A);
	repository_disk_close(disk);
	repository_close(repo);
}

static void test_refusals(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	struct repository_disk_spec disks[2] = {{.key = "a", .size_bytes = 512},
		{.key = "a", .size_bytes = 512, .estimate_bytes = UINT64_MAX}};
	struct repository_backup_options options = {.vm = "web", .disks = disks, .nr_disks = 2};
	for (unsigned i = 0; i < 2; i++)
		disks[i].source = options.source =
			(struct repository_source){.kind = "raw", .label = ""};
	assert_null(repository_backup_begin(repo, &options, &err));
	support_expect(&err, ERR_USAGE, "disk key a is given twice");
	disks[1].key = "b";
	assert_null(repository_backup_begin(repo, &options, &err));
	support_expect(&err, ERR_NO_SPACE, "MiB free (make room");
	support_bad_input("a repository without room for the backup", &err);
	disks[1].estimate_bytes = 0;
	disks[1].size_bytes = (uint64_t)1 << 63;
	assert_null(repository_backup_begin(repo, &options, &err));
	support_expect(&err, ERR_USAGE, "which cannot be stored");
	options.nr_disks = 0;
	assert_null(repository_backup_begin(repo, &options, &err));
	assert_int_equal(err.code, ERR_USAGE);
	assert_int_equal(access("r/vms/web", F_OK), -1);
	repository_close(repo);
}

/* The clock was ahead once: new points still come after the old ones. */
static void test_clock_went_back(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	char point[REPOSITORY_POINT_BYTES];
	assert_int_equal(mkdir("r/vms/web", 0700), 0);
	assert_int_equal(mkdir("r/vms/web/points", 0700), 0);
	assert_int_equal(mkdir("r/vms/web/points/20991231T235959Z-000000", 0700), 0);
	make_point(repo, point);
	assert_memory_equal(point, "21000101T000000Z-", 17);
	repository_close(repo);
}

static void no_finding(void *context, const struct repository_finding *finding)
{
	(void)context;
	fail_msg("%s", finding->text);
}

static int count_verified(void *context, const struct repository_point *point)
{
	*(unsigned *)context += point->verified == REPOSITORY_GOOD && point->verified_at[0];
	return 0;
}

static unsigned nr_verified(struct repository *repo)
{
	unsigned nr = 0;
	repository_list_points(repo, "web", count_verified, &nr, NULL);
	return nr;
}

/* Every run gets one point further, the one that waited longest first. */
static void test_time_box(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	char point[REPOSITORY_POINT_BYTES];
	for (unsigned i = 0; i < 3; i++)
		make_point(repo, point);
	const struct repository_verify_options options = {.time_box_ms = 1, .finding = no_finding};
	struct repository_verify_result result;
	/* A box of 1 ms ends between the disks of a point or behind it. */
	unsigned good = 0, runs = 0;
	while (good < 3 && runs++ < 12) {
		SUPPORT_OK(repository_verify(repo, &options, &result, &err), err);
		good += result.points_good;
		assert_int_equal(result.points_good + result.points_left, 3);
	}
	assert_true(good >= 3);
	assert_int_equal(nr_verified(repo), 3);
	struct repository_verify_options filter = {
		.vm = "web", .point = "20200101T000000Z-000000", .finding = no_finding};
	assert_int_equal(repository_verify(repo, &filter, &result, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	repository_close(repo);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_there_and_back),
		SUPPORT_TEST(test_verifying_block),
		SUPPORT_TEST(test_abort_and_leave),
		SUPPORT_TEST(test_abort_of_a_committed_point),
		SUPPORT_TEST(test_clean_without_an_answer),
		SUPPORT_TEST(test_draft_goes_first),
		SUPPORT_TEST(test_damaged_config),
		SUPPORT_TEST(test_sums_with_another_root),
		SUPPORT_TEST(test_damaged_state),
		SUPPORT_TEST(test_lost_lease),
		SUPPORT_TEST(test_refusals),
		SUPPORT_TEST(test_clock_went_back),
		SUPPORT_TEST(test_time_box),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
