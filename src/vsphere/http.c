/* One HTTPS connection, driven with the cancel's descriptor in its poll set; see http.h. */
#include "http.h"

#include "transport.h"

#include <curl/curl.h>
#include <gnutls/crypto.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <strings.h>

#define POLL_MS 1000
#define PEEK_MS 5000
#define COOKIE_BYTES 512
#define COOKIE "vmware_soap_session="

struct http {
	const struct vsphere_options *options;
	CURLM *multi; /* keeps the connection */
	CURL *easy;
	char *base; /* "https://vcenter.example:443" */
	const char *where; /* in it */
	uint8_t pinned[DIGEST_ROOT_BYTES];
	bool is_pinned, peeking;
	char cookie[COOKIE_BYTES]; /* "vmware_soap_session=..." */
	char sha1[HTTP_SHA1_BYTES], sha256[HTTP_SHA256_BYTES];
};

struct running {
	struct http *http;
	struct http_call *call;
	size_t length;
	bool failed; /* err is set */
	bool peeked;
	struct err *err;
};

static pthread_once_t library_once = PTHREAD_ONCE_INIT;

static void start_library(void)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* --- the server's certificate ------------------------------------------------------------------
 */

static void colons(const uint8_t *bytes, size_t length, char *out)
{
	for (size_t i = 0; i < length; i++)
		out += sprintf(out, "%s%02X", i ? ":" : "", bytes[i]);
}

static int look_at_certificate(struct running *running)
{
	struct http *http = running->http;
	struct curl_tlssessioninfo *tls = NULL;
	uint8_t sha1[20], sha256[DIGEST_ROOT_BYTES];
	unsigned nr = 0;
	curl_easy_getinfo(http->easy, CURLINFO_TLS_SSL_PTR, &tls);
	const gnutls_datum_t *chain = tls && tls->backend == CURLSSLBACKEND_GNUTLS && tls->internals
					      ? gnutls_certificate_get_peers(tls->internals, &nr)
					      : NULL;
	if (!chain || !nr || gnutls_hash_fast(GNUTLS_DIG_SHA1, chain[0].data, chain[0].size, sha1))
		return err_set(running->err, ERR_DENIED, "it shows no certificate");
	digest_sha256(chain[0].data, chain[0].size, sha256);
	char text[HTTP_SHA256_BYTES];
	colons(sha256, sizeof sha256, text);
	if (http->is_pinned && gnutls_memcmp(sha256, http->pinned, sizeof sha256) != 0)
		return err_set(running->err, ERR_DENIED,
			"its certificate has another fingerprint than the one that was given: %s",
			text);
	memcpy(http->sha256, text, sizeof text);
	colons(sha1, sizeof sha1, http->sha1);
	return 0;
}

/* Connected, and nothing of the request is sent yet. */
static int on_connected(void *context, char *peer, char *local, int peer_port, int local_port)
{
	struct running *running = context;
	(void)peer;
	(void)local;
	(void)peer_port;
	(void)local_port;
	running->failed = look_at_certificate(running) < 0;
	running->peeked = running->http->peeking;
	if (running->failed || running->peeked)
		return CURL_PREREQFUNC_ABORT;
	running->call->sent = true;
	return CURL_PREREQFUNC_OK;
}

/* --- one exchange ------------------------------------------------------------------------------
 */

static size_t on_body(char *bytes, size_t size, size_t nr, void *context)
{
	struct running *running = context;
	struct http_call *call = running->call;
	size_t length = size * nr;
	if (call->status != 200 && call->status != 500)
		return length;
	if (length > call->most - running->length)
		running->failed = err_set(running->err, ERR_PROTOCOL,
					  "the answer is larger than %zu bytes", call->most) < 0;
	else
		running->failed = call->take(call->context, bytes, length, running->err) < 0;
	running->length += length;
	return running->failed ? CURL_WRITEFUNC_ERROR : length;
}

