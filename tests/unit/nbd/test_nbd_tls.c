/* A server whose keys come from a callback, exports of one identity alone, what is told of
 * them, and the client with a key that is in no file. */
#include "served.h"

#include <stdio.h>

#define SECRET "0123456789abcdef0123456789abcdef"

static const char *const hex_keys[] = {
	"00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"};
static const char *const names[] = {"alice", "bob"};

struct fixture {
	struct block *block;
	struct tls_server *tls;
	struct served served;
	char uri[128];
};

static int find(void *user, const char *identity, uint8_t key[TLS_PSK_BYTES_MAX], size_t *length)
{
	(void)user;
	*length = 16;
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		if (strcmp(identity, names[i]) == 0)
			return digest_unhex(hex_keys[i], key, *length) ? 0 : -1;
	return -1;
}

static int make(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct tls_server_options tls = {.psk_find = find};
	assert_non_null(f);
	assert_non_null(f->block = block_null_open(MIB, NULL));
	assert_non_null(f->tls = tls_server_new(&tls, NULL));
	struct nbd_server_options options = {
		.max_connections = 8, .tls = NBD_TLS_REQUIRED, .tls_server = f->tls};
	served_start(&f->served, &options);
	snprintf(f->uri, sizeof f->uri, "nbds://127.0.0.1:%u/" SECRET, f->served.listener.port);
	struct nbd_export export = {
		.name = SECRET, .block = f->block, .hidden = true, .tls_identity = "psk:alice"};
	served_add(&f->served, &export);
	*state = f;
	return 0;
}

static int drop(void **state)
{
	struct fixture *f = *state;
	served_stop(&f->served);
	tls_server_free(f->tls);
	assert_int_equal(block_close(f->block, NULL), 0);
	free(f);
	return 0;
}

static struct block *open_as(struct fixture *f, const char *who, const char *hex, struct err *err)
{
	struct nbd_client_options options = {
		.label = "disk sda of web", .tls_username = who, .tls_psk_hex = hex};
	return nbd_client_open(f->uri, &options, NULL, err);
}

static void test_one_identity_alone(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	uint8_t bytes[4096];
	struct block *block = open_as(f, "alice", hex_keys[0], &err);
	if (!block)
		fail_msg("%s", err.text);
	assert_string_equal(block_label(block), "disk sda of web");
	assert_int_equal(block_read(block, bytes, sizeof bytes, 0, &err), 0);
	assert_int_equal(block_close(block, &err), 0);
	/* Bob is known, but for him there is no such export. */
	assert_null(open_as(f, "bob", hex_keys[1], &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_null(strstr(err.text, SECRET));
	assert_null(open_as(f, "alice", hex_keys[1], &err));
	assert_int_equal(err.code, ERR_DENIED);
	assert_null(strstr(err.text, hex_keys[1]));
	assert_null(open_as(f, "carol", hex_keys[0], &err));
	assert_int_equal(err.code, ERR_DENIED);
}

static void test_what_is_told_of_it(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	struct nbd_export_state before, during, after;
	struct nbd_server_state total;
	uint8_t bytes[4096] = {0};
	assert_int_equal(nbd_server_export_state(f->served.server, "other", &before, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(nbd_server_export_state(f->served.server, SECRET, &before, &err), 0);
	assert_int_equal(before.nr_connections, 0);
	struct block *block = open_as(f, "alice", hex_keys[0], &err);
	assert_non_null(block);
	assert_int_equal(block_read(block, bytes, sizeof bytes, 0, &err), 0);
	assert_int_equal(block_write(block, bytes, sizeof bytes, 0, 0, &err), 0);
	assert_int_equal(block_write(block, bytes, sizeof bytes, 8192, 0, &err), 0);
	assert_int_equal(nbd_server_export_state(f->served.server, SECRET, &during, &err), 0);
	nbd_server_state(f->served.server, &total);
	assert_int_equal(during.nr_connections, 1);
	assert_int_equal(total.nr_active, 1);
	assert_int_equal(total.max_connections, 8);
	assert_int_equal(during.nr_connected, before.nr_connected + 1);
	assert_int_equal(during.read_bytes - before.read_bytes, 4096);
	/* An answer is there before it is counted. */
	assert_true(during.written_bytes - before.written_bytes >= 4096);
	assert_true(during.active_ns > before.active_ns);
	assert_int_equal(block_close(block, &err), 0);
	assert_int_equal(nbd_server_remove_export(f->served.server, "other", &err), -1);
	do
		assert_int_equal(
			nbd_server_export_state(f->served.server, SECRET, &after, &err), 0);
	while (after.nr_connections > 0);
	assert_int_equal(after.written_bytes - before.written_bytes, 8192);
	assert_int_equal(after.nr_requests - before.nr_requests, 4); /* and the goodbye */
	assert_true(after.active_ns >= during.active_ns);
}

static void test_options(void **state)
{
	struct fixture *f = *state;
	static const struct nbd_client_options bad[] = {{.read_only = true}, {.tls_psk_hex = "00"},
		{.tls_psk_hex = "00", .tls_psk_file = "x", .tls_username = "a"},
		{.tls_certificates = "x", .tls_psk_file = "x"}};
	struct nbd_server_options without = {.tls = NBD_TLS_ALLOWED};
	struct nbd_export bound = {.name = "a", .block = f->block, .tls_identity = "psk:a"};
	struct nbd_client_options missing = {.tls_certificates = "/nonexistent"};
	struct err err = ERR_INIT;
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		assert_null(nbd_client_open(f->uri, &bad[i], NULL, &err));
		assert_int_equal(err.code, ERR_USAGE);
	}
	assert_null(nbd_client_open(f->uri, &missing, NULL, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_null(nbd_server_new(&without, &err));
	assert_int_equal(err.code, ERR_USAGE);
	struct nbd_server *plain = nbd_server_new(NULL, &err);
	assert_int_equal(nbd_server_add_export(plain, &bound, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_true(nbd_server_free(plain));
}

static void test_probe(void **state)
{
	struct fixture *f = *state;
	struct err err = ERR_INIT;
	char plain[128];
	struct deadline until = deadline_after_ms(TEST_TIMEOUT_MS);
	if (nbd_probe(f->uri, until, &err) < 0)
		fail_msg("%s", err.text);
	snprintf(plain, sizeof plain, "nbd://127.0.0.1:%u/x", f->served.listener.port);
	assert_int_equal(nbd_probe(plain, until, &err), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_identity_alone),
		cmocka_unit_test(test_what_is_told_of_it),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_probe),
	};
	return cmocka_run_group_tests(tests, make, drop);
}
