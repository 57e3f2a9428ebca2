/* Audits: each unit once in a round, a falsified list found as often as predicted, and
 * what follows when one was found. */
#include "backup_internal.h"
#include "points.h"

#define UNIT MIB

static void test_order(void **state)
{
	(void)state;
	static const uint64_t sizes[] = {
		1, UNIT, UNIT + 1, 3 * UNIT, 1000 * UNIT, 4096 * UNIT, 4097 * UNIT};
	struct digest_key key;
	uint8_t seed[DIGEST_SEED_BYTES] = {5};
	digest_key_init(&key, DIGEST_XXH3_128, seed);
	for (unsigned i = 0; i < ARRAY_LENGTH(sizes); i++) {
		struct audit_order order, other;
		audit_order_init(&order, &key, "web", "a", sizes[i]);
		audit_order_init(&other, &key, "web", "b", sizes[i]);
		assert_int_equal(order.nr_units, div_round_up(sizes[i], UNIT));
		bool *seen = calloc(order.nr_units, sizeof *seen);
		uint64_t nr_same = 0;
		for (uint64_t at = 0; at < order.nr_units; at++) {
			uint64_t unit = audit_order_at(&order, at);
			assert_true(unit < order.nr_units && !seen[unit]);
			seen[unit] = true;
			nr_same += unit == audit_order_at(&other, at);
		}
		if (order.nr_units > 100)
			assert_true(nr_same <
				    20); /* about one, of two orders that have nothing in common */
		free(seen);
	}
	/* The largest disks: nothing overflows. */
	struct audit_order large;
	audit_order_init(&large, &key, "web", "a", INT64_MAX);
	assert_true(audit_order_at(&large, large.nr_units - 1) < large.nr_units);
}

/* A source that remembers which chunks were read. */
static bool *read_chunks;

static int remembering_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	for (uint64_t at = offset; at < offset + length; at += DIGEST_CHUNK_BYTES)
		read_chunks[at / DIGEST_CHUNK_BYTES] = true;
	return memory_read(block, buffer, length, offset, err);
}

static uint64_t audit(
	struct repository_backup *backup, struct memory_disk *disk, unsigned per_mille)
{
	static const struct block_driver driver = {
		.name = "remembering", .read = remembering_read, .extents = memory_extents};
	struct err err = ERR_INIT;
	uint64_t audited_bytes;
	const struct block_driver *usual = disk->block.driver;
	disk->block.driver = &driver;
	int rc = repository_backup_audit(backup, 0, &disk->block, per_mille, &audited_bytes, &err);
	disk->block.driver = usual;
	SUPPORT_OK(rc, err);
	return audited_bytes;
}

/* Ten points with a tenth each: all of it, but what is told as changed. */
static void test_rounds(void **state)
{
	(void)state;
	const uint64_t size = 23 * UNIT + 3 * 65536 + 100, nr_chunks = 23 * 16 + 4;
	struct repository *repo = support_repository("r");
	struct memory_disk disk;
	struct err err = ERR_INIT;
	memory_disk_init(&disk, size);
	memory_disk_fill(&disk, 3 * MIB, 4 * MIB, 1);
	memory_disk_fill(&disk, size - 100, 100, 2);
	struct point_disk one = {.key = "a", .source = &disk};
	points_make(repo, "web", &one, 1, NULL);
	read_chunks = calloc(nr_chunks, sizeof *read_chunks);
	uint64_t audited = 0;
	for (unsigned i = 0; i < 10; i++) {
		char point[REPOSITORY_POINT_BYTES];
		disk.changed[5] = true;
		struct repository_backup *backup = points_begin(repo, "web", &one, 1, &err);
		assert_non_null(backup);
		snprintf(point, sizeof point, "%s", repository_backup_point(backup));
		uint64_t bytes = audit(backup, &disk, 100);
		audited += bytes;
		assert_true(bytes > 0 && bytes <= 3 * UNIT);
		points_copy(backup, 0, &disk, NULL);
		SUPPORT_OK(repository_backup_commit(backup, &err), err);
		struct repository_point *loaded = repository_point_load(repo, "web", point, &err);
		assert_non_null(loaded);
		assert_int_equal(loaded->disks[0].audited_bytes, bytes);
		repository_point_free(loaded);
	}
	assert_true(audited >= size - 65536);
	for (uint64_t i = 0; i < nr_chunks; i++)
		assert_int_equal(read_chunks[i], i != 5);
	free(read_chunks);
	memory_disk_free(&disk);
	repository_close(repo);
}

/* Five of 120 units hide a change; an audit of 10 % looks at 12 of them, and so misses all five
 * with a probability of (108 x 107 x 106 x 105 x 104) / (120 x 119 x 118 x 117 x 116) = 0.585:
 * of 100 runs 41.5 find one, with a deviation of 4.9. */
