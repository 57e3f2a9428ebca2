/* Chains of increments: what each point reads as, and what it stores. */
#include "points.h"

#define SIZE (5 * MIB + 700)
#define NR_CHUNKS 81

/* What one file of sums tells itself. */
static struct sums_totals told(struct repository *repo, const char *key, const char *point)
{
	struct err err = ERR_INIT;
	char path[NAME_PATH_BYTES];
	uint8_t bytes[512];
	struct sums_totals totals;
	path_disk("web", key, point, ".sums", path);
	int fd = openat(repo->dir_fd, path, O_RDONLY);
	assert_true(fd >= 0);
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	SUPPORT_OK(
		file_pread(fd, bytes, sizeof bytes, (uint64_t)st.st_size - 512, path, &err), err);
	close(fd);
	totals.nr_data = be64_get(bytes + 40);
	totals.nr_zero = be64_get(bytes + 48);
	return totals;
}

static void expect_told(
	struct repository *repo, const char *point, uint64_t nr_data, uint64_t nr_zero)
{
	struct sums_totals totals = told(repo, "a", point);
	assert_int_equal(totals.nr_data, nr_data);
	assert_int_equal(totals.nr_zero, nr_zero);
}

static struct repository_point *load(struct repository *repo, const char *point)
{
	struct err err = ERR_INIT;
	struct repository_point *loaded = repository_point_load(repo, "web", point, &err);
	if (!loaded)
		fail_msg("%s", err.text);
	return loaded;
}

static void test_only_what_differs(void **state)
{
	(void)state;
	static const enum repository_change changes[] = {
		REPOSITORY_CHANGE_EXTENTS, REPOSITORY_CHANGE_BITMAP, REPOSITORY_CHANGE_COMPARE};
	struct repository *repo = support_repository("r");
	struct memory_disk disk;
	char point[REPOSITORY_POINT_BYTES], first[REPOSITORY_POINT_BYTES];
	memory_disk_init(&disk, SIZE);
	memory_disk_fill(&disk, 0, 4 * MIB, 1);
	struct point_disk one = {.key = "a", .source = &disk, .change_id = "52/1", .bitmap = "b1"};
	points_make(repo, "web", &one, 1, first);
	expect_told(repo, first, 64, 17);
	uint8_t *frozen = malloc(SIZE);
	memcpy(frozen, disk.bytes, SIZE);
	for (unsigned i = 0; i < ARRAY_LENGTH(changes); i++) {
		one.change = changes[i];
		one.change_id = "52/2";
		memory_disk_fill(&disk, 10 * 65536 + 5, 3, 2 + i); /* a chunk changed */
		memory_disk_fill(&disk, (20 + 2 * i) * 65536, 2 * 65536, 0); /* two became zero */
		memory_disk_fill(&disk, 70 * 65536, 65536, 0); /* was zero, told as changed */
		memcpy(disk.bytes, frozen, 65536); /* told as changed, and is the same */
		disk.changed[0] = true;
		memory_disk_fill(&disk, SIZE - 100, 100, 9 + i); /* the short one at the end */
		points_make(repo, "web", &one, 1, point);
		expect_told(repo, point, 2, 2);
		points_compare(repo, "web", point, "a", disk.bytes, SIZE);
		struct repository_point *loaded = load(repo, point);
		const struct repository_disk_info *info = &loaded->disks[0];
		assert_int_equal(info->mode, REPOSITORY_INCREMENTAL);
		assert_int_equal(info->change, changes[i]);
		assert_string_equal(info->parent, info->backing);
		assert_string_equal(info->change_id, "52/2");
		assert_string_equal(info->bitmap, "b1");
		assert_string_equal(loaded->consistency, "crash");
		assert_string_equal(loaded->consistency_reason, "no agent");
		repository_point_free(loaded);
	}
	points_compare(repo, "web", first, "a", frozen, SIZE);
	free(frozen);
	memory_disk_free(&disk);
	repository_close(repo);
}

