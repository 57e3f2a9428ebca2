/*
 * A file of settings by a table of the test's own, with two kinds of sections that have names, and
 * one without any.  What a whole file may hold is tested with the hub's (test_config.c).
 */
#include "../scratch.h"

#include "settings.h"

struct door {
	uint64_t width;
	const char *name; /* not the first member */
	char *colour;
};

struct house {
	char *path;
	unsigned floors;
	char **guests;
	struct door *doors;
	size_t nr_doors;
	struct door *gates;
	size_t nr_gates;
};

static const struct setting table[] = {
	{"house", "floors", SETTING_NUMBER, .offset = offsetof(struct house, floors),
		.otherwise = "1", .least = 1, .most = 9, .live = true},
	{"house", "guest", SETTING_LIST, .offset = offsetof(struct house, guests)},
	{"door", "width", SETTING_SIZE, .offset = offsetof(struct door, width)},
	{"door", "colour", SETTING_TEXT, .offset = offsetof(struct door, colour),
		.otherwise = "brown"},
	{"gate", "width", SETTING_SIZE, .offset = offsetof(struct door, width)},
	{"gate", "colour", SETTING_TEXT, .offset = offsetof(struct door, colour)},
};

static const struct settings_named named[] = {
	{"door", offsetof(struct house, doors), offsetof(struct house, nr_doors),
		sizeof(struct door), offsetof(struct door, name)},
	{"gate", offsetof(struct house, gates), offsetof(struct house, nr_gates),
		sizeof(struct door), offsetof(struct door, name)},
	{0},
};

static int check(const struct setting *setting, const char *text, struct err *err)
{
	if (strcmp(setting->name, "colour") == 0 && strcmp(text, "pink") == 0)
		return err_set(err, ERR_USAGE, "no");
	return 0;
}

static int derive(struct settings_reading *reading, void *values, struct err *err)
{
	const struct house *house = values;
	(void)err;
	for (size_t i = 0; i < house->nr_doors; i++)
		if (!house->doors[i].colour)
			settings_wrong(reading, settings_named_line(reading, "door", i),
				"[door %s] has no colour", house->doors[i].name);
	if (house->floors == 7)
		settings_wrong(reading, settings_line(reading, "house", "floors"), "seven");
	return 0;
}

static const struct settings houses = {
	.owner = "house",
	.made_by = "sendense house init",
	.bytes = sizeof(struct house),
	.path = offsetof(struct house, path),
	.table = table,
	.nr_table = ARRAY_LENGTH(table),
	.named = named,
	.check = check,
	.derive = derive,
};

static struct house *parse(const char *text, struct err *err)
{
	char *AUTO_FREE copy = strdup(text);
	err_clear(err);
	return settings_parse(&houses, "/etc/house.conf", copy, strlen(copy), err);
}

static void test_names(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct house *house = parse("[gate front]\nwidth = 4k\n"
				    "[door front]\ncolour = red\n"
				    "[door back]\ncolour = green\nwidth = 1k\n"
				    "[door front]\n",
		&err);
	assert_null(house);
	support_expect(&err, ERR_USAGE, "/etc/house.conf:8: the door front is there twice");
	/* A gate may be called like a door; a section may be left and come back to. */
	house = parse("[gate front]\nwidth = 4k\n[house]\nguest = a\n"
		      "[door front]\ncolour = red\n"
		      "[door back]\ncolour = green\nwidth = 1k\n[house]\nguest = b\n",
		&err);
	if (!house)
		fail_msg("%s", err.text);
	assert_int_equal(house->nr_doors, 2);
	assert_int_equal(house->nr_gates, 1);
	assert_string_equal(house->doors[1].name, "back");
	assert_string_equal(house->doors[1].colour, "green");
	assert_int_equal(house->doors[1].width, 1024);
	assert_int_equal(house->gates[0].width, 4096);
	assert_string_equal(house->guests[1], "b");
	assert_int_equal(house->floors, 1);
	assert_string_equal(house->path, "/etc/house.conf");
	settings_free(&houses, house);
}

