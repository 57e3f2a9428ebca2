/* The client's patience has an end, and losses are told. */
#include "served.h"

#include <poll.h>
#include <stdio.h>

#define PATIENCE_MS 600

struct fixture {
	struct gate *gate;
	struct served served;
	char uri[64];
};

static int make(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct nbd_server_options options = {.max_connections = 4};
	assert_non_null(f);
	f->gate = gate_open(MIB);
	served_start(&f->served, &options);
	struct nbd_export export = {.name = "", .block = &f->gate->block};
	served_add(&f->served, &export);
	snprintf(f->uri, sizeof f->uri, "nbd://127.0.0.1:%u/", f->served.listener.port);
	*state = f;
	return 0;
}

static int drop(void **state)
{
	struct fixture *f = *state;
	served_stop(&f->served);
	block_close(&f->gate->block, NULL);
	free(f);
	return 0;
}

static struct block *open_with(struct fixture *f, bool no_reconnect, struct cancel *cancel)
{
	struct err err = ERR_INIT;
	struct nbd_client_options options = {
		.reconnect_timeout_ms = PATIENCE_MS, .no_reconnect = no_reconnect};
	struct block *block = nbd_client_open(f->uri, &options, cancel, &err);
	if (!block)
		fail_msg("%s", err.text);
	return block;
}

static struct block *open_client(struct fixture *f, struct cancel *cancel)
{
	return open_with(f, false, cancel);
}

static void set_bad(struct fixture *f, enum err_code code)
{
	WITH_LOCK(&f->gate->mutex);
	f->gate->bad_offset = 8192;
	f->gate->bad_code = code;
}

/* Cancels what goes on for too long. */
struct watchdog {
	struct cancel *end, *cancel;
	pthread_t thread;
};

static void *watch(void *arg)
{
	struct watchdog *w = arg;
	if (cancel_sleep(w->end, deadline_after_ms(TEST_TIMEOUT_MS), NULL) == 0)
		cancel_request(w->cancel);
	return NULL;
}

static void watchdog_start(struct watchdog *w)
{
	assert_non_null(w->end = cancel_new(NULL));
	assert_non_null(w->cancel = cancel_new(NULL));
	assert_int_equal(thread_start(&w->thread, "watchdog", watch, w, NULL), 0);
}

static void watchdog_end(struct watchdog *w)
{
	cancel_request(w->end);
	pthread_join(w->thread, NULL);
	cancel_free(w->end);
	cancel_free(w->cancel);
}

/* A server that takes each new connection, and ends it at the same request, is
 * not asked for ever. */
static void test_a_server_that_always_ends_the_connection(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	uint8_t bytes[4096];
	struct watchdog watchdog;
	watchdog_start(&watchdog);
	struct block *block = open_client(f, watchdog.cancel);
	set_bad(f, ERR_CANCELLED); /* ESHUTDOWN on the wire */
	int64_t began_ns = clock_now_ns();
	assert_int_equal(block_read(block, bytes, sizeof bytes, 8192, &err), -1);
	int64_t took_ms = (clock_now_ns() - began_ns) / 1000000;
	assert_int_equal(err.code, ERR_DISCONNECTED);
	assert_non_null(strstr(err.text, "again and again"));
	assert_true(took_ms >= PATIENCE_MS / 2 && took_ms < TEST_TIMEOUT_MS / 2);
	/* The disk is not lost with it. */
	set_bad(f, ERR_NONE);
	if (block_read(block, bytes, sizeof bytes, 8192, &err) < 0)
		fail_msg("%s", err.text);
	block_close(block, NULL);
	watchdog_end(&watchdog);
}

/* Moves a lane until it has lost its connection, or has an answer. */
static struct block_io *move(struct block_lane *lane, bool until_lost)
{
	struct deadline until = deadline_after_ms(TEST_TIMEOUT_MS);
	struct block_io *io;
	while (!(io = block_lane_reap(lane)) && !(until_lost && block_lane_losses(lane) > 0)) {
		struct pollfd fd = block_lane_pollfd(lane);
		assert_false(deadline_passed(until));
		(void)poll(&fd, 1, deadline_left_ms(deadline_min(until, block_lane_wake(lane))));
		block_lane_dispatch(lane, fd.revents);
	}
	return io;
}

/* A lane takes over the connection that carried a blocking write, and loses it. */
static void test_a_loss_is_told_by_the_flush(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	uint8_t bytes[4096] = {1};
	struct block *block = open_client(f, NULL);
	assert_int_equal(block_write(block, bytes, sizeof bytes, 0, 0, &err), 0);
	struct block_lane *lane = block_lane_open(block, NULL, &err);
	assert_non_null(lane);
	set_bad(f, ERR_CANCELLED);
	struct block_io io = {
		.op = BLOCK_OP_READ, .offset = 8192, .length = sizeof bytes, .buffer = bytes};
	block_lane_submit(lane, &io);
	assert_null(move(lane, true));
	set_bad(f, ERR_NONE);
	assert_ptr_equal(move(lane, false), &io);
	assert_int_equal(io.err.code, ERR_NONE);
	block_lane_close(lane);
	assert_int_equal(block_flush(block, &err), -1);
	assert_int_equal(err.code, ERR_DISCONNECTED);
	assert_int_equal(block_flush(block, &err), 0);
	block_close(block, NULL);
}

/* Reads at 8192, where the connection ends. */
static enum err_code lose(struct fixture *f, struct block_lane *lane, uint8_t bytes[4096])
{
	struct block_io io = {.op = BLOCK_OP_READ, .offset = 8192, .length = 4096, .buffer = bytes};
	set_bad(f, ERR_CANCELLED);
	block_lane_submit(lane, &io);
	assert_ptr_equal(move(lane, false), &io);
	set_bad(f, ERR_NONE);
	assert_null(strstr(io.err.text, "again"));
	return io.err.code;
}

/* With no_reconnect a lost connection is lost, on lanes and for blocking calls; another one
 * is only made beside one that stands. */
static void test_a_lost_connection_is_not_made_again(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	uint8_t bytes[4096];
	struct block *block = open_with(f, true, NULL);
	struct block_lane *first = block_lane_open(block, NULL, &err);
	struct block_lane *second = block_lane_open(block, NULL, &err);
	assert_non_null(first);
	assert_non_null(second);
	assert_int_equal(lose(f, first, bytes), ERR_DISCONNECTED);
	block_lane_close(first);
	/* The second shows that the server is the same. */
	first = block_lane_open(block, NULL, &err);
	if (!first)
		fail_msg("%s", err.text);
	assert_int_equal(lose(f, first, bytes), ERR_DISCONNECTED);
	assert_int_equal(lose(f, second, bytes), ERR_DISCONNECTED);
	block_lane_close(first);
	block_lane_close(second);
	assert_null(block_lane_open(block, NULL, &err));
	assert_int_equal(err.code, ERR_DISCONNECTED);
	err_clear(&err);
	assert_int_equal(block_read(block, bytes, sizeof bytes, 0, &err), -1);
	assert_int_equal(err.code, ERR_DISCONNECTED);
	block_close(block, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			test_a_server_that_always_ends_the_connection, make, drop),
		cmocka_unit_test_setup_teardown(test_a_loss_is_told_by_the_flush, make, drop),
		cmocka_unit_test_setup_teardown(
			test_a_lost_connection_is_not_made_again, make, drop),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
