/* What every daemon's "init" makes; see setup.h. */
#include "setup.h"

#include "access.h"
#include "file.h"
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CA_DAYS 3650
#define SERVER_DAYS 825 /* the longest that all clients take */

void setup_did(const struct daemon_setup *setup, const char *format, ...)
{
	char text[ERR_TEXT_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	if (setup->did)
		setup->did(setup->context, text);
}

bool setup_exists(const char *path)
{
	return access(path, F_OK) == 0;
}

int setup_join(char out[SETUP_PATH_BYTES], const char *folder, const char *name, struct err *err)
{
	int length = snprintf(out, SETUP_PATH_BYTES, "%s/%s", folder, name);
	return length < 0 || length >= SETUP_PATH_BYTES
		       ? err_set(err, ERR_USAGE, "the path %.100s/%s is too long", folder, name)
		       : 0;
}

int setup_folder(const struct daemon_setup *setup, const char *path, mode_t mode, struct err *err)
{
	if (mkdir(path, mode) == 0) {
		setup_did(setup, "made the folder %s", path);
		return 0;
	}
	int error = errno;
	if (error == EEXIST)
		return 0;
	err_errno(err, error, "cannot make %s", path);
	if (error == EACCES || error == EPERM)
		err_hint(err, "make it as root, for the user that the %s runs as", setup->kind);
	return -1;
}

int setup_check_paths(const struct setup_option *paths, size_t nr, struct err *err)
{
	for (size_t i = 0; i < nr; i++)
		if (paths[i].value && paths[i].value[0] != '/')
			return err_set(err, ERR_USAGE, "--%s: \"%s\" is not an absolute path",
				paths[i].name, paths[i].value);
	return 0;
}

int setup_check_name(const char *name, struct err *err)
{
	for (const char *p = name; *p; p++)
		if ((unsigned char)*p <= ' ')
			return err_set(err, ERR_USAGE, "the name \"%s\" holds a space", name);
	return 0;
}

/* --- certificates ------------------------------------------------------------------------ */

int setup_certificates(const struct daemon_setup *setup, const char *folder, const char *name,
	const char *const *addresses, size_t nr_addresses, struct err *err)
{
	char ca[SETUP_PATH_BYTES], ca_key[SETUP_PATH_BYTES], certificate[SETUP_PATH_BYTES],
		key[SETUP_PATH_BYTES], common[65];
	if (setup_join(ca, folder, "ca.crt", err) < 0 ||
		setup_join(ca_key, folder, "ca.key", err) < 0 ||
		setup_join(certificate, folder, "server.crt", err) < 0 ||
		setup_join(key, folder, "server.key", err) < 0 ||
		setup_folder(setup, folder, 0700, err) < 0)
		return -1;
	if (!setup_exists(ca) || !setup_exists(ca_key)) {
		snprintf(common, sizeof common, "Sendense CA of %.40s", name);
		if (pki_make_ca(common, CA_DAYS, ca, ca_key, err) < 0)
			return -1;
		setup_did(setup, "made a CA, %s", ca);
	}
	if (setup_exists(certificate) && setup_exists(key))
		return 0;
	const char *hosts[64] = {name};
	size_t nr = 1;
	for (size_t i = 0; i < nr_addresses && nr < ARRAY_LENGTH(hosts); i++)
		hosts[nr++] = addresses[i];
	snprintf(common, sizeof common, "%.60s", name);
	const struct pki_request request = {.name = common,
		.is_server = true,
		.hosts = hosts,
		.nr_hosts = nr,
		.days = SERVER_DAYS,
		.replace = true};
	if (pki_make_certificate(ca, ca_key, &request, certificate, key, err) < 0)
		return -1;
	setup_did(setup, "made a certificate for %s, %s", name, certificate);
	return 0;
}

/* --- the first token --------------------------------------------------------------------- */

int setup_token(const struct daemon_setup *setup, const char *state_dir,
	char file[SETUP_PATH_BYTES], struct err *err)
{
	char path[SETUP_PATH_BYTES], token[REST_TOKEN_BYTES], line[REST_TOKEN_BYTES + 1];
	if (setup_join(file, state_dir, "admin.token", err) < 0 ||
		setup_join(path, state_dir, "state.db", err) < 0)
		return -1;
	if (setup_exists(file))
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
		setup_did(setup, "made a token for everything, %s", file);
	return rc;
}

/* --- the file of settings ---------------------------------------------------------------- */

int setup_check_said(
	const char *config_path, const struct setup_said *settings, size_t nr, struct err *err)
{
	for (size_t i = 0; i < nr; i++)
		if (settings[i].given && settings[i].said &&
			strcmp(settings[i].given, settings[i].said) != 0)
			return err_set(err, ERR_EXISTS,
				"%s is there already, and says %s = %s, not %s (change it there, "
				"or name another file with --config)",
				config_path, settings[i].setting, settings[i].said,
				settings[i].given);
	return 0;
}

int setup_config(const struct daemon_setup *setup, const char *config_path, const char *text,
	size_t length, struct err *err)
{
	if (!text) {
		setup_did(setup, "%s is there already and stays as it is", config_path);
		return 0;
	}
	char *AUTO_FREE folder = strdup(config_path);
	if (!folder)
		return err_errno(err, ENOMEM, "cannot write the settings");
	char *slash = strrchr(folder, '/');
	if (slash && slash != folder) {
		*slash = 0;
		if (setup_folder(setup, folder, 0700, err) < 0)
			return -1;
	}
	if (file_replace(AT_FDCWD, config_path, text, length, 0640, err) < 0)
		return -1;
	setup_did(setup, "wrote %s", config_path);
	return 0;
}
