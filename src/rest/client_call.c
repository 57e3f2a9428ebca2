/*
 * Calls.  Each runs on a connection of its own, driven here with the cancel's descriptor in
 * the poll set, so that a request to stop is heard at once whatever the network does.
 */
#include "client_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <strings.h>

#define ANSWER_MOST (64u << 20)
#define PROBLEM_MOST (64u << 10)
#define TOKEN_FILE_MOST 4096

/* --- headers -----------------------------------------------------------------------------------
 */

static int add_header(struct curl_slist **headers, const char *name, const char *value)
{
	char text[1024];
	if (!value)
		return 0;
	snprintf(text, sizeof text, "%s: %s", name, value);
	struct curl_slist *longer = curl_slist_append(*headers, text);
	explicit_bzero(text, sizeof text);
	if (!longer)
		return -1;
	*headers = longer;
	return 0;
}

static bool is_token(const char *text)
{
	size_t length = strlen(text);
	for (const char *at = text; *at; at++)
		if (*at <= 0x20 || *at > 0x7e)
			return false;
	return length >= 1 && length <= 256;
}

/* Read at each call, so that a new token needs no restart. */
static int add_token(struct rest_client *client, struct curl_slist **headers, struct err *err)
{
	char *text = NULL, value[512];
	size_t length;
	if (!client->token_file)
		return 0;
	if (file_load(AT_FDCWD, client->token_file, TOKEN_FILE_MOST, &text, &length, err))
		return err_context(err, "reading the token");
	while (length && strchr(" \t\r\n", text[length - 1]))
		text[--length] = 0;
	int rc = is_token(text) && strlen(text) == length
			 ? 0
			 : err_set(err, ERR_USAGE, "the token file %s holds no token",
				   client->token_file);
	if (!rc) {
		snprintf(value, sizeof value, "Bearer %s", text);
		if (add_header(headers, "Authorization", value))
			rc = err_set(err, ERR_NO_MEMORY, "calling the hub: no memory");
		explicit_bzero(value, sizeof value);
	}
	explicit_bzero(text, length);
	free(text);
	return rc;
}

static int make_headers(struct rest_client *client, const struct rest_exchange *exchange,
	struct curl_slist **headers, struct err *err)
{
	if (add_token(client, headers, err))
		return -1;
	if (add_header(headers, "Accept", exchange->accept) ||
		add_header(headers, "Content-Type", exchange->body ? exchange->type : NULL) ||
		add_header(headers, "Idempotency-Key", exchange->key) ||
		add_header(headers, "Last-Event-ID", exchange->last_event) ||
		/* Bodies are small, and waiting for "100 Continue" costs a round trip. */
		add_header(headers, "Expect", ""))
		return err_set(err, ERR_NO_MEMORY, "calling the hub: no memory");
	return 0;
}

/* --- one exchange ------------------------------------------------------------------------------
 */

struct running {
	struct rest_client *client;
	struct rest_exchange *exchange;
	CURL *easy;
	struct err *err;
	struct deadline silence;
	curl_off_t uploaded;
	bool failed; /* err is set */
};

static void heard(struct running *running)
{
	running->silence = deadline_after_ms(running->client->options.silence_timeout_ms);
}

static int keep(struct rest_exchange *exchange, const char *bytes, size_t length, struct err *err)
{
	size_t most = exchange->status < 300 ? exchange->most : PROBLEM_MOST;
	if (length > most - exchange->length)
		return err_set(err, ERR_PROTOCOL, "the answer is larger than %zu bytes", most);
	if (exchange->length + length + 1 > exchange->room) {
		size_t room = (exchange->length + length + 1) * 2;
		char *grown = realloc(exchange->bytes, room);
		if (!grown)
			return err_set(err, ERR_NO_MEMORY, "taking the answer in: no memory");
		exchange->bytes = grown;
		exchange->room = room;
	}
	memcpy(exchange->bytes + exchange->length, bytes, length);
	exchange->length += length;
	exchange->bytes[exchange->length] = 0;
	return 0;
}