/* The one that names the session; curl's own engine would leak when its handle is reset. */
static void take_cookie(struct http *http, const char *line, size_t length)
{
	static const char head[] = "Set-Cookie:";
	size_t skip = strlen(head);
	if (length <= skip || strncasecmp(line, head, skip) != 0)
		return;
	while (skip < length && line[skip] == ' ')
		skip++;
	size_t end = skip;
	while (end < length && line[end] != ';' && (unsigned char)line[end] > ' ')
		end++;
	if (end - skip <= strlen(COOKIE) || end - skip >= sizeof http->cookie ||
		strncmp(line + skip, COOKIE, strlen(COOKIE)) != 0)
		return;
	memcpy(http->cookie, line + skip, end - skip);
	http->cookie[end - skip] = 0;
}

static size_t on_header(char *bytes, size_t size, size_t nr, void *context)
{
	struct running *running = context;
	size_t length = size * nr;
	char text[64];
	long status = 0;
	curl_easy_getinfo(running->http->easy, CURLINFO_RESPONSE_CODE, &status);
	running->call->status = (unsigned)status;
	take_cookie(running->http, bytes, length);
	snprintf(text, sizeof text, "%.*s", (int)min_size(length, sizeof text - 1), bytes);
	if (!strncasecmp(text, "Retry-After:", 12))
		running->call->retry_after_s =
			(unsigned)min_u64(strtoul(text + 12, NULL, 10), 3600);
	return length;
}

static void set_trust(const struct http *http)
{
	CURL *easy = http->easy;
	bool by_ca = !http->is_pinned && !http->peeking;
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
	/* A session that is resumed shows no certificate. */
	curl_easy_setopt(easy, CURLOPT_SSL_SESSIONID_CACHE, 0L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, by_ca ? 1L : 0L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, by_ca ? 2L : 0L);
	if (http->options->ca_file) {
		curl_easy_setopt(easy, CURLOPT_CAINFO, http->options->ca_file);
		curl_easy_setopt(easy, CURLOPT_CAPATH, (char *)NULL);
	}
}

static void set_call(struct running *running, const char *url, struct curl_slist *headers)
{
	const struct http *http = running->http;
	const struct http_call *call = running->call;
	CURL *easy = http->easy;
	curl_easy_reset(easy);
	curl_easy_setopt(easy, CURLOPT_URL, url);
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "https");
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L); /* a proxy's */
	if (transport_is_loopback(http->options->host))
		curl_easy_setopt(easy, CURLOPT_PROXY, "");
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	/* A cancelled call does not wait for the resolver's thread. */
	curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	if (http->cookie[0])
		curl_easy_setopt(easy, CURLOPT_COOKIE, http->cookie);
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)http->options->connect_timeout_ms);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, http->options->user_agent);
	curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, call->once ? 1L : 0L);
	set_trust(http);
	if (call->body) {
		curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)call->body_length);
		curl_easy_setopt(easy, CURLOPT_POSTFIELDS, call->body);
	}
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, running);
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, running);
	curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, on_connected);
	curl_easy_setopt(easy, CURLOPT_PREREQDATA, running);
}

static int not_trusted(const struct http *http, const char *why, struct err *err)
{
	const char *files = strstr(why, ". CAfile: ");
	int length = files ? (int)(files - why) : (int)strlen(why);
	err_set(err, ERR_DENIED, "its certificate is not trusted: %.*s", length, why);
	return http->options->ca_file
		       ? err_hint(err,
				 "%s must be the CA of this server, and its certificate be for "
				 "this name",
				 http->options->ca_file)
		       : -1;
}

