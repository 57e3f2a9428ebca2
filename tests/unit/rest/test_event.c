/* Server-sent events: what we write, what we read, however it is cut. */
#include "test_support.h"

#include <stdio.h>

struct got {
	char text[4096];
	int stop_at, nr;
};

static int take(void *context, const char *name, const char *data, size_t length)
{
	struct got *got = context;
	size_t at = strlen(got->text);
	assert_int_equal(strlen(data), length);
	snprintf(got->text + at, sizeof got->text - at, "%s=%s;", name, data);
	return ++got->nr == got->stop_at ? 7 : 0;
}

/* Cut into pieces of each length. */
static void expect(const char *stream, const char *events, const char *last_id)
{
	for (size_t piece = 1; piece <= strlen(stream); piece++) {
		struct rest_event_parser parser = {0};
		struct got got = {0};
		for (size_t at = 0; at < strlen(stream); at += piece)
			assert_int_equal(
				rest_event_parse(&parser, stream + at,
					min_size(piece, strlen(stream) - at), take, &got, NULL),
				0);
		assert_string_equal(got.text, events);
		assert_string_equal(parser.id, last_id);
		rest_event_clear(&parser);
	}
}

static void test_streams(void **state)
{
	(void)state;
	expect("retry: 1000\n\nid: 1\nevent: a\ndata: {\"x\":1}\n\n:\n\ndata:2\n\n",
		"a={\"x\":1};message=2;", "1");
	expect("id: 1\r\nevent: a\r\ndata: 1\r\n\r\nevent: b\rdata: 2\rdata: 3\r\r", "a=1;b=2\n3;",
		"1");
	expect("event: lost\n\ndata: 1\n\n", "message=1;", "");
	expect("data: not ended\n", "", "");
	expect("id: 5\nid\ndata: 1\n\n", "message=1;", "");
}

static void test_we_read_what_we_write(void **state)
{
	(void)state;
	json_t *data = json_pack("{s:s}", "text", "line\nnext\r\xc3\xa4");
	size_t length;
	char *text = rest_event_text("log", 77, data, &length);
	assert_int_equal(strlen(text), length);
	expect(text, "log={\"text\":\"line\\nnext\\r\xc3\xa4\"};", "77");
	free(text);
	json_decref(data);
}

static void test_stop_and_bounds(void **state)
{
	(void)state;
	struct rest_event_parser parser = {0};
	struct got got = {.stop_at = 1};
	struct err err = ERR_INIT;
	assert_int_equal(
		rest_event_parse(&parser, "data: 1\n\ndata: 2\n\n", 18, take, &got, &err), 7);
	assert_string_equal(got.text, "message=1;");
	static char huge[REST_EVENT_MOST];
	memset(huge, 'x', sizeof huge);
	rest_event_restart(&parser);
	assert_int_equal(rest_event_parse(&parser, huge, sizeof huge, take, &got, &err), 0);
	assert_int_equal(rest_event_parse(&parser, huge, 1, take, &got, &err), -1);
	assert_int_equal(err.code, ERR_PROTOCOL);
	rest_event_clear(&parser);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_streams),
		cmocka_unit_test(test_we_read_what_we_write),
		cmocka_unit_test(test_stop_and_bounds),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