static size_t on_body(char *bytes, size_t size, size_t nr, void *context)
{
	struct running *running = context;
	struct rest_exchange *exchange = running->exchange;
	size_t length = size * nr;
	heard(running);
	int rc = exchange->take && exchange->status == 200
			 ? exchange->take(exchange->context, bytes, length, running->err)
			 : keep(exchange, bytes, length, running->err);
	running->failed = rc < 0;
	exchange->ended = rc > 0;
	return rc ? CURL_WRITEFUNC_ERROR : length;
}

static size_t on_header(char *bytes, size_t size, size_t nr, void *context)
{
	struct running *running = context;
	size_t length = size * nr;
	long status = 0;
	heard(running);
	curl_easy_getinfo(running->easy, CURLINFO_RESPONSE_CODE, &status);
	running->exchange->status = (unsigned)status;
	http_retry_after(bytes, length, &running->exchange->retry_after_s);
	return length;
}

static int on_progress(
	void *context, curl_off_t all, curl_off_t now, curl_off_t all_up, curl_off_t now_up)
{
	struct running *running = context;
	(void)all;
	(void)now;
	(void)all_up;
	if (now_up != running->uploaded)
		heard(running);
	running->uploaded = now_up;
	return 0;
}

/* Connected, and nothing was sent yet: the server shows its certificate. */
static int on_connected(void *context, char *peer, char *local, int peer_port, int local_port)
{
	struct running *running = context;
	struct http_certificate shown;
	(void)peer;
	(void)local;
	(void)peer_port;
	(void)local_port;
	heard(running);
	running->failed =
		http_look_at_peer(running->easy, &running->client->trust, &shown, running->err) < 0;
	return running->failed ? CURL_PREREQFUNC_ABORT : CURL_PREREQFUNC_OK;
}

static void set_method(const struct rest_exchange *exchange, CURL *easy)
{
	if (!strcmp(exchange->method, "HEAD"))
		curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
	if (exchange->body || !strcmp(exchange->method, "POST")) {
		curl_easy_setopt(
			easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)exchange->body_length);
		curl_easy_setopt(easy, CURLOPT_POSTFIELDS, exchange->body ? exchange->body : "");
	}
	curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, exchange->method);
}

static void set_call(struct running *running, const char *url, struct curl_slist *headers)
{
	struct rest_client *client = running->client;
	CURL *easy = running->easy;
	http_prepare(
		easy, url, &client->trust, client->options.connect_timeout_ms, client->loopback);
	set_method(running->exchange, easy);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, running);
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, running);
	curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, on_connected);
	curl_easy_setopt(easy, CURLOPT_PREREQDATA, running);
	curl_easy_setopt(easy, CURLOPT_NOPROGRESS, 0L);
	curl_easy_setopt(easy, CURLOPT_XFERINFOFUNCTION, on_progress);
	curl_easy_setopt(easy, CURLOPT_XFERINFODATA, running);
}

static int tell(struct running *running, CURLcode code, const char *detail)
{
	const struct rest_client *client = running->client;
	struct err *err = running->err;
	if (running->exchange->ended)
		return 0;
	if (!running->failed)
		http_tell(code, detail, &client->trust, err);
	err_context(err, "calling %s", client->base);
	if (running->failed || code != CURLE_PEER_FAILED_VERIFICATION)
		return -1;
	if (client->ca_file)
		return err_hint(err,
			"%s must be the CA of this hub, and its certificate be for this name",
			client->ca_file);
	return err_hint(
		err, "give the hub's CA, the ca.crt that \"sendense hub init\" made, by --ca-file");
}

/* Drives it to its end: its code, or -1 (err). */
static int drive(struct running *running, CURLM *multi, CURLcode *code)
{
	const struct rest_client *client = running->client;
	struct err *err = running->err;
	heard(running);
	if (!http_drive(multi, client->options.cancel, &running->silence, code, err))
		return 0;
	if (err->code == ERR_TIMEOUT)
		err_set(err, ERR_TIMEOUT, "heard nothing for %u ms",
			client->options.silence_timeout_ms);
	return err_context(err, "calling %s", client->base);
}