static void test_refused(void **state)
{
	(void)state;
	static const struct {
		const char *text, *why;
	} cases[] = {
		{"[gate]\n", ":1: [gate] needs a name (like [gate main])"},
		{"[gates a]\n", ":1: [gates a] is no section (one of house, door NAME, gate NAME)"},
		{"[door a b]\n", "is no name for a door"},
		{"[door a]\ncolour = pink\n", ":2: [door] colour: no"},
		{"[door a]\nheight = 1\n", ":2: [door] has no setting \"height\" (there is: width, "
					   "colour)"},
		{"[door a]\ncolour = x\n[door b]\n", ":3: [door b] has no colour"},
		{"[house]\n\nfloors = 7\n", ":3: seven"},
		{"[house]\nfloors = 2\n[gate x]\n[house]\nfloors = 3\n",
			":5: [house] floors is "
			"there already, in line 2"},
		{"x = 1\n", "before the first section (like [house])"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		assert_null(parse(cases[i].text, &err));
		support_expect(&err, ERR_USAGE, cases[i].why);
	}
}

static void test_no_file(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_null(settings_load(&houses, "there-is-none.conf", NULL, NULL, &err));
	support_expect(&err, ERR_NOT_FOUND, "the house's settings");
	support_expect(&err, ERR_NOT_FOUND, "\"sendense house init\" makes them");
}

struct logged {
	char text[1024];
};

static void keep_line(void *context, enum log_level level, const char *text)
{
	struct logged *logged = context;
	size_t used = strlen(logged->text);
	(void)level;
	snprintf(logged->text + used, sizeof logged->text - used, "%s\n", text);
}

static void write_file(const char *path, const char *text)
{
	struct err err = ERR_INIT;
	SUPPORT_OK(file_replace(AT_FDCWD, path, text, strlen(text), 0600, &err), err);
}

/* What does not count before a restart stays what it was, and is named. */
static void test_reload(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct logged logged = {0};
	char folder[] = "/tmp/test_settings.XXXXXX", path[64];
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof path, "%s/house.conf", folder);
	log_set_sink(keep_line, &logged, LOG_LEVEL_DEBUG);
	write_file(path, "[house]\nguest = a\n[door a]\ncolour = x\n");
	struct house *old = settings_load(&houses, path, NULL, NULL, &err);
	assert_non_null(old);
	write_file(path, "[house]\nfloors = 3\n[door a]\ncolour = y\n[gate b]\n");
	struct house *new = settings_reload(&houses, old);
	assert_non_null(new);
	assert_string_equal(logged.text,
		"counts after a restart only: [house] guest, [door NAME] , [gate NAME] \n");
	assert_int_equal(new->floors, 3);
	assert_string_equal(new->guests[0], "a");
	assert_string_equal(new->doors[0].colour, "x");
	assert_int_equal(new->nr_gates, 0);
	settings_free(&houses, old);
	logged.text[0] = '\0';
	write_file(path, "[house]\nroof = 3\n");
	assert_null(settings_reload(&houses, new));
	assert_non_null(strstr(logged.text, "house.conf:2: "));
	assert_non_null(strstr(logged.text, "the old settings stay"));
	settings_free(&houses, new);
	log_set_sink(NULL, NULL, LOG_LEVEL_ERROR);
	unlink(path);
	rmdir(folder);
}

static void test_defaults(void **state)
{
	(void)state;
	json_t *all = settings_defaults(&houses);
	json_t *expected =
		json_pack("{s:{s:s, s:n}, s:{s:n, s:s}, s:{s:n, s:n}}", "house", "floors", "1",
			"guest", "door", "width", "colour", "brown", "gate", "width", "colour");
	assert_true(json_equal(all, expected));
	json_decref(all);
	json_decref(expected);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_refused),
		SUPPORT_TEST(test_no_file),
		cmocka_unit_test(test_reload),
		cmocka_unit_test(test_defaults),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
