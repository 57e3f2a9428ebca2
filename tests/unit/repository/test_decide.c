/* Deciding between full and increment: a table of reasons. */
#include "points.h"

#include <fcntl.h>

#define SIZE (3 * MIB)

static const struct repository_pair uuid_one[] = {{"disk-uuid", "one"}};
static const struct repository_pair uuid_two[] = {{"disk-uuid", "two"}};

struct fixture {
	struct repository *repo;
	struct memory_disk disk;
	char first[REPOSITORY_POINT_BYTES], second[REPOSITORY_POINT_BYTES];
};

/* Two points, a full and an increment, at change id 52/2 and with bitmap b2. */
static void make(struct fixture *f)
{
	f->repo = support_repository("r");
	memory_disk_init(&f->disk, SIZE);
	memory_disk_fill(&f->disk, 0, SIZE / 2, 7);
	struct point_disk disk = {.key = "a",
		.source = &f->disk,
		.change_id = "52/1",
		.bitmap = "b1",
		.identity = uuid_one};
	points_make(f->repo, "web", &disk, 1, f->first);
	memory_disk_fill(&f->disk, MIB, 100, 8);
	disk.change_id = "52/2";
	disk.bitmap = "b2";
	points_make(f->repo, "web", &disk, 1, f->second);
}

static void unmake(struct fixture *f)
{
	repository_close(f->repo);
	memory_disk_free(&f->disk);
}

static int decide(struct fixture *f, const char *wish, const struct repository_offer *offer,
	struct repository_decision *decision, struct err *err)
{
	return repository_decide(f->repo, "web", wish, offer, 1, decision, err);
}

static struct repository_offer offer_of(enum repository_change change)
{
	return (struct repository_offer){.key = "a",
		.size_bytes = SIZE,
		.change = change,
		.from = "52/2",
		.bitmap = "b2",
		.source = {"raw", "raw:/a", uuid_one, 1}};
}

static void expect_full(struct fixture *f, const struct repository_offer *offer, const char *reason)
{
	struct repository_decision decision;
	struct err err = ERR_INIT;
	SUPPORT_OK(decide(f, "auto", offer, &decision, &err), err);
	if (decision.mode != REPOSITORY_FULL || !strstr(decision.reason, reason))
		fail_msg("expected a full, \"%s\": got %s \"%s\"", reason,
			decision.mode == REPOSITORY_FULL ? "one" : "none", decision.reason);
	assert_true(decision.fallback);
	assert_string_equal(decision.parent, "");
	assert_int_equal(decision.change, REPOSITORY_CHANGE_NONE);
	/* What would be a full is refused, with the same words, when an increment is a must. */
	assert_int_equal(decide(f, "incremental", offer, &decision, &err), -1);
	support_expect(&err, ERR_CONFLICT, reason);
	support_bad_input(reason, &err);
}

static void test_increments(void **state)
{
	(void)state;
	static const struct {
		enum repository_change offered, decided;
		const char *reason;
	} rows[] = {
		{REPOSITORY_CHANGE_NONE, REPOSITORY_CHANGE_COMPARE, "compared with"},
		{REPOSITORY_CHANGE_COMPARE, REPOSITORY_CHANGE_COMPARE, "compared with"},
		{REPOSITORY_CHANGE_EXTENTS, REPOSITORY_CHANGE_EXTENTS, "by the list from outside"},
		{REPOSITORY_CHANGE_BITMAP, REPOSITORY_CHANGE_BITMAP, "by dirty bitmap b2"},
	};
	struct fixture f;
	make(&f);
	for (unsigned i = 0; i < 2 * ARRAY_LENGTH(rows); i++) {
		struct repository_decision decision;
		struct err err = ERR_INIT;
		struct repository_offer offer = offer_of(rows[i / 2].offered);
		SUPPORT_OK(
			decide(&f, i % 2 ? "auto" : "incremental", &offer, &decision, &err), err);
		assert_int_equal(decision.mode, REPOSITORY_INCREMENTAL);
		assert_int_equal(decision.change, rows[i / 2].decided);
		assert_string_equal(decision.parent, f.second);
		assert_false(decision.fallback);
		assert_non_null(strstr(decision.reason, rows[i / 2].reason));
	}
	unmake(&f);
}

