/* Streams through TLS, with GnuTLS itself as the client on the other end. */
#include "test_support.h"

#include "pki.h"
#include "tls.h"

#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define BIG (3 * MIB + 77)

static const char hex_key[] = "00112233445566778899aabbccddeeff";
static struct tls_server *server;
static uint8_t *big;

struct ends {
	struct stream ours;
	int theirs;
	gnutls_session_t session;
	gnutls_psk_client_credentials_t credentials;
	pthread_t thread;
	int rc; /* of the client's handshake */
};

static int find(void *user, const char *identity, uint8_t key[TLS_PSK_BYTES_MAX], size_t *length)
{
	(void)user;
	*length = (sizeof hex_key - 1) / 2;
	return strcmp(identity, "alice") == 0 && digest_unhex(hex_key, key, *length) ? 0 : -1;
}

static int make(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct tls_server_options options = {.psk_find = find};
	server = tls_server_new(&options, &err);
	assert_non_null(server);
	assert_true(tls_server_authenticates(server));
	big = malloc(BIG);
	for (size_t i = 0; i < BIG; i++)
		big[i] = (uint8_t)(i * 2654435761u >> 13);
	return 0;
}

static int drop(void **state)
{
	(void)state;
	free(big);
	tls_server_free(server);
	return 0;
}

static void *client_handshake(void *arg)
{
	struct ends *e = arg;
	do
		e->rc = gnutls_handshake(e->session);
	while (e->rc < 0 && !gnutls_error_is_fatal(e->rc));
	return NULL;
}

static void open_ends(struct ends *e, const char *identity, const char *hex, const char *versions)
{
	int fds[2];
	char priorities[128];
	gnutls_datum_t key = {(unsigned char *)(uintptr_t)hex, (unsigned)strlen(hex)};
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	stream_init(&e->ours, fds[0], 5000);
	e->theirs = fds[1];
	assert_int_equal(gnutls_init(&e->session, GNUTLS_CLIENT), 0);
	assert_int_equal(gnutls_psk_allocate_client_credentials(&e->credentials), 0);
	assert_int_equal(gnutls_psk_set_client_credentials(
				 e->credentials, identity, &key, GNUTLS_PSK_KEY_HEX),
		0);
	snprintf(priorities, sizeof priorities, "NORMAL:+ECDHE-PSK:-VERS-ALL:%s", versions);
	assert_int_equal(gnutls_priority_set_direct(e->session, priorities, NULL), 0);
	gnutls_credentials_set(e->session, GNUTLS_CRD_PSK, e->credentials);
	gnutls_transport_set_int(e->session, e->theirs);
	assert_int_equal(pthread_create(&e->thread, NULL, client_handshake, e), 0);
}

static void close_ends(struct ends *e)
{
	if (e->theirs >= 0)
		close(e->theirs);
	stream_close(&e->ours);
	stream_close(&e->ours);
	gnutls_deinit(e->session);
	gnutls_psk_free_client_credentials(e->credentials);
}

static void open_good(struct ends *e, const char *versions)
{
	struct err err = ERR_INIT;
	open_ends(e, "alice", hex_key, versions);
	assert_int_equal(stream_tls_start(&e->ours, server, deadline_after_ms(5000), &err), 0);
	pthread_join(e->thread, NULL);
	assert_int_equal(e->rc, 0);
	assert_string_equal(stream_tls_identity(&e->ours), "psk:alice");
}

static void *send_big(void *arg)
{
	struct ends *e = arg;
	struct err err = ERR_INIT;
	/* Odd pieces, small and large. */
	struct iovec iov[4] = {
		{big, 28}, {big + 28, 16384 + 5}, {big + 16417, 0}, {big + 16417, BIG - 16417}};
	assert_int_equal(stream_send(&e->ours, iov, 4, "testing", &err), 0);
	return NULL;
}

static void *send_theirs(void *arg)
{
	struct ends *e = arg;
	for (size_t at = 0; at < BIG;) {
		ssize_t n = gnutls_record_send(e->session, big + at, BIG - at);
		assert_true(n > 0);
		at += (size_t)n;
	}
	return NULL;
}

