/* The lines for Prometheus. */
#include "fixture.h"

#include "metrics.h"

static void test_lines(void **context)
{
	(void)context;
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);
	assert_non_null(out);
	prometheus_head(out, "sendense_x_bytes", "gauge", "What it is.");
	prometheus_put(out, "sendense_x_bytes", NULL, 1099511627776.0);
	prometheus_put(out, "sendense_x_bytes",
		(const char *const[]){"vm", "a\"b\\c\nd", "k", "", NULL}, 0.25);
	fclose(out);
	assert_string_equal(text, "# HELP sendense_x_bytes What it is.\n"
				  "# TYPE sendense_x_bytes gauge\n"
				  "sendense_x_bytes 1099511627776\n"
				  "sendense_x_bytes{vm=\"a\\\"b\\\\c\\nd\",k=\"\"} 0.25\n");
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lines),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