/* Never within a number. */
static void test_a_reason_that_is_too_long(void **state)
{
	(void)state;
	struct fixture f;
	struct repository_decision decision;
	struct err err = ERR_INIT;
	char why[2 * sizeof decision.reason] = "";
	make(&f);
	for (size_t used = 0; used + 24 < sizeof why; used += 20)
		snprintf(why + used, sizeof why - used, "%019u ", 7u);
	struct repository_offer offer = offer_of(REPOSITORY_CHANGE_EXTENTS);
	offer.unusable = why;
	SUPPORT_OK(decide(&f, "auto", &offer, &decision, &err), err);
	size_t length = strlen(decision.reason);
	assert_in_range(length, sizeof decision.reason - 24, sizeof decision.reason - 1);
	assert_string_equal(decision.reason + length - 6, "07 ...");
	assert_int_equal(length % 20, 3);
	unmake(&f);
}

static void test_what_was_asked_for(void **state)
{
	(void)state;
	struct fixture f;
	struct repository_decision decision;
	struct err err = ERR_INIT;
	make(&f);
	struct repository_offer offer = offer_of(REPOSITORY_CHANGE_EXTENTS);
	SUPPORT_OK(decide(&f, "full", &offer, &decision, &err), err);
	assert_int_equal(decision.mode, REPOSITORY_FULL);
	assert_false(decision.fallback);
	assert_string_equal(decision.reason, "--mode full");
	assert_int_equal(decide(&f, "half", &offer, &decision, &err), -1);
	support_expect(&err, ERR_USAGE, "no mode \"half\"");
	/* A VM without points. */
	SUPPORT_OK(repository_decide(f.repo, "new", "auto", &offer, 1, &decision, &err), err);
	assert_string_equal(decision.reason, "first backup");
	assert_false(decision.fallback);
	assert_int_equal(
		repository_decide(f.repo, "new", "incremental", &offer, 1, &decision, &err), -1);
	support_expect(&err, ERR_CONFLICT, "first backup");
	unmake(&f);
}

static void test_what_changed_is_not_known(void **state)
{
	(void)state;
	struct fixture f;
	make(&f);
	struct repository_offer offer = offer_of(REPOSITORY_CHANGE_EXTENTS);
	offer.from = "77/1";
	expect_full(&f, &offer, "the list of changes begins at 77/1, restore point");
	offer = offer_of(REPOSITORY_CHANGE_BITMAP);
	offer.bitmap = "b1";
	expect_full(&f, &offer, "recorded dirty bitmap b2, not b1");
	offer.unusable = "bitmap b1 is not there";
	expect_full(&f, &offer, "bitmap b1 is not there");
	offer = offer_of(REPOSITORY_CHANGE_COMPARE);
	offer.size_bytes += 512;
	expect_full(&f, &offer, "the disk was resized from 3145728 to 3146240 bytes");
	offer = offer_of(REPOSITORY_CHANGE_COMPARE);
	offer.key = "b";
	expect_full(&f, &offer, "has no disk b");
	/* A parent that recorded neither change id nor bitmap. */
	struct point_disk disk = {.key = "a", .source = &f.disk};
	points_make(f.repo, "web", &disk, 1, NULL);
	offer = offer_of(REPOSITORY_CHANGE_EXTENTS);
	expect_full(&f, &offer, "recorded no change id, and the list of changes begins at 52/2");
	offer = offer_of(REPOSITORY_CHANGE_BITMAP);
	expect_full(&f, &offer, "recorded no dirty bitmap");
	unmake(&f);
}

