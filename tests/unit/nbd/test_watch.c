/* Requests that the disk keeps are named, and nobody waits for them without end. */
#include "test_support.h"

#include "nbd.h"

#include <libnbd.h>
#include <stdio.h>

#define STOP_MS 100

struct fixture {
	struct gate *gate;
	struct nbd_server *server;
	struct listener listener;
	pthread_t thread;
	struct nbd_handle *nbd;
	uint8_t buffer[512];
	int rc; /* of run() */
	struct err err;
	struct cancel *told; /* requested when the log has the line */
};

static void *run_main(void *arg)
{
	struct fixture *f = arg;
	f->rc = nbd_server_run(f->server, &f->listener, &f->err);
	return NULL;
}

static void look_for_line(void *context, enum log_level level, const char *text)
{
	struct fixture *f = context;
	if (level == LOG_LEVEL_WARNING && strstr(text, "READ at offset 4096 has taken") &&
		strstr(text, "waiting for the disk"))
		cancel_request(f->told);
}

/* A read of offset 4096 is at the disk, and stays there. */
static int make(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct nbd_server_options options = {.slow_ms = 50, .stop_timeout_ms = STOP_MS};
	char uri[64];
	assert_non_null(f);
	assert_non_null(f->told = cancel_new(NULL));
	log_set_sink(look_for_line, f, LOG_LEVEL_WARNING);
	f->gate = gate_open(MIB);
	assert_non_null(f->server = nbd_server_new(&options, NULL));
	struct nbd_export export = {.name = "kept", .block = &f->gate->block};
	assert_int_equal(nbd_server_add_export(f->server, &export, NULL), 0);
	assert_int_equal(transport_listen_tcp(&f->listener, "127.0.0.1", 0, NULL), 0);
	snprintf(uri, sizeof uri, "nbd://127.0.0.1:%u/kept", f->listener.port);
	assert_int_equal(thread_start(&f->thread, "run", run_main, f, NULL), 0);
	assert_non_null(f->nbd = nbd_create());
	assert_int_equal(nbd_connect_uri(f->nbd, uri), 0);
	gate_set(f->gate, true);
	assert_true(nbd_aio_pread(f->nbd, f->buffer, 512, 4096, NBD_NULL_COMPLETION, 0) >= 0);
	gate_wait_inside(f->gate, 1);
	*state = f;
	return 0;
}

static int drop(void **state)
{
	struct fixture *f = *state;
	gate_set(f->gate, false);
	nbd_server_stop(f->server);
	pthread_join(f->thread, NULL);
	/* Once the disk gave it back, all can be taken down after all. */
	struct deadline until = deadline_after_ms(TEST_TIMEOUT_MS);
	while (!nbd_server_free(f->server))
		assert_false(deadline_passed(until));
	nbd_close(f->nbd);
	block_close(&f->gate->block, NULL);
	log_set_sink(NULL, NULL, LOG_LEVEL_ERROR);
	cancel_free(f->told);
	free(f);
	return 0;
}

static void test_a_slow_request_is_named(void **state)
{
	struct fixture *f = *state;
	/* Ends at once when the line comes. */
	assert_int_equal(cancel_sleep(f->told, deadline_after_ms(TEST_TIMEOUT_MS), NULL), -1);
}

static void test_stopping_has_an_end(void **state)
{
	struct fixture *f = *state;
	nbd_server_stop(f->server);
	pthread_join(f->thread, NULL);
	assert_int_equal(f->rc, -1);
	assert_int_equal(f->err.code, ERR_TIMEOUT);
	assert_non_null(strstr(f->err.text, "READ at offset 4096"));
	assert_false(nbd_server_free(f->server));
	/* For drop(). */
	assert_int_equal(thread_start(&f->thread, "run", run_main, f, NULL), 0);
}

static void test_removing_has_an_end(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	struct nbd_export export = {.name = "kept", .block = &f->gate->block};
	assert_int_equal(nbd_server_remove_export(f->server, "kept", &err), -1);
	assert_int_equal(err.code, ERR_TIMEOUT);
	assert_non_null(strstr(err.text, "READ at offset 4096"));
	/* Nobody gets it, and the name is not free while the block is in use. */
	assert_int_equal(nbd_server_add_export(f->server, &export, &err), -1);
	gate_set(f->gate, false);
	assert_int_equal(nbd_server_remove_export(f->server, "kept", &err), 0);
	assert_int_equal(nbd_server_add_export(f->server, &export, &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_a_slow_request_is_named, make, drop),
		cmocka_unit_test_setup_teardown(test_stopping_has_an_end, make, drop),
		cmocka_unit_test_setup_teardown(test_removing_has_an_end, make, drop),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
