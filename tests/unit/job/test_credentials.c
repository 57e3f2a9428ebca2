/* With what jobs connect to disks behind TLS: lines of the settings, and which disk they are for.
 */
#include "test_support.h"

#include "credentials.h"

#include <string.h>

static json_t *must_parse(const char *line)
{
	struct err err = ERR_INIT;
	json_t *one = credentials_parse(line, &err);
	if (!one)
		fail_msg("%s", err.text);
	return one;
}

static const char *text_of(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

static void test_lines(void **state)
{
	(void)state;
	json_t *one = must_parse("nbds://h.example:10810/a psk:/etc/k.psk\thub");
	assert_string_equal(text_of(one, "rule"), "nbds://h.example:10810/a");
	assert_string_equal(text_of(one, "psk_file"), "/etc/k.psk");
	assert_string_equal(text_of(one, "username"), "hub");
	assert_null(text_of(one, "certificates"));
	json_decref(one);
	one = must_parse("nbds://h.example/  certificates:/etc/tls");
	assert_string_equal(text_of(one, "certificates"), "/etc/tls");
	assert_null(text_of(one, "psk_file"));
	json_decref(one);
	static const char *const wrong[] = {"", "nbds://h/", "nbd://h/ psk:/k", "raw:/a psk:/k",
		"nbds://h/ /k", "nbds://h/ psk:k", "nbds://h/ psk:", "nbds://h/ certificates:/k me",
		"nbds://h/ psk:/k a b", "nbds:///x psk:/k"};
	for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
		struct err err = ERR_INIT;
		assert_null(credentials_parse(wrong[i], &err));
		assert_int_equal(err.code, ERR_USAGE);
	}
}

static void test_the_first_that_fits(void **state)
{
	(void)state;
	json_t *list = json_pack("[o, o, o]", must_parse("nbds://a/x psk:/1"),
		must_parse("nbds://a/ psk:/2"), must_parse("nbds://b:10810/ certificates:/3"));
	static const struct {
		const char *name, *path; /* NULL: none */
	} cases[] = {
		{"nbds://a/x", "/1"},
		{"nbds://A:10809/x", "/1"},
		{"nbds://a/y", "/2"},
		{"nbds://b:10810/z", "/3"},
		{"nbds://b/z", NULL},
		{"nbds://aa/x", NULL},
		{"nbd://a/x", NULL},
		{"raw:/a", NULL},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		const json_t *one = credentials_find(list, cases[i].name);
		const char *psk = text_of(one, "psk_file"), *path = psk;
		if (!path)
			path = text_of(one, "certificates");
		if (cases[i].path)
			assert_string_equal(path, cases[i].path);
		else
			assert_null(one);
	}
	assert_null(credentials_find(NULL, "nbds://a/x"));
	json_decref(list);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lines),
		cmocka_unit_test(test_the_first_that_fits),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
