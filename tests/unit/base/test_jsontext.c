/* The shape of JSON texts, of what is no JSON too. */
#include "test_support.h"

static void test_shapes(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		uint64_t depth, nr_values;
	} cases[] = {
		{"", 0, 1},
		{"1", 0, 1},
		{"[]", 1, 2},
		{"{\"a\":[1,2],\"b\":{}}", 2, 6},
		{"[[[]],[[[[]]]]]", 5, 9},
		/* Brackets and commas in strings, also behind an escaped quote. */
		{"[\"[[,,{{\"]", 1, 2},
		{"[\"\\\"[[\",\"\\\\\"]", 1, 3},
		/* No JSON. */
		{"]]]][", 1, 2},
		{"\"[[[", 0, 1},
		{"[\"\\", 1, 2},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct jsontext_shape shape = jsontext_shape(cases[i].text, strlen(cases[i].text));
		assert_int_equal(shape.depth, cases[i].depth);
		assert_int_equal(shape.nr_values, cases[i].nr_values);
	}
	/* Nothing behind the length is looked at. */
	assert_int_equal(jsontext_shape("[[[[", 2).depth, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