static void turn_bit(const char *path, off_t offset)
{
	uint8_t byte;
	int fd = open(path, O_RDWR);
	assert_int_equal(pread(fd, &byte, 1, offset), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
	close(fd);
}

static void test_a_parent_that_is_wrong(void **state)
{
	(void)state;
	struct fixture f;
	struct err err = ERR_INIT;
	char path[NAME_PATH_BYTES];
	make(&f);
	struct repository_offer offer = offer_of(REPOSITORY_CHANGE_EXTENTS);
	SUPPORT_OK(manifest_update_state(f.repo, "web", f.second,
			   json_pack("{s:{s:{s:s, s:s}}}", "distrusted", "a", "at",
				   "2026-01-01T00:00:00Z", "reason", "offset 65536"),
			   &err),
		err);
	expect_full(
		&f, &offer, "an audit found what told of its changes to be wrong: offset 65536");
	SUPPORT_OK(manifest_update_state(
			   f.repo, "web", f.second, json_pack("{s:n}", "distrusted"), &err),
		err);
	/* Beneath it, too. */
	SUPPORT_OK(
		manifest_update_state(f.repo, "web", f.first,
			json_pack("{s:{s:s, s:s, s:I}}", "verified", "at", "2026-01-01T00:00:00Z",
				"result", "damaged", "chunks", (json_int_t)1),
			&err),
		err);
	expect_full(&f, &offer, "verification found restore point");
	SUPPORT_OK(
		manifest_update_state(f.repo, "web", f.first, json_pack("{s:n}", "verified"), &err),
		err);
	/* Files that are gone, one after the other; each is put back. */
	const char *const endings[] = {".qcow2", ".sums"};
	for (unsigned i = 0; i < 4; i++) {
		snprintf(path, sizeof path, "r/vms/web/disks/a/%s%s", i / 2 ? f.first : f.second,
			endings[i % 2]);
		assert_int_equal(rename(path, "away"), 0);
		expect_full(&f, &offer, i / 2 ? f.first : f.second);
		support_write(path, "damaged", 7);
		expect_full(&f, &offer, i / 2 ? f.first : f.second);
		assert_int_equal(rename("away", path), 0);
	}
	/* A byte among the checksums, which only those who read them all see. */
	for (unsigned i = 0; i < 2; i++) {
		snprintf(path, sizeof path, "r/vms/web/disks/a/%s.sums", i ? f.first : f.second);
		turn_bit(path, 512 + 600);
		expect_full(&f, &offer, i ? f.first : f.second);
		turn_bit(path, 512 + 600);
	}
	snprintf(path, sizeof path, "r/vms/web/points/%s/manifest.json", f.first);
	assert_int_equal(rename(path, "away"), 0);
	expect_full(&f, &offer, f.first);
	assert_int_equal(rename("away", path), 0);
	snprintf(path, sizeof path, "r/vms/web/points/%s/manifest.json", f.second);
	assert_int_equal(rename(path, "away"), 0);
	support_write(path, "{}", 2);
	expect_full(&f, &offer, "cannot be used");
	assert_int_equal(rename("away", path), 0);
	/* All is in place again. */
	struct repository_decision decision;
	SUPPORT_OK(decide(&f, "incremental", &offer, &decision, &err), err);
	unmake(&f);
}

static void test_strangers(void **state)
{
	(void)state;
	struct fixture f;
	struct repository_decision decision;
	struct err err = ERR_INIT;
	make(&f);
	struct repository_offer offer = offer_of(REPOSITORY_CHANGE_COMPARE);
	offer.source.identity = uuid_two;
	assert_int_equal(decide(&f, "auto", &offer, &decision, &err), -1);
	support_expect(&err, ERR_DENIED, "disk-uuid is two, and was one at restore point");
	support_bad_input("a stranger under the name of a known VM", &err);
	SUPPORT_OK(decide(&f, "full", &offer, &decision, &err), err);
	offer.source.nr_identity = 0; /* one that cannot say is believed */
	SUPPORT_OK(decide(&f, "auto", &offer, &decision, &err), err);
	unmake(&f);
}

/* Between decision and begin somebody else made a point. */
static void test_decide_again(void **state)
{
	(void)state;
	struct fixture f;
	struct err err = ERR_INIT;
	make(&f);
	const struct repository_disk_spec spec = {.key = "a",
		.size_bytes = SIZE,
		.mode = REPOSITORY_INCREMENTAL,
		.parent = f.first,
		.change = REPOSITORY_CHANGE_COMPARE,
		.source = {"raw", "raw:/a", NULL, 0}};
	const struct repository_backup_options options = {
		.vm = "web", .source = {"raw", "web", NULL, 0}, .disks = &spec, .nr_disks = 1};
	assert_null(repository_backup_begin(f.repo, &options, &err));
	support_expect(&err, ERR_BUSY, "not the latest restore point any more");
	unmake(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_increments),
		SUPPORT_TEST(test_a_reason_that_is_too_long),
		SUPPORT_TEST(test_what_was_asked_for),
		SUPPORT_TEST(test_what_changed_is_not_known),
		SUPPORT_TEST(test_a_parent_that_is_wrong),
		SUPPORT_TEST(test_strangers),
		SUPPORT_TEST(test_decide_again),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