int rest_client_exchange(
	struct rest_client *client, struct rest_exchange *exchange, struct err *err)
{
	struct curl_slist *headers = NULL;
	struct err ours = ERR_INIT;
	struct running running = {.client = client, .exchange = exchange, .err = &ours};
	char detail[CURL_ERROR_SIZE] = "", *url = NULL;
	CURLcode code = CURLE_OK;
	struct rest_client_line *line = rest_client_line_take(client, &ours);
	int rc = -1;
	if (!line)
		goto out;
	running.easy = line->easy;
	if (make_headers(client, exchange, &headers, &ours))
		goto give;
	if (asprintf(&url, "%s%s", client->base, exchange->path) < 0) {
		url = NULL;
		err_set(&ours, ERR_NO_MEMORY, "calling the hub: no memory");
		goto give;
	}
	set_call(&running, url, headers);
	curl_easy_setopt(line->easy, CURLOPT_ERRORBUFFER, detail);
	curl_multi_add_handle(line->multi, line->easy);
	rc = drive(&running, line->multi, &code);
	curl_multi_remove_handle(line->multi, line->easy);
	if (!rc && code)
		rc = tell(&running, code, detail);
	/* The easy handle must not point to what is gone. */
	curl_easy_reset(line->easy);
give:
	rest_client_line_give(client, line, !rc && !code);
out:
	curl_slist_free_all(headers);
	free(url);
	if (rc)
		err_copy(err, &ours);
	return rc;
}

void rest_exchange_clear(struct rest_exchange *exchange)
{
	free(exchange->bytes);
	exchange->bytes = NULL;
	exchange->length = exchange->room = 0;
	exchange->status = exchange->retry_after_s = 0;
}

/* --- what an answer means -------------------------------------------------------------------- */

/* Where the answer does not name the error. */
static enum err_code code_of(unsigned status)
{
	switch (status) {
	case 400:
	case 422:
		return ERR_USAGE;
	case 401:
	case 403:
		return ERR_DENIED;
	case 404:
		return ERR_NOT_FOUND;
	case 409:
	case 429:
	case 503:
		return ERR_BUSY;
	case 501:
		return ERR_UNSUPPORTED;
	default:
		return ERR_REFUSED;
	}
}

int rest_client_problem(
	struct rest_client *client, const struct rest_exchange *exchange, struct err *err)
{
	json_t *problem =
		exchange->length ? rest_json_parse(exchange->bytes, exchange->length, NULL) : NULL;
	const char *detail = json_string_value(json_object_get(problem, "detail"));
	const char *name = json_string_value(json_object_get(problem, "code"));
	if (detail)
		err_set(err, err_code_parse(name, code_of(exchange->status)), "%s", detail);
	else
		err_set(err, code_of(exchange->status),
			"%s %s: the answer was %u without a reason (is %s a hub of Sendense?)",
			exchange->method, exchange->path, exchange->status, client->base);
	if (exchange->retry_after_s && err)
		err->sys_errno = EAGAIN;
	if (exchange->status == 401 && err)
		err->sys_errno = EKEYREJECTED;
	if (exchange->status == 401)
		err_hint(err,
			client->token_file ? "the token is in %s"
					   : "--token-file, or SENDENSE_TOKEN_FILE, names its file",
			client->token_file);
	json_decref(problem);
	return -1;
}

bool rest_client_is_passing(const struct rest_exchange *exchange, const struct err *err)
{
	switch (exchange->status) {
	case 0:
		return err->code == ERR_DISCONNECTED || err->code == ERR_TIMEOUT;
	case 429:
	case 502:
	case 503:
	case 504:
		return true;
	default: /* an answer that broke off */
		return exchange->status < 300 &&
		       (err->code == ERR_DISCONNECTED || err->code == ERR_TIMEOUT);
	}
}

