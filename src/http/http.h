/*
 * http: what our callers of HTTP servers share on top of libcurl: how a call is set up, whom to
 * trust, and a loop in which a call heeds cancel and a deadline whatever the network does.
 *
 * A server is trusted by CAs and its name, as the TLS library does it, or by a pinned
 * fingerprint: the SHA-256 of the certificate that this very connection's handshake has proven
 * the key of is compared before anything of a request is sent.  (CURLOPT_PINNEDPUBLICKEY would pin
 * the key, which is not what people are told; a look on another connection would prove nothing
 * of this one.)
 *
 * Thread rule: a call belongs to one thread.
 */
#ifndef SENDENSE_HTTP_H
#define SENDENSE_HTTP_H

#include "base.h"

#include <curl/curl.h>

struct http_trust {
	const char *ca_file; /* PEM; NULL: the system's CAs, unless there is a fingerprint */
	const uint8_t *fingerprint; /* DIGEST_ROOT_BYTES; NULL: none */
	bool anyone; /* only to look at the certificate */
};

/* Once in a process, before the first handle is made; more often is harmless. */
void http_start(void);

/*
 * Resets the handle and sets all that calls have in common: HTTP/1.1 over TLS 1.2 or later, no
 * redirects, no signals.  url is copied, ca_file lent until the next reset.
 */
void http_prepare(CURL *easy, const char *url, const struct http_trust *trust,
	unsigned connect_timeout_ms, bool without_proxy);

/*
 * To be called from CURLOPT_PREREQFUNCTION: the server's own certificate, and whether it is the
 * pinned one.  0, also where none was shown and nothing is pinned (plain HTTP); -1: ERR_DENIED.
 */
struct http_certificate {
	uint8_t sha1[20], sha256[DIGEST_ROOT_BYTES];
	size_t length; /* of the certificate; 0: none was shown */
};
int http_look_at_peer(CURL *easy, const struct http_trust *trust,
	struct http_certificate *certificate, struct err *err);

/* Upper-case hex with colons; out has room for 3 * length. */
void http_colons(const uint8_t *bytes, size_t length, char *out);

/*
 * Drives the one call in multi to its end and gives its code.  -1: ERR_CANCELLED, ERR_TIMEOUT
 * (*until passed; callbacks may move it), ERR_IO; the call is then cut off by removing it from
 * multi.
 */
int http_drive(CURLM *multi, const struct cancel *cancel, const struct deadline *until,
	CURLcode *code, struct err *err);

/* An error that is not CURLE_OK, as ours; detail: the error buffer.  ERR_DENIED: not trusted.  -1.
 */
int http_tell(CURLcode code, const char *detail, const struct http_trust *trust, struct err *err);

/* "Retry-After: 7" in a header line: the seconds, an hour at most; false for other lines. */
bool http_retry_after(const char *line, size_t length, unsigned *seconds);

#endif