static void test_rate(void **state)
{
	(void)state;
	enum { UNITS = 120, FALSE_UNITS = 5, RUNS = 100 };
	struct repository *repo = support_repository("r");
	struct memory_disk disk;
	struct err err = ERR_INIT;
	uint32_t seed = 77;
	unsigned nr_found = 0;
	/* The same order in every run of this test. */
	memset(repo->key.secret, 0x5a, sizeof repo->key.secret);
	memory_disk_init(&disk, UNITS * UNIT);
	struct point_disk one = {.key = "a", .source = &disk};
	points_make(repo, "web", &one, 1, NULL);
	struct repository_backup *backup = points_begin(repo, "web", &one, 1, &err);
	assert_non_null(backup);
	for (unsigned run = 0; run < RUNS; run++) {
		uint64_t offsets[FALSE_UNITS] = {0};
		for (unsigned i = 0; i < FALSE_UNITS;) {
			seed = seed * 1664525u + 1013904223u;
			uint64_t unit = (seed >> 8) % UNITS;
			bool taken = false;
			for (unsigned k = 0; k < i; k++)
				taken |= offsets[k] / UNIT == unit;
			if (!taken)
				offsets[i++] = unit * UNIT + (seed >> 12) % UNIT;
		}
		for (unsigned i = 0; i < FALSE_UNITS; i++)
			disk.bytes[offsets[i]] = 1; /* and nothing tells of it */
		nr_found += repository_backup_audit(backup, 0, &disk.block, 100, NULL, &err) < 0;
		for (unsigned i = 0; i < FALSE_UNITS; i++)
			disk.bytes[offsets[i]] = 0;
	}
	print_message("%u of %d audits found a falsified list (41.5 predicted)\n", nr_found, RUNS);
	assert_in_range(nr_found, 41 - 15, 42 + 15);
	repository_backup_abort(backup);
	memory_disk_free(&disk);
	repository_close(repo);
}

static void test_what_follows(void **state)
{
	(void)state;
	const uint64_t size = 3 * UNIT;
	struct repository *repo = support_repository("r");
	struct memory_disk disk;
	struct err err = ERR_INIT;
	memory_disk_init(&disk, size);
	memory_disk_fill(&disk, 0, 2 * MIB, 1);
	struct point_disk disks[] = {{.key = "a", .source = &disk, .change_id = "1/1"},
		{.key = "b", .source = &disk, .change_id = "1/1"}};
	points_make(repo, "web", disks, 2, NULL);
	struct repository_backup *backup = points_begin(repo, "web", disks, 2, &err);
	assert_non_null(backup);
	for (unsigned i = 0; i < 40; i++)
		disk.bytes[i * 65536] ^= 1;
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(
			repository_backup_audit(backup, i, &disk.block, 1000, NULL, &err), -1);
		support_expect(
			&err, ERR_CORRUPT, "40 of its chunks of 64 KiB that were called unchanged");
		assert_non_null(strstr(err.text, "at offset 0, 65536, 131072"));
		assert_non_null(strstr(err.text, ", 196608 and 36 more"));
	}
	support_bad_input("an audit finds that a list of changes left some out", &err);
	repository_backup_abort(backup);
	/* Both are fulls next time; after these all is well. */
	struct repository_offer offers[2];
	struct repository_decision decisions[2];
	for (unsigned i = 0; i < 2; i++)
		offers[i] = (struct repository_offer){.key = disks[i].key,
			.size_bytes = size,
			.change = REPOSITORY_CHANGE_EXTENTS,
			.from = "1/1",
			.source = {"raw", "raw:/test", NULL, 0}};
	for (unsigned round = 0; round < 2; round++) {
		SUPPORT_OK(repository_decide(repo, "web", "auto", offers, 2, decisions, &err), err);
		for (unsigned i = 0; i < 2; i++) {
			assert_int_equal(decisions[i].mode == REPOSITORY_FULL, round == 0);
			disks[i].full = round == 0;
		}
		points_make(repo, "web", disks, 2, NULL);
	}
	/* An audit of a full, or of what is compared anyway, has nothing to do. */
	disks[0].full = true;
	disks[1].change = REPOSITORY_CHANGE_COMPARE;
	backup = points_begin(repo, "web", disks, 2, &err);
	assert_non_null(backup);
	for (unsigned i = 0; i < 2; i++) {
		uint64_t audited_bytes = 1;
		SUPPORT_OK(
			repository_backup_audit(backup, i, &disk.block, 1000, &audited_bytes, &err),
			err);
		assert_int_equal(audited_bytes, 0);
	}
	repository_backup_abort(backup);
	memory_disk_free(&disk);
	repository_close(repo);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order),
		SUPPORT_TEST(test_rounds),
		SUPPORT_TEST(test_rate),
		SUPPORT_TEST(test_what_follows),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