/* What is not told as changed is not looked at, unless all is compared. */
static void test_what_is_read(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct memory_disk disk;
	struct err err = ERR_INIT;
	memory_disk_init(&disk, SIZE);
	memory_disk_fill(&disk, 0, 4 * MIB, 1);
	struct point_disk one = {.key = "a", .source = &disk};
	points_make(repo, "web", &one, 1, NULL);
	for (unsigned i = 0; i < 2; i++) {
		struct copy_progress progress = {0};
		one.change = i ? REPOSITORY_CHANGE_COMPARE : REPOSITORY_CHANGE_EXTENTS;
		memory_disk_fill(&disk, MIB, 100, 3 + i);
		struct repository_backup *backup = points_begin(repo, "web", &one, 1, &err);
		assert_non_null(backup);
		points_copy(backup, 0, &disk, &progress);
		assert_int_equal(atomic_load(&progress.read), i ? 4 * MIB : 65536);
		assert_int_equal(atomic_load(&progress.sent), 65536);
		assert_int_equal(atomic_load(&progress.logical), SIZE);
		SUPPORT_OK(repository_backup_commit(backup, &err), err);
		memory_disk_forget_changes(&disk);
	}
	memory_disk_free(&disk);
	repository_close(repo);
}

static void change_something(struct memory_disk *disk, uint32_t *seed)
{
	for (unsigned i = 0; i < 4; i++) {
		*seed = *seed * 1664525u + 1013904223u;
		uint64_t offset = *seed % (disk->block.info.size_bytes - 200000);
		memory_disk_fill(disk, offset, 1 + (*seed >> 16) % 200000, i % 2 ? *seed : 0);
	}
}

static void test_each_point_reads_as_it_was(void **state)
{
	(void)state;
	enum { NR = 9 };
	static const uint32_t cluster_bytes[] = {4096, 65536, 2 * MIB};
	char points[NR][REPOSITORY_POINT_BYTES];
	uint8_t *frozen[NR];
	for (unsigned c = 0; c < ARRAY_LENGTH(cluster_bytes); c++) {
		struct repository_settings settings;
		struct err err = ERR_INIT;
		char name[8];
		uint32_t seed = 4711 + c;
		snprintf(name, sizeof name, "r%u", c);
		repository_settings_default(&settings);
		settings.cluster_bytes = cluster_bytes[c];
		SUPPORT_OK(repository_init(name, &settings, &err), err);
		struct repository *repo = repository_open(name, REPOSITORY_WRITE, &err);
		assert_non_null(repo);
		struct memory_disk disk;
		memory_disk_init(&disk, SIZE);
		struct point_disk one = {.key = "a", .source = &disk};
		for (unsigned i = 0; i < NR; i++) {
			change_something(&disk, &seed);
			one.change = i % 3 ? REPOSITORY_CHANGE_BITMAP : REPOSITORY_CHANGE_COMPARE;
			points_make(repo, "web", &one, 1, points[i]);
			frozen[i] = malloc(SIZE);
			memcpy(frozen[i], disk.bytes, SIZE);
		}
		for (unsigned i = 0; i < NR; i++) {
			points_compare(repo, "web", points[i], "a", frozen[i], SIZE);
			free(frozen[i]);
		}
		memory_disk_free(&disk);
		repository_close(repo);
	}
}

/* A chain that is as long as it may be: the next point is read as an increment and stored as a
 * full. */
