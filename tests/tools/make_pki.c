/*
 * make_pki DIR: a CA, certificates of a server and of a client, and two pre-shared keys
 * (of alice and bob), under the names that NBD programs look for.  Prints the
 * fingerprint of the client's certificate.
 */
#include "pki.h"

#include <fcntl.h>
#include <stdio.h>

static char texts[8][512];

static const char *path(unsigned n, const char *folder, const char *name)
{
	snprintf(texts[n], sizeof texts[n], "%s/%s", folder, name);
	return texts[n];
}

static int make_keys(const char *folder, struct err *err)
{
	char alice[PKI_PSK_HEX_BYTES], bob[PKI_PSK_HEX_BYTES], text[256];
	if (pki_make_psk(alice, err) < 0 || pki_make_psk(bob, err) < 0)
		return -1;
	int n = snprintf(text, sizeof text, "alice:%s\nbob:%s\n", alice, bob);
	return file_replace(AT_FDCWD, path(0, folder, "keys.psk"), text, (size_t)n, 0600, err);
}

int main(int argc, char **argv)
{
	struct err err = ERR_INIT;
	if (argc < 2)
		return 2;
	const char *folder = argv[1], *host = "backup.example";
	const char *ca = path(1, folder, "ca-cert.pem"), *ca_key = path(2, folder, "ca-key.pem");
	struct pki_request server = {
		.name = host, .is_server = true, .hosts = &host, .nr_hosts = 1, .days = 30};
	struct pki_request client = {.name = "a client", .days = 30};
	char hex[PKI_FINGERPRINT_BYTES];
	if (make_keys(folder, &err) < 0 || pki_make_ca("CA of a test", 30, ca, ca_key, &err) < 0 ||
		pki_make_certificate(ca, ca_key, &server, path(3, folder, "server-cert.pem"),
			path(4, folder, "server-key.pem"), &err) < 0 ||
		pki_make_certificate(ca, ca_key, &client, path(5, folder, "client-cert.pem"),
			path(6, folder, "client-key.pem"), &err) < 0 ||
		pki_fingerprint(texts[5], hex, &err) < 0) {
		fprintf(stderr, "make_pki: %s\n", err.text);
		return 1;
	}
	printf("%s\n", hex);
	return 0;
}
