/* Captured answers for tests, read from $CAPTURES. */
#ifndef TEST_VSPHERE_CAPTURE_H
#define TEST_VSPHERE_CAPTURE_H

#include "soap.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

struct capture {
	struct xml_parser *parser;
	const struct xml *root;
};

static inline struct capture capture_of(const char *text)
{
	struct err err = ERR_INIT;
	struct capture capture = {.parser = xml_parser_new(&err)};
	assert_non_null(capture.parser);
	assert_int_equal(xml_parser_feed(capture.parser, text, strlen(text), &err), 0);
	capture.root = xml_parser_end(capture.parser, &err);
	assert_non_null(capture.root);
	return capture;
}

static inline struct capture capture_load(const char *name)
{
	struct err err = ERR_INIT;
	char path[4096], *bytes;
	size_t length;
	const char *folder = getenv("CAPTURES");
	assert_non_null(folder);
	snprintf(path, sizeof path, "%s/%s.resp.xml", folder, name);
	assert_int_equal(file_load(AT_FDCWD, path, 1 << 20, &bytes, &length, &err), 0);
	struct capture capture = capture_of(bytes);
	free(bytes);
	return capture;
}

static inline void capture_free(struct capture *capture)
{
	xml_parser_free(capture->parser);
}

/* The answer's element, which must be there. */
static inline const struct xml *capture_answer(const struct capture *capture, const char *method)
{
	struct soap_fault fault;
	struct err err = ERR_INIT;
	const struct xml *answer = soap_answer(capture->root, method, &fault, &err);
	assert_non_null(answer);
	assert_string_equal(fault.name, "");
	return answer;
}

#endif
