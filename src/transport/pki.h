/*
 * pki: the few certificates that an installation needs, made by itself: a CA, a
 * certificate for the server, certificates for clients (ECDSA P-256, X.509 v3).
 */
#ifndef SENDENSE_PKI_H
#define SENDENSE_PKI_H

#include "base.h"

#define PKI_FINGERPRINT_BYTES 65u /* SHA-256 in hex, with its zero */
#define PKI_PSK_HEX_BYTES 65u /* 256 bits in hex, with its zero */

/*
 * Makes a CA: certificate_path (0644) and key_path (0600), both PEM and durable.
 * ERR_EXISTS when one of the files is there.  name: its common name, 1..64 bytes.
 * days: 1..36500.
 */
int pki_make_ca(const char *name, unsigned days, const char *certificate_path, const char *key_path,
	struct err *err);

struct pki_request {
	const char *name; /* common name, 1..64 bytes */
	bool is_server; /* else a client's */
	/* Of a server: what clients call it, DNS names and numeric addresses.  127.0.0.1, ::1
	 * and localhost are always in it, so that TLS works inside a tunnel too. */
	const char *const *hosts;
	size_t nr_hosts;
	unsigned days;
	bool replace; /* existing files, for a renewal */
};

/* Makes a key (0600) and a certificate (0644) signed by the CA; the file holds the CA's
 * behind it. */
int pki_make_certificate(const char *ca_certificate, const char *ca_key,
	const struct pki_request *request, const char *certificate_path, const char *key_path,
	struct err *err);

/* Of the first certificate in a PEM file: lower-case hex of SHA-256 over its DER. */
int pki_fingerprint(const char *certificate_path, char hex[PKI_FINGERPRINT_BYTES], struct err *err);

/* Seconds since 1970 after which it is not valid any more. */
int pki_expiry(const char *certificate_path, int64_t *expires_s, struct err *err);

/* A fresh pre-shared key in hex. */
int pki_make_psk(char hex[PKI_PSK_HEX_BYTES], struct err *err);

#endif
