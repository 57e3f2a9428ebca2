/* What calls of HTTP servers share; see http.h. */
#include "http.h"

#include <gnutls/crypto.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <strings.h>

#define POLL_MS 1000
#define RETRY_AFTER_MOST_S 3600

static pthread_once_t library_once = PTHREAD_ONCE_INIT;

static void start_library(void)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

void http_start(void)
{
	pthread_once(&library_once, start_library);
}

/* --- setting up --------------------------------------------------------------------------------
 */

/* With a fingerprint alone, that is what says who it is. */
static void set_trust(CURL *easy, const struct http_trust *trust)
{
	bool by_ca = !trust->anyone && (trust->ca_file || !trust->fingerprint);
	curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
	/* A session that is resumed need not show a certificate. */
	curl_easy_setopt(easy, CURLOPT_SSL_SESSIONID_CACHE, 0L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, by_ca ? 1L : 0L);
	curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, by_ca ? 2L : 0L);
	if (trust->ca_file) {
		curl_easy_setopt(easy, CURLOPT_CAINFO, trust->ca_file);
		curl_easy_setopt(easy, CURLOPT_CAPATH, (char *)NULL);
	}
}

void http_prepare(CURL *easy, const char *url, const struct http_trust *trust,
	unsigned connect_timeout_ms, bool without_proxy)
{
	curl_easy_reset(easy);
	curl_easy_setopt(easy, CURLOPT_URL, url);
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L); /* a proxy's */
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	/* A cancelled call does not wait for the resolver's thread. */
	curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, "sendense");
	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)connect_timeout_ms);
	if (without_proxy)
		curl_easy_setopt(easy, CURLOPT_PROXY, "");
	set_trust(easy, trust);
}

/* --- the peer ----------------------------------------------------------------------------------
 */

void http_colons(const uint8_t *bytes, size_t length, char *out)
{
	for (size_t i = 0; i < length; i++)
		out += sprintf(out, "%s%02X", i ? ":" : "", bytes[i]);
}

int http_look_at_peer(CURL *easy, const struct http_trust *trust,
	struct http_certificate *certificate, struct err *err)
{
	struct curl_tlssessioninfo *tls = NULL;
	unsigned nr = 0;
	*certificate = (struct http_certificate){.length = 0};
	curl_easy_getinfo(easy, CURLINFO_TLS_SSL_PTR, &tls);
	const gnutls_datum_t *chain = tls && tls->backend == CURLSSLBACKEND_GNUTLS && tls->internals
					      ? gnutls_certificate_get_peers(tls->internals, &nr)
					      : NULL;
	if (chain && nr) {
		certificate->length = chain[0].size;
		digest_sha256(chain[0].data, chain[0].size, certificate->sha256);
		if (gnutls_hash_fast(
			    GNUTLS_DIG_SHA1, chain[0].data, chain[0].size, certificate->sha1))
			memset(certificate->sha1, 0, sizeof certificate->sha1);
	}
	if (!trust->fingerprint)
		return 0;
	if (!certificate->length)
		return err_set(err, ERR_DENIED, "it shows no certificate");
	if (!gnutls_memcmp(certificate->sha256, trust->fingerprint, sizeof certificate->sha256))
		return 0;
	char text[3 * DIGEST_ROOT_BYTES];
	http_colons(certificate->sha256, sizeof certificate->sha256, text);
	return err_set(err, ERR_DENIED,
		"its certificate has another fingerprint than the one that was given: %s", text);
}

/* --- driving -----------------------------------------------------------------------------------
 */

int http_drive(CURLM *multi, const struct cancel *cancel, const struct deadline *until,
	CURLcode *code, struct err *err)
{
	struct curl_waitfd extra = {.fd = cancel_fd(cancel), .events = CURL_WAIT_POLLIN};
	int nr_running = 1, left;
	int64_t began_ns = clock_now_ns();
	for (;;) {
		if (curl_multi_perform(multi, &nr_running))
			return err_set(err, ERR_IO, "curl_multi_perform");
		if (!nr_running)
			break;
		if (cancel_requested(cancel))
			return err_set(err, ERR_CANCELLED, "cancelled");
		if (deadline_passed(*until))
			return err_set(err, ERR_TIMEOUT, "no answer in time (%.1f s)",
				(double)(clock_now_ns() - began_ns) / 1e9);
		int wait_ms = deadline_left_ms(deadline_min(*until, deadline_after_ms(POLL_MS)));
		curl_multi_poll(multi, &extra, extra.fd >= 0 ? 1 : 0, wait_ms, NULL);
	}
	const CURLMsg *message = curl_multi_info_read(multi, &left);
	*code = message ? message->data.result : CURLE_FAILED_INIT;
	return 0;
}

/* --- what came of it ---------------------------------------------------------------------------
 */

int http_tell(CURLcode code, const char *detail, const struct http_trust *trust, struct err *err)
{
	const char *why = detail[0] ? detail : curl_easy_strerror(code);
	switch (code) {
	case CURLE_PEER_FAILED_VERIFICATION: {
		const char *files = strstr(why, ". CAfile: ");
		int length = files ? (int)(files - why) : (int)strlen(why);
		return err_set(
			err, ERR_DENIED, "its certificate is not trusted: %.*s", length, why);
	}
	case CURLE_SSL_CACERT_BADFILE:
		return err_set(err, ERR_FORMAT, "%s is no PEM certificate",
			trust->ca_file ? trust->ca_file : "the system's list of CAs");
	case CURLE_OPERATION_TIMEDOUT:
		return err_set(err, ERR_TIMEOUT, "%s", why);
	case CURLE_OUT_OF_MEMORY:
		return err_set(err, ERR_NO_MEMORY, "no memory");
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_SSL_CERTPROBLEM:
		return err_set(err, ERR_DISCONNECTED, "TLS: %s (does it speak TLS?)", why);
	default:
		return err_set(err, ERR_DISCONNECTED, "%s", why);
	}
}

bool http_retry_after(const char *line, size_t length, unsigned *seconds)
{
	static const char name[] = "Retry-After:";
	char text[64];
	snprintf(text, sizeof text, "%.*s", (int)min_size(length, sizeof text - 1), line);
	if (strncasecmp(text, name, strlen(name)) != 0)
		return false;
	*seconds = (unsigned)min_u64(strtoul(text + strlen(name), NULL, 10), RETRY_AFTER_MOST_S);
	return true;
}
