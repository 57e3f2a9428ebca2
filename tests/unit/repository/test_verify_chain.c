/* Verification of chains: each byte once, and damage told at every point that sees it. */
#include "points.h"

#define SIZE (4 * MIB + 300)
#define CHUNK 65536u
enum { NR = 6 };

struct fixture {
	struct repository *repo;
	struct memory_disk disk;
	char points[NR][REPOSITORY_POINT_BYTES];
	unsigned nr_findings;
	char seen[16][REPOSITORY_POINT_BYTES]; /* points of findings */
	uint64_t seen_offset[16];
};

/* A full of 4 MiB; increments 1..5 of two chunks each, one of them zeros.  Chunk 20 is written
 * by 0, by 2 and again by 5. */
static void make(struct fixture *f)
{
	struct repository_settings settings;
	struct err err = ERR_INIT;
	memset(f, 0, sizeof *f);
	repository_settings_default(&settings);
	settings.compression = REPOSITORY_COMPRESS_NONE;
	SUPPORT_OK(repository_init("r", &settings, &err), err);
	f->repo = repository_open("r", REPOSITORY_WRITE, &err);
	assert_non_null(f->repo);
	memory_disk_init(&f->disk, SIZE);
	memory_disk_fill(&f->disk, 0, 4 * MIB, 1);
	struct point_disk one = {.key = "a", .source = &f->disk};
	for (unsigned i = 0; i < NR; i++) {
		if (i > 0) {
			unsigned chunk = i == 2 || i == 5 ? 20 : 30 + i;
			memory_disk_fill(&f->disk, chunk * CHUNK, CHUNK, 100 + i);
			memory_disk_fill(&f->disk, (40 + i) * CHUNK, CHUNK, 0);
		}
		points_make(f->repo, "web", &one, 1, f->points[i]);
	}
}

static void unmake(struct fixture *f)
{
	memory_disk_free(&f->disk);
	repository_close(f->repo);
}

static void note(void *context, const struct repository_finding *finding)
{
	struct fixture *f = context;
	assert_true(f->nr_findings < 16);
	if (finding->point)
		memcpy(f->seen[f->nr_findings], finding->point, REPOSITORY_POINT_BYTES);
	f->seen_offset[f->nr_findings] = finding->guest_offset;
	f->nr_findings++;
}

static struct repository_verify_result verify(struct fixture *f, const char *point, int64_t box_ms)
{
	struct repository_verify_result result;
	struct err err = ERR_INIT;
	const struct repository_verify_options options = {
		.vm = "web", .point = point, .time_box_ms = box_ms, .finding = note, .context = f};
	f->nr_findings = 0;
	SUPPORT_OK(repository_verify(f->repo, &options, &result, &err), err);
	return result;
}

static void test_each_byte_once(void **state)
{
	(void)state;
	struct fixture f;
	make(&f);
	struct repository_verify_result result = verify(&f, NULL, 0);
	assert_int_equal(f.nr_findings, 0);
	assert_int_equal(result.points_good, NR);
	assert_int_equal(result.bytes_checked, SIZE + (NR - 1) * 2 * CHUNK);
	/* One point alone needs all that lies beneath it. */
	result = verify(&f, f.points[NR - 1], 0);
	assert_int_equal(result.points_good, 1);
	assert_int_equal(result.bytes_checked, SIZE);
	unmake(&f);
}

/* However short the box: each run verifies a point at least, and all are verified in the end. */
static void test_short_boxes(void **state)
{
	(void)state;
	struct fixture f;
	make(&f);
	for (unsigned run = 0; run < NR; run++)
		verify(&f, NULL, 1);
	for (unsigned i = 0; i < NR; i++) {
		struct repository_point *point =
			repository_point_load(f.repo, "web", f.points[i], NULL);
		assert_int_equal(point->verified, REPOSITORY_GOOD);
		repository_point_free(point);
	}
	unmake(&f);
}

/* Flips a byte of the chunk where the point's image holds it. */
static void damage(struct fixture *f, unsigned point, const uint8_t *content)
{
	char path[NAME_PATH_BYTES], *bytes;
	size_t length;
	struct err err = ERR_INIT;
	snprintf(path, sizeof path, "r/vms/web/disks/a/%s.qcow2", f->points[point]);
	SUPPORT_OK(file_load(AT_FDCWD, path, 64 << 20, &bytes, &length, &err), err);
	uint8_t *at = memmem(bytes, length, content, CHUNK);
	assert_non_null(at);
	at[77] ^= 4;
	support_write(path, bytes, length);
	free(bytes);
}

static void test_damage_in_the_middle(void **state)
{
	(void)state;
	struct fixture f;
	make(&f);
	struct memory_disk second;
	memory_disk_init(&second, SIZE);
	memory_disk_fill(&second, 20 * CHUNK, CHUNK, 102);
	damage(&f, 2, second.bytes + 20 * CHUNK);
	struct repository_verify_result result = verify(&f, NULL, 0);
	/* Seen from 2, 3 and 4; what 5 wrote hides it. */
	assert_int_equal(result.points_good, 3);
	assert_int_equal(result.points_damaged, 3);
	assert_int_equal(f.nr_findings, 3);
	for (unsigned i = 0; i < 3; i++) {
		assert_string_equal(f.seen[i], f.points[2 + i]);
		assert_int_equal(f.seen_offset[i], 20 * CHUNK);
	}
	/* Of what lies beneath just this chunk was looked at again. */
	assert_int_equal(result.bytes_checked, SIZE + ((NR - 1) * 2 + 2) * CHUNK);
	/* The next backup does not stand on it. */
	struct repository_decision decision;
	struct err err = ERR_INIT;
	const struct repository_offer offer = {
		.key = "a", .size_bytes = SIZE, .source = {"raw", "raw:/a", NULL, 0}};
	SUPPORT_OK(repository_decide(f.repo, "web", "auto", &offer, 1, &decision, &err), err);
	assert_int_equal(decision.mode, REPOSITORY_FULL);
	memory_disk_free(&second);
	unmake(&f);
}

/* An image that lost its clusters shows what lies beneath: told, but not held. */
static void test_told_but_not_held(void **state)
{
	(void)state;
	struct fixture f;
	struct err err = ERR_INIT;
	char path[NAME_PATH_BYTES], backing[64];
	make(&f);
	snprintf(path, sizeof path, "r/vms/web/disks/a/%s.qcow2", f.points[3]);
	snprintf(backing, sizeof backing, "%s.qcow2", f.points[2]);
	const struct qcow2_create_options create = {.size_bytes = round_up(SIZE, 512),
		.backing_file = backing,
		.backing_format = "qcow2",
		.replace = true};
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	SUPPORT_OK(qcow2_create(path, &create, &err), err);
	assert_int_equal(truncate(path, st.st_size), 0); /* else its size would tell */
	struct repository_verify_result result = verify(&f, NULL, 0);
	assert_int_equal(result.points_damaged, 3);
	assert_int_equal(f.nr_findings, 6); /* the chunk with data and the zeros, at 3, 4 and 5 */
	assert_string_equal(f.seen[0], f.points[3]);
	assert_int_equal(f.seen_offset[0], 33 * CHUNK);
	assert_int_equal(f.seen_offset[1], 43 * CHUNK);
	unmake(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_each_byte_once),
		SUPPORT_TEST(test_short_boxes),
		SUPPORT_TEST(test_damage_in_the_middle),
		SUPPORT_TEST(test_told_but_not_held),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
