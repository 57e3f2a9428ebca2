/* Streams: all or an error, and every wait has an end. */
#include "test_support.h"

#include "transport.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>

static struct stream ours;
static int theirs;

static int make(void **state)
{
	(void)state;
	int fds[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	stream_init(&ours, fds[0], 100);
	theirs = fds[1];
	return 0;
}

static int drop(void **state)
{
	(void)state;
	stream_close(&ours);
	stream_close(&ours);
	if (theirs >= 0)
		close(theirs);
	return 0;
}

static void test_receive(void **state)
{
	(void)state;
	char a[3] = "", b[8] = "";
	struct iovec iov[2] = {{a, sizeof a}, {b, sizeof b}};
	struct err err = ERR_INIT;
	assert_int_equal(stream_receive(&ours, iov, 2, 20, "testing", &err), -1);
	assert_int_equal(err.code, ERR_TIMEOUT);
	assert_string_equal(err.text, "testing: nothing came for 20 ms");
	assert_int_equal(write(theirs, "abcdef", 6), 6);
	assert_int_equal(stream_receive(&ours, iov, 2, 1000, "testing", &err), 6);
	assert_memory_equal(a, "abc", 3);
	assert_memory_equal(b, "def", 3);
	close(theirs);
	theirs = -1;
	assert_int_equal(stream_receive(&ours, iov, 2, 1000, "testing", &err), -1);
	assert_int_equal(err.code, ERR_DISCONNECTED);
	assert_int_equal(err.sys_errno, 0);
}

static void *read_all(void *arg)
{
	uint8_t *at = arg;
	ssize_t n;
	while ((n = read(theirs, at, 65536)) > 0)
		at += n;
	return NULL;
}

static void test_send_in_parts(void **state)
{
	(void)state;
	enum { LENGTH = 3000000 };
	uint8_t *out = malloc(LENGTH), *in = calloc(1, LENGTH + 65536);
	struct err err = ERR_INIT;
	pthread_t reader;
	for (size_t i = 0; i < LENGTH; i++)
		out[i] = (uint8_t)(i * 7 + (i >> 8));
	assert_int_equal(pthread_create(&reader, NULL, read_all, in), 0);
	struct iovec iov[4] = {
		{out, 5}, {out + 5, 0}, {out + 5, 1999995}, {out + 2000000, 1000000}};
	assert_int_equal(stream_send(&ours, iov, 4, "testing", &err), 0);
	stream_close(&ours);
	pthread_join(reader, NULL);
	assert_memory_equal(in, out, LENGTH);
	free(out);
	free(in);
}

static void test_send_to_one_that_does_not_read(void **state)
{
	(void)state;
	static uint8_t data[8 << 20];
	struct err err = ERR_INIT;
	assert_int_equal(
		stream_send(&ours, &(struct iovec){data, sizeof data}, 1, "testing", &err), -1);
	assert_int_equal(err.code, ERR_TIMEOUT);
	assert_string_equal(err.text, "testing: the peer took nothing for 100 ms");
}

static void test_send_to_one_that_is_gone(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	close(theirs);
	theirs = -1;
	/* No SIGPIPE: the test would die of it. */
	assert_int_equal(stream_send(&ours, &(struct iovec){"x", 1}, 1, "testing", &err), -1);
	assert_int_equal(err.code, ERR_DISCONNECTED);
}

/* With bytes left unread, a mere close would be a reset for the peer. */
static void test_finish(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	char bytes[8];
	assert_int_equal(write(theirs, "unread", 6), 6);
	assert_int_equal(stream_send(&ours, &(struct iovec){"last", 4}, 1, "testing", &err), 0);
	stream_finish(&ours);
	stream_close(&ours);
	assert_int_equal(read(theirs, bytes, sizeof bytes), 4);
	assert_int_equal(read(theirs, bytes, sizeof bytes), 0);
}

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t length = sizeof value;
	assert_int_equal(getsockopt(fd, level, name, &value, &length), 0);
	return value;
}

/* A vanished peer is found within some 60 s, idle or in the middle of data. */
static void test_tcp_options(void **state)
{
	(void)state;
	struct stream stream;
	stream_init(&stream, socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), 1000);
	assert_int_equal(option(stream.fd, IPPROTO_TCP, TCP_NODELAY), 1);
	assert_int_equal(option(stream.fd, SOL_SOCKET, SO_KEEPALIVE), 1);
	int seconds = option(stream.fd, IPPROTO_TCP, TCP_KEEPIDLE) +
		      option(stream.fd, IPPROTO_TCP, TCP_KEEPINTVL) *
			      option(stream.fd, IPPROTO_TCP, TCP_KEEPCNT);
	assert_in_range(seconds, 30, 60);
	assert_int_equal(option(stream.fd, IPPROTO_TCP, TCP_USER_TIMEOUT), 60000);
	stream_close(&stream);
}

static void *shut_main(void *arg)
{
	(void)arg;
	stream_shut(&ours, false);
	return NULL;
}

static void test_shut_ends_a_wait(void **state)
{
	(void)state;
	char byte;
	pthread_t other;
	struct err err = ERR_INIT;
	assert_int_equal(pthread_create(&other, NULL, shut_main, NULL), 0);
	assert_int_equal(
		stream_receive(&ours, &(struct iovec){&byte, 1}, 1, 20000, "testing", &err), -1);
	assert_int_equal(err.code, ERR_DISCONNECTED);
	pthread_join(other, NULL);
	assert_int_equal(stream_send(&ours, &(struct iovec){"x", 1}, 1, "testing", &err), 0);
	stream_shut(&ours, true);
	assert_int_equal(stream_send(&ours, &(struct iovec){"x", 1}, 1, "testing", &err), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_receive, make, drop),
		cmocka_unit_test_setup_teardown(test_send_in_parts, make, drop),
		cmocka_unit_test_setup_teardown(test_send_to_one_that_does_not_read, make, drop),
		cmocka_unit_test_setup_teardown(test_send_to_one_that_is_gone, make, drop),
		cmocka_unit_test_setup_teardown(test_finish, make, drop),
		cmocka_unit_test(test_tcp_options),
		cmocka_unit_test_setup_teardown(test_shut_ends_a_wait, make, drop),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
