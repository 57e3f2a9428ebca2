/*
 * The server's certificate, which can be exchanged while it runs.  The HTTP library asks for
 * it at each handshake and borrows it until the handshake's end, so an old one is kept for a
 * while after it was exchanged.
 */
#include "rest_internal.h"

#include <fcntl.h>

#define CHAIN_MOST 16
#define FILE_MOST (1u << 20)
#define KEPT_NS ((int64_t)300 * 1000000000)

struct pair {
	struct pair *older;
	gnutls_pcert_st chain[CHAIN_MOST];
	unsigned nr_chain;
	gnutls_privkey_t key;
	int64_t retired_ns;
};

struct rest_certificates {
	pthread_mutex_t mutex;
	struct pair *now;
	char *certificate_file, *key_file;
};

static void free_pair(struct pair *pair)
{
	if (!pair)
		return;
	for (unsigned i = 0; i < pair->nr_chain; i++)
		gnutls_pcert_deinit(&pair->chain[i]);
	if (pair->key)
		gnutls_privkey_deinit(pair->key);
	free(pair);
}

static int load_chain(struct pair *pair, const char *path, struct err *err)
{
	AUTO_FREE char *pem = NULL;
	size_t length;
	if (file_load(AT_FDCWD, path, FILE_MOST, &pem, &length, err))
		return -1;
	gnutls_datum_t datum = {(unsigned char *)pem, (unsigned)length};
	unsigned nr = CHAIN_MOST;
	int rc =
		gnutls_pcert_list_import_x509_raw(pair->chain, &nr, &datum, GNUTLS_X509_FMT_PEM, 0);
	if (rc < 0)
		return err_set(err, ERR_FORMAT, "%s: not a PEM certificate (chain): %s", path,
			gnutls_strerror(rc));
	pair->nr_chain = nr;
	return nr ? 0 : err_set(err, ERR_FORMAT, "%s: holds no certificate", path);
}

static int load_key(struct pair *pair, const char *path, struct err *err)
{
	char *pem = NULL;
	size_t length;
	if (file_load(AT_FDCWD, path, FILE_MOST, &pem, &length, err))
		return -1;
	gnutls_datum_t datum = {(unsigned char *)pem, (unsigned)length};
	int rc = gnutls_privkey_init(&pair->key);
	if (rc >= 0)
		rc = gnutls_privkey_import_x509_raw(
			pair->key, &datum, GNUTLS_X509_FMT_PEM, NULL, 0);
	explicit_bzero(pem, length);
	free(pem);
	return rc < 0 ? err_set(err, ERR_FORMAT, "%s: not a PEM private key without a password: %s",
				path, gnutls_strerror(rc))
		      : 0;
}

static bool belong_together(const struct pair *pair)
{
	uint8_t ours[64], theirs[64];
	size_t ours_length = sizeof ours, theirs_length = sizeof theirs;
	gnutls_pubkey_t public;
	if (gnutls_pubkey_init(&public) < 0)
		return false;
	bool same =
		gnutls_pubkey_import_privkey(public, pair->key, 0, 0) >= 0 &&
		gnutls_pubkey_get_key_id(public, 0, ours, &ours_length) >= 0 &&
		gnutls_pubkey_get_key_id(pair->chain[0].pubkey, 0, theirs, &theirs_length) >= 0 &&
		ours_length == theirs_length && !memcmp(ours, theirs, ours_length);
	gnutls_pubkey_deinit(public);
	return same;
}

static struct pair *load(const char *certificate_file, const char *key_file, struct err *err)
{
	struct pair *pair = calloc(1, sizeof *pair);
	if (!pair) {
		err_set(err, ERR_NO_MEMORY, "loading a certificate: no memory");
		return NULL;
	}
	if (load_chain(pair, certificate_file, err) || load_key(pair, key_file, err))
		goto fail;
	if (!belong_together(pair)) {
		err_set(err, ERR_USAGE, "%s is not the key of %s", key_file, certificate_file);
		goto fail;
	}
	return pair;
fail:
	err_context(err, "loading the server's certificate");
	free_pair(pair);
	return NULL;
}

struct rest_certificates *rest_certificates_new(
	const char *certificate_file, const char *key_file, struct err *err)
{
	struct rest_certificates *certificates = calloc(1, sizeof *certificates);
	if (!certificates) {
		err_set(err, ERR_NO_MEMORY, "loading a certificate: no memory");
		return NULL;
	}
	pthread_mutex_init(&certificates->mutex, NULL);
	certificates->certificate_file = strdup(certificate_file);
	certificates->key_file = strdup(key_file);
	if (!certificates->certificate_file || !certificates->key_file) {
		err_set(err, ERR_NO_MEMORY, "loading a certificate: no memory");
		goto fail;
	}
	certificates->now = load(certificate_file, key_file, err);
	if (!certificates->now)
		goto fail;
	return certificates;
fail:
	rest_certificates_free(certificates);
	return NULL;
}

void rest_certificates_free(struct rest_certificates *certificates)
{
	if (!certificates)
		return;
	while (certificates->now) {
		struct pair *pair = certificates->now;
		certificates->now = pair->older;
		free_pair(pair);
	}
	pthread_mutex_destroy(&certificates->mutex);
	free(certificates->certificate_file);
	free(certificates->key_file);
	free(certificates);
}

static void forget_old(struct pair *pair, int64_t now_ns)
{
	while (pair->older) {
		struct pair *older = pair->older;
		if (now_ns - older->retired_ns < KEPT_NS) {
			pair = older;
			continue;
		}
		pair->older = older->older;
		free_pair(older);
	}
}

int rest_certificates_reload(struct rest_certificates *certificates, struct err *err)
{
	struct pair *pair = load(certificates->certificate_file, certificates->key_file, err);
	if (!pair)
		return -1;
	WITH_LOCK(&certificates->mutex);
	certificates->now->retired_ns = clock_now_ns();
	pair->older = certificates->now;
	certificates->now = pair;
	forget_old(pair, clock_now_ns());
	return 0;
}

void rest_certificates_get(struct rest_certificates *certificates, gnutls_pcert_st **chain,
	unsigned *nr_chain, gnutls_privkey_t *key)
{
	WITH_LOCK(&certificates->mutex);
	*chain = certificates->now->chain;
	*nr_chain = certificates->now->nr_chain;
	*key = certificates->now->key;
}
