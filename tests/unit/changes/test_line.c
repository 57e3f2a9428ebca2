/* Lines, one by one. */
#include "test_support.h"

static void test_extents(void **state)
{
	static const struct {
		const char *line;
		bool good;
		uint64_t offset, length;
	} cases[] = {
		{"{\"offset\":0,\"length\":65536}", true, 0, 65536},
		{"{\"length\":1,\"offset\":512}", true, 512, 1},
		{" { \"offset\" : 7 ,\t\"length\" : 9 } \r", true, 7, 9},
		{"{\"offset\":9223372036854775807,\"length\":0}", true, INT64_MAX, 0},
		{"{\"offset\":9223372036854775808,\"length\":0}", false, 0, 0},
		{"{\"offset\":99999999999999999999,\"length\":0}", false, 0, 0},
		{"{\"offset\":-1,\"length\":1}", false, 0, 0},
		{"{\"offset\":01,\"length\":1}", false, 0, 0},
		{"{\"offset\":1.0,\"length\":1}", false, 0, 0},
		{"{\"offset\":1e3,\"length\":1}", false, 0, 0},
		{"{\"offset\":\"1\",\"length\":1}", false, 0, 0},
		{"{\"offset\":,\"length\":1}", false, 0, 0},
		{"{\"offset\":1,\"offset\":1}", false, 0, 0},
		{"{\"offset\":1,\"length\":1,\"x\":1}", false, 0, 0},
		{"{\"offset\":1,\"length\":1}x", false, 0, 0},
		{"{\"offset\":1,\"length\":1", false, 0, 0},
		{"{\"offset\":1}", false, 0, 0},
		{"{\"offsets\":1,\"length\":1}", false, 0, 0},
		{"{}", false, 0, 0},
		{"", false, 0, 0},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct changes_extent e = {0};
		size_t length = strlen(cases[i].line);
		/* Where it lies, the line ends at its end. */
		char *line = malloc(length);
		memcpy(line, cases[i].line, length);
		if (changes_line_extent(line, length, &e) != cases[i].good)
			fail_msg("%s", cases[i].line);
		if (cases[i].good) {
			assert_int_equal(e.offset, cases[i].offset);
			assert_int_equal(e.length, cases[i].length);
		}
		free(line);
	}
}

#define HEADER(key, size, from, to) \
	"{\"sendense-extents\":1,\"key\":" key ",\"size\":" size ",\"from\":" from ",\"to\":" to "}"

static void test_header(void **state)
{
	static const struct {
		const char *line, *words; /* NULL: good */
	} cases[] = {
		{HEADER("\"2000\"", "4096", "\"52 de/12\"", "\"\\u00e4\""), NULL},
		{HEADER("\"\"", "4096", "\"a\"", "\"b\""), "\"key\""},
		{HEADER("\"a/b\"", "4096", "\"a\"", "\"b\""), "\"key\""},
		{HEADER("2000", "4096", "\"a\"", "\"b\""), "\"key\""},
		{HEADER("\"k\"", "0", "\"a\"", "\"b\""), "0 bytes"},
		{HEADER("\"k\"", "-5", "\"a\"", "\"b\""), "\"size\""},
		{HEADER("\"k\"", "1.5", "\"a\"", "\"b\""), "\"size\""},
		{HEADER("\"k\"", "99999999999999999999", "\"a\"", "\"b\""), "JSON"},
		{HEADER("\"k\"", "1", "\"\"", "\"b\""), "\"from\""},
		{HEADER("\"k\"", "1", "\"a\"", "\"\\u0007\""), "\"to\""},
		{HEADER("\"k\"", "1", "\"a\"", "\"\\u0000\""), "JSON"},
		{HEADER("\"k\"", "1", "\"a\"", "null"), "\"to\""},
		{HEADER("\"k\"", "1", "\"a\"", "\"b\",\"more\":1"), "other members"},
		{HEADER("\"k\"", "1", "\"a\"", "\"b\",\"to\":\"c\""), "JSON"},
		{HEADER("\"k\"", "1", "\"\xff\"", "\"b\""), "JSON"},
		{"{\"sendense-extents\":2}", "version"},
		{"{\"sendense-extents\":true}", "version"},
		{"{\"offset\":0,\"length\":1}", "not the first line"},
		{"[1]", "JSON"},
		{"", "JSON"},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct changes_header header = {.size_bytes = 0};
		struct err err = ERR_INIT;
		int rc = changes_line_header(cases[i].line, strlen(cases[i].line), &header, &err);
		if ((rc == 0) != (cases[i].words == NULL))
			fail_msg("%s: %s", cases[i].line, err.text);
		if (rc == 0)
			continue;
		assert_int_equal(err.code, ERR_FORMAT);
		if (!strstr(err.text, cases[i].words))
			fail_msg("%s: %s", cases[i].line, err.text);
	}
}

static void test_header_strings(void **state)
{
	struct changes_header header;
	char line[4096], id[CHANGES_ID_BYTES_MAX + 2];
	(void)state;
	for (unsigned more = 0; more < 2; more++) {
		memset(id, 'x', sizeof id);
		id[CHANGES_ID_BYTES_MAX + more] = '\0';
		snprintf(line, sizeof line,
			"{\"to\":\"%s\",\"from\":\"52 de\",\"size\":%lld,\"key\":\"a_B-9\","
			"\"sendense-extents\":1}",
			id, (long long)INT64_MAX);
		assert_int_equal(
			changes_line_header(line, strlen(line), &header, NULL), -(int)more);
		if (more)
			continue;
		assert_string_equal(header.to, id);
		assert_string_equal(header.from, "52 de");
		assert_string_equal(header.key, "a_B-9");
		assert_int_equal(header.size_bytes, INT64_MAX);
	}
}

static void test_end(void **state)
{
	static const struct {
		const char *line, *words; /* NULL: good */
	} cases[] = {
		{"{\"end\":true,\"count\":3,\"bytes\":70000}", NULL},
		{" {\"bytes\":70000, \"count\": 3,\"end\":true}\r", NULL},
		{"{\"end\":false,\"count\":3,\"bytes\":70000}", "not true"},
		{"{\"end\":true,\"count\":-3,\"bytes\":70000}", "\"count\""},
		{"{\"end\":true,\"count\":3}", "\"bytes\""},
		{"{\"end\":true,\"count\":3,\"bytes\":70000,\"x\":0}", "other members"},
		{"{\"offset\":-1,\"length\":1}", "\"offset\""},
		{"{\"offset\":1}", "\"length\""},
		{"{\"offset\":1,\"length\":1,\"x\":1}", "other members"},
		{"{\"what\":1}", "\"offset\""},
		{"no JSON", "JSON"},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		uint64_t count = 0, bytes = 0;
		struct err err = ERR_INIT;
		int rc = changes_line_end(
			cases[i].line, strlen(cases[i].line), &count, &bytes, &err);
		if ((rc == 0) != (cases[i].words == NULL))
			fail_msg("%s: %s", cases[i].line, err.text);
		if (rc == 0) {
			assert_int_equal(count, 3);
			assert_int_equal(bytes, 70000);
		} else if (!strstr(err.text, cases[i].words)) {
			fail_msg("%s: %s", cases[i].line, err.text);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_extents),
		cmocka_unit_test(test_header),
		cmocka_unit_test(test_header_strings),
		cmocka_unit_test(test_end),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
