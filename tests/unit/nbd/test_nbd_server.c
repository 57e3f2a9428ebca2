/* Exports come and go, places are counted, and the probe tells the truth. */
#include "served.h"

#include <libnbd.h>
#include <stdio.h>

struct fixture {
	struct block *block;
	struct served served;
	char uri[64]; /* without the name */
};

static void add(struct fixture *f, const char *name)
{
	struct nbd_export export = {.name = name, .block = f->block};
	served_add(&f->served, &export);
}

static int make(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct nbd_server_options options = {.max_connections = 2};
	assert_non_null(f);
	assert_non_null(f->block = block_null_open(MIB, NULL));
	served_start(&f->served, &options);
	snprintf(f->uri, sizeof f->uri, "nbd://127.0.0.1:%u/", f->served.listener.port);
	add(f, "one");
	*state = f;
	return 0;
}

static int drop(void **state)
{
	struct fixture *f = *state;
	served_stop(&f->served);
	assert_int_equal(block_close(f->block, NULL), 0);
	free(f);
	return 0;
}

static struct nbd_handle *connect_to(struct fixture *f, const char *name)
{
	char uri[128];
	struct nbd_handle *nbd = nbd_create();
	assert_non_null(nbd);
	snprintf(uri, sizeof uri, "%s%s", f->uri, name);
	if (nbd_connect_uri(nbd, uri) == 0)
		return nbd;
	nbd_close(nbd);
	return NULL;
}

static int probe(struct fixture *f, const char *name, struct err *err)
{
	char uri[128];
	snprintf(uri, sizeof uri, "%s%s", f->uri, name);
	return nbd_probe(uri, deadline_after_ms(TEST_TIMEOUT_MS), err);
}

static void test_exports_come_and_go(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	struct nbd_export again = {.name = "one", .block = f->block};
	assert_int_equal(nbd_server_add_export(f->served.server, &again, &err), -1);
	assert_int_equal(err.code, ERR_EXISTS);
	assert_null(connect_to(f, "two"));
	add(f, "two");
	struct nbd_handle *one = connect_to(f, "one"), *two = connect_to(f, "two");
	assert_non_null(one);
	assert_non_null(two);
	/* Ends the connection of this export alone. */
	assert_int_equal(nbd_server_remove_export(f->served.server, "two", &err), 0);
	uint8_t byte;
	assert_int_equal(nbd_pread(two, &byte, 1, 0, 0), -1);
	assert_int_equal(nbd_pread(one, &byte, 1, 0, 0), 0);
	assert_int_equal(nbd_server_remove_export(f->served.server, "two", &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_null(connect_to(f, "two"));
	nbd_close(one);
	nbd_close(two);
}

static void test_probe(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	if (probe(f, "one", &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(probe(f, "nowhere", &err), -1);
	assert_int_equal(
		nbd_probe("nbd://127.0.0.1:1/", deadline_after_ms(TEST_TIMEOUT_MS), &err), -1);
	assert_int_equal(err.code, ERR_REFUSED);
	/* It leaves no place taken behind: the third would be refused. */
	for (int i = 0; i < 10; i++)
		assert_int_equal(probe(f, "one", &err), 0);
}

static void test_probe_has_a_deadline(void **state)
{
	(void)state;
	struct listener listener;
	struct err err = ERR_INIT;
	char uri[64];
	assert_int_equal(transport_listen_tcp(&listener, "127.0.0.1", 0, NULL), 0);
	snprintf(uri, sizeof uri, "nbd://127.0.0.1:%u/", listener.port);
	/* Nobody accepts: the kernel connects, and then there is silence. */
	assert_int_equal(nbd_probe(uri, deadline_after_ms(100), &err), -1);
	assert_int_equal(err.code, ERR_TIMEOUT);
	listener_close(&listener);
}

static void test_places_are_counted(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	struct nbd_handle *a = connect_to(f, "one"), *b = connect_to(f, "one");
	assert_non_null(a);
	assert_non_null(b);
	assert_null(connect_to(f, "one"));
	assert_int_equal(probe(f, "one", &err), -1);
	assert_int_equal(nbd_shutdown(a, 0), 0);
	nbd_close(a);
	a = connect_to(f, "one");
	assert_non_null(a);
	nbd_close(a);
	nbd_close(b);
}

static void test_options_are_checked(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct nbd_server_options options = {.max_connections = 1000000};
	assert_null(nbd_server_new(&options, &err));
	assert_int_equal(err.code, ERR_USAGE);
	options = (struct nbd_server_options){.budget_bytes = 1};
	assert_null(nbd_server_new(&options, &err));
	assert_int_equal(err.code, ERR_USAGE);
	assert_true(nbd_server_free(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_exports_come_and_go, make, drop),
		cmocka_unit_test_setup_teardown(test_probe, make, drop),
		cmocka_unit_test(test_probe_has_a_deadline),
		cmocka_unit_test_setup_teardown(test_places_are_counted, make, drop),
		cmocka_unit_test(test_options_are_checked),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