static void test_synthetic_full(void **state)
{
	(void)state;
	static const uint32_t cluster_bytes[] = {65536, MIB};
	for (unsigned c = 0; c < ARRAY_LENGTH(cluster_bytes); c++) {
		struct repository_settings settings;
		struct err err = ERR_INIT;
		char name[8], point[REPOSITORY_POINT_BYTES];
		uint32_t seed = 12;
		snprintf(name, sizeof name, "r%u", c);
		repository_settings_default(&settings);
		settings.chain_length_max = 2;
		settings.cluster_bytes = cluster_bytes[c];
		SUPPORT_OK(repository_init(name, &settings, &err), err);
		struct repository *repo = repository_open(name, REPOSITORY_WRITE, &err);
		struct memory_disk disk;
		memory_disk_init(&disk, SIZE);
		memory_disk_fill(&disk, 0, 3 * MIB, 1);
		struct point_disk one = {.key = "a", .source = &disk};
		for (unsigned i = 0; i < 4; i++) {
			bool filled = i == 2;
			change_something(&disk, &seed);
			/* Zeros over data of the chain, in a granule with other data. */
			memory_disk_fill(&disk, (3 + i) * 2 * 65536, 65536, 0);
			points_make(repo, "web", &one, 1, point);
			points_compare(repo, "web", point, "a", disk.bytes, SIZE);
			struct repository_point *loaded = load(repo, point);
			const struct repository_disk_info *info = &loaded->disks[0];
			assert_int_equal(info->mode == REPOSITORY_INCREMENTAL, i > 0);
			assert_int_equal(info->parent != NULL, i > 0);
			assert_int_equal(info->backing == NULL, i == 0 || filled);
			assert_int_equal(strstr(info->reason, "stored as a full") != NULL, filled);
			repository_point_free(loaded);
		}
		memory_disk_free(&disk);
		repository_close(repo);
	}
}

static void turn_bit(const char *path)
{
	struct stat st;
	uint8_t byte;
	int fd = open(path, O_RDWR);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(pread(fd, &byte, 1, st.st_size / 2), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, st.st_size / 2), 1);
	close(fd);
}

/* What a full is made of turns out to be damaged: that fails once, and not each night. */
static void test_full_of_a_damaged_chain(void **state)
{
	(void)state;
	struct repository_settings settings;
	struct err err = ERR_INIT;
	struct memory_disk disk;
	struct repository_decision decision;
	char points[2][REPOSITORY_POINT_BYTES], path[NAME_PATH_BYTES];
	repository_settings_default(&settings);
	settings.compression = REPOSITORY_COMPRESS_NONE;
	settings.chain_length_max = 2;
	SUPPORT_OK(repository_init("r", &settings, &err), err);
	struct repository *repo = repository_open("r", REPOSITORY_WRITE, &err);
	memory_disk_init(&disk, SIZE);
	memory_disk_fill(&disk, 0, 4 * MIB, 1);
	struct point_disk one = {.key = "a", .source = &disk};
	for (unsigned i = 0; i < 2; i++) {
		points_make(repo, "web", &one, 1, points[i]);
		memory_disk_fill(&disk, 0, 100, 2 + i);
	}
	snprintf(path, sizeof path, "r/vms/web/disks/a/%s.qcow2", points[0]);
	turn_bit(path);
	struct repository_backup *backup = points_begin(repo, "web", &one, 1, &err);
	if (!backup)
		fail_msg("%s", err.text);
	points_copy(backup, 0, &disk, NULL);
	assert_int_equal(repository_backup_commit(backup, &err), -1);
	support_expect(&err, ERR_CORRUPT, "the digest of its data is wrong");
	repository_backup_abort(backup);
	const struct repository_offer offer = {.key = "a",
		.size_bytes = SIZE,
		.change = REPOSITORY_CHANGE_COMPARE,
		.source = {"raw", "raw:/test", NULL, 0}};
	SUPPORT_OK(repository_decide(repo, "web", "auto", &offer, 1, &decision, &err), err);
	assert_int_equal(decision.mode, REPOSITORY_FULL);
	assert_true(decision.fallback);
	assert_non_null(strstr(decision.reason, points[1]));
	one.full = true;
	points_make(repo, "web", &one, 1, points[1]);
	points_compare(repo, "web", points[1], "a", disk.bytes, SIZE);
	memory_disk_free(&disk);
	repository_close(repo);
}

