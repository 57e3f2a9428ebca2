/* Certificates; see pki.h. */
#include "pki.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <sys/stat.h>

#define SERIAL_BYTES 16
#define NAME_BYTES 64
#define DAY_S 86400
#define MOST_DAYS 36500
/* Clocks differ a little; a fresh certificate is to be good everywhere. */
#define BACKDATED_S 3600
#define MOST_FILE_BYTES (1 << 20)

/* A certificate with its key. */
struct pair {
	gnutls_x509_crt_t certificate;
	gnutls_x509_privkey_t key;
};

static int failed(int rc, const char *what, struct err *err)
{
	return err_set(err, ERR_FORMAT, "%s: %s", what, gnutls_strerror(rc));
}

static void free_pair(struct pair *pair)
{
	if (pair->certificate)
		gnutls_x509_crt_deinit(pair->certificate);
	if (pair->key)
		gnutls_x509_privkey_deinit(pair->key);
}

static int init_pair(struct pair *pair, struct err *err)
{
	int rc = gnutls_x509_crt_init(&pair->certificate);
	if (rc == 0)
		rc = gnutls_x509_privkey_init(&pair->key);
	return rc < 0 ? failed(rc, "cannot make a certificate", err) : 0;
}

/* --- files --------------------------------------------------------------------------- */

static int check_free(const char *path, struct err *err)
{
	struct stat st;
	if (lstat(path, &st) == 0)
		return err_set(err, ERR_EXISTS, "%s exists already", path);
	return errno == ENOENT ? 0 : err_errno(err, errno, "cannot look at %s", path);
}

static int save_key(const char *path, gnutls_x509_privkey_t key, struct err *err)
{
	gnutls_datum_t pem;
	int rc = gnutls_x509_privkey_export2_pkcs8(
		key, GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, &pem);
	if (rc < 0)
		return failed(rc, "cannot write a key", err);
	rc = file_replace(AT_FDCWD, path, pem.data, pem.size, 0600, err);
	gnutls_memset(pem.data, 0, pem.size);
	gnutls_free(pem.data);
	return rc;
}

/* issuer: goes into the file too, or NULL. */
static int save_certificate(
	const char *path, gnutls_x509_crt_t certificate, gnutls_x509_crt_t issuer, struct err *err)
{
	gnutls_datum_t pem = {.data = NULL}, behind = {.data = NULL};
	char *AUTO_FREE text = NULL;
	int rc = gnutls_x509_crt_export2(certificate, GNUTLS_X509_FMT_PEM, &pem);
	if (rc == 0 && issuer)
		rc = gnutls_x509_crt_export2(issuer, GNUTLS_X509_FMT_PEM, &behind);
	int length =
		rc < 0 ? -1
		       : asprintf(&text, "%.*s%.*s", (int)pem.size, (const char *)pem.data,
				 (int)behind.size, behind.data ? (const char *)behind.data : "");
	gnutls_free(pem.data);
	gnutls_free(behind.data);
	if (rc < 0)
		return failed(rc, "cannot write a certificate", err);
	if (length < 0) {
		text = NULL;
		return err_errno(err, ENOMEM, "cannot write a certificate");
	}
	return file_replace(AT_FDCWD, path, text, (size_t)length, 0644, err);
}

static int load_certificate(const char *path, gnutls_x509_crt_t certificate, struct err *err)
{
	char *AUTO_FREE bytes = NULL;
	size_t length;
	if (file_load(AT_FDCWD, path, MOST_FILE_BYTES, &bytes, &length, err) < 0)
		return -1;
	gnutls_datum_t pem = {(unsigned char *)bytes, (unsigned)length};
	int rc = gnutls_x509_crt_import(certificate, &pem, GNUTLS_X509_FMT_PEM);
	if (rc < 0)
		return err_set(
			err, ERR_FORMAT, "%s holds no certificate: %s", path, gnutls_strerror(rc));
	return 0;
}

static int load_key(const char *path, gnutls_x509_privkey_t key, struct err *err)
{
	char *bytes = NULL;
	size_t length;
	if (file_load(AT_FDCWD, path, MOST_FILE_BYTES, &bytes, &length, err) < 0)
		return -1;
	gnutls_datum_t pem = {(unsigned char *)bytes, (unsigned)length};
	int rc = gnutls_x509_privkey_import2(key, &pem, GNUTLS_X509_FMT_PEM, NULL, 0);
	explicit_bzero(bytes, length);
	free(bytes);
	if (rc < 0)
		return err_set(
			err, ERR_FORMAT, "%s holds no usable key: %s", path, gnutls_strerror(rc));
	return 0;
}

/* --- what all certificates have --------------------------------------------------------- */

static int check_subject(const char *name, unsigned days, struct err *err)
{
	size_t length = strlen(name);
	if (length < 1 || length > NAME_BYTES)
		return err_set(err, ERR_USAGE,
			"cannot make a certificate for '%.80s': a name has 1 to %d bytes", name,
			NAME_BYTES);
	if (days < 1 || days > MOST_DAYS)
		return err_set(err, ERR_USAGE,
			"cannot make a certificate for %u days: it is 1 to %d", days, MOST_DAYS);
	return 0;
}

