/* JSON from outside: read within bounds, held to a table. */
#include "test_support.h"

static const struct rest_field fields[] = {
	{.name = "name", .type = REST_STRING, .required = true, .least = 1, .most = 4},
	{.name = "text", .type = REST_STRING},
	{.name = "count", .type = REST_INTEGER, .least = 1, .most = 9},
	{.name = "any", .type = REST_INTEGER},
	{.name = "ratio", .type = REST_NUMBER},
	{.name = "on", .type = REST_BOOL},
	{.name = "until", .type = REST_STRING, .nullable = true},
	{.name = "mode", .type = REST_STRING, .choices = (const char *const[]){"a", "b", NULL}},
	{.name = "list", .type = REST_ARRAY, .least = 1, .most = 2},
	{.name = "inner", .type = REST_OBJECT},
	{0},
};

static json_t *parse(const char *text)
{
	return rest_json_parse(text, strlen(text), NULL);
}

static void test_check(void **state)
{
	(void)state;
	const struct {
		const char *text, *error; /* NULL: none */
	} rows[] = {
		{"{\"name\":\"x\"}", NULL},
		{"{\"name\":\"x\",\"count\":1,\"ratio\":2,\"on\":true,\"until\":null,\"mode\":"
		 "\"b\","
		 "\"list\":[1],\"inner\":{}}",
			NULL},
		{"{}", "name: is missing"},
		{"{\"name\":null}", "name: must be a string"},
		{"{\"name\":\"\"}", "name: must be 1 to 4 bytes, not 0"},
		{"{\"name\":\"12345\"}", "name: must be 1 to 4 bytes, not 5"},
		{"{\"name\":\"x\",\"nam\":1}", "nam: there is no such member"},
		{"{\"name\":\"x\",\"count\":0}", "count: must be 1 to 9, not 0"},
		{"{\"name\":\"x\",\"count\":1.0}", "count: must be a whole number"},
		{"{\"name\":\"x\",\"count\":\"1\"}", "count: must be a whole number"},
		{"{\"name\":\"x\",\"any\":-9223372036854775808}", NULL},
		{"{\"name\":\"x\",\"on\":0}", "on: must be true or false"},
		{"{\"name\":\"x\",\"until\":1}", "until: must be a string or null"},
		{"{\"name\":\"x\",\"mode\":\"c\"}", "mode: must be one of \"a\", \"b\""},
		{"{\"name\":\"x\",\"list\":[]}", "list: must be 1 to 2 members, not 0"},
		{"{\"name\":\"x\",\"list\":{}}", "list: must be an array"},
		{"{\"name\":\"x\",\"inner\":[]}", "inner: must be an object"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		struct err err = ERR_INIT;
		json_t *object = parse(rows[i].text);
		assert_non_null(object);
		assert_int_equal(rest_check(object, fields, &err), rows[i].error ? -1 : 0);
		assert_string_equal(err.text, rows[i].error ? rows[i].error : "");
		assert_int_equal(err.code, rows[i].error ? ERR_USAGE : ERR_NONE);
		json_decref(object);
	}
	assert_int_equal(rest_check(NULL, fields, NULL), -1);
}

static void test_check_inside(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	json_t *array = parse("[{\"name\":\"a\"},{\"name\":1}]");
	assert_int_equal(rest_check_each("disks", array, fields, &err), -1);
	assert_string_equal(err.text, "disks[1].name: must be a string");
	assert_int_equal(rest_check_in("source", json_array_get(array, 0), fields, &err), 0);
	assert_int_equal(rest_check_in("source", array, fields, &err), -1);
	assert_string_equal(err.text, "source: must be an object");
	json_array_append_new(array, json_integer(1));
	json_array_remove(array, 1);
	assert_int_equal(rest_check_each("disks", array, fields, &err), -1);
	assert_string_equal(err.text, "disks[1]: must be an object");
	assert_int_equal(rest_check_each("disks", NULL, fields, &err), 0);
	json_decref(array);
}

static void test_parse(void **state)
{
	(void)state;
	const char *const bad[] = {"", "{", "{\"a\":1,\"a\":2}", "{\"a\":1} x", "\"a\"", "1", "nul",
		"{\"a\":99999999999999999999}", "{\"a\":\"\\u0000\"}", "{\"\\u0000\":1}",
		"{\"a\":\"\xff\"}", "{\"a\":1e999}", "[1,]", "{'a':1}", "\xef\xbb\xbf{}"};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		struct err err = ERR_INIT;
		assert_null(rest_json_parse(bad[i], strlen(bad[i]), &err));
		assert_int_equal(err.code, ERR_FORMAT);
	}
	struct err err = ERR_INIT;
	assert_null(rest_json_parse("{\"a\":1}\0{}", 10, &err));
}

static void test_depth(void **state)
{
	(void)state;
	static char text[1 << 20];
	struct err err = ERR_INIT;
	memset(text, '[', REST_DEPTH_MOST);
	memset(text + REST_DEPTH_MOST, ']', REST_DEPTH_MOST);
	json_t *value = rest_json_parse(text, 2 * (size_t)REST_DEPTH_MOST, &err);
	assert_non_null(value);
	json_decref(value);
	memset(text, '[', sizeof text);
	assert_null(rest_json_parse(text, sizeof text, &err));
	assert_string_equal(err.text, "not acceptable JSON: nested deeper than 16 levels");
	/* Brackets in strings are none. */
	value = parse("[\"[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[[[[[[\"]");
	assert_non_null(value);
	json_decref(value);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_check),
		cmocka_unit_test(test_check_inside),
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_depth),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