static int tell(struct running *running, CURLcode code, const char *detail)
{
	const struct http *http = running->http;
	struct err *err = running->err;
	const char *why = detail[0] ? detail : curl_easy_strerror(code);
	if (running->peeked && !running->failed)
		return 0;
	if (running->failed)
		return -1;
	switch (code) {
	case CURLE_PEER_FAILED_VERIFICATION:
		return not_trusted(http, why, err);
	case CURLE_SSL_CACERT_BADFILE:
		return err_set(err, ERR_FORMAT, "%s is no PEM certificate",
			http->options->ca_file ? http->options->ca_file
					       : "the system's list of CAs");
	case CURLE_OPERATION_TIMEDOUT:
		return err_set(err, ERR_TIMEOUT, "%s", why);
	case CURLE_OUT_OF_MEMORY:
		return err_set(err, ERR_NO_MEMORY, "no memory");
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_SSL_CERTPROBLEM:
		return err_set(err, ERR_DISCONNECTED, "TLS: %s (does it speak HTTPS there?)", why);
	default:
		return err_set(err, ERR_DISCONNECTED, "%s", why);
	}
}

/* Drives it to its end: its code, or -1 (err). */
static int drive(struct running *running, CURLcode *code)
{
	const struct http_call *call = running->call;
	CURLM *multi = running->http->multi;
	struct curl_waitfd extra = {.fd = cancel_fd(call->cancel), .events = CURL_WAIT_POLLIN};
	int nr_running = 1, left;
	for (;;) {
		if (curl_multi_perform(multi, &nr_running))
			return err_set(running->err, ERR_IO, "curl_multi_perform");
		if (!nr_running)
			break;
		if (cancel_requested(call->cancel))
			return err_set(running->err, ERR_CANCELLED, "cancelled");
		if (deadline_passed(call->until))
			return err_set(running->err, ERR_TIMEOUT, "%s in time",
				call->sent ? "it did not answer" : "no connection");
		int wait_ms =
			deadline_left_ms(deadline_min(call->until, deadline_after_ms(POLL_MS)));
		curl_multi_poll(multi, &extra, extra.fd >= 0 ? 1 : 0, wait_ms, NULL);
	}
	const CURLMsg *message = curl_multi_info_read(multi, &left);
	*code = message ? message->data.result : CURLE_FAILED_INIT;
	return 0;
}

static struct curl_slist *make_headers(const struct http_call *call)
{
	static const char *const lines[] = {
		"Content-Type: text/xml; charset=utf-8",
		"SOAPAction: \"urn:vim25/6.5\"",
		/* Bodies are small, and waiting for "100 Continue" costs a round trip. */
		"Expect:",
	};
	struct curl_slist *headers = NULL;
	for (size_t i = call->body ? 0 : 2; i < ARRAY_LENGTH(lines); i++) {
		struct curl_slist *longer = curl_slist_append(headers, lines[i]);
		if (!longer) {
			curl_slist_free_all(headers);
			return NULL;
		}
		headers = longer;
	}
	return headers;
}

static int exchange(struct http *http, struct http_call *call, CURLcode *code, struct err *err)
{
	struct running running = {.http = http, .call = call, .err = err};
	char detail[CURL_ERROR_SIZE] = "", *url = NULL;
	int rc = -1;
	call->status = call->retry_after_s = 0;
	call->sent = false;
	struct curl_slist *headers = make_headers(call);
	if (!headers || asprintf(&url, "%s%s", http->base, call->path) < 0) {
		url = NULL;
		err_set(err, ERR_NO_MEMORY, "no memory");
		goto out;
	}
	set_call(&running, url, headers);
	curl_easy_setopt(http->easy, CURLOPT_ERRORBUFFER, detail);
	curl_multi_add_handle(http->multi, http->easy);
	rc = drive(&running, code);
	curl_multi_remove_handle(http->multi, http->easy);
	if (!rc && *code)
		rc = tell(&running, *code, detail);
	/* The handle must not point to what is gone. */
	curl_easy_reset(http->easy);
out:
	curl_slist_free_all(headers);
	free(url);
	return rc;
}

