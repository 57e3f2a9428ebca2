/* Log lines: levels, and control characters that must not reach a terminal. */
#include "test_support.h"

#include <stdio.h>
#include <string.h>

static char last[4096];
static unsigned nr_lines;

static void remember(void *context, enum log_level level, const char *text)
{
	assert_ptr_equal(context, last);
	snprintf(last, sizeof last, "%s: %s", log_level_name(level), text);
	nr_lines++;
}

static void test_levels(void **state)
{
	(void)state;
	log_set_sink(NULL, NULL, LOG_LEVEL_DEBUG);
	log_error("to nowhere");
	log_set_sink(remember, last, LOG_LEVEL_WARNING);
	log_info("not wanted");
	assert_int_equal(nr_lines, 0);
	log_warning("slot %d freed", 3);
	assert_int_equal(nr_lines, 1);
	assert_string_equal(last, "warning: slot 3 freed");
}

static void test_control_characters(void **state)
{
	(void)state;
	log_set_sink(remember, last, LOG_LEVEL_DEBUG);
	log_error("name %s", "a\nb\033[2Jc\x7f\tü");
	assert_string_equal(last, "error: name a?b?[2Jc??ü");
}

static void test_long_line_is_cut(void **state)
{
	(void)state;
	char text[3000];
	memset(text, 'x', sizeof text - 1);
	text[sizeof text - 1] = '\0';
	log_set_sink(remember, last, LOG_LEVEL_DEBUG);
	log_debug("%s", text);
	assert_in_range(strlen(last), 2000, 2100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_control_characters),
		cmocka_unit_test(test_long_line_is_cut),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
