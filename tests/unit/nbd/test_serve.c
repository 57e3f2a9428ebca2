/*
 * Requests at a disk that can be held up and fail: they overlap, none holds up
 * another connection, and every error arrives as what it is.
 */
#include "test_support.h"

#include "nbd.h"

#include <errno.h>
#include <libnbd.h>
#include <sys/socket.h>

#define SIZE (8 * MIB)

struct fixture {
	struct gate *gate;
	struct nbd_server *server;
	unsigned nr_clients;
	struct {
		struct nbd_server *server;
		pthread_t thread;
		int fd;
		struct nbd_handle *nbd;
	} clients[4];
};

static int make(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	assert_non_null(f);
	f->gate = gate_open(SIZE);
	f->server = nbd_server_new(NULL, NULL);
	assert_non_null(f->server);
	struct nbd_export export = {.name = "", .block = &f->gate->block};
	assert_int_equal(nbd_server_add_export(f->server, &export, NULL), 0);
	*state = f;
	return 0;
}

static void *serve_main(void *arg)
{
	typeof(((struct fixture *)0)->clients[0]) *client = arg;
	assert_int_equal(nbd_server_serve_fd(client->server, client->fd, "the test", NULL), 0);
	return NULL;
}

static struct nbd_handle *connect_client(struct fixture *f, bool structured)
{
	int fds[2];
	unsigned i = f->nr_clients++;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	f->clients[i].server = f->server;
	f->clients[i].fd = fds[0];
	assert_int_equal(
		thread_start(&f->clients[i].thread, "serve", serve_main, &f->clients[i], NULL), 0);
	struct nbd_handle *nbd = f->clients[i].nbd = nbd_create();
	assert_non_null(nbd);
	assert_int_equal(nbd_set_request_structured_replies(nbd, structured), 0);
	assert_int_equal(nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION), 0);
	assert_int_equal(nbd_connect_socket(nbd, fds[1]), 0);
	return nbd;
}

static int drop(void **state)
{
	struct fixture *f = *state;
	gate_set(f->gate, false);
	for (unsigned i = 0; i < f->nr_clients; i++) {
		nbd_close(f->clients[i].nbd);
		pthread_join(f->clients[i].thread, NULL);
	}
	assert_true(nbd_server_free(f->server));
	assert_int_equal(block_close(&f->gate->block, NULL), 0);
	free(f);
	return 0;
}

static void finish(struct nbd_handle *nbd, int64_t cookie, int expected_errno)
{
	int rc;
	while ((rc = nbd_aio_command_completed(nbd, (uint64_t)cookie)) == 0)
		assert_true(nbd_poll(nbd, TEST_TIMEOUT_MS) > 0);
	assert_int_equal(rc < 0 ? nbd_get_errno() : 0, expected_errno);
}

static void test_reads_of_one_connection_overlap(void **state)
{
	struct fixture *f = *state;
	struct nbd_handle *nbd = connect_client(f, true);
	uint8_t buffers[6][512];
	int64_t cookies[6];
	gate_set(f->gate, true);
	for (unsigned i = 0; i < 6; i++) {
		cookies[i] = nbd_aio_pread(nbd, buffers[i], 512, i * 512, NBD_NULL_COMPLETION, 0);
		assert_true(cookies[i] > 0);
	}
	gate_wait_inside(f->gate, 6);
	gate_set(f->gate, false);
	for (unsigned i = 0; i < 6; i++)
		finish(nbd, cookies[i], 0);
}

/* Its pieces are at the disk at once, though the data comes one after another,
 * and they are cut where clusters end. */
static void test_pieces_of_a_write_overlap(void **state)
{
	static const struct {
		uint64_t offset;
		unsigned nr_pieces;
	} rows[] = {{256 * KIB, 4}, {256 * KIB + 1000, 5}};
	struct fixture *f = *state;
	struct nbd_handle *nbd = connect_client(f, true);
	uint8_t *data = malloc(MIB);
	assert_non_null(data);
	memset(data, 7, MIB);
	for (unsigned i = 0; i < ARRAY_LENGTH(rows); i++) {
		gate_set(f->gate, true);
		int64_t cookie = nbd_aio_pwrite(
			nbd, data, MIB, rows[i].offset, NBD_NULL_COMPLETION, LIBNBD_CMD_FLAG_FUA);
		assert_true(cookie > 0);
		/* libnbd sends the rest when polled. */
		while (nbd_aio_get_direction(nbd) & LIBNBD_AIO_DIRECTION_WRITE)
			assert_true(nbd_poll(nbd, TEST_TIMEOUT_MS) >= 0);
		gate_wait_inside(f->gate, rows[i].nr_pieces);
		assert_int_equal(f->gate->nr_flushes, i);
		gate_set(f->gate, false);
		finish(nbd, cookie, 0);
		assert_memory_equal(f->gate->bytes + rows[i].offset, data, MIB);
		assert_int_equal(f->gate->nr_flushes, i + 1);
	}
	free(data);
}

static void test_a_stuck_request_does_not_hold_up_others(void **state)
{
	struct fixture *f = *state;
	struct nbd_handle *stuck = connect_client(f, true), *other = connect_client(f, true);
	uint8_t buffer[512];
	gate_set(f->gate, true);
	int64_t cookie = nbd_aio_pread(stuck, buffer, 512, 0, NBD_NULL_COMPLETION, 0);
	gate_wait_inside(f->gate, 1);
	/* A flush does not pass the gate. */
	assert_int_equal(nbd_flush(other, 0), 0);
	assert_int_equal(nbd_flush(stuck, 0), 0);
	gate_set(f->gate, false);
	finish(stuck, cookie, 0);
}

