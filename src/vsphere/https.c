/* One HTTPS connection; see https.h. */
#include "https.h"

#include "http.h"
#include "transport.h"

#include <stdio.h>
#include <strings.h>

#define PEEK_MS 5000
#define COOKIE_BYTES 512
#define COOKIE "vmware_soap_session="

struct https {
	const struct vsphere_options *options;
	CURLM *multi; /* keeps the connection */
	CURL *easy;
	char *base; /* "https://vcenter.example:443" */
	const char *where; /* in it */
	uint8_t fingerprint[DIGEST_ROOT_BYTES];
	struct http_trust trust;
	char cookie[COOKIE_BYTES]; /* "vmware_soap_session=..." */
	char sha1[HTTPS_SHA1_BYTES], sha256[HTTPS_SHA256_BYTES];
};

struct running {
	struct https *https;
	struct https_call *call;
	size_t length;
	bool failed; /* err is set */
	bool peeked;
	struct err *err;
};

/* Connected, and nothing of the request is sent yet. */
static int on_connected(void *context, char *peer, char *local, int peer_port, int local_port)
{
	struct running *running = context;
	struct https *https = running->https;
	struct http_certificate shown;
	(void)peer;
	(void)local;
	(void)peer_port;
	(void)local_port;
	running->failed = http_look_at_peer(https->easy, &https->trust, &shown, running->err) < 0;
	running->peeked = https->trust.anyone;
	if (!running->failed) {
		http_colons(shown.sha1, sizeof shown.sha1, https->sha1);
		http_colons(shown.sha256, sizeof shown.sha256, https->sha256);
	}
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
	struct https_call *call = running->call;
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
static void take_cookie(struct https *https, const char *line, size_t length)
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
	if (end - skip <= strlen(COOKIE) || end - skip >= sizeof https->cookie ||
		strncmp(line + skip, COOKIE, strlen(COOKIE)) != 0)
		return;
	memcpy(https->cookie, line + skip, end - skip);
	https->cookie[end - skip] = 0;
}

static size_t on_header(char *bytes, size_t size, size_t nr, void *context)
{
	struct running *running = context;
	size_t length = size * nr;
	long status = 0;
	curl_easy_getinfo(running->https->easy, CURLINFO_RESPONSE_CODE, &status);
	running->call->status = (unsigned)status;
	take_cookie(running->https, bytes, length);
	http_retry_after(bytes, length, &running->call->retry_after_s);
	return length;
}

static void set_call(struct running *running, const char *url, struct curl_slist *headers)
{
	const struct https *https = running->https;
	const struct https_call *call = running->call;
	CURL *easy = https->easy;
	http_prepare(easy, url, &https->trust, https->options->connect_timeout_ms,
		transport_is_loopback(https->options->host));
	curl_easy_setopt(easy, CURLOPT_USERAGENT, https->options->user_agent);
	curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, call->once ? 1L : 0L);
	if (https->cookie[0])
		curl_easy_setopt(easy, CURLOPT_COOKIE, https->cookie);
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

static int tell(struct running *running, CURLcode code, const char *detail)
{
	const struct http_trust *trust = &running->https->trust;
	if (running->failed || running->peeked)
		return running->failed ? -1 : 0;
	http_tell(code, detail, trust, running->err);
	if (code == CURLE_PEER_FAILED_VERIFICATION && trust->ca_file)
		err_hint(running->err,
			"%s must be the CA of this server, and its certificate be for this name",
			trust->ca_file);
	return -1;
}

static struct curl_slist *make_headers(const struct https_call *call)
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