static void *receive_theirs(void *arg)
{
	struct ends *e = arg;
	uint8_t *got = calloc(1, BIG);
	for (size_t at = 0; at < BIG;) {
		ssize_t n = gnutls_record_recv(e->session, got + at, BIG - at);
		assert_true(n > 0);
		at += (size_t)n;
	}
	assert_memory_equal(got, big, BIG);
	free(got);
	return NULL;
}

static void receive_big(struct ends *e)
{
	struct err err = ERR_INIT;
	uint8_t *got = calloc(1, BIG);
	for (size_t at = 0; at < BIG;) {
		/* In two buffers of odd sizes. */
		size_t first = min_size(BIG - at, 1000), second = min_size(BIG - at - first, 70001);
		struct iovec iov[2] = {{got + at, first}, {got + at + first, second}};
		ssize_t n = stream_receive(&e->ours, iov, 2, 5000, "testing", &err);
		assert_true(n > 0);
		at += (size_t)n;
	}
	assert_memory_equal(got, big, BIG);
	free(got);
}

/* Both ways at once: one thread of ours sends, another receives. */
static void test_both_ways(void **state)
{
	(void)state;
	static const char *const versions[] = {"+VERS-TLS1.3", "+VERS-TLS1.2"};
	for (size_t i = 0; i < ARRAY_LENGTH(versions); i++) {
		struct ends e;
		pthread_t threads[3];
		char text[TLS_TEXT_BYTES];
		open_good(&e, versions[i]);
		stream_tls_text(&e.ours, text);
		assert_non_null(strstr(text, "psk:alice"));
		pthread_create(&threads[0], NULL, send_big, &e);
		pthread_create(&threads[1], NULL, send_theirs, &e);
		pthread_create(&threads[2], NULL, receive_theirs, &e);
		receive_big(&e);
		for (size_t k = 0; k < ARRAY_LENGTH(threads); k++)
			pthread_join(threads[k], NULL);
		close_ends(&e);
	}
}

/* After the end of what is received, what is owed can still be sent. */
static void test_sending_after_the_end(void **state)
{
	(void)state;
	struct ends e;
	struct err err = ERR_INIT;
	char bytes[8];
	struct iovec iov = {bytes, sizeof bytes}, answer = {(void *)(uintptr_t) "answer", 6};
	open_good(&e, "+VERS-TLS1.3");
	assert_int_equal(stream_receive(&e.ours, &iov, 1, 20, "testing", &err), -1);
	assert_int_equal(err.code, ERR_TIMEOUT);
	assert_string_equal(err.text, "testing: nothing came for 20 ms");
	stream_shut(&e.ours, false);
	assert_int_equal(stream_receive(&e.ours, &iov, 1, 5000, "testing", &err), -1);
	assert_int_equal(err.code, ERR_DISCONNECTED);
	assert_int_equal(err.sys_errno, 0);
	assert_int_equal(stream_send(&e.ours, &answer, 1, "testing", &err), 0);
	assert_int_equal(gnutls_record_recv(e.session, bytes, sizeof bytes), 6);
	stream_finish(&e.ours);
	assert_int_equal(gnutls_record_recv(e.session, bytes, sizeof bytes), 0);
	close_ends(&e);
}

static void test_end_of_the_peer(void **state)
{
	(void)state;
	for (int in_order = 0; in_order < 2; in_order++) {
		struct ends e;
		struct err err = ERR_INIT;
		char bytes[8];
		struct iovec iov = {bytes, sizeof bytes};
		open_good(&e, "+VERS-TLS1.3");
		assert_int_equal(gnutls_record_send(e.session, "abc", 3), 3);
		if (in_order)
			assert_int_equal(gnutls_bye(e.session, GNUTLS_SHUT_WR), 0);
		close(e.theirs);
		e.theirs = -1;
		assert_int_equal(stream_receive(&e.ours, &iov, 1, 5000, "testing", &err), 3);
		for (int i = 0; i < 2; i++) {
			assert_int_equal(
				stream_receive(&e.ours, &iov, 1, 5000, "testing", &err), -1);
			assert_int_equal(err.code, ERR_DISCONNECTED);
			assert_int_equal(err.sys_errno, 0);
		}
		close_ends(&e);
	}
}

