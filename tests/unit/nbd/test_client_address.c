/* URIs of the NBD client, and names to addresses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client_internal.h"

#include <netinet/in.h>

static void good(
	const char *text, const char *host, const char *port, const char *path, const char *name)
{
	struct client_uri uri;
	struct err err = ERR_INIT;
	assert_int_equal(client_uri_parse(&uri, text, NULL, &err), 0);
	if (host) {
		assert_string_equal(uri.host, host);
		assert_string_equal(uri.port, port);
		assert_null(uri.path);
	} else {
		assert_string_equal(uri.path, path);
		assert_null(uri.host);
	}
	assert_string_equal(uri.name, name);
	assert_string_equal(uri.label, text);
	client_uri_free(&uri);
}

static void bad(const char *text, enum err_code code, const char *why)
{
	struct client_uri uri;
	struct err err = ERR_INIT;
	assert_int_equal(client_uri_parse(&uri, text, NULL, &err), -1);
	assert_int_equal(err.code, code);
	assert_non_null(strstr(err.text, why));
}

static void test_good_uris(void **state)
{
	(void)state;
	good("nbd://localhost", "localhost", "10809", NULL, "");
	good("nbd://localhost/", "localhost", "10809", NULL, "");
	good("nbd://10.0.0.1:4711/disk", "10.0.0.1", "4711", NULL, "disk");
	good("nbd://[::1]:1/a/b", "::1", "1", NULL, "a/b");
	good("nbd://[::1]/x", "::1", "10809", NULL, "x");
	good("nbd://h/a%20b%2Fc", "h", "10809", NULL, "a b/c");
	good("nbd+unix:///x?socket=/run/s.sock", NULL, NULL, "/run/s.sock", "x");
	good("nbd+unix://?socket=s%20t", NULL, NULL, "s t", "");
}

static void test_bad_uris(void **state)
{
	char text[6000];
	(void)state;
	bad("http://h/x", ERR_USAGE, "not an NBD URI");
	bad("nbd:h", ERR_USAGE, "not an NBD URI");
	bad("nbds://h/x?tls-psk-file=/etc/shadow", ERR_USAGE, "options");
	bad("nbds+unix:///x?socket=s&tls-certificates=/etc", ERR_USAGE, "exactly");
	bad("nbdss://h/x", ERR_USAGE, "not an NBD URI");
	bad("nbd:///x", ERR_USAGE, "host");
	bad("nbd://[::1/x", ERR_USAGE, "host");
	bad("nbd://[::1]x/x", ERR_USAGE, "host");
	bad("nbd://h:0/x", ERR_USAGE, "port");
	bad("nbd://h:65536/x", ERR_USAGE, "port");
	bad("nbd://h:+1/x", ERR_USAGE, "port");
	bad("nbd://h:123456789/x", ERR_USAGE, "port");
	bad("nbd://h/%0", ERR_USAGE, "name");
	bad("nbd://h/%00", ERR_USAGE, "name");
	bad("nbd://h/%g0", ERR_USAGE, "name");
	bad("nbd://h/x?tls=1", ERR_USAGE, "parameters");
	bad("nbd://h/x#y", ERR_USAGE, "fragment");
	bad("nbd://user:word@h/x", ERR_USAGE, "passwords");
	bad("nbd+unix:///x", ERR_USAGE, "socket=PATH");
	bad("nbd+unix:///x?socket=", ERR_USAGE, "path");
	bad("nbd+unix:///x?socket=a&socket=b", ERR_USAGE, "exactly");
	bad("nbd+unix://h/x?socket=a", ERR_USAGE, "no host");
	memset(text, 'a', sizeof text);
	memcpy(text, "nbd://h/", 8);
	text[8 + 4097] = '\0';
	bad(text, ERR_USAGE, "too long");
	memcpy(text, "nbd+unix:///?socket=", 20);
	text[20 + 108] = '\0';
	bad(text, ERR_USAGE, "107");
}

static void test_password_is_not_repeated(void **state)
{
	struct client_uri uri;
	struct err err = ERR_INIT;
	(void)state;
	static const char *const texts[] = {"nbd://u:hush@h/x", "nbd://u:hush@h/x#y",
		"nbds://u:hush@h/x", "nbd://u:hush@h/%zz", "nbd://h/x?password=hush",
		"nbd+unix://u:hush@/x?socket=/s", "http://u:hush@h/x"};
	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
		assert_int_equal(client_uri_parse(&uri, texts[i], NULL, &err), -1);
		assert_null(strstr(err.text, "hush"));
	}
}

static void test_addresses(void **state)
{
	struct client_uri uri;
	struct client_address found[CLIENT_ADDRESSES_MAX];
	struct err err = ERR_INIT;
	unsigned nr = 0;
	(void)state;
	assert_int_equal(client_uri_parse(&uri, "nbd://127.0.0.1:4711/x", NULL, &err), 0);
	assert_int_equal(
		client_address_find(&uri, found, &nr, deadline_after_ms(10000), NULL, &err), 0);
	assert_int_equal(nr, 1);
	const struct sockaddr_in *in = (const struct sockaddr_in *)&found[0].address;
	assert_int_equal(in->sin_family, AF_INET);
	assert_int_equal(ntohs(in->sin_port), 4711);
	client_uri_free(&uri);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good_uris),
		cmocka_unit_test(test_bad_uris),
		cmocka_unit_test(test_password_is_not_repeated),
		cmocka_unit_test(test_addresses),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