static int exchange(struct https *https, struct https_call *call, CURLcode *code, struct err *err)
{
	struct running running = {.https = https, .call = call, .err = err};
	char detail[CURL_ERROR_SIZE] = "", *url = NULL;
	int rc = -1;
	call->status = call->retry_after_s = 0;
	call->sent = false;
	struct curl_slist *headers = make_headers(call);
	if (!headers || asprintf(&url, "%s%s", https->base, call->path) < 0) {
		url = NULL;
		err_set(err, ERR_NO_MEMORY, "no memory");
		goto out;
	}
	set_call(&running, url, headers);
	curl_easy_setopt(https->easy, CURLOPT_ERRORBUFFER, detail);
	curl_multi_add_handle(https->multi, https->easy);
	rc = http_drive(https->multi, call->cancel, &call->until, code, err);
	curl_multi_remove_handle(https->multi, https->easy);
	if (!rc && *code)
		rc = tell(&running, *code, detail);
	/* The handle must not point to what is gone. */
	curl_easy_reset(https->easy);
out:
	curl_slist_free_all(headers);
	free(url);
	return rc;
}

/* For people to compare: trusts nothing, and sends nothing. */
static void peek(struct https *https, const struct https_call *call, struct err *err)
{
	struct https_call looking = {
		.path = "/", .until = deadline_after_ms(PEEK_MS), .cancel = call->cancel};
	struct err ignored = ERR_INIT;
	CURLcode code = CURLE_OK;
	https->trust.anyone = true;
	if (!exchange(https, &looking, &code, &ignored))
		err_hint(err,
			"give the file with its CA or, if the server's console tells the same, its "
			"fingerprint by --fingerprint %s",
			https->sha256);
	https->trust.anyone = false;
	https->sha1[0] = https->sha256[0] = 0;
}

int https_call(struct https *https, struct https_call *call, struct err *err)
{
	struct err ours = ERR_INIT;
	CURLcode code = CURLE_OK;
	if (!exchange(https, call, &code, &ours))
		return 0;
	if (code == CURLE_PEER_FAILED_VERIFICATION && !https->options->ca_file)
		peek(https, call, &ours);
	err_copy(err, &ours);
	return err_context(err, "calling %s (%s)", https->where, call->what);
}

void https_forget(struct https *https)
{
	https->cookie[0] = 0;
}

/* --- the server --------------------------------------------------------------------------------
 */

const char *https_where(const struct https *https)
{
	return https->where;
}

const char *https_sha1(const struct https *https)
{
	return https->sha1;
}

const char *https_sha256(const struct https *https)
{
	return https->sha256;
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

static int take_options(struct https *https, const struct vsphere_options *options, struct err *err)
{
	unsigned port = options->port ? options->port : VSPHERE_PORT;
	https->options = options;
	https->trust.ca_file = options->ca_file;
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
		https->trust.fingerprint = https->fingerprint;
		if (!digest_unhex_pairs(
			    options->fingerprint, https->fingerprint, sizeof https->fingerprint))
			return err_set(err, ERR_USAGE,
				"the fingerprint of %s: must be SHA-256 in hex", options->host);
	}
	bool is_ipv6 = strchr(options->host, ':') != NULL;
	if (asprintf(&https->base, "https://%s%s%s:%u", is_ipv6 ? "[" : "", options->host,
		    is_ipv6 ? "]" : "", port) < 0) {
		https->base = NULL;
		return err_set(err, ERR_NO_MEMORY, "connecting to %s: no memory", options->host);
	}
	https->where = https->base + strlen("https://");
	return 0;
}

struct https *https_new(const struct vsphere_options *options, struct err *err)
{
	http_start();
	struct https *https = calloc(1, sizeof *https);
	if (https) {
		https->multi = curl_multi_init();
		https->easy = curl_easy_init();
	}
	if (!https || !https->multi || !https->easy) {
		err_set(err, ERR_NO_MEMORY, "connecting to %s: no memory", options->host);
		https_free(https);
		return NULL;
	}
	curl_multi_setopt(https->multi, CURLMOPT_MAXCONNECTS, 1L);
	if (take_options(https, options, err)) {
		https_free(https);
		return NULL;
	}
	return https;
}

void https_free(struct https *https)
{
	if (!https)
		return;
	curl_easy_cleanup(https->easy);
	curl_multi_cleanup(https->multi);
	explicit_bzero(https->cookie, sizeof https->cookie);
	free(https->base);
	free(https);
}
