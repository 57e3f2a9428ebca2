/* check-config: what a configuration names, looked at without changing anything. */
#include "hub_internal.h"

#include "repository.h"
#include "transport.h"
#include "zone.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define EXPIRES_SOON_S (30 * INT64_C(86400))

struct checking {
	settings_tell *tell;
	void *context;
	unsigned nr_errors;
};

static void told(void *context, const struct settings_finding *finding)
{
	struct checking *c = context;
	c->nr_errors += finding->is_error;
	if (c->tell)
		c->tell(c->context, finding);
}

static void say(struct checking *c, bool is_error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void say(struct checking *c, bool is_error, const char *format, ...)
{
	char text[ERR_TEXT_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	told(c, &(struct settings_finding){.is_error = is_error, .text = text});
}

/* --- folders -----------------------------------------------------------------------------------
 */

static void check_folder(struct checking *c, const char *setting, const char *path, bool made_later)
{
	struct stat st;
	if (stat(path, &st) < 0 && errno == ENOENT && made_later)
		return;
	if (stat(path, &st) < 0 && errno == ENOENT)
		say(c, true, "[hub] %s: there is no %s (\"sendense hub init\" makes it)", setting,
			path);
	else if (stat(path, &st) < 0)
		say(c, true, "[hub] %s: cannot look at %s: %s", setting, path, strerror(errno));
	else if (!S_ISDIR(st.st_mode))
		say(c, true, "[hub] %s: %s is no folder", setting, path);
	else if ((st.st_mode & 022) != 0)
		say(c, true, "[hub] %s: others may write to %s (chmod 700 it)", setting, path);
	else if (access(path, R_OK | W_OK | X_OK) < 0)
		say(c, true,
			"[hub] %s: %s cannot be written to by this user (run this as the user "
			"that the hub runs as)",
			setting, path);
}

static void check_state(struct checking *c, const struct hub_config *config)
{
	char path[4096 + 16];
	struct err err = ERR_INIT;
	snprintf(path, sizeof path, "%s/state.db", config->state_dir);
	if (access(path, F_OK) == 0 && state_check(path, &err) < 0)
		say(c, true, "%s", err.text);
	else if (access(path, F_OK) < 0 && access(config->state_dir, F_OK) == 0)
		say(c, !config->listen.loopback,
			"there are no tokens in %s yet (\"sendense hub init\" makes the first one)",
			config->state_dir);
}

/* --- TLS ----------------------------------------------------------------------------------------
 */

static void check_expiry(struct checking *c, const char *certificate)
{
	struct err err = ERR_INIT;
	int64_t expires;
	char when[CLOCK_UTC_BYTES];
	if (pki_expiry(certificate, &expires, &err) < 0) {
		say(c, true, "[tls] certificate: %s", err.text);
		return;
	}
	clock_utc_text(expires, when);
	int64_t left_s = expires - time(NULL);
	if (left_s < EXPIRES_SOON_S)
		say(c, left_s < 0, "[tls] certificate: %s %s at %s", certificate,
			left_s < 0 ? "expired" : "expires", when);
}

static void check_tls(struct checking *c, const struct hub_config *config)
{
	struct err err = ERR_INIT;
	struct stat st;
	if (!config->certificate)
		return;
	if (stat(config->key, &st) == 0 && (st.st_mode & 077) != 0)
		say(c, true, "[tls] key: others may read %s (chmod 600 it)", config->key);
	const struct tls_server_options options = {
		.certificate = config->certificate,
		.key = config->key,
		.clients_ca = config->ca,
		.clients = config->ca ? TLS_CLIENTS_OPTIONAL : TLS_CLIENTS_ANY,
	};
	struct tls_server *server = tls_server_new(&options, &err);
	if (!server)
		say(c, true, "[tls] %s", err.text);
	else
		check_expiry(c, config->certificate);
	tls_server_free(server);
}

/* --- credentials of disks ------------------------------------------------------------------ */

static void check_file(struct checking *c, const char *path, bool is_secret)
{
	struct stat st;
	if (stat(path, &st) < 0)
		say(c, true, "[allow] credentials: cannot look at %s: %s", path, strerror(errno));
	else if (access(path, R_OK) < 0)
		say(c, true, "[allow] credentials: %s cannot be read by this user", path);
	else if (is_secret && (st.st_mode & 077) != 0)
		say(c, true, "[allow] credentials: others may read %s (chmod 600 it)", path);
}

static void check_credentials(struct checking *c, const struct hub_config *config)
{
	for (size_t i = 0; config->credentials && config->credentials[i]; i++) {
		json_t *one = credentials_parse(config->credentials[i], NULL);
		const char *psk = json_string_value(json_object_get(one, "psk_file"));
		const char *folder = json_string_value(json_object_get(one, "certificates"));
		char path[4096 + 32];
		if (psk)
			check_file(c, psk, true);
		if (folder) {
			snprintf(path, sizeof path, "%s/ca-cert.pem", folder);
			check_file(c, path, false);
			snprintf(path, sizeof path, "%s/client-key.pem", folder);
			if (access(path, F_OK) == 0)
				check_file(c, path, true);
		}
		json_decref(one);
	}
}

/* --- repositories
 * ---------------------------------------------------------------------------------- */

static void check_repository(struct checking *c, struct hub *hub, const struct job_repository *r)
{
	struct err err = ERR_INIT;
	struct repository_info info;
	struct repository *repo = hub_repository_open(hub, r->name, true, &err);
	if (!repo || repository_info(repo, &info, &err) < 0)
		say(c, true, "%s%s", err.text,
			err.code == ERR_NOT_FOUND || err.code == ERR_FORMAT
				? " (\"sendense repo init DIR\" makes one)"
				: "");
	else if (r->stop_free_bytes > 0 && info.free_bytes < r->stop_free_bytes)
		say(c, false, "repository %s: less than stop-free is free, backups are refused",
			r->name);
	repository_close(repo);
}

static void check_repositories(struct checking *c, struct hub_config *config)
{
	/* Opening one asks for a hub's settings alone. */
	struct hub hub = {0};
	atomic_store(&hub.config, config);
	if (config->nr_repositories == 0)
		say(c, false, "there is no [repository NAME]: nothing can be backed up");
	for (size_t i = 0; i < config->nr_repositories; i++)
		check_repository(c, &hub, &config->repositories[i]);
}

/* --- the rest
 * ------------------------------------------------------------------------------------------ */

static void check_others(struct checking *c, const struct hub_config *config)
{
	struct err err = ERR_INIT;
	struct stat st;
	/* Who may change it may have jobs read and write whatever the hub can. */
	if (stat(config->path, &st) == 0 && (st.st_mode & 022) != 0)
		say(c, true, "others may write to %s (chmod 640 it)", config->path);
	struct zone *zone = zone_open(config->time_zone, &err);
	if (!zone)
		say(c, true, "[hub] time-zone: %s", err.text);
	zone_free(zone);
	const char *secret = config->webhook_secret_file;
	if (secret && stat(secret, &st) < 0)
		say(c, true, "[notify] webhook-secret-file: cannot look at %s: %s", secret,
			strerror(errno));
	else if (secret && (st.st_mode & 077) != 0)
		say(c, true, "[notify] webhook-secret-file: others may read %s (chmod 600 it)",
			secret);
	if (config->mail_to && access(config->sendmail, X_OK) < 0)
		say(c, true, "[notify] mail-to: %s cannot be run: %s", config->sendmail,
			strerror(errno));
}

unsigned hub_check_config(const char *path, settings_tell *tell, void *context)
{
	struct checking c = {.tell = tell, .context = context};
	struct err err = ERR_INIT;
	struct hub_config *config = hub_config_load(path, told, &c, &err);
	if (!config)
		return c.nr_errors > 0 ? c.nr_errors : 1;
	check_folder(&c, "state-dir", config->state_dir, false);
	check_folder(&c, "runtime-dir", config->runtime_dir, true);
	check_state(&c, config);
	check_tls(&c, config);
	check_credentials(&c, config);
	check_repositories(&c, config);
	check_others(&c, config);
	hub_config_free(config);
	return c.nr_errors;
}
