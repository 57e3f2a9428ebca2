/* Certificates: what is in them, who may read the keys, what is not overwritten. */
#include "test_support.h"

#include "pki.h"

#include <gnutls/x509.h>
#include <stdio.h>
#include <sys/stat.h>

static char folder[] = "/tmp/sendense-test-XXXXXX";
static char ca[64], ca_key[64], certificate[64], key[64];

static int make(void **state)
{
	(void)state;
	assert_non_null(mkdtemp(folder));
	snprintf(ca, sizeof ca, "%s/ca", folder);
	snprintf(ca_key, sizeof ca_key, "%s/ca.key", folder);
	snprintf(certificate, sizeof certificate, "%s/c", folder);
	snprintf(key, sizeof key, "%s/c.key", folder);
	struct err err = ERR_INIT;
	assert_int_equal(pki_make_ca("A CA", 365, ca, ca_key, &err), 0);
	return 0;
}

static int drop(void **state)
{
	(void)state;
	unlink(ca);
	unlink(ca_key);
	unlink(certificate);
	unlink(key);
	return rmdir(folder);
}

static mode_t mode_of(const char *path)
{
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	return st.st_mode & 0777;
}

static gnutls_x509_crt_t load(const char *path)
{
	gnutls_x509_crt_t crt;
	gnutls_datum_t pem;
	assert_int_equal(gnutls_load_file(path, &pem), 0);
	assert_int_equal(gnutls_x509_crt_init(&crt), 0);
	assert_int_equal(gnutls_x509_crt_import(crt, &pem, GNUTLS_X509_FMT_PEM), 0);
	gnutls_free(pem.data);
	return crt;
}

static unsigned verify(const char *path, const char *purpose)
{
	gnutls_x509_crt_t crt = load(path), issuer = load(ca);
	gnutls_x509_trust_list_t list;
	gnutls_typed_vdata_st wanted = {
		.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)(uintptr_t)purpose};
	unsigned status = ~0u;
	assert_int_equal(gnutls_x509_trust_list_init(&list, 0), 0);
	assert_int_equal(gnutls_x509_trust_list_add_cas(list, &issuer, 1, 0), 1);
	assert_int_equal(
		gnutls_x509_trust_list_verify_crt2(list, &crt, 1, &wanted, 1, 0, &status, NULL), 0);
	gnutls_x509_trust_list_deinit(list, 1);
	gnutls_x509_crt_deinit(crt);
	return status;
}

static void test_ca(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_int_equal(mode_of(ca), 0644);
	assert_int_equal(mode_of(ca_key), 0600);
	assert_int_equal(pki_make_ca("A CA", 365, ca, key, &err), -1);
	assert_int_equal(err.code, ERR_EXISTS);
	assert_int_equal(pki_make_ca("", 365, certificate, key, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_int_equal(pki_make_ca("x", 0, certificate, key, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_int_equal(access(key, F_OK), -1);
}

static void test_server(void **state)
{
	(void)state;
	static const char *const hosts[] = {"hub.example", "192.0.2.7", "2001:db8::1", "::1"};
	struct pki_request request = {
		.name = "hub", .is_server = true, .hosts = hosts, .nr_hosts = 4, .days = 30};
	struct err err = ERR_INIT;
	int64_t expires_s = 0;
	assert_int_equal(pki_make_certificate(ca, ca_key, &request, certificate, key, &err), 0);
	assert_int_equal(mode_of(certificate), 0644);
	assert_int_equal(mode_of(key), 0600);
	gnutls_x509_crt_t crt = load(certificate);
	static const char *const good[] = {
		"hub.example", "192.0.2.7", "2001:db8::1", "127.0.0.1", "::1", "localhost"};
	for (size_t i = 0; i < ARRAY_LENGTH(good); i++)
		assert_true(gnutls_x509_crt_check_hostname(crt, good[i]));
	assert_false(gnutls_x509_crt_check_hostname(crt, "127.0.0.2"));
	assert_false(gnutls_x509_crt_check_hostname(crt, "other.example"));
	gnutls_x509_crt_deinit(crt);
	assert_int_equal(verify(certificate, GNUTLS_KP_TLS_WWW_SERVER), 0);
	assert_int_not_equal(verify(certificate, GNUTLS_KP_TLS_WWW_CLIENT), 0);
	assert_int_equal(pki_expiry(certificate, &expires_s, &err), 0);
	assert_true(llabs(expires_s - (int64_t)time(NULL) - 30 * 86400) < 60);
}

static void test_client_and_renewal(void **state)
{
	(void)state;
	struct pki_request request = {.name = "node 7", .days = 1};
	struct err err = ERR_INIT;
	char before[PKI_FINGERPRINT_BYTES], after[PKI_FINGERPRINT_BYTES];
	assert_int_equal(pki_fingerprint(certificate, before, &err), 0);
	assert_int_equal(strlen(before), 64);
	assert_int_equal(pki_make_certificate(ca, ca_key, &request, certificate, key, &err), -1);
	assert_int_equal(err.code, ERR_EXISTS);
	request.replace = true;
	assert_int_equal(pki_make_certificate(ca, ca_key, &request, certificate, key, &err), 0);
	assert_int_equal(pki_fingerprint(certificate, after, &err), 0);
	assert_string_not_equal(before, after);
	assert_int_equal(verify(certificate, GNUTLS_KP_TLS_WWW_CLIENT), 0);
}

static void test_what_is_refused(void **state)
{
	(void)state;
	static const char *const hosts[] = {"a host"};
	struct pki_request request = {.name = "x",
		.is_server = true,
		.hosts = hosts,
		.nr_hosts = 1,
		.days = 1,
		.replace = true};
	struct err err = ERR_INIT;
	char hex[PKI_FINGERPRINT_BYTES];
	assert_int_equal(pki_make_certificate(ca, ca_key, &request, certificate, key, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	request.nr_hosts = 0;
	/* Another's key, another's certificate, and a certificate that is no CA. */
	assert_int_equal(pki_make_certificate(ca, key, &request, certificate, key, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_int_equal(pki_make_certificate(certificate, key, &request, ca, ca_key, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_int_equal(pki_fingerprint(key, hex, &err), -1);
	assert_int_equal(err.code, ERR_FORMAT);
	assert_int_equal(pki_fingerprint("/nonexistent", hex, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ca),
		cmocka_unit_test(test_server),
		cmocka_unit_test(test_client_and_renewal),
		cmocka_unit_test(test_what_is_refused),
	};
	return cmocka_run_group_tests(tests, make, drop);
}