int rest_client_back_off(struct rest_client *client, const struct rest_exchange *exchange,
	unsigned tries, struct deadline until, struct err *err)
{
	int64_t wait_ms = (int64_t)200 << (tries < 5 ? tries : 5);
	struct err cancelled = ERR_INIT;
	if (exchange->retry_after_s)
		wait_ms = (int64_t)exchange->retry_after_s * 1000;
	struct deadline next = deadline_after_ms(wait_ms);
	if (next.at_ns > until.at_ns)
		return -1;
	log_info("%s (trying again in %d ms)", err->text, (int)wait_ms);
	if (cancel_sleep(client->options.cancel, next, &cancelled))
		return err_copy(err, &cancelled);
	return 0;
}

/* --- calls
 * ------------------------------------------------------------------------------------------ */

/* 0: the answer is a success. */
static int exchange_until(
	struct rest_client *client, struct rest_exchange *exchange, struct err *err)
{
	struct deadline until = deadline_after_ms(client->options.retry_ms);
	for (unsigned tries = 0;; tries++) {
		struct err why = ERR_INIT;
		rest_exchange_clear(exchange);
		int rc = rest_client_exchange(client, exchange, &why);
		if (!rc && exchange->status < 300)
			return 0;
		/* The first try did it, and its answer was lost. */
		if (!rc && tries && exchange->status == 404 && !strcmp(exchange->method, "DELETE"))
			return 0;
		if (!rc)
			rest_client_problem(client, exchange, &why);
		if (!rest_client_is_passing(exchange, &why) ||
			rest_client_back_off(client, exchange, tries, until, &why))
			return err_copy(err, &why);
	}
}

static int make_key(char key[2 * 16 + 1], struct err *err)
{
	uint8_t bytes[16];
	if (file_random(bytes, sizeof bytes, err))
		return -1;
	digest_hex(bytes, sizeof bytes, key);
	return 0;
}

static int call(struct rest_client *client, struct rest_exchange *exchange, struct err *err)
{
	char key[2 * 16 + 1];
	if (!strcmp(exchange->method, "POST")) {
		if (make_key(key, err))
			return -1;
		exchange->key = key;
	}
	int rc = exchange_until(client, exchange, err);
	exchange->key = NULL;
	return rc;
}

int rest_call(struct rest_client *client, const char *method, const char *path, const json_t *body,
	json_t **reply, struct err *err)
{
	struct rest_exchange exchange = {.method = method,
		.path = path,
		.type = "application/json",
		.accept = "application/json",
		.most = ANSWER_MOST};
	AUTO_FREE char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
	if (reply)
		*reply = NULL;
	if (body && !text)
		return err_set(err, ERR_NO_MEMORY, "calling the hub: no memory");
	exchange.body = text;
	exchange.body_length = text ? strlen(text) : 0;
	int rc = call(client, &exchange, err);
	if (!rc && reply && exchange.length && exchange.status < 300) {
		*reply = rest_json_parse(exchange.bytes, exchange.length, err);
		if (!*reply) {
			err->code = ERR_PROTOCOL;
			rc = err_context(
				err, "the answer of %s to %s %s", client->base, method, path);
		}
	}
	rest_exchange_clear(&exchange);
	return rc;
}

int rest_call_octets(struct rest_client *client, const char *method, const char *path,
	const void *body, size_t body_length, void **reply, size_t *reply_length, size_t reply_most,
	struct err *err)
{
	struct rest_exchange exchange = {.method = method,
		.path = path,
		.body = body,
		.body_length = body_length,
		.type = "application/octet-stream",
		.accept = "*/*",
		.most = reply_most};
	if (reply) {
		*reply = NULL;
		*reply_length = 0;
	}
	int rc = call(client, &exchange, err);
	if (!rc && reply) {
		*reply = exchange.bytes;
		*reply_length = exchange.length;
		exchange.bytes = NULL;
	}
	rest_exchange_clear(&exchange);
	return rc;
}
