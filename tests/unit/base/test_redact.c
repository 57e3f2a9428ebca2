/* Secrets in texts are hidden, wherever the texts come from. */
#include "test_support.h"

#include "base.h"

#include <string.h>

static void test_uris(void **state)
{
	static const char *const texts[][2] = {
		{"", ""},
		{"no URI: a@b, c:d@e", "no URI: a@b, c:d@e"},
		{"nbd://host:10809/name", "nbd://host:10809/name"},
		{"nbd://[::1]:4711/na@me", "nbd://[::1]:4711/na@me"},
		{"(write nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH)",
			"(write nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH)"},
		{"vmware://USER@VCENTER/PATH", "vmware://USER@VCENTER/PATH"},
		{"cannot open nbd://u:hush@h/x: no", "cannot open nbd://*@h/x: no"},
		{"'nbds://u:hush@h:1/x' and nbd://u:hush@i", "'nbds://*@h:1/x' and nbd://*@i"},
		{"nbd://u:hu@sh@h/", "nbd://*@h/"},
		{"nbd://u:hu/sh@h/", "nbd://*@h/"},
		{"nbd://u:hush", "nbd://*"},
		{"nbd://:hush@h", "nbd://*@h"},
		{"nbd://h:99999: the port", "nbd://h:99999: the port"},
		{"https://h/a?token=hush&x=hush b=c", "https://h/a?token=*&x=* b=c"},
		{"nbd+unix:///n?socket=/a/b&password=hush", "nbd+unix:///n?socket=/a/b&password=*"},
		{"nbd://h/?tls-psk-file=/a&x", "nbd://h/?tls-psk-file=/a&x"},
		{"nbd://h/?a=&b=hush&", "nbd://h/?a=&b=*&"},
		{"://", "://"},
		{"x://?=", "x://?="},
	};
	(void)state;
	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
		char *text = strdup(texts[i][0]); /* of its exact size: ASan looks on */
		redact_uris(text);
		assert_string_equal(text, texts[i][1]);
		free(text);
	}
}

static void test_errors(void **state)
{
	static const char uri[] = "nbd://user:hush@host/";
	struct err err = ERR_INIT;
	(void)state;
	err_set(&err, ERR_IO, "on %s", uri);
	assert_null(strstr(err.text, "hush"));
	err_context(&err, "with %s", uri);
	assert_null(strstr(err.text, "hush"));
	err_hint(&err, "try %s", uri);
	assert_null(strstr(err.text, "hush"));
	err_errno(&err, 5, "on %s", uri);
	assert_null(strstr(err.text, "hush"));
	assert_non_null(strstr(err.text, "nbd://*@host/: "));
}

static void remember(void *context, enum log_level level, const char *text)
{
	(void)level;
	strcpy(context, text);
}

static void test_log_lines(void **state)
{
	char line[256];
	(void)state;
	log_set_sink(remember, line, LOG_LEVEL_INFO);
	log_info("lost %s", "nbd://user:hush@host/");
	log_set_sink(NULL, NULL, LOG_LEVEL_INFO);
	assert_string_equal(line, "lost nbd://*@host/");
}

static void test_words(void **state)
{
	(void)state;
	char text[] = "as hushhush, hus, with hush";
	redact_word(text, "hush");
	assert_string_equal(text, "as **, hus, with *");
	redact_word(text, "");
	assert_string_equal(text, "as **, hus, with *");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_uris),
		cmocka_unit_test(test_errors),
		cmocka_unit_test(test_log_lines),
		cmocka_unit_test(test_words),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
