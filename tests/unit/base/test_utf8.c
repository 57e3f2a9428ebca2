/* UTF-8: what is well-formed, and what becomes of the rest. */
#include "test_support.h"

#include "base.h"

#include <stdio.h>
#include <string.h>

static void test_step(void **state)
{
	static const struct {
		const char *text;
		size_t step;
	} rows[] = {{"a", 1}, {"\x1f", 1}, {"\xc2\x80", 2}, {"\xdf\xbf", 2}, {"\xe0\xa0\x80", 3},
		{"\xed\x9f\xbf", 3}, {"\xef\xbf\xbf", 3}, {"\xf0\x90\x80\x80", 4},
		{"\xf4\x8f\xbf\xbf", 4}, {"\x80", 0}, {"\xc0\x80", 0}, {"\xc1\xbf", 0}, {"\xc2", 0},
		{"\xc2x", 0}, {"\xe0\x9f\xbf", 0}, {"\xe2\x82", 0}, {"\xed\xa0\x80", 0},
		{"\xf0\x8f\xbf\xbf", 0}, {"\xf0\x90\x80", 0}, {"\xf4\x90\x80\x80", 0},
		{"\xf5\x80\x80\x80", 0}, {"\xff", 0}};
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++)
		assert_int_equal(utf8_step((const uint8_t *)rows[i].text), rows[i].step);
}

static void test_mend(void **state)
{
	static const char *const rows[][2] = {{"", ""}, {"plain", "plain"},
		{"\xe2\x82\xac 5", "\xe2\x82\xac 5"}, {"caf\xe9", "caf?"},
		{"cut \xe2\x82", "cut ??"}, {"\xe2\x82: it", "??: it"},
		{"\xff\xc3\xbc\xff", "?\xc3\xbc?"}};
	char text[32];
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		snprintf(text, sizeof text, "%s", rows[i][0]);
		utf8_mend(text);
		assert_string_equal(text, rows[i][1]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_step),
		cmocka_unit_test(test_mend),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
