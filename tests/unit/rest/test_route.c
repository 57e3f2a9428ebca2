/* Targets taken apart, routes found. */
#include "test_support.h"

static int handler(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	(void)request;
	(void)err;
	return 0;
}

static const struct rest_route routes[] = {
	{"GET", "/api/v1/vms?limit&after", "a", REST_READ, 0, handler, 0},
	{"GET", "/api/v1/vms/{vm}?x", "b", REST_READ, 0, handler, 0},
	{"PUT", "/api/v1/vms/{vm}", "c", REST_READ, 0, handler, 0},
	{"GET", "/api/v1/vms/{vm}/points/{point}", "d", REST_READ, 0, handler, 0},
	{0},
};
static const struct rest_route more[] = {
	{"GET", "/api/v1/vms/all", "e", REST_READ, 0, handler, 0},
	{"DELETE", "/api/v1/vms/{vm}", "f", REST_READ, 0, handler, 0},
	{0},
};
static const struct rest_route *const tables[] = {routes, more, NULL};

static struct rest_target target;
static struct rest_match match;
static char allow[REST_ALLOW_BYTES];

static unsigned find(const char *method, const char *raw)
{
	struct err err = ERR_INIT;
	rest_target_clear(&target);
	match = (struct rest_match){0};
	if (rest_target_parse(raw, &target, &err)) {
		assert_int_equal(err.code, ERR_USAGE);
		return 400;
	}
	return rest_route_find(tables, method, &target, &match, allow);
}

static void test_routes(void **state)
{
	(void)state;
	assert_int_equal(find("GET", "/api/v1/vms"), 0);
	assert_string_equal(match.route->operation, "a");
	assert_int_equal(find("HEAD", "/api/v1/vms/web%2001?x=1"), 0);
	assert_string_equal(match.route->operation, "b");
	assert_string_equal(rest_match_param(&match, "vm"), "web 01");
	assert_null(rest_match_param(&match, "v"));
	assert_null(rest_match_param(&match, "vms"));
	assert_string_equal(target.path, "/api/v1/vms/web%2001");
	assert_true(rest_route_knows(match.route, "x"));
	assert_false(rest_route_knows(match.route, "xy"));
	assert_false(rest_route_knows(match.route, ""));
	assert_int_equal(find("GET", "/api/v1/vms?stat=x"), 0);
	assert_string_equal(rest_route_queries(match.route), "limit&after");
	assert_true(rest_route_knows(match.route, "limit"));
	assert_true(rest_route_knows(match.route, "after"));
	assert_false(rest_route_knows(match.route, "limit&after"));
	assert_false(rest_route_knows(match.route, "afte"));
	/* Written otherwise, it is the same. */
	assert_int_equal(find("GET", "/api/v1/vms/%77eb%20%30%31/points/b"), 0);
	assert_string_equal(target.path, "/api/v1/vms/web%2001/points/b");
	assert_int_equal(find("GET", "/api/v1/vms/a/points/b"), 0);
	assert_string_equal(rest_match_param(&match, "vm"), "a");
	assert_string_equal(rest_match_param(&match, "point"), "b");
	/* A machine's name may hold a slash. */
	assert_int_equal(find("GET", "/api/v1/vms/site%2Fweb/points/b"), 0);
	assert_string_equal(rest_match_param(&match, "vm"), "site/web");
	/* The literal one is meant, wherever it stands. */
	assert_int_equal(find("GET", "/api/v1/vms/all"), 0);
	assert_string_equal(match.route->operation, "e");
	assert_int_equal(find("PUT", "/api/v1/vms/all"), 0);
	assert_string_equal(match.route->operation, "c");
	rest_target_clear(&target);
}

static void test_no_route(void **state)
{
	(void)state;
	assert_int_equal(find("POST", "/api/v1/vms/a"), 405);
	assert_string_equal(allow, "GET, HEAD, PUT, DELETE");
	const char *const unknown[] = {"/", "/api", "/api/v1/vms/", "/api/v1/vms/a/",
		"/api/v1/vmsa", "//api/v1/vms", "/api/v1/vms/a/points/b%2Fc", "/api%2Fv1/vms",
		"/api/v1/vms/a/points", "/api/v1/vms/a/points/b/c"};
	for (size_t i = 0; i < ARRAY_LENGTH(unknown); i++)
		assert_int_equal(find("GET", unknown[i]), 404);
	rest_target_clear(&target);
}

static void test_what_is_refused(void **state)
{
	(void)state;
	const char *const bad[] = {"", "*", "http://x/api", "/api/v1/vms/a%00", "/api/v1/vms/%0a",
		"/api/v1/vms/%7f", "/api/v1/vms/%", "/api/v1/vms/%4", "/api/v1/vms/%zz",
		"/api/v1/vms/%ff", "/api/v1/vms/..", "/api/v1/vms/%2e%2e", "/api/v1/vms/.",
		"/api/v1/vms?a=1&a=2", "/api/v1/vms?a=%00",
		"/1/2/3/4/5/6/7/8/9/0/1/2/3/4/5/6/7/8/9/0/1/2/3/4/5/6/7/8/9/0/1/2/3/4",
		"/api/v1/vms?a&b&c&d&e&f&g&h&i&j&k&l&m&n&o&p&q"};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
		assert_int_equal(find("GET", bad[i]), 400);
	static char path[REST_TARGET_MOST + 2];
	memset(path, 'a', sizeof path - 1);
	path[0] = '/';
	assert_int_equal(find("GET", path), 400);
	rest_target_clear(&target);
}

static void test_query(void **state)
{
	(void)state;
	assert_int_equal(find("GET", "/api/v1/vms?a=1+2&b=%26%3d&c&&d=x=y"), 0);
	assert_int_equal(target.nr_queries, 4);
	assert_string_equal(target.queries[0].value, "1 2");
	assert_string_equal(target.queries[1].value, "&=");
	assert_string_equal(target.queries[2].value, "");
	assert_string_equal(target.queries[3].value, "x=y");
	rest_target_clear(&target);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_routes),
		cmocka_unit_test(test_no_route),
		cmocka_unit_test(test_what_is_refused),
		cmocka_unit_test(test_query),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
