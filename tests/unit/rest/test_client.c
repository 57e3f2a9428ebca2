/* The client against our server, and against servers that misbehave. */
#include "test_support.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

/* --- a server -----------------------------------------------------------------------------------
 */

static _Atomic(unsigned) nr_calls, nr_failures; /* of /flaky: how often it still fails */
static char last_key[128];

static int answer(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	const char *key = rest_header(request, "Idempotency-Key");
	nr_calls++;
	if (key && last_key[0])
		assert_string_equal(key, last_key); /* the same at each try */
	snprintf(last_key, sizeof last_key, "%s", key ? key : "");
	if (nr_failures) {
		nr_failures--;
		err_set(err, ERR_BUSY, "not now");
		return rest_problem(request, 503, err);
	}
	return rest_reply(request, 200,
		json_pack("{s:s, s:O?}", "actor", rest_actor(request)->id, "body",
			rest_body(request)),
		err);
}

static int refuse(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	(void)request;
	nr_calls++;
	return err_set(err, ERR_NO_SPACE, "the repository is full");
}

static int nothing(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	return rest_reply(request, 204, NULL, err);
}

static int octets(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	size_t length;
	const void *bytes = rest_octets(request, &length);
	return rest_reply_octets(request, "application/octet-stream", bytes, length, err);
}

/* Events 1 to 6; each connection carries three. */
struct counter {
	uint64_t at, end;
};

static int next_count(
	void *context, struct deadline until, const char **event, uint64_t *id, json_t **data)
{
	struct counter *counter = context;
	if (counter->at == counter->end)
		return 0;
	(void)until;
	*event = ++counter->at == 6 ? "end" : "count";
	*id = counter->at;
	*data = json_pack("{s:i}", "n", (int)counter->at);
	return 1;
}

static int events(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	const char *seen = rest_header(request, "Last-Event-ID");
	struct counter *counter = calloc(1, sizeof *counter);
	assert_non_null(counter);
	counter->at = seen ? strtoull(seen, NULL, 10) : 0;
	counter->end = min_u64(counter->at + 3, 6);
	return rest_reply_stream(request, next_count, free, counter, err);
}

static int next_nothing(
	void *context, struct deadline until, const char **event, uint64_t *id, json_t **data)
{
	struct cancel *never = context;
	(void)event;
	(void)id;
	(void)data;
	cancel_sleep(never, until, NULL);
	return 2;
}

static int silence(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	return rest_reply_stream(request, next_nothing, NULL, NULL, err);
}

static int authenticate(void *context, const char *hash, struct rest_actor *actor, struct err *err)
{
	char ours[REST_TOKEN_HASH_BYTES];
	(void)context;
	rest_token_hash("right", ours);
	if (strcmp(ours, hash) != 0)
		return err_set(err, ERR_DENIED, "unknown");
	snprintf(actor->id, sizeof actor->id, "right");
	actor->scope = REST_ADMIN;
	return 0;
}

static const struct rest_route routes[] = {
	{"GET", "/a", "a", REST_READ, 0, answer, 0},
	{"POST", "/a", "b", REST_READ, REST_CREATES, answer, 0},
	{"GET", "/full", "c", REST_READ, 0, refuse, 0},
	{"DELETE", "/a", "d", REST_READ, 0, nothing, 0},
	{"PUT", "/octets", "e", REST_READ, REST_OCTETS, octets, 0},
	{"GET", "/events", "f", REST_NONE, 0, events, 0},
	{"GET", "/silence", "g", REST_NONE, 0, silence, 0},
	{0},
};
static const struct rest_route *const tables[] = {routes, NULL};

static struct rest_server *server;
static char url[64], token_path[64];

static void write_token(const char *text)
{
	assert_int_equal(file_replace(AT_FDCWD, token_path, text, strlen(text), 0600, NULL), 0);
}

static int set_up(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	const struct rest_server_options options = {
		.address = "127.0.0.1", .tables = tables, .authenticate = authenticate};
	snprintf(token_path, sizeof token_path, "/tmp/rest-token-XXXXXX");
	int fd = mkstemp(token_path);
	assert_true(fd >= 0);
	close(fd);
	write_token("right\n");
	server = rest_server_start(&options, &err);
	assert_string_equal(err.text, "");
	snprintf(url, sizeof url, "http://127.0.0.1:%u", rest_server_port(server));
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rest_server_stop(server);
	unlink(token_path);
	return 0;
}

static struct rest_client *client_of(const char *where, struct cancel *cancel)
{
	struct err err = ERR_INIT;
	const struct rest_client_options options = {.url = where,
		.token_file = token_path,
		.connect_timeout_ms = 2000,
		.silence_timeout_ms = 2000,
		.retry_ms = 3000,
		.cancel = cancel};
	struct rest_client *client = rest_client_new(&options, &err);
	assert_string_equal(err.text, "");
	return client;
}

