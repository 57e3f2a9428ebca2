/*
 * hub init: all that a hub needs, made by itself.  Each thing is made only where it is missing,
 * so that one that was interrupted is called again; nothing is replaced.
 *
 *   STATE/            0700
 *   STATE/state.db    with the first token's hash
 *   STATE/admin.token 0600, the token
 *   STATE/tls/        ca.crt ca.key server.crt server.key
 *   hub.conf
 */
#include "hub_internal.h"

#include "file.h"
#include "repository.h"
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define CA_DAYS 3650
#define SERVER_DAYS 825 /* the longest that all clients take */

struct making {
	const struct hub_init_options *options;
	struct hub_init_result *result;
	struct hub_config *there; /* the settings, where the file was there before */
	const char *state_dir, *runtime_dir, *listen, *nbd_listen;
	char name[256];
	char tls_dir[4096];
};

static void did(const struct making *m, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void did(const struct making *m, const char *format, ...)
{
	char text[ERR_TEXT_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	if (m->options->did)
		m->options->did(m->options->context, text);
}

static bool exists(const char *path)
{
	return access(path, F_OK) == 0;
}

static int join(char *out, size_t bytes, const char *folder, const char *name, struct err *err)
{
	int length = snprintf(out, bytes, "%s/%s", folder, name);
	return length < 0 || (size_t)length >= bytes
		       ? err_set(err, ERR_USAGE, "the path %.100s/%s is too long", folder, name)
		       : 0;
}

static int make_folder(const struct making *m, const char *path, mode_t mode, struct err *err)
{
	if (mkdir(path, mode) == 0) {
		did(m, "made the folder %s", path);
		return 0;
	}
	int error = errno;
	if (error == EEXIST)
		return 0;
	err_errno(err, error, "cannot make %s", path);
	if (error == EACCES || error == EPERM)
		err_hint(err, "make it as root, for the user that the hub runs as");
	return -1;
}

/* --- certificates ------------------------------------------------------------------------------
 */

static int make_certificates(struct making *m, struct err *err)
{
	char ca_key[4096], certificate[4096], key[4096];
	char *ca = m->result->ca_file, common[65];
	if (join(ca_key, sizeof ca_key, m->tls_dir, "ca.key", err) < 0 ||
		join(certificate, sizeof certificate, m->tls_dir, "server.crt", err) < 0 ||
		join(key, sizeof key, m->tls_dir, "server.key", err) < 0 ||
		make_folder(m, m->tls_dir, 0700, err) < 0)
		return -1;
	if (!exists(ca) || !exists(ca_key)) {
		snprintf(common, sizeof common, "Sendense CA of %.40s", m->name);
		if (pki_make_ca(common, CA_DAYS, ca, ca_key, err) < 0)
			return -1;
		did(m, "made a CA, %s", ca);
	}
	if (exists(certificate) && exists(key))
		return 0;
	const char *hosts[64] = {m->name};
	size_t nr = 1;
	for (size_t i = 0; i < m->options->nr_addresses && nr < ARRAY_LENGTH(hosts); i++)
		hosts[nr++] = m->options->addresses[i];
	snprintf(common, sizeof common, "%.60s", m->name);
	const struct pki_request request = {.name = common,
		.is_server = true,
		.hosts = hosts,
		.nr_hosts = nr,
		.days = SERVER_DAYS,
		.replace = true};
	if (pki_make_certificate(ca, ca_key, &request, certificate, key, err) < 0)
		return -1;
	did(m, "made a certificate for %s, %s", m->name, certificate);
	return 0;
}

/* --- the first token -----------------------------------------------------------------------------
 */

static int make_token(struct making *m, struct err *err)
{
	char path[4096], token[REST_TOKEN_BYTES], line[REST_TOKEN_BYTES + 1];
	char *file = m->result->token_file;
	if (join(file, sizeof m->result->token_file, m->state_dir, "admin.token", err) < 0 ||
		join(path, sizeof path, m->state_dir, "state.db", err) < 0)
		return -1;
	if (exists(file))
		return 0;
	struct state *state = state_open(path, err);
	if (!state)
		return -1;
	int rc = access_token_make(state, "admin", REST_ADMIN, NULL, 0, token, NULL, err);
	state_close(state);
	if (rc < 0)
		return -1;
	int length = snprintf(line, sizeof line, "%s\n", token);
	rc = file_replace(AT_FDCWD, file, line, (size_t)length, 0600, err);
	explicit_bzero(token, sizeof token);
	explicit_bzero(line, sizeof line);
	if (rc == 0)
		did(m, "made a token for everything, %s", file);
	return rc;
}

/* --- repository and configuration
 * ------------------------------------------------------------------- */

static int make_repository(const struct making *m, struct err *err)
{
	const char *path = m->options->repository_path;
	char file[4096 + 32];
	struct repository_settings settings;
	if (!path)
		return 0;
	snprintf(file, sizeof file, "%s/repository.json", path);
	if (exists(file))
		return 0;
	repository_settings_default(&settings);
	if (repository_init(path, &settings, err) < 0)
		return -1;
	did(m, "made a repository in %s", path);
	return 0;
}

static void write_config(FILE *out, const struct making *m)
{
	const struct hub_init_options *o = m->options;
	fprintf(out,
		"# Settings of the Sendense hub; docs/hub.md tells of all.  Look at it with\n"
		"# \"sendense hub check-config\"; \"systemctl reload sendense-hub\" reads it "
		"anew.\n\n"
		"[hub]\nstate-dir = %s\nruntime-dir = %s\nlisten = %s\nname = %s\n\n"
		"[tls]\ncertificate = %s/server.crt\nkey = %s/server.key\nca = %s\n\n"
		"[nbd]\nlisten = %s\ntls = required\n",
		m->state_dir, m->runtime_dir, m->listen, m->name, m->tls_dir, m->tls_dir,
		m->result->ca_file, m->nbd_listen);
	if (o->repository_path)
		fprintf(out, "\n[repository %s]\npath = %s\n",
			o->repository ? o->repository : "main", o->repository_path);
	fputs("\n# What jobs may read and write, one line each, by the beginning of its name.\n"
	      "[allow]\n",
		out);
	for (size_t i = 0; i < o->nr_allow_sources; i++)
		fprintf(out, "source = %s\n", o->allow_sources[i]);
	if (o->nr_allow_sources == 0)
		fputs("# source = nbd://hypervisor.example:10809/\n", out);
}

/* Its text is looked at before the first thing is made: what is wrong in an option must neither
 * leave a half-made hub nor a file that stays as it is. */
static int draft_config(const struct making *m, char **text, size_t *length, struct err *err)
{
	if (m->there)
		return 0;
	FILE *out = open_memstream(text, length);
	if (!out)
		return err_errno(err, errno, "cannot write the settings");
	write_config(out, m);
	if (fclose(out) != 0)
		return err_errno(err, errno, "cannot write the settings");
	struct hub_config *config = hub_config_parse(m->options->config_path, *text, *length, err);
	hub_config_free(config);
	return config ? 0 : -1;
}

static int make_config(const struct making *m, const char *text, size_t length, struct err *err)
{
	const char *path = m->options->config_path;
	if (!text) {
		did(m, "%s is there already and stays as it is", path);
		return 0;
	}
	char *AUTO_FREE folder = strdup(path);
	if (!folder)
		return err_errno(err, ENOMEM, "cannot write the settings");
	char *slash = strrchr(folder, '/');
	if (slash && slash != folder) {
		*slash = 0;
		if (make_folder(m, folder, 0700, err) < 0)
			return -1;
	}
	if (file_replace(AT_FDCWD, path, text, length, 0640, err) < 0)
		return -1;
	did(m, "wrote %s", path);
	return 0;
}

/* --- all of it
 * ------------------------------------------------------------------------------------------ */

static void address_text(const struct settings_address *address, char out[128])
{
	snprintf(out, 128, strchr(address->host, ':') ? "[%s]:%u" : "%s:%u", address->host,
		address->port);
}

/* A file that is there stays as it is and counts: an option that says something else would make
 * what the hub never looks at. */
static int heed_config(struct making *m, struct err *err)
{
	const struct hub_init_options *o = m->options;
	char listen[128], nbd_listen[128];
	if (!exists(o->config_path))
		return 0;
	m->there = hub_config_load(o->config_path, NULL, NULL, err);
	if (!m->there)
		return -1;
	address_text(&m->there->listen, listen);
	address_text(&m->there->nbd_listen, nbd_listen);
	const struct {
		const char *name, *given, *said;
	} settings[] = {{"[hub] state-dir", o->state_dir, m->there->state_dir},
		{"[hub] runtime-dir", o->runtime_dir, m->there->runtime_dir},
		{"[hub] listen", o->listen, listen}, {"[nbd] listen", o->nbd_listen, nbd_listen},
		{"[hub] name", o->name, m->there->name}};
	for (size_t i = 0; i < ARRAY_LENGTH(settings); i++)
		if (settings[i].given && settings[i].said &&
			strcmp(settings[i].given, settings[i].said) != 0)
			return err_set(err, ERR_EXISTS,
				"%s is there already, and says %s = %s, not %s (change it there, "
				"or name another file with --config)",
				o->config_path, settings[i].name, settings[i].said,
				settings[i].given);
	m->state_dir = m->there->state_dir;
	m->runtime_dir = m->there->runtime_dir;
	if (m->there->name)
		snprintf(m->name, sizeof m->name, "%s", m->there->name);
	return 0;
}

static int check_options(const struct making *m, struct err *err)
{
	const struct {
		const char *option, *path;
	} paths[] = {{"state-dir", m->state_dir}, {"runtime-dir", m->runtime_dir},
		{"repository", m->options->repository_path}};
	for (size_t i = 0; i < ARRAY_LENGTH(paths); i++)
		if (paths[i].path && paths[i].path[0] != '/')
			return err_set(err, ERR_USAGE, "--%s: \"%s\" is not an absolute path",
				paths[i].option, paths[i].path);
	for (const char *p = m->name; *p; p++)
		if ((unsigned char)*p <= ' ')
			return err_set(err, ERR_USAGE, "the name \"%s\" holds a space", m->name);
	return 0;
}

/* What the file says counts, also where it was there before: it is read back. */
static int tell_result(struct making *m, struct err *err)
{
	struct hub_config *config = hub_config_load(m->options->config_path, NULL, NULL, err);
	if (!config)
		return -1;
	const struct settings_address *a = &config->listen;
	bool all = strcmp(a->host, "0.0.0.0") == 0 || strcmp(a->host, "::") == 0;
	const char *host = all ? config->name : a->host;
	snprintf(m->result->url, sizeof m->result->url,
		strchr(host, ':') ? "%s://[%s]:%u" : "%s://%s:%u",
		config->certificate ? "https" : "http", host, a->port);
	hub_config_free(config);
	return 0;
}

static int make_all(struct making *m, struct err *err)
{
	char *AUTO_FREE text = NULL; /* of the settings; NULL: they are there */
	size_t length = 0;
	char *ca_file = m->result->ca_file;
	return check_options(m, err) < 0 || heed_config(m, err) < 0 ||
			       join(m->tls_dir, sizeof m->tls_dir, m->state_dir, "tls", err) < 0 ||
			       join(ca_file, sizeof m->result->ca_file, m->tls_dir, "ca.crt", err) <
				       0 ||
			       draft_config(m, &text, &length, err) < 0 ||
			       make_folder(m, m->state_dir, 0700, err) < 0 ||
			       /* What is there is kept: a CA whose key others have would be. */
			       folder_own(m->state_dir, false, err) < 0 ||
			       make_certificates(m, err) < 0 || make_token(m, err) < 0 ||
			       make_repository(m, err) < 0 || make_config(m, text, length, err) < 0
		       ? -1
		       : 0;
}

int hub_init(
	const struct hub_init_options *options, struct hub_init_result *result, struct err *err)
{
	struct making m = {
		.options = options,
		.result = result,
		.state_dir = options->state_dir ? options->state_dir : "/var/lib/sendense",
		.runtime_dir = options->runtime_dir ? options->runtime_dir : "/run/sendense",
		.listen = options->listen ? options->listen : "127.0.0.1:8080",
		.nbd_listen = options->nbd_listen ? options->nbd_listen : "127.0.0.1:10809",
	};
	if (options->name)
		snprintf(m.name, sizeof m.name, "%s", options->name);
	else if (gethostname(m.name, sizeof m.name - 1) < 0 || !m.name[0])
		snprintf(m.name, sizeof m.name, "localhost");
	int rc = make_all(&m, err);
	hub_config_free(m.there);
	if (rc < 0)
		return err_context(err, "hub init");
	return tell_result(&m, err);
}