/* A fresh key, and what every certificate has. */
static int begin(struct pair *pair, const char *name, unsigned days, struct err *err)
{
	uint8_t serial[SERIAL_BYTES];
	time_t now = time(NULL);
	if (check_subject(name, days, err) < 0 || init_pair(pair, err) < 0 ||
		file_random(serial, sizeof serial, err) < 0)
		return -1;
	serial[0] = (serial[0] & 0x3f) | 0x40; /* positive, and never shorter */
	gnutls_x509_crt_t c = pair->certificate;
	int rc = gnutls_x509_privkey_generate(
		pair->key, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0);
	if (rc == 0)
		rc = gnutls_x509_crt_set_version(c, 3);
	if (rc == 0)
		rc = gnutls_x509_crt_set_serial(c, serial, sizeof serial);
	if (rc == 0)
		rc = gnutls_x509_crt_set_dn_by_oid(
			c, GNUTLS_OID_X520_COMMON_NAME, 0, name, (unsigned)strlen(name));
	if (rc == 0)
		rc = gnutls_x509_crt_set_activation_time(c, now - BACKDATED_S);
	if (rc == 0)
		rc = gnutls_x509_crt_set_expiration_time(c, now + (time_t)days * DAY_S);
	if (rc == 0)
		rc = gnutls_x509_crt_set_key(c, pair->key);
	return rc < 0 ? failed(rc, "cannot make a certificate", err) : 0;
}

/* Sets the key's id as subject (or issuer) id, so that chains are found. */
static int set_id(gnutls_x509_crt_t certificate, gnutls_x509_privkey_t key, bool is_subject)
{
	uint8_t id[64];
	size_t length = sizeof id;
	int rc = gnutls_x509_privkey_get_key_id(key, 0, id, &length);
	if (rc < 0)
		return rc;
	return is_subject ? gnutls_x509_crt_set_subject_key_id(certificate, id, length)
			  : gnutls_x509_crt_set_authority_key_id(certificate, id, length);
}

/* --- the CA ---------------------------------------------------------------------------------- */

static int finish_ca(struct pair *ca)
{
	gnutls_x509_crt_t c = ca->certificate;
	int rc = gnutls_x509_crt_set_basic_constraints(c, 1, 0);
	if (rc == 0)
		rc = gnutls_x509_crt_set_key_usage(
			c, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN);
	if (rc == 0)
		rc = set_id(c, ca->key, true);
	if (rc == 0)
		rc = gnutls_x509_crt_sign2(c, c, ca->key, GNUTLS_DIG_SHA256, 0);
	return rc;
}

int pki_make_ca(const char *name, unsigned days, const char *certificate_path, const char *key_path,
	struct err *err)
{
	struct pair ca = {.certificate = NULL};
	int rc = -1;
	if (check_free(certificate_path, err) < 0 || check_free(key_path, err) < 0)
		goto out;
	if (begin(&ca, name, days, err) < 0)
		goto out;
	int code = finish_ca(&ca);
	if (code < 0)
		failed(code, "cannot sign a certificate", err);
	else if (save_key(key_path, ca.key, err) == 0 &&
		 save_certificate(certificate_path, ca.certificate, NULL, err) == 0)
		rc = 0;
out:
	free_pair(&ca);
	return rc < 0 ? err_context(err, "cannot make a CA") : 0;
}

/* --- others ------------------------------------------------------------------------------------
 */

static int add_host(gnutls_x509_crt_t c, const char *host, struct err *err)
{
	uint8_t address[16];
	unsigned length = 0;
	if (inet_pton(AF_INET, host, address) == 1)
		length = 4;
	else if (inet_pton(AF_INET6, host, address) == 1)
		length = 16;
	size_t n = strlen(host);
	if (n == 0 || n > 253 ||
		strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			     "0123456789-._*:") != n)
		return err_set(err, ERR_USAGE, "'%.80s' is no host name and no address", host);
	int rc = length ? gnutls_x509_crt_set_subject_alt_name(
				  c, GNUTLS_SAN_IPADDRESS, address, length, GNUTLS_FSAN_APPEND)
			: gnutls_x509_crt_set_subject_alt_name(
				  c, GNUTLS_SAN_DNSNAME, host, (unsigned)n, GNUTLS_FSAN_APPEND);
	return rc < 0 ? failed(rc, "cannot name a host in a certificate", err) : 0;
}

static int add_hosts(gnutls_x509_crt_t c, const struct pki_request *request, struct err *err)
{
	static const char *const own[] = {"127.0.0.1", "::1", "localhost"};
	for (size_t i = 0; i < request->nr_hosts; i++) {
		bool is_own = false;
		for (size_t k = 0; k < ARRAY_LENGTH(own); k++)
			is_own |= strcmp(own[k], request->hosts[i]) == 0;
		if (!is_own && add_host(c, request->hosts[i], err) < 0)
			return -1;
	}
	for (size_t k = 0; k < ARRAY_LENGTH(own); k++)
		if (add_host(c, own[k], err) < 0)
			return -1;
	return 0;
}

