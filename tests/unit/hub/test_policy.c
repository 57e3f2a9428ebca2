/* Policies and settings of machines: what is refused, what holds for whom; machines from the
 * state and the index together. */
#include "fixture.h"

#include "policy.h"

static void test_refused(void **context)
{
	(void)context;
	static const struct {
		bool is_machine;
		const char *text, *why;
	} cases[] = {
		{false, "{'vms':'*'}", "vms"},
		{false, "{'vms':['']}", "vms[0]"},
		{false, "{'vms':[5]}", "vms[0]"},
		{false, "{'labels':{'a b':'x'}}", "labels"},
		{false, "{'labels':{'a':null}}", "labels.a"},
		{false, "{'schedules':['../x']}", "schedules"},
		{false, "{'objective_s':0}", "objective_s"},
		{false, "{'keep':{}}", "keep"},
		{false, "{'keep':{'last':0}}", "keep"},
		{false, "{'keep':{'last':'1'}}", "keep.last"},
		{false, "{'keep':{'latest':1}}", "keep.latest"},
		{false, "{'time_zone':'Europe/Nowhere'}", "time_zone"},
		{false, "{'mode':'half'}", "mode"},
		{false, "{'audit':-1}", "audit"},
		{false, "{'audit':'1'}", "audit"},
		{false, "{'priority':1001}", "priority"},
		{false, "{'secret':1}", "secret"},
		{true, "{'disks':[{'key':'a'}]}", "disks[0].source"},
		{true, "{'disks':[{'key':'a/b','source':'raw:/x'}]}", "disks[0].key"},
		{true, "{'disks':[{'key':'a','source':'raw:/x'},{'key':'a','source':'raw:/y'}]}",
			"twice"},
		{true, "{'disks':[{'key':'a','source':'raw:/x','password':'x'}]}",
			"disks[0].password"},
		{true, "{'policy':'a/b'}", "policy"},
		{true, "{'name':'other'}", "name"},
		{true, "{'paused':1}", "paused"},
		{true, "{'objective_s':31622401}", "objective_s"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		json_t *value = fixture_json(cases[i].text);
		int rc = cases[i].is_machine ? policy_check_machine("web01", value, &err)
					     : policy_check("gold", value, &err);
		if (rc == 0 || err.code != ERR_USAGE || !strstr(err.text, cases[i].why))
			fail_msg("%s: %s", cases[i].text, err.text);
		json_decref(value);
	}
	json_t *blank = json_object();
	assert_int_equal(policy_check_machine("", blank, NULL), -1);
	assert_int_equal(policy_check_machine("a\nb", blank, NULL), -1);
	assert_int_equal(policy_check("", blank, NULL), -1);
	json_decref(blank);
}

static void test_patterns(void **context)
{
	(void)context;
	assert_true(policy_matches("web*", "web01"));
	assert_true(policy_matches("*", ""));
	assert_true(policy_matches("w?b", "web"));
	assert_false(policy_matches("w?b", "wb"));
	assert_false(policy_matches("web", "web01"));
	/* Nothing else means anything. */
	assert_false(policy_matches("[ab]", "a"));
	assert_true(policy_matches("[ab]", "[ab]"));
	assert_true(policy_matches("a\\*", "a\\b"));
	char longer[2000];
	memset(longer, '[', sizeof longer - 1);
	longer[sizeof longer - 1] = '\0';
	assert_false(policy_matches(longer, longer));
}

static void test_chosen(void **context)
{
	(void)context;
	json_t *policies =
		fixture_json("{'all':{'vms':['*']},"
			     "'gold':{'labels':{'tier':'g*'},'priority':5},"
			     "'web':{'vms':['web*','www'],'labels':{'site':'*'},'priority':5},"
			     "'named':{'priority':1000}}");
	static const struct {
		const char *name, *settings, *policy;
	} cases[] = {
		{"db01", NULL, "all"},
		{"db01", "{}", "all"},
		{"db01", "{'labels':{'tier':'gold'}}", "gold"},
		{"db01", "{'labels':{'tier':'silver'}}", "all"},
		{"web01", "{'labels':{'tier':'silver'}}", "all"},
		{"web01", "{'labels':{'site':'x'}}", "web"},
		{"www", "{'labels':{'site':''}}", "web"},
		{"web01", "{'labels':{'site':'x','tier':'gold'}}", "gold"},
		{"web01", "{'labels':{'tier':'gold'},'policy':'named'}", "named"},
		{"web01", "{'policy':null}", "all"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		json_t *settings = cases[i].settings ? fixture_json(cases[i].settings) : NULL;
		const char *id = NULL;
		const json_t *policy = policy_of(policies, cases[i].name, settings, &id);
		assert_string_equal(id, cases[i].policy);
		assert_ptr_equal(policy, json_object_get(policies, cases[i].policy));
		json_decref(settings);
	}
	/* One that is named and does not exist is none, not another one. */
	json_t *settings = fixture_json("{'policy':'gone'}");
	const char *id = NULL;
	assert_null(policy_of(policies, "web01", settings, &id));
	assert_string_equal(id, "gone");
	json_decref(settings);
	json_decref(policies);
}

static void test_machines(void **context)
{
	struct fixture *f = *context;
	fixture_put(f, "policy", "all", "{'vms':['*'],'objective_s':3600,'keep':{'last':3}}");
	fixture_put(f, "vm", "b-never", "{'created':'2026-11-22T10:00:00Z','repository':'other'}");
	fixture_put(f, "vm", "c-good", "{'created':'2026-11-01T00:00:00Z','objective_s':7200}");
	int64_t at = fixture_utc("2026-11-22 12:00");
	fixture_point(f, "c-good", at - 7200, false);
	fixture_point(f, "c-good", at, false);
	fixture_point(f, "a-pushed", at - 60, true);
	fixture_point(f, "a-pushed", at - 1800, false);
	fixture_point(f, "d-broken", at, true);
	fixture_put(f, "vm", "e-set-later", "{'created':'2026-11-22T11:59:00Z'}");
	fixture_point(f, "e-set-later", at - 7200, true);
	struct machine_set *set = fixture_machines(f);
	assert_int_equal(set->nr_machines, 5);

	const struct machine *machine = machine_find(set, "a-pushed");
	assert_ptr_equal(machine, &set->machines[0]);
	assert_null(machine->settings);
	assert_string_equal(machine->policy_id, "all");
	assert_string_equal(machine->repository, "main");
	assert_int_equal(machine->nr_points, 2);
	assert_int_equal(machine->nr_damaged, 1);
	/* The damaged one does not count. */
	assert_int_equal(machine->newest_time, at - 1800);
	assert_int_equal(machine_alarm_since(machine, at - 1800 + 3600), 0);
	assert_int_equal(machine_alarm_since(machine, at - 1800 + 3601), at + 1800);
	assert_int_equal(machine_alarm_begins(machine), at + 1801);

	machine = machine_find(set, "b-never");
	assert_string_equal(machine->repository, "other");
	assert_int_equal(machine->newest_time, 0);
	/* Counted from when the hub came to know of it. */
	assert_int_equal(machine_alarm_since(machine, fixture_utc("2026-11-22 11:00")), 0);
	assert_int_equal(machine_alarm_since(machine, at), fixture_utc("2026-11-22 11:00"));

	machine = machine_find(set, "c-good");
	assert_int_equal(machine->objective_s, 7200);
	assert_int_equal(machine->newest_time, at);
	assert_int_equal(json_integer_value(json_object_get(machine_keep(machine), "last")), 3);

	machine = machine_find(set, "d-broken");
	assert_int_equal(machine->newest_time, 0);
	assert_int_equal(machine_alarm_since(machine, at + 3601), at + 3600);

	/* Settings are no good restore point: an alarm that was there before them goes on. */
	machine = machine_find(set, "e-set-later");
	assert_int_equal(machine_alarm_since(machine, at), at - 3600);
	assert_null(machine_find(set, "e"));
	machine_set_free(set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_patterns),
		cmocka_unit_test(test_chosen),
		cmocka_unit_test_setup_teardown(test_machines, fixture_setup, fixture_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
