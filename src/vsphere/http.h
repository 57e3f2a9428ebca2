/*
 * http: requests to one server over HTTPS, on one connection that is kept.
 *
 * Whom to trust is settled on each new connection before anything of a request is sent: by the
 * CAs and the name, as the TLS library does it; or, with a pinned fingerprint, by comparing the
 * SHA-256 of the certificate that this very connection's handshake has proven the key of
 * (CURLOPT_PINNEDPUBLICKEY would pin the key instead, which is not what people are told, and to
 * look first on another connection would prove nothing of this one).
 *
 * The cookie that names a session is kept and sent.
 */
#ifndef SENDENSE_VSPHERE_HTTP_H
#define SENDENSE_VSPHERE_HTTP_H

#include "vsphere.h"

#define HTTP_ANSWER_MOST ((size_t)64 << 20)
/* Of certificates, with colons and a zero. */
#define HTTP_SHA1_BYTES 60u
#define HTTP_SHA256_BYTES 96u

struct http;

/* options: host, port, trust, connect_timeout_ms, user_agent; lent until http_free().  ERR_USAGE.
 */
struct http *http_new(const struct vsphere_options *options, struct err *err);
void http_free(struct http *http);

struct http_call {
	const char *what; /* for errors: "Login" */
	const char *path; /* "/sdk", percent-encoded */
	const char *body; /* lent; NULL: GET, else POST of SOAP */
	size_t body_length;
	bool once; /* it must not reach the server twice: not on a connection that was kept, where
		      the library would send it again by itself */
	struct deadline until;
	const struct cancel *cancel;
	/* Takes the body of an answer 200 or 500 as it comes; -1 (err) ends it. */
	int (*take)(void *context, const char *bytes, size_t length, struct err *err);
	void *context;
	size_t most; /* of these bytes */
	/* what came of it */
	unsigned status; /* 0: no answer */
	unsigned retry_after_s;
	bool sent; /* it may have reached the server */
};

/* 0 when there was a whole answer, whatever its status. */
int http_call(struct http *http, struct http_call *call, struct err *err);

/* Forgets the cookie. */
void http_forget(struct http *http);

/* "vcenter.example:443", for errors. */
const char *http_where(const struct http *http);

/* Of the certificate that was accepted last; "" before. */
const char *http_sha1(const struct http *http);
const char *http_sha256(const struct http *http);

#endif
