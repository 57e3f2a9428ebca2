/* Credentials; see tls.h. */
#include "transport_internal.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define MOST_FILE_BYTES (1 << 20)
#define LEAST_KEY_BYTES 16

/* A pre-shared key of the file. */
struct tls_key {
	char *identity;
	uint8_t bytes[TLS_PSK_BYTES_MAX];
	size_t length;
};

struct tls_server {
	pthread_mutex_t mutex; /* over now */
	struct tls_credentials *now;
	char *certificate, *key, *clients_ca, *psk_file;
	struct tls_server_options options; /* its texts are the ones above */
};

/* --- ciphers ---------------------------------------------------------------------- */

bool tls_has_aes(void)
{
#if defined(__x86_64__) || defined(__i386__)
	return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined(__aarch64__)
	return getauxval(AT_HWCAP) & (1 << 3); /* HWCAP_AES */
#else
	return false;
#endif
}

/* A key alone fits only ciphers with SHA-256, so AES-128 comes before AES-256.
 * All of them are forward secret. */
#define PRIORITIES_BEFORE "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-CIPHER-ALL:"
#define PRIORITIES_BEHIND                                                                         \
	":-MAC-ALL:+AEAD:-KX-ALL:+ECDHE-ECDSA:+ECDHE-RSA:+ECDHE-PSK:+DHE-PSK:-RSA:-SIGN-RSA-SHA1" \
	":-SIGN-ECDSA-SHA1:%SERVER_PRECEDENCE"

static const char *priority_text(void)
{
	return tls_has_aes() ? PRIORITIES_BEFORE
		       "+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305" PRIORITIES_BEHIND
			     : PRIORITIES_BEFORE
		       "+CHACHA20-POLY1305:+AES-128-GCM:+AES-256-GCM" PRIORITIES_BEHIND;
}

/* --- files --------------------------------------------------------------------------- */

/* A file of secrets is for its owner alone. */
static int load_secret(const char *path, char **bytes, size_t *length, struct err *err)
{
	struct stat st;
	int AUTO_CLOSE fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return err_errno(err, errno, "cannot open %s", path);
	if (!S_ISREG(st.st_mode))
		return err_set(err, ERR_FORMAT, "cannot use %s: it is no file", path);
	if (st.st_mode & 0077)
		return err_set(err, ERR_DENIED,
			"cannot use %s: others than its owner may read the keys in it (chmod 600)",
			path);
	char name[32];
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	if (file_load(AT_FDCWD, name, MOST_FILE_BYTES, bytes, length, err) < 0)
		return err_context(err, "cannot read %s", path);
	return 0;
}

static void free_secret(char *bytes, size_t length)
{
	if (bytes)
		explicit_bzero(bytes, length);
	free(bytes);
}

/* --- pre-shared keys ------------------------------------------------------------------ */

static bool parse_key(struct tls_key *key, char *hex)
{
	size_t length = strlen(hex);
	if (length % 2 != 0 || length < (size_t)2 * LEAST_KEY_BYTES ||
		length > (size_t)2 * TLS_PSK_BYTES_MAX)
		return false;
	for (char *c = hex; *c; c++)
		*c = (char)tolower((unsigned char)*c);
	key->length = length / 2;
	return digest_unhex(hex, key->bytes, key->length);
}

/* Adds the key of one line, which is taken apart. */
static int add_key(
	struct tls_credentials *c, char *line, const char *path, unsigned nr_line, struct err *err)
{
	struct tls_key *keys = realloc(c->keys, (c->nr_keys + 1) * sizeof *keys);
	if (!keys)
		return err_errno(err, ENOMEM, "cannot read %s", path);
	c->keys = keys;
	struct tls_key *key = &keys[c->nr_keys];
	char *colon = strrchr(line, ':');
	size_t identity_length = colon ? (size_t)(colon - line) : 0;
	bool is_good = identity_length > 0 && identity_length < TLS_IDENTITY_BYTES - sizeof "psk:";
	for (size_t i = 0; is_good && i < identity_length; i++)
		is_good = line[i] > 0x20 && line[i] < 0x7f;
	if (!is_good || !parse_key(key, colon + 1))
		return err_set(err, ERR_FORMAT,
			"cannot use %s: line %u is not IDENTITY:HEXKEY with a key of %d to %u "
			"bytes",
			path, nr_line, LEAST_KEY_BYTES, TLS_PSK_BYTES_MAX);
	key->identity = strndup(line, identity_length);
	if (!key->identity)
		return err_errno(err, ENOMEM, "cannot read %s", path);
	c->nr_keys++;
	return 0;
}

static int load_keys(struct tls_credentials *c, const char *path, struct err *err)
{
	char *bytes = NULL, *at;
	size_t length = 0;
	unsigned nr_line = 0;
	int rc = 0;
	if (load_secret(path, &bytes, &length, err) < 0)
		return -1;
	for (char *line = bytes; rc == 0 && line; line = at) {
		at = strchr(line, '\n');
		if (at)
			*at++ = '\0';
		nr_line++;
		if (line[0] && line[0] != '#')
			rc = add_key(c, line, path, nr_line, err);
	}
	free_secret(bytes, length);
	if (rc == 0 && c->nr_keys == 0)
		rc = err_set(err, ERR_FORMAT, "cannot use %s: there is no key in it", path);
	return rc;
}

