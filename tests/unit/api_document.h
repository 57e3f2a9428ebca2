/* A daemon's API document and its routes, each held against the other: what unit tests of daemons
 * share.  The test says before: API_DOCUMENT (the text), API_TABLES (the routes). */
#ifndef SENDENSE_TEST_API_DOCUMENT_H
#define SENDENSE_TEST_API_DOCUMENT_H

#include "scratch.h"

#include "rest.h"

static json_t *document;

static int read_document(void **state)
{
	(void)state;
	document = json_loads(API_DOCUMENT, 0, NULL);
	return document ? 0 : -1;
}

static int drop_document(void **state)
{
	(void)state;
	json_decref(document);
	return 0;
}

static const char *text_of(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

/* path: of a route, with the parameters of its query, or of the document. */
static const json_t *operation_of(const char *method, const char *path)
{
	char lower[8] = "", bare[128] = "";
	snprintf(bare, sizeof bare, "%.*s", (int)strcspn(path, "?"), path);
	for (size_t i = 0; i < sizeof lower - 1 && method[i]; i++)
		lower[i] = (char)(method[i] | 0x20);
	return json_object_get(json_object_get(json_object_get(document, "paths"), bare), lower);
}

static bool has_parameter(const json_t *operation, const char *name)
{
	char ref[64];
	size_t i;
	json_t *parameter;
	snprintf(ref, sizeof ref, "#/components/parameters/%s", name);
	json_array_foreach(json_object_get(operation, "parameters"), i, parameter)
	{
		const char *text = text_of(parameter, "$ref");
		if (text && !strcmp(text, ref))
			return true;
	}
	return false;
}

static bool has_content(const json_t *object, const char *type)
{
	return json_object_get(json_object_get(object, "content"), type) != NULL;
}

static unsigned flags_of(const json_t *operation)
{
	const json_t *responses = json_object_get(operation, "responses");
	unsigned flags = 0;
	if (has_parameter(operation, "idempotencyKey"))
		flags |= REST_CREATES;
	if (has_content(json_object_get(operation, "requestBody"), "application/octet-stream"))
		flags |= REST_OCTETS;
	if (has_content(json_object_get(responses, "200"), "text/event-stream"))
		flags |= REST_STREAMS;
	if (json_is_true(json_object_get(operation, "x-filtered")))
		flags |= REST_VMS;
	if (json_is_true(json_object_get(operation, "x-secret")))
		flags |= REST_SECRET;
	return flags;
}

static bool differs(const struct rest_route *route, const char *what, const char *in_document)
{
	print_error("%s %s: %s, in the document: %s\n", route->method, route->path, what,
		in_document ? in_document : "nothing");
	return true;
}

/* Each {name} is a parameter, and no other is. */
static bool params_differ(const struct rest_route *route, const json_t *operation)
{
	bool bad = false;
	for (const char *at = route->path; (at = strchr(at, '{')); at++) {
		char name[32] = "";
		snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 1, "}"), at + 1);
		if (!has_parameter(operation, name))
			bad = differs(route, name, "no such parameter");
	}
	return bad;
}

/* The query's parameters, as a route has them, in the document's order. */
static void queries_of(const json_t *operation, char *out, size_t bytes)
{
	const json_t *shared =
		json_object_get(json_object_get(document, "components"), "parameters");
	size_t i;
	json_t *parameter;
	out[0] = '\0';
	json_array_foreach(json_object_get(operation, "parameters"), i, parameter)
	{
		const char *ref = text_of(parameter, "$ref");
		const json_t *at = ref ? json_object_get(shared, strrchr(ref, '/') + 1) : parameter;
		size_t used = strlen(out);
		if (strcmp(text_of(at, "in"), "query") == 0)
			snprintf(out + used, bytes - used, "%s%s", used ? "&" : "",
				text_of(at, "name"));
	}
}

static bool route_differs(const struct rest_route *route)
{
	const json_t *operation = operation_of(route->method, route->path);
	if (!operation)
		return differs(route, route->operation, "no such path and method");
	bool bad = params_differ(route, operation);
	char queries[256];
	queries_of(operation, queries, sizeof queries);
	if (strcmp(strchr(route->path, '?') ? strchr(route->path, '?') + 1 : "", queries) != 0)
		bad = differs(route, "other parameters of the query", queries);
	const char *id = text_of(operation, "operationId"), *scope = text_of(operation, "x-scope");
	json_int_t most = json_integer_value(json_object_get(operation, "x-body-most"));
	if (!id || strcmp(id, route->operation) != 0)
		bad = differs(route, route->operation, id);
	if (!scope || strcmp(scope, rest_scope_name(route->scope)) != 0)
		bad = differs(route, rest_scope_name(route->scope), scope);
	if ((size_t)most != route->body_most)
		bad = differs(route, "another body_most", "x-body-most");
	if (flags_of(operation) != route->flags) {
		char ours[32], theirs[32];
		snprintf(ours, sizeof ours, "flags %#x", route->flags);
		snprintf(theirs, sizeof theirs, "flags %#x", flags_of(operation));
		bad = differs(route, ours, theirs);
	}
	bool is_open = json_array_size(json_object_get(operation, "security")) == 0 &&
		       json_object_get(operation, "security");
	if (is_open != (route->scope == REST_NONE))
		bad = differs(route, "security", is_open ? "none" : "a token");
	return bad;
}

static const struct rest_route *route_of(const char *method, const char *path)
{
	for (size_t i = 0; API_TABLES[i]; i++)
		for (const struct rest_route *route = API_TABLES[i]; route->method; route++)
			if (operation_of(route->method, route->path) == operation_of(method, path))
				return route;
	return NULL;
}

static void test_routes_are_in_the_document(void **state)
{
	(void)state;
	unsigned nr_bad = 0, nr = 0;
	for (size_t i = 0; API_TABLES[i]; i++)
		for (const struct rest_route *route = API_TABLES[i]; route->method; route++) {
			nr++;
			nr_bad += route_differs(route);
			assert_ptr_equal(route_of(route->method, route->path), route);
		}
	assert_int_equal(nr_bad, 0);
	assert_true(nr > 10);
}

static void test_the_document_has_no_other(void **state)
{
	(void)state;
	unsigned nr_bad = 0;
	const char *path, *method;
	json_t *operations, *operation;
	json_object_foreach(json_object_get(document, "paths"), path, operations)
	{
		json_object_foreach(operations, method, operation)
		{
			if (route_of(method, path))
				continue;
			print_error("%s %s: there is no such route\n", method, path);
			nr_bad++;
		}
	}
	assert_int_equal(nr_bad, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_routes_are_in_the_document),
		cmocka_unit_test(test_the_document_has_no_other),
	};
	return cmocka_run_group_tests(tests, read_document, drop_document);
}

#endif