static int finish(struct pair *pair, const struct pair *ca, bool is_server)
{
	gnutls_x509_crt_t c = pair->certificate;
	int rc = gnutls_x509_crt_set_basic_constraints(c, 0, -1);
	if (rc == 0)
		rc = gnutls_x509_crt_set_key_usage(c, GNUTLS_KEY_DIGITAL_SIGNATURE);
	if (rc == 0)
		rc = gnutls_x509_crt_set_key_purpose_oid(
			c, is_server ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT, 0);
	if (rc == 0)
		rc = set_id(c, pair->key, true);
	if (rc == 0)
		rc = set_id(c, ca->key, false);
	if (rc == 0)
		rc = gnutls_x509_crt_sign2(c, ca->certificate, ca->key, GNUTLS_DIG_SHA256, 0);
	return rc;
}

static int load_ca(
	struct pair *ca, const char *certificate_path, const char *key_path, struct err *err)
{
	if (init_pair(ca, err) < 0 ||
		load_certificate(certificate_path, ca->certificate, err) < 0 ||
		load_key(key_path, ca->key, err) < 0)
		return -1;
	uint8_t of_certificate[64], of_key[64];
	size_t n = sizeof of_certificate, m = sizeof of_key;
	if (gnutls_x509_crt_get_key_id(ca->certificate, 0, of_certificate, &n) < 0 ||
		gnutls_x509_privkey_get_key_id(ca->key, 0, of_key, &m) < 0 || n != m ||
		memcmp(of_certificate, of_key, n) != 0)
		return err_set(
			err, ERR_USAGE, "%s is not the key of %s", key_path, certificate_path);
	if (gnutls_x509_crt_get_ca_status(ca->certificate, NULL) <= 0)
		return err_set(err, ERR_USAGE, "%s is not a CA's certificate", certificate_path);
	return 0;
}

static int make(const struct pair *ca, struct pair *pair, const struct pki_request *request,
	const char *certificate_path, const char *key_path, struct err *err)
{
	if (begin(pair, request->name, request->days, err) < 0)
		return -1;
	if (request->is_server && add_hosts(pair->certificate, request, err) < 0)
		return -1;
	int rc = finish(pair, ca, request->is_server);
	if (rc < 0)
		return failed(rc, "cannot sign a certificate", err);
	if (save_key(key_path, pair->key, err) < 0)
		return -1;
	return save_certificate(certificate_path, pair->certificate, ca->certificate, err);
}

int pki_make_certificate(const char *ca_certificate, const char *ca_key,
	const struct pki_request *request, const char *certificate_path, const char *key_path,
	struct err *err)
{
	struct pair ca = {.certificate = NULL}, pair = {.certificate = NULL};
	int rc = 0;
	if (!request->replace &&
		(check_free(certificate_path, err) < 0 || check_free(key_path, err) < 0))
		rc = -1;
	if (rc == 0)
		rc = load_ca(&ca, ca_certificate, ca_key, err);
	if (rc == 0)
		rc = make(&ca, &pair, request, certificate_path, key_path, err);
	free_pair(&pair);
	free_pair(&ca);
	return rc < 0 ? err_context(err, "cannot make a certificate") : 0;
}

/* --- looking at them
 * -------------------------------------------------------------------------------- */

static int open_certificate(const char *path, gnutls_x509_crt_t *certificate, struct err *err)
{
	int rc = gnutls_x509_crt_init(certificate);
	if (rc < 0)
		return failed(rc, "cannot read a certificate", err);
	if (load_certificate(path, *certificate, err) == 0)
		return 0;
	gnutls_x509_crt_deinit(*certificate);
	return -1;
}

int pki_fingerprint(const char *certificate_path, char hex[PKI_FINGERPRINT_BYTES], struct err *err)
{
	gnutls_x509_crt_t certificate;
	uint8_t digest[32];
	size_t length = sizeof digest;
	if (open_certificate(certificate_path, &certificate, err) < 0)
		return -1;
	int rc = gnutls_x509_crt_get_fingerprint(certificate, GNUTLS_DIG_SHA256, digest, &length);
	gnutls_x509_crt_deinit(certificate);
	if (rc < 0)
		return failed(rc, "cannot take a certificate's fingerprint", err);
	digest_hex(digest, sizeof digest, hex);
	return 0;
}

int pki_expiry(const char *certificate_path, int64_t *expires_s, struct err *err)
{
	gnutls_x509_crt_t certificate;
	if (open_certificate(certificate_path, &certificate, err) < 0)
		return -1;
	*expires_s = (int64_t)gnutls_x509_crt_get_expiration_time(certificate);
	gnutls_x509_crt_deinit(certificate);
	return 0;
}

int pki_make_psk(char hex[PKI_PSK_HEX_BYTES], struct err *err)
{
	uint8_t bytes[(PKI_PSK_HEX_BYTES - 1) / 2];
	if (file_random(bytes, sizeof bytes, err) < 0)
		return -1;
	digest_hex(bytes, sizeof bytes, hex);
	explicit_bzero(bytes, sizeof bytes);
	return 0;
}