static void test_bytes_that_were_changed(void **state)
{
	(void)state;
	struct ends e;
	struct err err = ERR_INIT;
	char bytes[8];
	struct iovec iov = {bytes, sizeof bytes};
	/* A record of application data that nobody encrypted. */
	static const uint8_t forged[5 + 32] = {23, 3, 3, 0, 32};
	open_good(&e, "+VERS-TLS1.3");
	assert_int_equal(write(e.theirs, forged, sizeof forged), sizeof forged);
	assert_int_equal(stream_receive(&e.ours, &iov, 1, 5000, "testing", &err), -1);
	assert_int_equal(err.code, ERR_PROTOCOL);
	close_ends(&e);
}

static void test_handshakes_that_fail(void **state)
{
	(void)state;
	static const struct {
		const char *identity, *hex, *text;
	} rows[] = {{"bob", hex_key, "no key of that identity"},
		{"alice", "ffffffffffffffffffffffffffffffff", "another key of identity 'alice'"}};
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		struct ends e;
		struct err err = ERR_INIT;
		open_ends(&e, rows[i].identity, rows[i].hex, "+VERS-TLS1.3:+VERS-TLS1.2");
		assert_int_equal(
			stream_tls_start(&e.ours, server, deadline_after_ms(5000), &err), -1);
		assert_int_equal(err.code, ERR_DENIED);
		assert_non_null(strstr(err.text, rows[i].text));
		assert_null(strstr(err.text, rows[i].hex));
		stream_finish(&e.ours);
		pthread_join(e.thread, NULL);
		assert_true(e.rc < 0);
		close_ends(&e);
	}
}

static void test_silent_client(void **state)
{
	(void)state;
	struct stream ours;
	struct err err = ERR_INIT;
	int fds[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	stream_init(&ours, fds[0], 5000);
	assert_int_equal(stream_tls_start(&ours, server, deadline_after_ms(50), &err), -1);
	assert_int_equal(err.code, ERR_TIMEOUT);
	close(fds[1]);
	stream_close(&ours);
}

/* --- credentials ------------------------------------------------------------------------- */

static void write_file(const char *path, const char *text, mode_t mode)
{
	int AUTO_CLOSE fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	assert_int_equal(fchmod(fd, mode), 0);
}

static void test_files_of_keys(void **state)
{
	(void)state;
	static const char good[] = "# a comment\nalice:00112233445566778899aabbccddeeff\n\n"
				   "b:o:b:FFeeddccbbaa99887766554433221100\n";
	static const char *const bad[] = {"", "alice", "alice:", "alice:00", "alice:zz112233445566",
		":00112233445566778899aabbccddeeff", "al ice:00112233445566778899aabbccddeeff",
		"alice:00112233445566778899aabbccddeef"};
	char path[] = "/tmp/sendense-test-XXXXXX";
	struct err err = ERR_INIT;
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	close(fd);
	struct tls_server_options options = {.psk_file = path};
	write_file(path, good, 0600);
	struct tls_server *s = tls_server_new(&options, &err);
	assert_non_null(s);
	char *first = tls_psk_file_identity(path, &err);
	assert_string_equal(first, "alice");
	free(first);
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		write_file(path, bad[i], 0600);
		assert_null(tls_server_new(&options, &err));
		assert_int_equal(err.code, ERR_FORMAT);
		/* What was good stays. */
		assert_int_equal(tls_server_reload(s, &err), -1);
	}
	write_file(path, good, 0640);
	assert_null(tls_server_new(&options, &err));
	assert_int_equal(err.code, ERR_DENIED);
	write_file(path, good, 0400);
	assert_int_equal(tls_server_reload(s, &err), 0);
	tls_server_free(s);
	unlink(path);
}

static void test_memory_file(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	char name[32];
	char *bytes;
	size_t length;
	int fd = tls_psk_memory_file("alice", hex_key, name, &err);
	assert_true(fd >= 0);
	assert_int_equal(file_load(AT_FDCWD, name, 1000, &bytes, &length, &err), 0);
	assert_string_equal(bytes, "alice:00112233445566778899aabbccddeeff\n");
	free(bytes);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_both_ways),
		cmocka_unit_test(test_sending_after_the_end),
		cmocka_unit_test(test_end_of_the_peer),
		cmocka_unit_test(test_bytes_that_were_changed),
		cmocka_unit_test(test_handshakes_that_fail),
		cmocka_unit_test(test_silent_client),
		cmocka_unit_test(test_files_of_keys),
		cmocka_unit_test(test_memory_file),
	};
	return cmocka_run_group_tests(tests, make, drop);
}
