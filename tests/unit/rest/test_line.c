/* Connections: limits in all and for each address, silence gives way, the reserve. */
#include "test_support.h"

#include <netinet/in.h>
#include <sys/socket.h>

#define SECOND ((int64_t)1000000000)

static struct rest_address address_of(uint32_t host)
{
	struct rest_address address;
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)};
	rest_address_of((const struct sockaddr *)&in, &address);
	return address;
}

/* One end of a pair of sockets, so that what is shut can be seen. */
static int open_one(int *other)
{
	int fds[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	*other = fds[1];
	return fds[0];
}

static bool is_shut(int other)
{
	char byte;
	return recv(other, &byte, 1, MSG_DONTWAIT) == 0;
}

static struct rest_line *add(
	struct rest_lines *lines, uint32_t host, int fd, int64_t now_ns, bool started)
{
	struct rest_address address = address_of(host);
	struct rest_line *line = rest_lines_add(lines, &address, fd, now_ns);
	if (line && started)
		assert_ptr_equal(rest_lines_started(lines, fd), line);
	return line;
}

static void test_the_longest_silent_gives_way(void **state)
{
	(void)state;
	struct rest_lines lines;
	int fd[4], other[4];
	for (int i = 0; i < 4; i++)
		fd[i] = open_one(&other[i]);
	rest_lines_init(&lines, 3, 64);
	struct rest_line *busy = add(&lines, 0x7f000001, fd[0], 10 * SECOND, true);
	busy->busy = 1;
	struct rest_line *silent = add(&lines, 0x7f000001, fd[1], 11 * SECOND, true);
	struct rest_line *later = add(&lines, 0x7f000001, fd[2], 12 * SECOND, true);
	/* Nobody has been silent for a second: the newcomer is told so. */
	silent->idle_since_ns = later->idle_since_ns = 19 * SECOND + 1;
	struct rest_line *refused = add(&lines, 0x7f000001, fd[3], 20 * SECOND, true);
	assert_true(refused->refused);
	assert_string_equal(refused->refusal, "3 of 3 connections are in use");
	rest_lines_remove(&lines, refused);
	/* A moment later one has. */
	later->idle_since_ns = 20 * SECOND;
	struct rest_line *taken = add(&lines, 0x7f000001, fd[3], 20 * SECOND + 2, true);
	assert_false(taken->refused);
	assert_true(silent->evicted && is_shut(other[1]));
	assert_false(busy->evicted || later->evicted || is_shut(other[0]) || is_shut(other[2]));
	rest_lines_clear(&lines);
	for (int i = 0; i < 4; i++) {
		close(fd[i]);
		close(other[i]);
	}
}

static void test_addresses_have_their_own_limit(void **state)
{
	(void)state;
	struct rest_lines lines;
	rest_lines_init(&lines, 100, 2);
	assert_false(add(&lines, 0xc0000201, 1001, 0, false)->refused);
	assert_false(add(&lines, 0xc0000201, 1002, 0, false)->refused);
	struct rest_line *third = add(&lines, 0xc0000201, 1003, 0, false);
	assert_true(third->refused);
	assert_string_equal(third->refusal, "2 of 2 connections from this address are in use");
	assert_false(add(&lines, 0xc0000202, 1004, 0, false)->refused);
	for (int i = 0; i < 5; i++) /* loopback has none: everybody behind a tunnel is there */
		assert_false(add(&lines, 0x7f000001, 1010 + i, 0, false)->refused);
	rest_lines_clear(&lines);
}

static void test_the_reserve_is_bounded(void **state)
{
	(void)state;
	struct rest_lines lines;
	unsigned nr = 0;
	rest_lines_init(&lines, 2, 64);
	while (add(&lines, 0x7f000001, 1000 + (int)nr, 0, false))
		nr++;
	assert_int_equal(nr, 2 + REST_LINES_RESERVE);
	/* A descriptor that comes again was closed by the library before it knew it. */
	assert_non_null(add(&lines, 0x7f000001, 1000, 0, false));
	rest_lines_clear(&lines);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_longest_silent_gives_way),
		cmocka_unit_test(test_addresses_have_their_own_limit),
		cmocka_unit_test(test_the_reserve_is_bounded),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
