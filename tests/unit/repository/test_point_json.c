/* A restore point told as JSON and read back is the same; what others send is looked at. */
#include "test_support.h"

#include "point_json.h"

#include <string.h>

static struct repository_pair identity[] = {{"vm-uuid", "4f"}, {"path", "/srv/a \"b\".img"}};
static struct repository_disk_info disks[] = {
	{.key = "2000",
		.size_bytes = (uint64_t)5 << 40,
		.mode = REPOSITORY_INCREMENTAL,
		.reason = "the list of changes fits",
		.parent = "20261121T200000Z-7f3a9c",
		.change = REPOSITORY_CHANGE_EXTENTS,
		.change_id = "52 aa/7",
		.bitmap = "b1",
		.audited_bytes = 65536,
		.source = {"raw", "raw:/srv/a.img", identity, 2},
		.root_hex = "00112233",
		.figures = {1, 2, 3, 4, 5},
		.image = "vms/a/disks/2000/x.qcow2",
		.backing = "20261121T200000Z-7f3a9c"},
	{.key = "2001",
		.size_bytes = 1,
		.mode = REPOSITORY_FULL,
		.reason = "first backup",
		.source = {"nbd", "nbd://h/x", NULL, 0},
		.root_hex = "ff",
		.image = "vms/a/disks/2001/x.qcow2"},
};

static void fill(struct repository_point *point)
{
	*point = (struct repository_point){
		.vm = "web",
		.id = "20261122T010203Z-abcdef",
		.job = "20261122T010203Z-abcdef01",
		.software = "sendense 0.1.0 (git x)",
		.started = "2026-11-22T01:02:03Z",
		.finished = "2026-11-22T01:03:03Z",
		.disks = disks,
		.nr_disks = 2,
		.verified = REPOSITORY_GOOD,
		.verified_at = "2026-11-22T02:00:00Z",
		.is_protected = true,
		.protected_until = "2027-01-01T00:00:00Z",
		.stored_bytes = 77,
		.consistency = "crash",
		.consistency_reason = "no agent",
	};
}

static void test_there_and_back(void **state)
{
	(void)state;
	struct repository_point point;
	struct err err = ERR_INIT;
	fill(&point);
	json_t *json = point_json(&point);
	struct repository_point *again = point_json_parse(json, &err);
	assert_string_equal(err.text, "");
	assert_non_null(again);
	assert_string_equal(again->vm, point.vm);
	assert_string_equal(again->id, point.id);
	assert_string_equal(again->software, point.software);
	assert_int_equal(again->verified, REPOSITORY_GOOD);
	assert_true(again->is_protected);
	assert_int_equal(again->nr_disks, 2);
	assert_int_equal(again->disks[0].size_bytes, disks[0].size_bytes);
	assert_int_equal(again->disks[0].change, REPOSITORY_CHANGE_EXTENTS);
	assert_memory_equal(&again->disks[0].figures, &disks[0].figures, sizeof disks[0].figures);
	assert_int_equal(again->disks[0].source.nr_identity, 2);
	assert_string_equal(again->disks[0].source.identity[1].value, identity[1].value);
	assert_null(again->disks[1].parent);
	assert_string_equal(point_json_mode(again), "mixed");
	json_t *told = point_json(again);
	assert_true(json_equal(told, json));
	json_decref(told);
	json_decref(json);
	repository_point_free(again);
}

static void test_damaged(void **state)
{
	(void)state;
	struct repository_point point = {
		.vm = "web", .id = "20261122T010203Z-abcdef", .damage = "it is cut"};
	json_t *json = point_json(&point);
	struct repository_point *again = point_json_parse(json, NULL);
	assert_non_null(again);
	assert_string_equal(again->damage, "it is cut");
	json_decref(json);
	repository_point_free(again);
}

/* Every member that must be there taken out, and made of another kind. */
static void test_what_is_missing(void **state)
{
	(void)state;
	static const char *const members[] = {"vm", "point", "started", "finished", "disks"};
	static const char *const of_disks[] = {
		"key", "size", "root", "mode", "source", "source_kind"};
	struct repository_point point;
	fill(&point);
	for (unsigned i = 0; i < ARRAY_LENGTH(members) + ARRAY_LENGTH(of_disks); i++) {
		json_t *json = point_json(&point);
		json_t *disk = json_array_get(json_object_get(json, "disks"), 1);
		bool of_disk = i >= ARRAY_LENGTH(members);
		const char *name = of_disk ? of_disks[i - ARRAY_LENGTH(members)] : members[i];
		for (unsigned how = 0; how < 2; how++) {
			struct err err = ERR_INIT;
			if (how == 0)
				json_object_set_new(of_disk ? disk : json, name, json_true());
			else
				json_object_del(of_disk ? disk : json, name);
			assert_null(point_json_parse(json, &err));
			assert_int_equal(err.code, ERR_PROTOCOL);
		}
		json_decref(json);
	}
}

static void test_wrong_values(void **state)
{
	(void)state;
	struct repository_point point;
	fill(&point);
	json_t *json = point_json(&point);
	json_t *disk = json_array_get(json_object_get(json, "disks"), 0);
	json_object_set_new(disk, "size", json_integer(-1));
	assert_null(point_json_parse(json, NULL));
	json_object_set_new(disk, "size", json_integer(1));
	json_object_set_new(disk, "key", json_string("../x"));
	assert_null(point_json_parse(json, NULL));
	json_object_set_new(disk, "key", json_string("ok"));
	json_object_set_new(json, "point", json_string("../../../../../etc/abcd"));
	assert_null(point_json_parse(json, NULL));
	json_decref(json);
	assert_null(point_json_parse(NULL, NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_there_and_back),
		cmocka_unit_test(test_damaged),
		cmocka_unit_test(test_what_is_missing),
		cmocka_unit_test(test_wrong_values),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