/* For people to compare: trusts nothing, and sends nothing. */
static void peek(struct http *http, const struct http_call *call, struct err *err)
{
	struct http_call looking = {
		.path = "/", .until = deadline_after_ms(PEEK_MS), .cancel = call->cancel};
	struct err ignored = ERR_INIT;
	CURLcode code = CURLE_OK;
	http->peeking = true;
	if (!exchange(http, &looking, &code, &ignored))
		err_hint(err,
			"give its CA by --ca-file or, if the server's console tells the same, its "
			"fingerprint by --fingerprint %s",
			http->sha256);
	http->peeking = false;
	http->sha1[0] = http->sha256[0] = 0;
}

int http_call(struct http *http, struct http_call *call, struct err *err)
{
	struct err ours = ERR_INIT;
	CURLcode code = CURLE_OK;
	if (!exchange(http, call, &code, &ours))
		return 0;
	if (code == CURLE_PEER_FAILED_VERIFICATION && !http->options->ca_file)
		peek(http, call, &ours);
	err_copy(err, &ours);
	return err_context(err, "calling %s (%s)", http->where, call->what);
}

void http_forget(struct http *http)
{
	http->cookie[0] = 0;
}

/* --- the server --------------------------------------------------------------------------------
 */

const char *http_where(const struct http *http)
{
	return http->where;
}

const char *http_sha1(const struct http *http)
{
	return http->sha1;
}

const char *http_sha256(const struct http *http)
{
	return http->sha256;
}

/* What makes up a name or an address: nothing that would end the host in a URL. */
static bool is_host(const char *host)
{
	size_t length = host ? strlen(host) : 0;
	return length && length <= 255 &&
	       strspn(host,
		       "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:%") ==
		       length;
}

static int take_options(struct http *http, const struct vsphere_options *options, struct err *err)
{
	unsigned port = options->port ? options->port : VSPHERE_PORT;
	http->options = options;
	if (!is_host(options->host) || port > 65535)
		return err_set(err, ERR_USAGE, "the server's address %s port %u: not an address",
			options->host ? options->host : "(none)", port);
	if (options->ca_file && options->fingerprint)
		return err_set(err, ERR_USAGE,
			"the certificate of %s: either a CA or a fingerprint says whom to trust",
			options->host);
	if (options->ca_file && access(options->ca_file, R_OK))
		return err_set(
			err, ERR_USAGE, "the CA's certificate %s can't be read", options->ca_file);
	if (options->fingerprint) {
		http->is_pinned =
			digest_unhex_pairs(options->fingerprint, http->pinned, sizeof http->pinned);
		if (!http->is_pinned)
			return err_set(err, ERR_USAGE,
				"the fingerprint of %s: must be SHA-256 in hex", options->host);
	}
	bool is_ipv6 = strchr(options->host, ':') != NULL;
	if (asprintf(&http->base, "https://%s%s%s:%u", is_ipv6 ? "[" : "", options->host,
		    is_ipv6 ? "]" : "", port) < 0) {
		http->base = NULL;
		return err_set(err, ERR_NO_MEMORY, "connecting to %s: no memory", options->host);
	}
	http->where = http->base + strlen("https://");
	return 0;
}

struct http *http_new(const struct vsphere_options *options, struct err *err)
{
	pthread_once(&library_once, start_library);
	struct http *http = calloc(1, sizeof *http);
	if (http) {
		http->multi = curl_multi_init();
		http->easy = curl_easy_init();
	}
	if (!http || !http->multi || !http->easy) {
		err_set(err, ERR_NO_MEMORY, "connecting to %s: no memory", options->host);
		http_free(http);
		return NULL;
	}
	curl_multi_setopt(http->multi, CURLMOPT_MAXCONNECTS, 1L);
	if (take_options(http, options, err)) {
		http_free(http);
		return NULL;
	}
	return http;
}

void http_free(struct http *http)
{
	if (!http)
		return;
	curl_easy_cleanup(http->easy);
	curl_multi_cleanup(http->multi);
	explicit_bzero(http->cookie, sizeof http->cookie);
	free(http->base);
	free(http);
}
