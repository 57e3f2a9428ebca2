/* Listening sockets: who may connect, what is replaced, what is refused. */
#include "test_support.h"

#include "transport.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

static char folder[] = "/tmp/sendense-test-XXXXXX";
static char path[sizeof folder + 8];

static int make(void **state)
{
	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof path, "%s/s", folder);
	return 0;
}

static int drop(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(folder);
}

static int connect_unix(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
	return fd;
}

static void test_unix(void **state)
{
	(void)state;
	struct listener listener, second;
	struct err err = ERR_INIT;
	struct stat st;
	mode_t old = umask(0);
	assert_int_equal(transport_listen_unix(&listener, path, &err), 0);
	umask(old);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_string_equal(listener.address, path);
	assert_int_equal(transport_listen_unix(&second, path, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	int fd = connect_unix();
	int peer = accept4(listener.fd, NULL, NULL, SOCK_CLOEXEC);
	char text[TRANSPORT_PEER_BYTES], expected[TRANSPORT_PEER_BYTES];
	transport_peer_text(peer, text);
	snprintf(expected, sizeof expected, "unix:PID %ld (uid %u)", (long)getpid(), getuid());
	assert_string_equal(text, expected);
	close(fd);
	close(peer);
	listener_close(&listener);
	assert_int_equal(access(path, F_OK), -1);
	listener_close(&listener);
}

static void test_stale_socket_is_replaced(void **state)
{
	(void)state;
	struct listener dead, listener;
	assert_int_equal(transport_listen_unix(&dead, path, NULL), 0);
	close(dead.fd);
	dead.fd = -1;
	assert_int_equal(transport_listen_unix(&listener, path, NULL), 0);
	/* The late clean-up of the dead one leaves the new one alone; file systems
	 * may give the inode number again, so this needs another file in between. */
	if (dead.unix_ino != listener.unix_ino) {
		listener_close(&dead);
		assert_int_equal(access(path, F_OK), 0);
	}
	free(dead.unix_path);
	listener_close(&listener);
}

static void test_other_files_are_let_be(void **state)
{
	(void)state;
	struct listener listener;
	struct err err = ERR_INIT;
	int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(transport_listen_unix(&listener, path, &err), -1);
	assert_int_equal(err.code, ERR_EXISTS);
	assert_int_equal(unlink(path), 0);
	char name[200];
	memset(name, 'x', sizeof name - 1);
	name[sizeof name - 1] = '\0';
	assert_int_equal(transport_listen_unix(&listener, name, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
}

static void test_tcp(void **state)
{
	(void)state;
	static const struct {
		const char *address, *bound;
		enum err_code code;
	} rows[] = {
		{"127.0.0.1", "127.0.0.1", ERR_NONE},
		{"127.8.9.10", "127.8.9.10", ERR_NONE},
		{"localhost", "127.0.0.1", ERR_NONE},
		{"0.0.0.0", NULL, ERR_DENIED},
		{"10.0.0.1", NULL, ERR_DENIED},
		{"::", NULL, ERR_DENIED},
		{"::ffff:127.0.0.1", NULL, ERR_DENIED},
		{"example.org", NULL, ERR_USAGE},
		{"", NULL, ERR_USAGE},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		struct listener listener;
		struct err err = ERR_INIT;
		int rc = transport_listen_tcp(&listener, rows[i].address, 0, &err);
		assert_int_equal(err.code, rows[i].code);
		if (rows[i].code)
			continue;
		assert_int_equal(rc, 0);
		assert_true(listener.is_tcp && listener.port > 0);
		assert_string_equal(listener.address, rows[i].bound);
		listener_close(&listener);
	}
	struct listener listener;
	struct err err = ERR_INIT;
	assert_int_equal(transport_listen_tcp(&listener, "127.0.0.1", 65536, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
}

static void test_tcp6(void **state)
{
	(void)state;
	struct listener listener;
	struct err err = ERR_INIT;
	if (transport_listen_tcp(&listener, "::1", 0, &err) < 0) {
		print_message("no IPv6 here: %s\n", err.text);
		skip();
	}
	assert_string_equal(listener.address, "::1");
	listener_close(&listener);
}

/* In a child, because the protocol uses descriptor 3 and the own process id.
 * Returns what transport_listen_inherited() did, with 10 for a wrong environment. */
static int inherit(int fd, const char *nr_fds, bool wrong_pid)
{
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct listener listener;
		char text[32];
		snprintf(text, sizeof text, "%ld", (long)getpid() + wrong_pid);
		setenv("LISTEN_PID", text, 1);
		setenv("LISTEN_FDS", nr_fds, 1);
		if (fd != 3)
			dup2(fd, 3);
		int rc = transport_listen_inherited(&listener, NULL);
		if (rc != 0 && getenv("LISTEN_FDS"))
			rc = 10;
		_exit(rc < 0 ? 9 : rc);
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void test_inherited(void **state)
{
	(void)state;
	struct listener listener;
	assert_int_equal(transport_listen_tcp(&listener, "127.0.0.1", 0, NULL), 0);
	assert_int_equal(inherit(listener.fd, "1", false), 1);
	assert_int_equal(inherit(listener.fd, "1", true), 0);
	assert_int_equal(inherit(listener.fd, "0", false), 0);
	assert_int_equal(inherit(listener.fd, "x", false), 0);
	assert_int_equal(inherit(listener.fd, "2", false), 9);
	listener_close(&listener);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(inherit(fd, "1", false), 9); /* it does not listen */
	struct sockaddr_in any = {.sin_family = AF_INET};
	assert_int_equal(bind(fd, (struct sockaddr *)&any, sizeof any), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(inherit(fd, "1", false), 9); /* beyond loopback */
	close(fd);
	fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_int_equal(inherit(fd, "1", false), 9);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unix),
		cmocka_unit_test(test_stale_socket_is_replaced),
		cmocka_unit_test(test_other_files_are_let_be),
		cmocka_unit_test(test_tcp),
		cmocka_unit_test(test_tcp6),
		cmocka_unit_test(test_inherited),
	};
	return cmocka_run_group_tests(tests, make, drop);
}
