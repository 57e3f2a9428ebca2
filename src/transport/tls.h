/*
 * tls: TLS on a stream, on the server's side (GnuTLS, TLS 1.2 and 1.3).
 *
 * Ciphers: AES-GCM first on a processor with AES, ChaCha20 first on others, and
 * the server's order counts, for pre-shared keys as well: a peer that would pick
 * ChaCha20 for those runs at a quarter of the speed.
 *
 * Keys and pre-shared keys never reach a message.
 */
#ifndef SENDENSE_TLS_H
#define SENDENSE_TLS_H

#include "transport.h"

#define TLS_PSK_BYTES_MAX 64u /* of a key */
#define TLS_IDENTITY_BYTES 160u /* of a peer's identity as text, with its zero */

enum tls_clients {
	TLS_CLIENTS_ANY, /* a certificate is not asked for */
	TLS_CLIENTS_OPTIONAL, /* checked when there is one; a bad one is refused */
	TLS_CLIENTS_REQUIRED, /* (a pre-shared key is as good) */
};

/*
 * Finds the key of an identity: 0 with key and length (16..TLS_PSK_BYTES_MAX), or
 * -1 when nobody has that name, which the client cannot tell from a wrong key.
 * Called on any connection's thread, several at once, with no lock held.
 */
typedef int tls_psk_find(
	void *user, const char *identity, uint8_t key[TLS_PSK_BYTES_MAX], size_t *length);

/* At least one of certificate, psk_file and psk_find.  All borrowed by tls_server_new(). */
struct tls_server_options {
	const char *certificate, *key; /* PEM files, the chain behind the certificate */
	const char *clients_ca; /* PEM file; needed for TLS_CLIENTS_OPTIONAL and _REQUIRED */
	enum tls_clients clients;
	const char *psk_file; /* lines "IDENTITY:HEXKEY", as psktool writes them */
	tls_psk_find *psk_find; /* asked for what the file does not have */
	void *psk_user;
};

/* A server's credentials; any thread may use them. */
struct tls_server;

/*
 * Reads and checks the files.  ERR_DENIED for a key that others than the owner may
 * read (chmod 600), ERR_FORMAT for what is none, ERR_USAGE for a key of another
 * certificate or an option without what it needs.  A certificate that has expired
 * is taken, with a warning.
 */
struct tls_server *tls_server_new(const struct tls_server_options *options, struct err *err);

/* Reads the files again; connections that are there keep what they have.  After an
 * error the old credentials stay. */
int tls_server_reload(struct tls_server *server, struct err *err);

/* After all streams that use it were closed. */
void tls_server_free(struct tls_server *server);

/* True when whoever comes in is known: by key, or by a certificate that is demanded. */
bool tls_server_authenticates(const struct tls_server *server);

/*
 * Starts TLS on a stream over which nothing is in flight, before the deadline.
 * From here on all that the stream sends and receives is encrypted.  After an error
 * the stream is good for nothing but closing.  ERR_DENIED: the client has no
 * credentials, or wrong ones; the text says which.
 */
int stream_tls_start(
	struct stream *stream, struct tls_server *server, struct deadline until, struct err *err);

/*
 * Who the peer is: "psk:IDENTITY", or "x509:" and the SHA-256 fingerprint of its
 * certificate (hex, as pki_fingerprint() gives it); "" for one that showed nothing
 * and on a stream without TLS.  Lives as long as the stream.
 */
const char *stream_tls_identity(const struct stream *stream);

/* "TLS1.3 AES-128-GCM, psk:alice", or "no TLS"; for the log. */
#define TLS_TEXT_BYTES 256
void stream_tls_text(const struct stream *stream, char text[TLS_TEXT_BYTES]);

/* --- pre-shared keys in files ------------------------------------------------------ */

/*
 * An open memory file with one line "IDENTITY:HEXKEY", for libraries that want a
 * file's name: name becomes "/proc/self/fd/N".  Close the descriptor after the use.
 */
int tls_psk_memory_file(const char *identity, const char *hex_key, char name[32], struct err *err);

/* The first identity of a file as psktool writes it; the caller frees.  ERR_DENIED for a
 * file that others than the owner may read. */
char *tls_psk_file_identity(const char *path, struct err *err);

#endif
