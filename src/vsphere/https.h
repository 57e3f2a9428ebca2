/*
 * https: requests to one server, on one connection that is kept.  Whom to trust is settled before
 * anything of a request is sent (http.h).  The cookie that names a session is kept and sent.
 */
#ifndef SENDENSE_VSPHERE_HTTPS_H
#define SENDENSE_VSPHERE_HTTPS_H

#include "vsphere.h"

#define HTTPS_ANSWER_MOST ((size_t)64 << 20)
/* Of certificates, with colons and a zero. */
#define HTTPS_SHA1_BYTES 60u
#define HTTPS_SHA256_BYTES 96u

struct https;

/* options: host, port, trust, connect_timeout_ms, user_agent; lent until https_free().  ERR_USAGE.
 */
struct https *https_new(const struct vsphere_options *options, struct err *err);
void https_free(struct https *https);

struct https_call {
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
int https_call(struct https *https, struct https_call *call, struct err *err);

/* Forgets the cookie. */
void https_forget(struct https *https);

/* "vcenter.example:443", for errors. */
const char *https_where(const struct https *https);

/* Of the certificate that was accepted last; "" before. */
const char *https_sha1(const struct https *https);
const char *https_sha256(const struct https *https);

#endif
