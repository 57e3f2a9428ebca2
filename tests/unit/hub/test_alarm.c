/* Alarms: told once, also over restarts, until they are over. */
#include "fixture.h"

#include "alarm.h"
#include "capacity.h"

#include <sys/statvfs.h>

struct told {
	unsigned nr_begun, nr_over;
	char text[256];
};

static void changed(void *context, const struct alarm *alarm, bool over)
{
	struct told *told = context;
	told->nr_begun += !over;
	told->nr_over += over;
	snprintf(told->text, sizeof told->text, "%s", alarm->text);
}

static struct alarms *open_alarms(struct fixture *f, struct told *told)
{
	struct err err = ERR_INIT;
	struct alarms_options options = {.state = f->state, .changed = changed, .context = told};
	struct alarms *alarms = alarm_open(&options, &err);
	if (!alarms)
		fail_msg("%s", err.text);
	return alarms;
}

static void raise_one(struct alarms *alarms, enum alarm_kind kind, bool severe, const char *object,
	int64_t since, const char *text)
{
	struct err err = ERR_INIT;
	struct alarm alarm = {.kind = kind,
		.severe = severe,
		.object = (char *)object,
		.since = since,
		.text = (char *)text};
	OK(alarm_raise(alarms, &alarm, &err), err);
}

static void test_once(void **context)
{
	struct fixture *f = *context;
	struct told told = {0};
	struct err err = ERR_INIT;
	size_t nr;
	struct alarms *alarms = open_alarms(f, &told);
	raise_one(alarms, ALARM_OBJECTIVE, true, "web01", 100, "late");
	raise_one(alarms, ALARM_FAILED, false, "web01", 110, "it broke");
	raise_one(alarms, ALARM_OBJECTIVE, true, "db01", 120, "late");
	raise_one(alarms, ALARM_OBJECTIVE, true, "web01", 200, "later");
	assert_int_equal(told.nr_begun, 3);
	alarm_close(alarms);
	alarms = open_alarms(f, &told);
	raise_one(alarms, ALARM_OBJECTIVE, true, "web01", 300, "later still");
	assert_int_equal(told.nr_begun, 3);
	const struct alarm *list = alarm_list(alarms, &nr);
	assert_int_equal(nr, 3);
	assert_string_equal(list[0].object, "db01");
	assert_string_equal(list[1].object, "web01");
	assert_string_equal(list[1].text, "later still");
	assert_int_equal(list[1].since, 100);
	assert_int_equal(list[2].kind, ALARM_FAILED);
	OK(alarm_clear(alarms, ALARM_FAILED, "web01", &err), err);
	OK(alarm_clear(alarms, ALARM_FAILED, "web01", &err), err);
	assert_int_equal(told.nr_over, 1);
	assert_null(alarm_find(alarms, ALARM_FAILED, "web01"));
	/* Gone is not well: nobody is told. */
	OK(alarm_forget(alarms, ALARM_OF_MACHINE, "web01", &err), err);
	assert_int_equal(told.nr_over, 1);
	alarm_close(alarms);
	alarms = open_alarms(f, &told);
	alarm_list(alarms, &nr);
	assert_int_equal(nr, 1);
	alarm_close(alarms);
}

static void test_sweep(void **context)
{
	struct fixture *f = *context;
	struct told told = {0};
	struct err err = ERR_INIT;
	size_t nr;
	struct alarms *alarms = open_alarms(f, &told);
	raise_one(alarms, ALARM_FAILED, false, "web01", 1, "it broke");
	for (int i = 0; i < 3; i++) {
		alarm_sweep_begin(alarms);
		raise_one(alarms, ALARM_OBJECTIVE, true, "a", 1, "late");
		if (i == 0)
			raise_one(alarms, ALARM_SPACE, false, "main", 1, "little");
		if (i == 1) /* a warning that became an alarm is told again */
			raise_one(alarms, ALARM_SPACE, true, "main", 1, "none");
		OK(alarm_sweep_end(alarms, &err), err);
		assert_int_equal(told.nr_begun, i == 0 ? 3 : 4);
		assert_int_equal(told.nr_over, i == 2);
	}
	alarm_list(alarms, &nr);
	assert_int_equal(nr, 2);
	alarm_close(alarms);
}

/* --- free space ------------------------------------------------------------------------------ */

static void note(void *context, const struct capacity_report *report)
{
	*(struct capacity_report *)context = *report;
	((struct capacity_report *)context)->text = strdup(report->text);
}

/* What it says of the test's folder, once it has looked. */
static struct capacity_report ask(struct job_repository *repository)
{
	struct err err = ERR_INIT;
	struct capacity_report report = {0};
	struct deadline until = deadline_after_ms(30000);
	struct capacity *capacity = capacity_start(repository, 1, &err);
	if (!capacity)
		fail_msg("%s", err.text);
	do {
		free((char *)report.text);
		capacity_look(capacity, note, &report);
	} while (report.state == CAPACITY_UNKNOWN && !deadline_passed(until));
	capacity_stop(capacity);
	report.name = NULL;
	return report;
}

static void test_capacity(void **context)
{
	struct fixture *f = *context;
	char path[128];
	struct statvfs fs;
	struct job_repository repository = f->repository;
	assert_int_equal(statvfs(f->folder, &fs), 0);
	struct capacity_report report = ask(&repository);
	assert_int_equal(report.state, CAPACITY_GONE);
	assert_non_null(strstr(report.text, "is it mounted?"));
	free((char *)report.text);
	snprintf(path, sizeof path, "%s/repository.json", f->folder);
	FILE *file = fopen(path, "w");
	assert_non_null(file);
	fclose(file);
	static const struct {
		uint64_t warn, stop;
		enum capacity_state state;
	} cases[] = {{0, 0, CAPACITY_GOOD}, {UINT64_MAX, 0, CAPACITY_LITTLE},
		{UINT64_MAX, UINT64_MAX, CAPACITY_FULL}};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		repository.warn_free_bytes = cases[i].warn;
		repository.stop_free_bytes = cases[i].stop;
		report = ask(&repository);
		assert_int_equal(report.state, cases[i].state);
		assert_int_equal(report.total_bytes, fs.f_blocks * fs.f_frsize);
		assert_int_equal(report.text[0] == '\0', cases[i].state == CAPACITY_GOOD);
		free((char *)report.text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_once, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_sweep, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(test_capacity, fixture_setup, fixture_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