static void test_errors_arrive(void **state)
{
	struct fixture *f = *state;
	struct nbd_handle *clients[2] = {connect_client(f, false), connect_client(f, true)};
	static const struct {
		enum err_code code;
		int errnum;
	} rows[] = {{ERR_IO, EIO}, {ERR_NO_SPACE, ENOSPC}, {ERR_CORRUPT, EIO}, {ERR_DENIED, EPERM}};
	uint8_t *data = calloc(1, MIB);
	assert_non_null(data);
	f->gate->bad_offset = 5000;
	for (size_t i = 0; i < 2 * ARRAY_LENGTH(rows); i++) {
		struct nbd_handle *nbd = clients[i % 2];
		f->gate->bad_code = rows[i / 2].code;
		assert_int_equal(nbd_pread(nbd, data, 4096, 4096, 0), -1);
		assert_int_equal(nbd_get_errno(), rows[i / 2].errnum);
		assert_int_equal(nbd_pwrite(nbd, data, MIB, 0, LIBNBD_CMD_FLAG_FUA), -1);
		assert_int_equal(nbd_get_errno(), rows[i / 2].errnum);
		assert_int_equal(nbd_zero(nbd, 8192, 0, 0), -1);
		assert_int_equal(nbd_pread(nbd, data, 4096, 8192, 0), 0);
	}
	free(data);
}

static int ignore_chunk(void *user_data, const void *data, size_t length, uint64_t offset,
	unsigned status, int *error)
{
	(void)user_data, (void)data, (void)length, (void)offset, (void)status, (void)error;
	return 0;
}

/* Where the error comes after the first piece: told in chunks, and otherwise
 * the connection must be given up, never wrong data. */
static void test_error_in_the_middle_of_a_read(void **state)
{
	struct fixture *f = *state;
	struct nbd_handle *simple = connect_client(f, false), *chunks = connect_client(f, true);
	uint8_t *data = malloc(2 * MIB);
	assert_non_null(data);
	f->gate->bad_offset = MIB + 1;
	f->gate->bad_code = ERR_IO;
	assert_int_equal(nbd_pread(chunks, data, 2 * MIB, 0, 0), -1);
	assert_int_equal(nbd_get_errno(), EIO);
	assert_int_equal(nbd_pread(chunks, data, MIB, 0, 0), 0);
	assert_int_equal(nbd_pread(simple, data, MIB, 0, 0), 0);
	assert_int_equal(nbd_pread(simple, data, 2 * MIB, 0, 0), -1);
	assert_true(nbd_aio_is_dead(simple) || nbd_aio_is_closed(simple));
	nbd_chunk_callback ignore = {.callback = ignore_chunk};
	assert_int_equal(
		nbd_pread_structured(chunks, data, 2 * MIB, 0, ignore, LIBNBD_CMD_FLAG_DF), -1);
	assert_true(nbd_aio_is_dead(chunks) || nbd_aio_is_closed(chunks));
	free(data);
}

static void *stop_main(void *arg)
{
	struct fixture *f = arg;
	nbd_server_stop(f->server);
	return NULL;
}

static void test_stop_answers_what_is_at_the_disk(void **state)
{
	struct fixture *f = *state;
	struct nbd_handle *nbd = connect_client(f, true);
	pthread_t thread;
	uint8_t buffer[512];
	gate_set(f->gate, true);
	int64_t cookie = nbd_aio_pread(nbd, buffer, 512, 0, NBD_NULL_COMPLETION, 0);
	gate_wait_inside(f->gate, 1);
	assert_int_equal(thread_start(&thread, "stop", stop_main, f, NULL), 0);
	pthread_join(thread, NULL);
	gate_set(f->gate, false);
	finish(nbd, cookie, 0);
	while (!nbd_aio_is_closed(nbd) && !nbd_aio_is_dead(nbd))
		(void)nbd_poll(nbd, TEST_TIMEOUT_MS);
}

static int add_states(void *context, const char *name, uint64_t offset, uint32_t *entries,
	size_t nr_entries, int *error)
{
	(void)name, (void)offset, (void)error;
	for (size_t i = 0; i < nr_entries; i++)
		((uint64_t *)context)[i % 2] += entries[i];
	return 0;
}

/* What a disk knows of changes is no part of base:allocation, whose other bits mean
 * something else to a client. */
static void test_changes_are_not_told(void **state)
{
	struct fixture *f = *state;
	uint64_t sums[2] = {0};
	f->gate->block.info.has_extents = f->gate->block.info.has_changes = true;
	struct nbd_handle *nbd = connect_client(f, true);
	assert_int_equal(nbd_can_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION), 1);
	assert_int_equal(
		nbd_block_status(nbd, SIZE, 0,
			(nbd_extent_callback){.callback = add_states, .user_data = sums}, 0),
		0);
	assert_int_equal(sums[0], SIZE);
	assert_int_equal(sums[1], 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_reads_of_one_connection_overlap, make, drop),
		cmocka_unit_test_setup_teardown(test_pieces_of_a_write_overlap, make, drop),
		cmocka_unit_test_setup_teardown(
			test_a_stuck_request_does_not_hold_up_others, make, drop),
		cmocka_unit_test_setup_teardown(test_errors_arrive, make, drop),
		cmocka_unit_test_setup_teardown(test_error_in_the_middle_of_a_read, make, drop),
		cmocka_unit_test_setup_teardown(test_changes_are_not_told, make, drop),
		cmocka_unit_test_setup_teardown(test_stop_answers_what_is_at_the_disk, make, drop),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
