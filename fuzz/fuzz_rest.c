/*
 * Bytes from an HTTP client or server, by their first byte: a body of JSON, a request's target,
 * a stream of events.  What is taken has the properties that handlers rely on.
 */
#include "rest_internal.h"

#include <assert.h>
#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* --- a body -------------------------------------------------------------------------------- */

static const struct rest_field fields[] = {
	{.name = "name", .type = REST_STRING, .required = true, .least = 1, .most = 8},
	{.name = "count", .type = REST_INTEGER, .least = -3, .most = 3},
	{.name = "on", .type = REST_BOOL, .nullable = true},
	{.name = "kind", .type = REST_STRING, .choices = (const char *const[]){"a", "b", NULL}},
	{.name = "list", .type = REST_ARRAY, .least = 1, .most = 2},
	{0},
};

static unsigned depth_of(const json_t *value)
{
	unsigned deepest = 0, depth;
	const char *name;
	json_t *inner;
	size_t i;
	if (!json_is_array(value) && !json_is_object(value))
		return 0;
	json_array_foreach(value, i, inner)
	{
		depth = depth_of(inner);
		deepest = depth > deepest ? depth : deepest;
	}
	json_object_foreach((json_t *)(uintptr_t)value, name, inner)
	{
		depth = depth_of(inner);
		deepest = depth > deepest ? depth : deepest;
	}
	return deepest + 1;
}

static void check_object(const json_t *object)
{
	struct err err = ERR_INIT;
	if (rest_check(object, fields, &err)) {
		assert(err.code == ERR_USAGE && err.text[0]);
		return;
	}
	const json_t *name = json_object_get(object, "name");
	const json_t *count = json_object_get(object, "count");
	assert(json_is_string(name) && json_string_length(name) >= 1 &&
		json_string_length(name) <= 8);
	assert(!count || (json_integer_value(count) >= -3 && json_integer_value(count) <= 3));
	assert(json_object_size(object) <= 5);
}

static void fuzz_body(const uint8_t *bytes, size_t size)
{
	struct err err = ERR_INIT;
	json_t *value = rest_json_parse(bytes, size, &err);
	if (!value) {
		assert(err.code == ERR_FORMAT);
		return;
	}
	assert(json_is_array(value) || json_is_object(value));
	assert(depth_of(value) <= REST_DEPTH_MOST);
	if (json_is_object(value))
		check_object(value);
	rest_check_each("list", value, fields, &err);
	json_decref(value);
}

/* --- a target -------------------------------------------------------------------------------- */

static int handler(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	(void)request;
	(void)err;
	return 0;
}

static const struct rest_route routes[] = {
	{"GET", "/a/{vm}", "a", REST_READ, 0, handler, 0},
	{"PUT", "/a/{vm}/b/{point}", "b", REST_READ, 0, handler, 0},
	{"GET", "/a/b", "c", REST_READ, 0, handler, 0},
	{0},
};

static void check_text(const char *text)
{
	json_t *string = json_string(text); /* UTF-8 */
	assert(string);
	json_decref(string);
	for (; *text; text++)
		assert((unsigned char)*text >= 0x20 && *text != 0x7f);
}

static void fuzz_target(const uint8_t *bytes, size_t size)
{
	static const struct rest_route *const tables[] = {routes, NULL};
	struct rest_target target;
	struct rest_match match = {0};
	struct err err = ERR_INIT;
	char allow[REST_ALLOW_BYTES];
	const char *method = size % 2 ? "GET" : "PUT";
	char *raw = strndup((const char *)bytes, size);
	assert(raw);
	if (rest_target_parse(raw, &target, &err)) {
		assert(err.code == ERR_USAGE);
	} else {
		for (size_t i = 0; i < target.nr_segments; i++) {
			check_text(target.segments[i]);
			assert(strcmp(target.segments[i], "..") != 0 &&
				strcmp(target.segments[i], ".") != 0);
		}
		for (size_t i = 0; i < target.nr_queries; i++) {
			check_text(target.queries[i].name);
			check_text(target.queries[i].value);
		}
		unsigned status = rest_route_find(tables, method, &target, &match, allow);
		assert(status == 404 || (status == 405 && allow[0]) || !status);
		const char *vm = status ? NULL : rest_match_param(&match, "vm");
		const char *point = status ? NULL : rest_match_param(&match, "point");
		assert(!vm || *vm);
		/* A machine's name may hold a slash, nothing else. */
		assert(!point || (*point && !strchr(point, '/')));
	}
	rest_target_clear(&target);
	free(raw);
}

/* --- events ---------------------------------------------------------------------------------- */

struct heard {
	uint64_t hash;
	unsigned nr;
};

static int hear(void *context, const char *name, const char *data, size_t length)
{
	struct heard *heard = context;
	assert(length && strlen(name) < 64);
	for (size_t i = 0; i < length; i++)
		heard->hash = heard->hash * 1099511628211u + (uint8_t)data[i];
	for (; *name; name++)
		heard->hash = heard->hash * 1099511628211u + (uint8_t)*name;
	heard->nr++;
	return 0;
}

/* However they are cut, they are the same. */
static void fuzz_events(const uint8_t *bytes, size_t size)
{
	struct heard whole = {0}, pieces = {0};
	struct rest_event_parser parser = {0};
	const char *text = (const char *)bytes;
	assert(rest_event_parse(&parser, text, size, hear, &whole, NULL) == 0);
	rest_event_clear(&parser);
	for (size_t i = 0; i < size; i++)
		assert(rest_event_parse(&parser, text + i, 1, hear, &pieces, NULL) == 0);
	rest_event_clear(&parser);
	assert(whole.nr == pieces.nr && whole.hash == pieces.hash);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	if (data[0] == '/' || data[0] == '*')
		fuzz_target(data, size);
	else if (data[0] == '{' || data[0] == '[')
		fuzz_body(data, size);
	else
		fuzz_events(data, size);
	return 0;
}