int tls_credentials_find(const struct tls_credentials *c, const char *identity,
	uint8_t key[TLS_PSK_BYTES_MAX], size_t *length)
{
	for (size_t i = 0; i < c->nr_keys; i++) {
		if (strcmp(c->keys[i].identity, identity) != 0)
			continue;
		memcpy(key, c->keys[i].bytes, c->keys[i].length);
		*length = c->keys[i].length;
		return 0;
	}
	return c->psk_find ? c->psk_find(c->psk_user, identity, key, length) : -1;
}

/* --- certificates --------------------------------------------------------------------- */

static int failed(int rc, const char *path, struct err *err)
{
	return err_set(err, rc == GNUTLS_E_CERTIFICATE_KEY_MISMATCH ? ERR_USAGE : ERR_FORMAT,
		"cannot use %s: %s", path, gnutls_strerror(rc));
}

static void warn_of_expiry(const struct tls_credentials *c, const char *path)
{
	time_t expires = 0;
	gnutls_x509_crt_t *chain = NULL;
	unsigned nr = 0;
	if (gnutls_certificate_get_x509_crt(c->x509, 0, &chain, &nr) < 0)
		return;
	if (nr > 0)
		expires = gnutls_x509_crt_get_expiration_time(chain[0]);
	for (unsigned i = 0; i < nr; i++)
		gnutls_x509_crt_deinit(chain[i]);
	gnutls_free(chain);
	char text[CLOCK_UTC_BYTES];
	clock_utc_text((int64_t)expires, text);
	if (nr > 0 && expires < time(NULL))
		log_warning(
			"the certificate %s has expired at %s: clients will refuse it", path, text);
}

static int load_pair(struct tls_credentials *c, const struct tls_server_options *o, struct err *err)
{
	char *AUTO_FREE certificate = NULL;
	char *key = NULL;
	size_t certificate_length, key_length = 0;
	if (file_load(AT_FDCWD, o->certificate, MOST_FILE_BYTES, &certificate, &certificate_length,
		    err) < 0 ||
		load_secret(o->key, &key, &key_length, err) < 0)
		return -1;
	gnutls_datum_t pem = {(unsigned char *)certificate, (unsigned)certificate_length};
	gnutls_datum_t key_pem = {(unsigned char *)key, (unsigned)key_length};
	int rc = gnutls_certificate_set_x509_key_mem(c->x509, &pem, &key_pem, GNUTLS_X509_FMT_PEM);
	free_secret(key, key_length);
	if (rc < 0) {
		failed(rc, o->certificate, err);
		return err_hint(err, "its key is %s", o->key);
	}
	warn_of_expiry(c, o->certificate);
	return 0;
}

static int load_certificates(
	struct tls_credentials *c, const struct tls_server_options *o, struct err *err)
{
	if (gnutls_certificate_allocate_credentials(&c->x509) < 0) {
		c->x509 = NULL;
		return err_errno(err, ENOMEM, "cannot use %s", o->certificate);
	}
	if (load_pair(c, o, err) < 0)
		return -1;
	if (!o->clients_ca)
		return 0;
	int rc =
		gnutls_certificate_set_x509_trust_file(c->x509, o->clients_ca, GNUTLS_X509_FMT_PEM);
	if (rc > 0)
		return 0;
	return failed(rc < 0 ? rc : GNUTLS_E_NO_CERTIFICATE_FOUND, o->clients_ca, err);
}

/* --- both ---------------------------------------------------------------------------------- */

void tls_credentials_put(struct tls_credentials *c)
{
	if (atomic_fetch_sub(&c->nr_users, 1) > 1)
		return;
	for (size_t i = 0; i < c->nr_keys; i++) {
		explicit_bzero(c->keys[i].bytes, sizeof c->keys[i].bytes);
		free(c->keys[i].identity);
	}
	free(c->keys);
	if (c->x509)
		gnutls_certificate_free_credentials(c->x509);
	if (c->psk)
		gnutls_psk_free_server_credentials(c->psk);
	if (c->priorities)
		gnutls_priority_deinit(c->priorities);
	free(c);
}

static int fill(struct tls_credentials *c, const struct tls_server_options *o, struct err *err)
{
	c->clients = o->clients;
	c->psk_find = o->psk_find;
	c->psk_user = o->psk_user;
	int rc = gnutls_priority_init(&c->priorities, priority_text(), NULL);
	if (rc < 0) {
		c->priorities = NULL;
		return err_set(err, ERR_UNSUPPORTED, "cannot set up TLS: %s", gnutls_strerror(rc));
	}
	if (o->certificate && load_certificates(c, o, err) < 0)
		return -1;
	if (!o->psk_file && !o->psk_find)
		return 0;
	if (gnutls_psk_allocate_server_credentials(&c->psk) < 0) {
		c->psk = NULL;
		return err_errno(err, ENOMEM, "cannot set up TLS");
	}
	gnutls_psk_set_server_known_dh_params(c->psk, GNUTLS_SEC_PARAM_MEDIUM);
	gnutls_psk_set_server_credentials_function2(c->psk, stream_tls_find_key);
	return o->psk_file ? load_keys(c, o->psk_file, err) : 0;
}

