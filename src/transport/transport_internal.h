/*
 * Inside of transport.
 *
 *   listener.c    listening sockets
 *   stream.c      the bytes of a stream, in the clear
 *   stream_tls.c  the same through TLS
 *   tls.c         credentials
 *   pki.c         making certificates
 *   tunnel.c      ssh, looked after
 */
#ifndef SENDENSE_TRANSPORT_INTERNAL_H
#define SENDENSE_TRANSPORT_INTERNAL_H

#include "tls.h"

#include <gnutls/gnutls.h>
#include <stdatomic.h>

/* --- the socket beneath (stream.c) --------------------------------------------- */

/* As the public ones, on the socket, whatever the stream is. */
ssize_t stream_raw_receive(struct stream *stream, const struct iovec *iov, size_t nr_iov,
	const char *what, struct err *err);
int stream_raw_send(
	struct stream *stream, struct iovec *iov, size_t nr_iov, const char *what, struct err *err);

void stream_set_receive_timeout(struct stream *stream, unsigned timeout_ms);

/* --- through TLS (stream_tls.c) --------------------------------------------------- */

ssize_t stream_tls_receive(struct stream *stream, const struct iovec *iov, size_t nr_iov,
	const char *what, struct err *err);
int stream_tls_send(
	struct stream *stream, struct iovec *iov, size_t nr_iov, const char *what, struct err *err);
/* Says the last word as far as it goes without waiting. */
void stream_tls_finish(struct stream *stream);
void stream_tls_close(struct stream *stream);

/* GnuTLS asks for the key of a session's client. */
int stream_tls_find_key(gnutls_session_t session, const gnutls_datum_t *name, gnutls_datum_t *key);

/* --- credentials (tls.c) ------------------------------------------------------------ */

/* Whether this processor has instructions for AES-GCM. */
bool tls_has_aes(void);

/* What the files held when they were read; sessions keep theirs. */
struct tls_credentials {
	atomic_uint nr_users;
	gnutls_priority_t priorities;
	gnutls_certificate_credentials_t x509; /* NULL: none */
	gnutls_psk_server_credentials_t psk; /* NULL: none */
	enum tls_clients clients;
	struct tls_key *keys; /* of the file */
	size_t nr_keys;
	tls_psk_find *psk_find;
	void *psk_user;
};

struct tls_credentials *tls_credentials_get(struct tls_server *server);
void tls_credentials_put(struct tls_credentials *credentials);

/* 0 and the key, or -1. */
int tls_credentials_find(const struct tls_credentials *credentials, const char *identity,
	uint8_t key[TLS_PSK_BYTES_MAX], size_t *length);

#endif
