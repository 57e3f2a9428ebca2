/* What the client's TLS takes: certificates, keys. */
#include "client_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int bad_options(const struct client_uri *uri, const char *why, struct err *err)
{
	return err_set(err, ERR_USAGE, "cannot open %s: %s", uri->label, why);
}

static int check(const struct client_uri *uri, const struct nbd_client_options *o, struct err *err)
{
	bool has_key = o->tls_psk_file || o->tls_psk_hex;
	if (!o->tls_certificates && !has_key)
		return bad_options(uri,
			"TLS needs a folder with the CA's certificate, or a file with a "
			"pre-shared key",
			err);
	if (o->tls_certificates && has_key)
		return bad_options(uri, "certificates or a pre-shared key, not both", err);
	if (o->tls_psk_file && o->tls_psk_hex)
		return bad_options(uri, "two pre-shared keys", err);
	if (o->tls_psk_hex && !o->tls_username)
		return bad_options(uri, "a pre-shared key without the name of its identity", err);
	if (o->tls_certificates && !uri->host)
		return bad_options(uri,
			"a certificate is of a host, which a Unix socket has not (use a "
			"pre-shared key)",
			err);
	return 0;
}

static int take_key(struct client_tls *tls, const struct nbd_client_options *o, struct err *err)
{
	if (o->tls_psk_file) {
		tls->psk_file = strdup(o->tls_psk_file);
		/* Also to see that the file is fit: libnbd says little of one that is not. */
		char *first = tls_psk_file_identity(o->tls_psk_file, err);
		if (!first)
			return -1;
		tls->username = o->tls_username ? strdup(o->tls_username) : strdup(first);
		free(first);
	} else {
		char name[32];
		tls->psk_fd = tls_psk_memory_file(o->tls_username, o->tls_psk_hex, name, err);
		if (tls->psk_fd < 0)
			return -1;
		tls->psk_file = strdup(name);
		tls->username = strdup(o->tls_username);
	}
	return tls->psk_file && tls->username ? 0 : err_errno(err, ENOMEM, "cannot set up TLS");
}

/* libnbd goes on without the files when they are missing. */
static int check_folder(const char *folder, struct err *err)
{
	char *AUTO_FREE path = NULL;
	if (asprintf(&path, "%s/ca-cert.pem", folder) < 0) {
		path = NULL;
		return err_errno(err, ENOMEM, "cannot set up TLS");
	}
	if (access(path, R_OK) < 0)
		return err_errno(err, errno, "cannot read %s", path);
	return 0;
}

int client_tls_init(struct client_tls *tls, const struct client_uri *uri,
	const struct nbd_client_options *options, struct err *err)
{
	static const struct nbd_client_options none;
	const struct nbd_client_options *o = options ? options : &none;
	if (!uri->is_tls)
		return 0;
	if (check(uri, o, err) < 0)
		return -1;
	if (!o->tls_certificates)
		return take_key(tls, o, err) < 0 ? err_context(err, "%s", uri->label) : 0;
	if (check_folder(o->tls_certificates, err) < 0)
		return err_context(err, "%s", uri->label);
	tls->certificates = strdup(o->tls_certificates);
	return tls->certificates ? 0 : err_errno(err, ENOMEM, "cannot set up TLS");
}

void client_tls_fini(struct client_tls *tls)
{
	if (tls->psk_fd >= 0)
		close(tls->psk_fd);
	free(tls->certificates);
	free(tls->psk_file);
	free(tls->username);
}

bool client_tls_prepare(const struct client_tls *tls, struct nbd_handle *handle)
{
	if (!tls->certificates && !tls->psk_file)
		return nbd_set_tls(handle, LIBNBD_TLS_DISABLE) == 0;
	return nbd_set_tls(handle, LIBNBD_TLS_REQUIRE) == 0 &&
	       nbd_set_tls_verify_peer(handle, true) == 0 &&
	       (!tls->certificates || nbd_set_tls_certificates(handle, tls->certificates) == 0) &&
	       (!tls->psk_file || nbd_set_tls_psk_file(handle, tls->psk_file) == 0) &&
	       (!tls->username || nbd_set_tls_username(handle, tls->username) == 0);
}

bool client_tls_needs_host(const struct client_tls *tls)
{
	return tls->certificates != NULL;
}

bool client_tls_explain(const struct client_uri *uri, const char *said, int error, struct err *why)
{
	if (!said)
		return false;
	if (strstr(said, "gnutls"))
		err_set(why, ERR_DENIED,
			"%s: no TLS with this server: %s (does it know our key or certificate, and "
			"we its CA?)",
			uri->label, said);
	else if (strstr(said, "TLS"))
		err_set(why, ERR_REFUSED, "%s: the server %s", uri->label,
			uri->is_tls ? "does not offer TLS" : "demands TLS (nbds://)");
	else if (uri->is_tls && error == ECONNREFUSED)
		err_errno(why, error, "%s: cannot connect", uri->label);
	return why->code != ERR_NONE;
}