static struct tls_credentials *load(const struct tls_server_options *o, struct err *err)
{
	struct tls_credentials *c = calloc(1, sizeof *c);
	if (!c) {
		err_errno(err, ENOMEM, "cannot set up TLS");
		return NULL;
	}
	atomic_init(&c->nr_users, 1);
	if (fill(c, o, err) < 0) {
		tls_credentials_put(c);
		return NULL;
	}
	return c;
}

struct tls_credentials *tls_credentials_get(struct tls_server *server)
{
	WITH_LOCK(&server->mutex);
	atomic_fetch_add(&server->now->nr_users, 1);
	return server->now;
}

/* --- servers -------------------------------------------------------------------------------- */

static int check(const struct tls_server_options *o, struct err *err)
{
	if (!o->certificate != !o->key)
		return err_set(
			err, ERR_USAGE, "a certificate needs its key, and a key its certificate");
	if (!o->certificate && !o->psk_file && !o->psk_find)
		return err_set(
			err, ERR_USAGE, "TLS needs a certificate with its key, or pre-shared keys");
	if (o->clients != TLS_CLIENTS_ANY && !o->clients_ca)
		return err_set(err, ERR_USAGE,
			"clients' certificates cannot be checked without the CA that made them");
	if ((o->clients_ca || o->clients != TLS_CLIENTS_ANY) && !o->certificate)
		return err_set(
			err, ERR_USAGE, "clients show certificates only to a server that has one");
	return 0;
}

static bool copy_text(const char **text, char **copy)
{
	*copy = *text ? strdup(*text) : NULL;
	bool is_good = *copy || !*text;
	*text = *copy;
	return is_good;
}

struct tls_server *tls_server_new(const struct tls_server_options *options, struct err *err)
{
	if (check(options, err) < 0)
		return NULL;
	struct tls_server *server = calloc(1, sizeof *server);
	if (!server) {
		err_errno(err, ENOMEM, "cannot set up TLS");
		return NULL;
	}
	pthread_mutex_init(&server->mutex, NULL);
	server->options = *options;
	struct tls_server_options *o = &server->options;
	bool is_copied = copy_text(&o->certificate, &server->certificate);
	is_copied &= copy_text(&o->key, &server->key);
	is_copied &= copy_text(&o->clients_ca, &server->clients_ca);
	is_copied &= copy_text(&o->psk_file, &server->psk_file);
	if (is_copied)
		server->now = load(o, err);
	else
		err_errno(err, ENOMEM, "cannot set up TLS");
	if (server->now)
		return server;
	tls_server_free(server);
	return NULL;
}

int tls_server_reload(struct tls_server *server, struct err *err)
{
	struct tls_credentials *fresh = load(&server->options, err);
	if (!fresh)
		return -1;
	pthread_mutex_lock(&server->mutex);
	struct tls_credentials *old = server->now;
	server->now = fresh;
	pthread_mutex_unlock(&server->mutex);
	tls_credentials_put(old);
	return 0;
}

void tls_server_free(struct tls_server *server)
{
	if (!server)
		return;
	if (server->now)
		tls_credentials_put(server->now);
	pthread_mutex_destroy(&server->mutex);
	free(server->certificate);
	free(server->key);
	free(server->clients_ca);
	free(server->psk_file);
	free(server);
}

bool tls_server_authenticates(const struct tls_server *server)
{
	const struct tls_server_options *o = &server->options;
	return !o->certificate || o->clients == TLS_CLIENTS_REQUIRED;
}

/* --- keys for libraries that want a file ------------------------------------------------------ */

int tls_psk_memory_file(const char *identity, const char *hex_key, char name[32], struct err *err)
{
	int fd = memfd_create("psk", MFD_CLOEXEC);
	if (fd < 0)
		return err_errno(err, errno, "cannot make a memory file");
	if (dprintf(fd, "%s:%s\n", identity, hex_key) < 0) {
		err_errno(err, errno, "cannot write a memory file");
		close(fd);
		return -1;
	}
	snprintf(name, 32, "/proc/self/fd/%d", fd);
	return fd;
}

char *tls_psk_file_identity(const char *path, struct err *err)
{
	struct tls_credentials c = {.nr_keys = 0};
	char *identity = NULL;
	if (load_keys(&c, path, err) == 0) {
		identity = strdup(c.keys[0].identity);
		if (!identity)
			err_errno(err, ENOMEM, "cannot read %s", path);
	}
	for (size_t i = 0; i < c.nr_keys; i++) {
		explicit_bzero(c.keys[i].bytes, sizeof c.keys[i].bytes);
		free(c.keys[i].identity);
	}
	free(c.keys);
	return identity;
}