/* A point that a prune has taken out of the list is still a link. */
static void test_unlisted_link(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	struct memory_disk disk;
	char points[3][REPOSITORY_POINT_BYTES], from[NAME_PATH_BYTES], to[NAME_PATH_BYTES];
	memory_disk_init(&disk, SIZE);
	struct point_disk one = {.key = "a", .source = &disk};
	for (unsigned i = 0; i < 3; i++) {
		memory_disk_fill(&disk, i * 100000, 100000, i + 1);
		points_make(repo, "web", &one, 1, points[i]);
	}
	snprintf(from, sizeof from, "r/vms/web/points/%s/manifest.json", points[1]);
	snprintf(to, sizeof to, "r/vms/web/points/%s/merging.json", points[1]);
	assert_int_equal(rename(from, to), 0);
	points_compare(repo, "web", points[2], "a", disk.bytes, SIZE);
	assert_null(repository_disk_open(repo, "web", points[1], "a", NULL, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(unlink(to), 0);
	assert_null(repository_disk_open(repo, "web", points[2], "a", NULL, &err));
	support_expect(&err, ERR_NOT_FOUND, points[1]);
	assert_non_null(strstr(err.text, "and other disks than a do not need it"));
	memory_disk_free(&disk);
	repository_close(repo);
}

/* A disk is added, one removed and brought back, one grows: each begins anew with a full, and
 * the others go on. */
static void test_disks_come_and_go(void **state)
{
	(void)state;
	static const struct {
		const char *keys; /* of the point */
		uint64_t size_bytes; /* of b */
		const char *fulls; /* of those keys */
	} rows[] = {
		{"a", 0, "a"},
		{"ab", 2 * MIB, "b"},
		{"ab", 2 * MIB, ""},
		{"ab", 3 * MIB, "b"},
		{"ab", MIB + 512, "b"},
		{"b", MIB + 512, ""},
		{"ab", MIB + 512, "a"},
		{"ab", MIB + 512, ""},
	};
	struct repository *repo = support_repository("r");
	struct memory_disk a, b;
	uint32_t seed = 99;
	memory_disk_init(&a, SIZE);
	memory_disk_init(&b, MIB);
	for (unsigned i = 0; i < ARRAY_LENGTH(rows); i++) {
		struct err err = ERR_INIT;
		struct point_disk disks[2];
		struct repository_offer offers[2];
		struct repository_decision decisions[2];
		char point[REPOSITORY_POINT_BYTES];
		size_t nr = 0;
		if (rows[i].size_bytes && b.block.info.size_bytes != rows[i].size_bytes) {
			memory_disk_free(&b);
			memory_disk_init(&b, rows[i].size_bytes);
		}
		change_something(&a, &seed);
		change_something(&b, &seed);
		for (const char *key = rows[i].keys; *key; key++) {
			disks[nr] = (struct point_disk){
				.key = *key == 'a' ? "a" : "b", .source = *key == 'a' ? &a : &b};
			offers[nr] = (struct repository_offer){.key = disks[nr].key,
				.size_bytes = disks[nr].source->block.info.size_bytes,
				.change = REPOSITORY_CHANGE_COMPARE,
				.source = {"raw", "raw:/test", NULL, 0}};
			nr++;
		}
		SUPPORT_OK(
			repository_decide(repo, "web", "auto", offers, nr, decisions, &err), err);
		for (size_t k = 0; k < nr; k++) {
			bool full = strchr(rows[i].fulls, disks[k].key[0]) != NULL;
			assert_int_equal(decisions[k].mode == REPOSITORY_FULL, full);
			disks[k].full = full;
			disks[k].change = REPOSITORY_CHANGE_COMPARE;
		}
		points_make(repo, "web", disks, nr, point);
		for (size_t k = 0; k < nr; k++)
			points_compare(repo, "web", point, disks[k].key, disks[k].source->bytes,
				disks[k].source->block.info.size_bytes);
	}
	memory_disk_free(&a);
	memory_disk_free(&b);
	repository_close(repo);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_only_what_differs),
		SUPPORT_TEST(test_what_is_read),
		SUPPORT_TEST(test_each_point_reads_as_it_was),
		SUPPORT_TEST(test_synthetic_full),
		SUPPORT_TEST(test_full_of_a_damaged_chain),
		SUPPORT_TEST(test_unlisted_link),
		SUPPORT_TEST(test_disks_come_and_go),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
