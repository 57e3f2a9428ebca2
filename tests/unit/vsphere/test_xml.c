/* Answers as a tree: what is in it, and what is refused. */
#include "capture.h"

static struct err parse_error;

/* The root of text, fed in pieces of step bytes; NULL: parse_error says why. */
static const struct xml *parse(struct xml_parser **parser, const char *text, size_t step)
{
	size_t length = strlen(text);
	parse_error = ERR_INIT;
	*parser = xml_parser_new(&parse_error);
	assert_non_null(*parser);
	for (size_t at = 0; at < length; at += step)
		if (xml_parser_feed(*parser, text + at, min_size(step, length - at), &parse_error))
			return NULL;
	return xml_parser_end(*parser, &parse_error);
}

static void refuses(const char *text, const char *why)
{
	struct xml_parser *parser;
	for (size_t step = 1; step <= 4096; step *= 8) {
		assert_null(parse(&parser, text, step));
		assert_int_equal(parse_error.code, ERR_PROTOCOL);
		if (!strstr(parse_error.text, why))
			fail_msg("%s: not \"%s\"", parse_error.text, why);
		xml_parser_free(parser);
	}
}

static void test_values_are_found_by_path(void **state)
{
	(void)state;
	struct capture capture = capture_load("01-RetrieveServiceContent");
	const struct xml *value =
		xml_child(capture_answer(&capture, "RetrieveServiceContent"), "returnval");
	assert_string_equal(xml_text(value, "about/apiType"), "VirtualCenter");
	assert_string_equal(xml_text(value, "rootFolder"), "group-d1");
	assert_string_equal(xml_at(value, "rootFolder")->ref, "Folder");
	assert_string_equal(xml_text(value, "about"), "");
	assert_string_equal(xml_text(value, "about/none/none"), "");
	assert_null(xml_at(value, "abou"));
	capture_free(&capture);
}

static void test_types_are_told_by_namespace_not_prefix(void **state)
{
	(void)state;
	struct xml_parser *parser;
	const struct xml *root = parse(&parser,
		"<a xmlns:x='http://www.w3.org/2001/XMLSchema-instance' xmlns:y='urn:other'>"
		"<b x:type='p:Foo' type='Bar'>1</b><b y:type='Wrong'>2</b><b x:type='Plain'/>"
		"<b type='a&amp;&lt;&#x43;'/></a>",
		5);
	assert_non_null(root);
	const struct xml *b = xml_child(root, "b");
	assert_string_equal(b->type, "Foo");
	assert_string_equal(b->ref, "Bar");
	b = xml_again(b);
	assert_string_equal(b->type, "");
	assert_string_equal(b->ref, "");
	assert_string_equal(b->text, "2");
	b = xml_again(b);
	assert_string_equal(b->type, "Plain");
	b = xml_again(b);
	assert_string_equal(b->ref, "a&<C");
	assert_null(xml_again(b));
	xml_parser_free(parser);
}

static void test_texts_are_kept_as_they_are(void **state)
{
	(void)state;
	static const char text[] =
		"<a>\n <b> x &amp;&lt;&#x43; <![CDATA[<&>]]>\xc3\xbc </b>\n <c/>\n</a>";
	for (size_t step = 1; step < sizeof text; step++) {
		struct xml_parser *parser;
		const struct xml *root = parse(&parser, text, step);
		assert_non_null(root);
		assert_string_equal(root->text, "");
		assert_string_equal(xml_text(root, "b"), " x &<C <&>\xc3\xbc ");
		assert_string_equal(xml_text(root, "c"), "");
		xml_parser_free(parser);
	}
}

static void test_what_is_no_plain_xml_is_refused(void **state)
{
	(void)state;
	refuses("", "");
	refuses("<a>", "");
	refuses("<a></b>", "line 1");
	refuses("<html>\n<p>Service & unavailable", "line 2");
	refuses("no XML at all", "line 1");
	refuses("<a/><b/>", "line 1");
	refuses("<!DOCTYPE a><a/>", "document type");
	refuses("<!DOCTYPE a [<!ENTITY b 'x'><!ENTITY c '&b;&b;&b;'>]><a>&c;</a>", "document type");
	refuses("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", "document type");
	refuses("<a>&b;</a>", "line 1");
	refuses("<a>\x01</a>", "line 1");
	refuses("<a>\xff</a>", "line 1");
}

