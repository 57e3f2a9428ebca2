/* How sizes and durations are written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cli.h"

static void sizes(void **state)
{
	(void)state;
	static const struct {
		uint64_t bytes;
		const char *text;
	} cases[] = {
		{0, "0 B"},
		{1023, "1023 B"},
		{1024, "1.0 KiB"},
		{1536, "1.5 KiB"},
		{MIB - 1, "1.0 MiB"},
		{3 * GIB + 600 * MIB, "3.6 GiB"},
		{8 * TIB, "8.0 TiB"},
		{UINT64_MAX, "16.0 EiB"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		char text[SIZE_TEXT_BYTES];
		assert_string_equal(cli_size_text(cases[i].bytes, text), cases[i].text);
	}
}

static void durations(void **state)
{
	(void)state;
	static const struct {
		int64_t seconds;
		const char *text;
	} cases[] = {
		{0, "0.0 s"},
		{59, "59.0 s"},
		{60, "1 min 00 s"},
		{725, "12 min 05 s"},
		{3600, "1 h 00 min"},
		{100 * 3600 + 59 * 60, "100 h 59 min"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		char text[SIZE_TEXT_BYTES];
		assert_string_equal(
			cli_duration_text(cases[i].seconds * 1000000000, text), cases[i].text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes),
		cmocka_unit_test(durations),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
