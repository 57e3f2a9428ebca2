/* Errors and headers of HTTP calls; a call that nobody answers. */
#include "http.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

static void test_errors(void **state)
{
	(void)state;
	const struct http_trust trust = {.ca_file = "ca.pem"};
	static const struct {
		CURLcode code;
		const char *detail;
		enum err_code ours;
		const char *text;
	} cases[] = {
		{CURLE_PEER_FAILED_VERIFICATION, "no. CAfile: x CRLfile: none", ERR_DENIED,
			"its certificate is not trusted: no"},
		{CURLE_SSL_CACERT_BADFILE, "", ERR_FORMAT, "ca.pem is no PEM certificate"},
		{CURLE_OPERATION_TIMEDOUT, "late", ERR_TIMEOUT, "late"},
		{CURLE_OUT_OF_MEMORY, "", ERR_NO_MEMORY, "no memory"},
		{CURLE_SSL_CONNECT_ERROR, "x", ERR_DISCONNECTED, "TLS: x (does it speak TLS?)"},
		{CURLE_COULDNT_CONNECT, "refused", ERR_DISCONNECTED, "refused"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		assert_int_equal(http_tell(cases[i].code, cases[i].detail, &trust, &err), -1);
		assert_int_equal(err.code, cases[i].ours);
		assert_string_equal(err.text, cases[i].text);
	}
}

static void test_retry_after(void **state)
{
	(void)state;
	unsigned seconds = 1;
	assert_false(http_retry_after("Content-Length: 5\r\n", 19, &seconds));
	assert_false(http_retry_after("Retry", 5, &seconds));
	assert_int_equal(seconds, 1);
	assert_true(http_retry_after("retry-after: 7\r\n", 16, &seconds));
	assert_int_equal(seconds, 7);
	assert_true(http_retry_after("Retry-After: 99999999999\r\n", 26, &seconds));
	assert_int_equal(seconds, 3600);
	assert_true(http_retry_after("Retry-After: soon\r\n", 19, &seconds));
	assert_int_equal(seconds, 0);
}

/* A socket that takes connections and says nothing. */
static int listen_mutely(char url[64])
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof address;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, length), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
	snprintf(url, 64, "http://127.0.0.1:%u/", (unsigned)ntohs(address.sin_port));
	return fd;
}

static struct err drive_mutely(const struct cancel *cancel, int64_t timeout_ms)
{
	char url[64];
	struct err err = ERR_INIT;
	CURLcode code;
	int fd = listen_mutely(url);
	http_start();
	CURL *easy = curl_easy_init();
	CURLM *multi = curl_multi_init();
	const struct http_trust trust = {.ca_file = NULL};
	const struct deadline until = deadline_after_ms(timeout_ms);
	http_prepare(easy, url, &trust, 10000, true);
	curl_multi_add_handle(multi, easy);
	assert_int_equal(http_drive(multi, cancel, &until, &code, &err), -1);
	curl_multi_remove_handle(multi, easy);
	curl_easy_cleanup(easy);
	curl_multi_cleanup(multi);
	close(fd);
	return err;
}

static void test_silence_ends_by_the_deadline_or_the_cancel(void **state)
{
	(void)state;
	struct err err = drive_mutely(NULL, 50);
	assert_int_equal(err.code, ERR_TIMEOUT);
	struct cancel *cancel = cancel_new(&err);
	assert_non_null(cancel);
	cancel_request(cancel);
	err = drive_mutely(cancel, 60000);
	assert_int_equal(err.code, ERR_CANCELLED);
	cancel_free(cancel);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_errors),
		cmocka_unit_test(test_retry_after),
		cmocka_unit_test(test_silence_ends_by_the_deadline_or_the_cancel),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