static char *nested(unsigned depth)
{
	char *text = malloc((size_t)depth * 7 + 1), *to = text;
	assert_non_null(text);
	for (unsigned i = 0; i < depth; i++, to += 3)
		memcpy(to, "<a>", 3);
	for (unsigned i = 0; i < depth; i++, to += 4)
		memcpy(to, "</a>", 4);
	*to = 0;
	return text;
}

static void test_depth_is_bounded(void **state)
{
	(void)state;
	struct xml_parser *parser;
	char *text = nested(XML_DEPTH_MOST);
	assert_non_null(parse(&parser, text, 1000));
	xml_parser_free(parser);
	free(text);
	text = nested(XML_DEPTH_MOST + 1);
	refuses(text, "too deep");
	free(text);
}

static void test_memory_is_bounded(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct xml_parser *parser = xml_parser_new(&err);
	size_t fed = 0;
	assert_non_null(parser);
	assert_int_equal(xml_parser_feed(parser, "<a>", 3, &err), 0);
	char part[16 * 1024];
	for (size_t i = 0; i + 16 <= sizeof part; i += 16)
		memcpy(part + i, "<b>12345678</b> ", 16);
	while (!xml_parser_feed(parser, part, sizeof part, &err)) {
		fed += sizeof part;
		assert_true(fed < XML_TREE_MOST);
	}
	assert_int_equal(err.code, ERR_PROTOCOL);
	assert_non_null(strstr(err.text, "too large"));
	xml_parser_free(parser);
}

static int number(const char *text, int64_t least, int64_t most, int64_t *value)
{
	char xml[200];
	struct err err = ERR_INIT;
	snprintf(xml, sizeof xml, "<a><n>%s</n></a>", text);
	struct capture capture = capture_of(xml);
	int rc = xml_number(capture.root, "n", least, most, value, &err);
	if (rc < 0) {
		assert_int_equal(err.code, ERR_PROTOCOL);
		assert_non_null(strstr(err.text, "answer's n"));
	}
	capture_free(&capture);
	return rc;
}

static void test_numbers_are_strict(void **state)
{
	(void)state;
	static const char *const bad[] = {"", "-", "+1", " 1", "1 ", "0x10", "1e3", "1.0", "--1",
		"9223372036854775808", "-9223372036854775809", "99999999999999999999"};
	int64_t value = 0;
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
		assert_int_equal(number(bad[i], INT64_MIN, INT64_MAX, &value), -1);
	assert_int_equal(number("9223372036854775807", 0, INT64_MAX, &value), 1);
	assert_true(value == INT64_MAX);
	assert_int_equal(number("-9223372036854775808", INT64_MIN, 0, &value), 1);
	assert_true(value == INT64_MIN);
	assert_int_equal(number("007", 0, 7, &value), 1);
	assert_int_equal(value, 7);
	assert_int_equal(number("8", 0, 7, &value), -1);
	assert_int_equal(number("-1", 0, 7, &value), -1);
	assert_int_equal(xml_number(NULL, "n", 0, 7, &value, NULL), 0);
}

static void test_printed_xml_reads_the_same(void **state)
{
	(void)state;
	size_t length, again;
	struct capture first = capture_load("08-RetrievePropertiesEx-vm");
	char *text = xml_print(first.root, "Envelope", &length);
	assert_non_null(text);
	assert_int_equal(strlen(text), length);
	struct capture second = capture_of(text);
	char *other = xml_print(second.root, "Envelope", &again);
	assert_non_null(other);
	assert_string_equal(text, other);
	assert_non_null(strstr(text, "xsi:type=\"VirtualDisk\""));
	free(text);
	free(other);
	capture_free(&first);
	capture_free(&second);
	first = capture_of("<a><b type='&#10;&#9;&amp;'>&lt;&amp;&quot;&#13; x</b></a>");
	text = xml_print(first.root, "c", &length);
	second = capture_of(text);
	assert_string_equal(xml_child(second.root, "b")->ref, "\n\t&");
	assert_string_equal(xml_text(second.root, "b"), "<&\"\r x");
	free(text);
	capture_free(&first);
	capture_free(&second);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values_are_found_by_path),
		cmocka_unit_test(test_types_are_told_by_namespace_not_prefix),
		cmocka_unit_test(test_texts_are_kept_as_they_are),
		cmocka_unit_test(test_what_is_no_plain_xml_is_refused),
		cmocka_unit_test(test_depth_is_bounded),
		cmocka_unit_test(test_memory_is_bounded),
		cmocka_unit_test(test_numbers_are_strict),
		cmocka_unit_test(test_printed_xml_reads_the_same),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
