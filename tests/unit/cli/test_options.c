/* The table-driven options: forms, kinds, errors, near words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "options.h"

#include <string.h>

struct values {
	bool force;
	const char *name, *mode;
	struct option_list disks;
	struct option_number count, size, rate, time;
};

static const char *const modes[] = {"auto", "full", NULL};

static const struct option_spec table[] = {
	{.name = "force",
		.letter = 'f',
		.kind = OPTION_FLAG,
		.offset = offsetof(struct values, force)},
	{.name = "name",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct values, name),
		.argument = "N"},
	{.name = "mode",
		.kind = OPTION_CHOICE,
		.offset = offsetof(struct values, mode),
		.argument = "M",
		.choices = modes},
	{.name = "disk",
		.letter = 'd',
		.kind = OPTION_LIST,
		.offset = offsetof(struct values, disks),
		.argument = "D"},
	{.name = "count",
		.kind = OPTION_NUMBER,
		.offset = offsetof(struct values, count),
		.argument = "N",
		.minimum = 1,
		.maximum = 9},
	{.name = "size",
		.kind = OPTION_SIZE,
		.offset = offsetof(struct values, size),
		.argument = "S"},
	{.name = "rate",
		.kind = OPTION_RATE,
		.offset = offsetof(struct values, rate),
		.argument = "R"},
	{.name = "time",
		.kind = OPTION_DURATION,
		.offset = offsetof(struct values, time),
		.argument = "T"},
};

struct parsed {
	struct values values;
	struct option_list arguments;
	struct err err;
	int rc;
};

/* Parses the words up to NULL. */
static struct parsed parse(const char *const *words)
{
	struct parsed p = {0};
	const struct option_group group = {table, ARRAY_LENGTH(table), &p.values};
	int argc = 0;
	while (words[argc])
		argc++;
	p.rc = options_parse(&group, 1, argc, words, &p.arguments, &p.err);
	return p;
}

static void drop(struct parsed *p)
{
	const struct option_group group = {table, ARRAY_LENGTH(table), &p->values};
	options_free(&group, 1);
	option_list_free(&p->arguments);
}

#define PARSE(...) parse((const char *const[]){__VA_ARGS__, NULL})

static void forms_and_order(void **state)
{
	(void)state;
	struct parsed p = PARSE("first", "--name=a=b", "-f", "--disk", "one", "-d", "--two",
		"second", "--", "--name", "-f");
	assert_int_equal(p.rc, 0);
	assert_true(p.values.force);
	assert_string_equal(p.values.name, "a=b");
	assert_int_equal(p.values.disks.nr, 2);
	assert_string_equal(p.values.disks.items[1], "--two");
	assert_int_equal(p.arguments.nr, 4);
	assert_string_equal(p.arguments.items[1], "second");
	assert_string_equal(p.arguments.items[2], "--name");
	drop(&p);

	p = PARSE("-", "--name=");
	assert_int_equal(p.rc, 0);
	assert_string_equal(p.arguments.items[0], "-");
	assert_string_equal(p.values.name, "");
	drop(&p);
}

static void kinds(void **state)
{
	(void)state;
	struct parsed p =
		PARSE("--mode", "full", "--count=9", "--size=64k", "--rate", "2MiB/s", "--time=2h");
	assert_int_equal(p.rc, 0);
	assert_string_equal(p.values.mode, "full");
	assert_true(p.values.count.given);
	assert_int_equal(p.values.count.value, 9);
	assert_int_equal(p.values.size.value, 65536);
	assert_int_equal(p.values.rate.value, 2 * MIB);
	assert_int_equal(p.values.time.value, 7200);
	drop(&p);
}

static void refused(void **state)
{
	(void)state;
	static const struct {
		const char *words[4], *text;
	} cases[] = {
		{{"--nonsense"}, "--nonsense: unknown option"},
		{{"--nam"}, "did you mean --name?"},
		{{"--name"}, "--name: needs a value (--name N)"},
		{{"--force=yes"}, "--force: takes no value"},
		{{"-x"}, "-x: unknown option"},
		{{"-fd"}, "-fd: unknown option"},
		{{"--name=a", "--name=b"}, "--name: given twice"},
		{{"--mode=ful"}, "--mode: \"ful\" is not one of: auto, full"},
		{{"--count=0"}, "--count: 0 is not within 1..9"},
		{{"--count=10"}, "not within"},
		{{"--count=-1"}, "not a whole number"},
		{{"--count= 1"}, "not a whole number"},
		{{"--count=1x"}, "not a whole number"},
		{{"--count=99999999999999999999"}, "not a whole number"},
		{{"--size=many"}, "not a size"},
		{{"--rate=/s"}, "not a rate"},
		{{"--time=1x"}, "not a duration"},
		{{"--time=999999999999999999d"}, "not a duration"},
		{{"--=x"}, "unknown option"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct parsed p = parse(cases[i].words);
		assert_int_equal(p.rc, -1);
		assert_int_equal(p.err.code, ERR_USAGE);
		if (!strstr(p.err.text, cases[i].text))
			fail_msg("\"%s\" does not say \"%s\"", p.err.text, cases[i].text);
		drop(&p);
	}
}

static void flags_and_lists_may_repeat(void **state)
{
	(void)state;
	struct parsed p = PARSE("-f", "--force", "-d", "a", "-d", "a");
	assert_int_equal(p.rc, 0);
	assert_int_equal(p.values.disks.nr, 2);
	drop(&p);
}

static void asking_for_help(void **state)
{
	(void)state;
	assert_true(options_ask_help(2, (const char *const[]){"--nonsense", "--help"}));
	assert_true(options_ask_help(1, (const char *const[]){"-h"}));
	assert_false(options_ask_help(2, (const char *const[]){"--", "--help"}));
	assert_false(options_ask_help(0, (const char *const[]){NULL}));
}

static void near_words(void **state)
{
	(void)state;
	static const char *const words[] = {"backup", "restore", "ls", "copy"};
	assert_string_equal(options_nearest("bakcup", words, 4), "backup");
	assert_string_equal(options_nearest("restor", words, 4), "restore");
	assert_string_equal(options_nearest("cpy", words, 4), "copy");
	assert_null(options_nearest("nonsense", words, 4));
	char longer[200];
	memset(longer, 'x', sizeof longer - 1);
	longer[sizeof longer - 1] = '\0';
	assert_null(options_nearest(longer, words, 4));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(forms_and_order),
		cmocka_unit_test(kinds),
		cmocka_unit_test(refused),
		cmocka_unit_test(flags_and_lists_may_repeat),
		cmocka_unit_test(asking_for_help),
		cmocka_unit_test(near_words),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
