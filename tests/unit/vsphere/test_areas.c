/* Answers about changed areas: what is told, and which ones cannot be. */
#include "areas.h"
#include "capture.h"

struct told {
	uint64_t offsets[8], lengths[8];
	unsigned nr;
	bool refuse;
};

static int take(void *context, uint64_t offset, uint64_t length, struct err *err)
{
	struct told *told = context;
	if (told->refuse)
		return err_set(err, ERR_NO_SPACE, "full");
	assert_in_range(told->nr, 0, 7);
	told->offsets[told->nr] = offset;
	told->lengths[told->nr++] = length;
	return 0;
}

static int read_info(const struct xml *info, uint64_t start, uint64_t capacity, struct told *told,
	uint64_t *next, struct err *err)
{
	struct vsphere_changes changes = {.gone = false};
	*err = ERR_INIT;
	int rc = areas_read(info, start, capacity, take, told, &changes, next, err);
	if (!rc)
		assert_int_equal(changes.nr_areas, told->nr);
	return rc;
}

static void test_captures(void **state)
{
	(void)state;
	struct told told = {.nr = 0};
	struct err err;
	uint64_t next;
	struct capture capture = capture_load("cbt-08-inc-33554432");
	const struct xml *info =
		xml_child(capture_answer(&capture, "QueryChangedDiskAreas"), "returnval");
	assert_int_equal(read_info(info, 33554432, 64 * MIB, &told, &next, &err), 0);
	assert_int_equal(next, 50331648);
	assert_int_equal(told.nr, 1);
	assert_int_equal(told.offsets[0], 45875200);
	assert_int_equal(told.lengths[0], 262144);
	assert_int_equal(read_info(info, 0, 64 * MIB, &told, &next, &err), -1);
	assert_int_equal(err.code, ERR_PROTOCOL);
	capture_free(&capture);
}

/* areas: "start+length ..." as XML. */
static int ask(const char *xml, uint64_t start, uint64_t capacity, struct told *told,
	uint64_t *next, struct err *err)
{
	struct capture capture = capture_of(xml);
	*told = (struct told){.refuse = told->refuse};
	int rc = read_info(capture.root, start, capacity, told, next, err);
	capture_free(&capture);
	return rc;
}

#define INFO(start, length, areas) \
	"<r><startOffset>" start "</startOffset><length>" length "</length>" areas "</r>"
#define AREA(start, length) \
	"<changedArea><start>" start "</start><length>" length "</length></changedArea>"

static void test_the_end_of_the_disk_cuts(void **state)
{
	(void)state;
	struct told told = {.nr = 0};
	struct err err;
	uint64_t next;
	assert_int_equal(ask(INFO("100", "200", AREA("100", "1") AREA("240", "60")), 100, 250,
				 &told, &next, &err),
		0);
	assert_int_equal(next, 250);
	assert_int_equal(told.nr, 2);
	assert_int_equal(told.offsets[1], 240);
	assert_int_equal(told.lengths[1], 10);
	assert_int_equal(
		ask(INFO("100", "200", AREA("260", "4")), 100, 250, &told, &next, &err), 0);
	assert_int_equal(told.nr, 0);
}

static void test_answers_that_cannot_be(void **state)
{
	(void)state;
	static const char *const bad[] = {
		"<r/>",
		"<r><startOffset>0</startOffset></r>",
		"<r><length>10</length></r>",
		INFO("0", "0", ""),
		INFO("1", "10", ""),
		INFO("0", "-1", ""),
		INFO("0", "9223372036854775808", ""),
		INFO("0", "10", AREA("0", "11")),
		INFO("0", "10", AREA("5", "2") AREA("6", "1")),
		INFO("0", "10", AREA("5", "2") AREA("1", "1")),
		INFO("0", "10", AREA("11", "1")),
		INFO("0", "10", AREA("-1", "1")),
		INFO("0", "10", AREA("1", "9223372036854775807")),
		INFO("0", "10", "<changedArea><start>1</start></changedArea>"),
		INFO("0", "10", "<changedArea/>"),
		INFO("0", "10", AREA("x", "1")),
	};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		struct told told = {.nr = 0};
		struct err err;
		uint64_t next;
		assert_int_equal(ask(bad[i], 0, 100, &told, &next, &err), -1);
		assert_int_equal(err.code, ERR_PROTOCOL);
	}
	struct told told = {.nr = 0};
	struct err err;
	uint64_t next;
	assert_int_equal(
		ask(INFO("9223372036854775807", "1", ""), INT64_MAX, 100, &told, &next, &err), -1);
	assert_int_equal(err.code, ERR_PROTOCOL);
}

static void test_who_takes_may_end_it(void **state)
{
	(void)state;
	struct told told = {.refuse = true};
	struct err err;
	uint64_t next;
	assert_int_equal(ask(INFO("0", "10", AREA("1", "1")), 0, 100, &told, &next, &err), -1);
	assert_int_equal(err.code, ERR_NO_SPACE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_captures),
		cmocka_unit_test(test_the_end_of_the_disk_cuts),
		cmocka_unit_test(test_answers_that_cannot_be),
		cmocka_unit_test(test_who_takes_may_end_it),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