/* --- tests
 * ------------------------------------------------------------------------------------------ */

static void test_calls(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	json_t *reply, *body = json_pack("{s:i}", "x", 1);
	struct rest_client *client = client_of(url, NULL);
	assert_int_equal(rest_call(client, "GET", "/a", NULL, &reply, &err), 0);
	assert_string_equal(json_string_value(json_object_get(reply, "actor")), "right");
	json_decref(reply);
	last_key[0] = 0;
	nr_failures = 2;
	nr_calls = 0;
	assert_int_equal(rest_call(client, "POST", "/a", body, &reply, &err), 0);
	assert_int_equal(nr_calls, 3);
	assert_true(json_equal(json_object_get(reply, "body"), body));
	assert_int_equal(strlen(last_key), 32);
	json_decref(reply);
	json_decref(body);
	assert_int_equal(rest_call(client, "DELETE", "/a", NULL, &reply, &err), 0);
	assert_null(reply);
	nr_calls = 0;
	assert_int_equal(rest_call(client, "GET", "/full", NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_NO_SPACE);
	assert_string_equal(err.text, "the repository is full");
	assert_int_equal(nr_calls, 1);
	assert_int_equal(rest_call(client, "GET", "/none", NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	rest_client_free(client);
}

static void test_octets(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct rest_client *client = client_of(url, NULL);
	void *reply;
	size_t length;
	assert_int_equal(
		rest_call_octets(client, "PUT", "/octets", "a\0b", 3, &reply, &length, 3, &err), 0);
	assert_int_equal(length, 3);
	assert_memory_equal(reply, "a\0b", 3);
	free(reply);
	assert_int_equal(
		rest_call_octets(client, "PUT", "/octets", "a\0b", 3, &reply, &length, 2, &err),
		-1);
	assert_int_equal(err.code, ERR_PROTOCOL);
	assert_null(reply);
	rest_client_free(client);
}

static void test_tokens(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct rest_client *client = client_of(url, NULL);
	write_token("wrong");
	assert_int_equal(rest_call(client, "GET", "/a", NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_DENIED);
	assert_non_null(strstr(err.text, token_path));
	assert_null(strstr(err.text, "wrong"));
	write_token("two words");
	assert_int_equal(rest_call(client, "GET", "/a", NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	write_token("right\n"); /* read anew */
	assert_int_equal(rest_call(client, "GET", "/a", NULL, NULL, &err), 0);
	rest_client_free(client);
}

struct seen {
	int nr, stop_at;
	char last[16];
};

static int see(void *context, const char *name, const json_t *data)
{
	struct seen *seen = context;
	assert_int_equal(json_integer_value(json_object_get(data, "n")), ++seen->nr);
	snprintf(seen->last, sizeof seen->last, "%s", name);
	return seen->nr == seen->stop_at;
}

static void test_follow(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct rest_client *client = client_of(url, NULL);
	struct seen all = {.stop_at = 6}, some = {.stop_at = 2}, over = {0};
	/* In two connections, none twice. */
	assert_int_equal(rest_follow(client, "/events", see, &all, &err), 0);
	assert_int_equal(all.nr, 6);
	assert_string_equal(all.last, "end");
	assert_int_equal(rest_follow(client, "/events", see, &some, &err), 0);
	assert_int_equal(some.nr, 2);
	assert_int_equal(rest_follow(client, "/events", see, &over, &err), 0);
	assert_int_equal(over.nr, 6);
	assert_int_equal(rest_follow(client, "/none", see, &over, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	rest_client_free(client);
}

static void *cancel_later(void *cancel)
{
	cancel_sleep(NULL, deadline_after_ms(200), NULL);
	cancel_request(cancel);
	return NULL;
}

/* Says nothing, or what it was told to, to whoever connects. */
static int misbehaving(unsigned *port)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof in;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &length), 0);
	*port = ntohs(in.sin_port);
	return fd;
}

static void test_cancel_is_heard(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	unsigned port;
	int silent = misbehaving(&port);
	char where[64];
	snprintf(where, sizeof where, "http://127.0.0.1:%u", port);
	for (int round = 0; round < 2; round++) {
		struct cancel *cancel = cancel_new(NULL);
		struct rest_client *client = client_of(round ? url : where, cancel);
		struct seen seen = {0};
		pthread_t thread;
		int64_t began = clock_now_ns();
		assert_int_equal(thread_start(&thread, "cancel", cancel_later, cancel, NULL), 0);
		int rc = round ? rest_follow(client, "/silence", see, &seen, &err)
			       : rest_call(client, "GET", "/a", NULL, NULL, &err);
		assert_int_equal(rc, -1);
		assert_int_equal(err.code, ERR_CANCELLED);
		assert_true(clock_now_ns() - began < 1200000000);
		pthread_join(thread, NULL);
		rest_client_free(client);
		cancel_free(cancel);
	}
	close(silent);
}

static void test_silence_ends(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	unsigned port;
	int silent = misbehaving(&port);
	char where[64];
	snprintf(where, sizeof where, "http://127.0.0.1:%u", port);
	const struct rest_client_options options = {
		.url = where, .silence_timeout_ms = 300, .retry_ms = 1};
	struct rest_client *client = rest_client_new(&options, &err);
	assert_int_equal(rest_call(client, "GET", "/a", NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_TIMEOUT);
	assert_non_null(strstr(err.text, "heard nothing for 300 ms"));
	rest_client_free(client);
	close(silent);
	/* Now nobody listens. */
	client = rest_client_new(&options, &err);
	assert_int_equal(rest_call(client, "GET", "/a", NULL, NULL, &err), -1);
	assert_int_equal(err.code, ERR_DISCONNECTED);
	rest_client_free(client);
}

struct saying {
	int fd;
	const char *text;
};

static void *say_once(void *context)
{
	const struct saying *saying = context;
	char buffer[4096];
	int fd = accept(saying->fd, NULL, NULL);
	assert_true(recv(fd, buffer, sizeof buffer, 0) > 0);
	assert_true(send(fd, saying->text, strlen(saying->text), MSG_NOSIGNAL) > 0);
	shutdown(fd, SHUT_RDWR);
	close(fd);
	return NULL;
}

static void test_strange_answers(void **state)
{
	(void)state;
	const struct {
		const char *text;
		enum err_code code;
	} rows[] = {
		{"HTTP/1.1 500 X\r\nContent-Length: 6\r\n\r\n<html>", ERR_REFUSED},
		{"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
			ERR_REFUSED},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{\"a\":", ERR_PROTOCOL},
		{"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", ERR_DISCONNECTED},
		{"SSH-2.0-OpenSSH_9.2\r\n", ERR_DISCONNECTED},
		{"HTTP/1.1 409 X\r\nContent-Length: 16\r\n\r\n{\"code\":\"exists\"", ERR_BUSY},
		{"HTTP/1.1 409 X\r\nContent-Length: "
		 "30\r\n\r\n{\"code\":\"exists\",\"detail\":\"x\"}",
			ERR_EXISTS},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		struct err err = ERR_INIT;
		unsigned port;
		char where[64];
		pthread_t thread;
		struct saying saying = {misbehaving(&port), rows[i].text};
		json_t *reply;
		snprintf(where, sizeof where, "http://127.0.0.1:%u", port);
		const struct rest_client_options options = {.url = where, .retry_ms = 1};
		struct rest_client *client = rest_client_new(&options, &err);
		assert_int_equal(thread_start(&thread, "say", say_once, &saying, NULL), 0);
		assert_int_equal(rest_call(client, "GET", "/a", NULL, &reply, &err), -1);
		assert_null(reply);
		assert_int_equal(err.code, rows[i].code);
		pthread_join(thread, NULL);
		rest_client_free(client);
		close(saying.fd);
	}
}

static void test_addresses(void **state)
{
	(void)state;
	const char *const bad[] = {"", "hub", "ftp://hub", "http://hub.example", "https://u:p@hub",
		"https://hub/path", "https://hub?x", "http://10.0.0.1:80", "https://",
		"http://127.0.0.1.evil.example", "http://127.evil.example"};
	const char *const good[] = {"http://localhost:1", "http://127.1.2.3",
		"https://hub.example/", "http://[::1]:8080", "https://10.0.0.1:8443"};
	struct err err = ERR_INIT;
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		const struct rest_client_options options = {.url = bad[i]};
		assert_null(rest_client_new(&options, &err));
		assert_int_equal(err.code, ERR_USAGE);
		assert_null(strstr(err.text, "u:p"));
	}
	for (size_t i = 0; i < ARRAY_LENGTH(good); i++) {
		const struct rest_client_options options = {.url = good[i]};
		struct rest_client *client = rest_client_new(&options, NULL);
		assert_non_null(client);
		rest_client_free(client);
	}
	char path[16] = "/vms/";
	assert_int_equal(rest_path_append(path, sizeof path, "a/b \xc3", &err), -1);
	char longer[64] = "/vms/";
	assert_int_equal(rest_path_append(longer, sizeof longer, "a/b \xc3.-_~%", &err), 0);
	assert_string_equal(longer, "/vms/a%2Fb%20%C3.-_~%25");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_calls),
		cmocka_unit_test(test_octets),
		cmocka_unit_test(test_tokens),
		cmocka_unit_test(test_follow),
		cmocka_unit_test(test_cancel_is_heard),
		cmocka_unit_test(test_silence_ends),
		cmocka_unit_test(test_strange_answers),
		cmocka_unit_test(test_addresses),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
