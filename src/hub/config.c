/* The hub's settings: their table, and what must fit together; see config.h. */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static const char *const stops[] = {"hand-over", "cancel", NULL};
static const char *const clients[] = {"optional", "required", NULL};
static const char *const nbd_modes[] = {"single", "range", NULL};
static const char *const nbd_tls[] = {"off", "required", NULL};

#define HUB(member) .offset = offsetof(struct hub_config, member)
#define REPOSITORY(member) .offset = offsetof(struct job_repository, member)
#define YEAR UINT64_C(31536000)

/* In the order of docs/hub.md. */
static const struct setting table[] = {
	{"hub", "state-dir", SETTING_PATH, HUB(state_dir), .otherwise = HUB_STATE_DIR},
	{"hub", "runtime-dir", SETTING_PATH, HUB(runtime_dir), .otherwise = HUB_RUNTIME_DIR},
	{"hub", "listen", SETTING_ADDRESS, HUB(listen), .otherwise = HUB_LISTEN},
	{"hub", "name", SETTING_TEXT, HUB(name), .most = 255},
	{"hub", "stop", SETTING_CHOICE, HUB(stop), .otherwise = "hand-over", .choices = stops,
		.live = true},
	{"hub", "stop-timeout", SETTING_DURATION, HUB(stop_timeout_s), .otherwise = "30s",
		.most = 3600, .live = true},
	{"hub", "log", SETTING_CHOICE, HUB(log), .otherwise = "auto", .choices = logging_forms,
		.live = true},
	{"hub", "log-level", SETTING_CHOICE, HUB(log_level), .otherwise = "info",
		.choices = logging_levels, .live = true},
	{"hub", "time-zone", SETTING_TEXT, HUB(time_zone), .most = 255},
	{"hub", "keep-jobs", SETTING_DURATION, HUB(keep_jobs_s), .otherwise = "90d", .least = 3600,
		.most = 100 * YEAR, .live = true},
	{"hub", "keep-events", SETTING_DURATION, HUB(keep_events_s), .otherwise = "1y",
		.least = 3600, .most = 100 * YEAR, .live = true},

	{"tls", "certificate", SETTING_PATH, HUB(certificate)},
	{"tls", "key", SETTING_PATH, HUB(key)},
	{"tls", "ca", SETTING_PATH, HUB(ca)},
	{"tls", "clients", SETTING_CHOICE, HUB(clients), .otherwise = "optional",
		.choices = clients},

	{"nbd", "listen", SETTING_ADDRESS, HUB(nbd_listen), .otherwise = HUB_NBD_LISTEN},
	{"nbd", "mode", SETTING_CHOICE, HUB(nbd_mode), .otherwise = "single", .choices = nbd_modes},
	{"nbd", "port-range", SETTING_PORTS, HUB(nbd_port_first), .otherwise = "10100-10200"},
	{"nbd", "max-connections", SETTING_NUMBER, HUB(nbd_most_connections), .otherwise = "256",
		.least = 1, .most = 65536},
	{"nbd", "tls", SETTING_CHOICE, HUB(nbd_tls), .choices = nbd_tls},
	{"nbd", "address-for-clients", SETTING_TEXT, HUB(nbd_address_for_clients), .most = 255},

	{"repository", "path", SETTING_PATH, REPOSITORY(path)},
	{"repository", "id", SETTING_TEXT, REPOSITORY(id), .least = 32, .most = 32},
	{"repository", "require-mount", SETTING_BOOL, REPOSITORY(require_mount), .otherwise = "no"},
	{"repository", "warn-free", SETTING_SIZE, REPOSITORY(warn_free_bytes)},
	{"repository", "stop-free", SETTING_SIZE, REPOSITORY(stop_free_bytes)},

	{"limits", "jobs", SETTING_NUMBER, HUB(most_jobs), .otherwise = "4", .least = 1,
		.most = 1000},
	{"limits", "jobs-per-source", SETTING_NUMBER, HUB(most_jobs_per_source), .otherwise = "2",
		.least = 1, .most = 1000},
	{"limits", "memory-per-job", SETTING_SIZE, HUB(memory_per_job_bytes), .otherwise = "0",
		.least = 0, .most = UINT64_MAX},
	{"limits", "connections", SETTING_NUMBER, HUB(most_connections), .otherwise = "256",
		.least = 4, .most = 65536},
	{"limits", "connections-per-address", SETTING_NUMBER, HUB(most_connections_per_address),
		.otherwise = "64", .least = 1, .most = 65536},
	{"limits", "node-silence", SETTING_DURATION, HUB(node_silence_s), .otherwise = "10m",
		.least = 2, .most = 86400, .live = true},

	{"allow", "source", SETTING_LIST, HUB(allow_sources)},
	{"allow", "target", SETTING_LIST, HUB(allow_targets)},
	{"allow", "webhook", SETTING_LIST, HUB(allow_webhooks), .live = true},
	{"allow", "credentials", SETTING_LIST, HUB(credentials)},

	{"notify", "webhook", SETTING_TEXT, HUB(webhook), .most = 2048, .live = true},
	{"notify", "webhook-secret-file", SETTING_PATH, HUB(webhook_secret_file), .live = true},
	{"notify", "mail-to", SETTING_TEXT, HUB(mail_to), .most = 1024, .live = true},
	{"notify", "mail-from", SETTING_TEXT, HUB(mail_from), .most = 255, .live = true},
	{"notify", "sendmail", SETTING_PATH, HUB(sendmail), .otherwise = "/usr/sbin/sendmail",
		.live = true},

	{"builds", "warn", SETTING_LIST, HUB(builds_warn), .live = true},
	{"builds", "allow", SETTING_LIST, HUB(builds_allow), .live = true},
};

/* What jobs may read and write is understood by the room that runs them. */
static int check_rule(const struct setting *setting, const char *text, struct err *err)
{
	if (strcmp(setting->section, "allow") != 0)
		return 0;
	if (strcmp(setting->name, "credentials") == 0) {
		json_t *one = credentials_parse(text, err);
		json_decref(one);
		return one ? 0 : -1;
	}
	enum allow_use use = strcmp(setting->name, "source") == 0   ? ALLOW_SOURCE
			     : strcmp(setting->name, "target") == 0 ? ALLOW_TARGET
								    : ALLOW_WEBHOOK;
	return allow_check_rule(text, use, err);
}

/* --- what must fit together ---------------------------------------------------------------- */

static void check_tls(struct settings_reading *r, const struct hub_config *c)
{
	if (!c->certificate != !c->key)
		settings_wrong(r, settings_line(r, "tls", c->key ? "key" : "certificate"),
			"[tls] certificate and key go together (give both, or none)");
	if (!c->listen.loopback && !c->certificate)
		settings_wrong(r, settings_line(r, "hub", "listen"),
			"[hub] listen = %s:%u is beyond loopback, and there is no TLS (give [tls] "
			"certificate and key, \"sendense hub init\" makes them, or listen on "
			"127.0.0.1)",
			c->listen.host, c->listen.port);
	if (c->clients == HUB_CLIENTS_REQUIRED && (!c->ca || !c->certificate))
		settings_wrong(r, settings_line(r, "tls", "clients"),
			"[tls] clients = required needs certificate, key and ca");
	if (!c->nbd_listen.loopback && c->nbd_tls == HUB_NBD_TLS_OFF)
		settings_wrong(r,
			settings_line(r, "nbd", settings_line(r, "nbd", "tls") ? "tls" : "listen"),
			"[nbd] listen = %s:%u is beyond loopback, and TLS is off (set tls = "
			"required, or listen on 127.0.0.1)",
			c->nbd_listen.host, c->nbd_listen.port);
}

static void check_listen(struct settings_reading *r, const struct hub_config *c)
{
	if (c->listen.port != 0 && c->nbd_mode == HUB_NBD_SINGLE &&
		c->listen.port == c->nbd_listen.port &&
		strcmp(c->listen.host, c->nbd_listen.host) == 0)
		settings_wrong(r, settings_line(r, "nbd", "listen"),
			"[nbd] listen and [hub] listen are the same address");
	if (c->nbd_mode == HUB_NBD_RANGE && c->listen.port >= c->nbd_port_first &&
		c->listen.port <= c->nbd_port_last)
		settings_wrong(r, settings_line(r, "nbd", "port-range"),
			"[nbd] port-range holds the port %u of [hub] listen", c->listen.port);
	if (c->most_jobs_per_source > c->most_jobs && settings_line(r, "limits", "jobs-per-source"))
		settings_wrong(r, settings_line(r, "limits", "jobs-per-source"),
			"[limits] jobs-per-source = %u is more than jobs = %u",
			c->most_jobs_per_source, c->most_jobs);
	if (strcmp(c->state_dir, c->runtime_dir) == 0)
		settings_wrong(r, settings_line(r, "hub", "runtime-dir"),
			"[hub] state-dir and runtime-dir are the same folder");
}

static void check_webhook(struct settings_reading *r, const struct hub_config *c)
{
	const char *url = c->webhook;
	if (url && strncmp(url, "https://", 8) != 0 && strncmp(url, "http://127.0.0.1", 16) != 0 &&
		strncmp(url, "http://[::1]", 12) != 0)
		settings_wrong(r, settings_line(r, "notify", "webhook"),
			"[notify] webhook must begin with https:// (http:// to a loopback address "
			"alone)");
	if (url && !c->webhook_secret_file)
		settings_wrong(r, settings_line(r, "notify", "webhook"),
			"[notify] webhook needs webhook-secret-file (it signs what is sent)");
}

static void check_repositories(struct settings_reading *r, const struct hub_config *c)
{
	for (size_t i = 0; i < c->nr_repositories; i++) {
		const struct job_repository *one = &c->repositories[i];
		unsigned line = settings_named_line(r, "repository", i);
		if (!one->path)
			settings_wrong(r, line, "[repository %s] has no path", one->name);
		for (size_t k = 0; k < i && one->path; k++)
			if (c->repositories[k].path &&
				strcmp(c->repositories[k].path, one->path) == 0)
				settings_wrong(r, line,
					"[repository %s] and [repository %s] are the "
					"same folder",
					one->name, c->repositories[k].name);
		if (one->warn_free_bytes > 0 && one->warn_free_bytes < one->stop_free_bytes)
			settings_wrong(r, line, "[repository %s] warn-free is less than stop-free",
				one->name);
	}
}

/* Defaults that depend on other settings. */
static int derive(struct settings_reading *r, void *values, struct err *err)
{
	struct hub_config *c = values;
	if (!settings_line(r, "nbd", "tls"))
		c->nbd_tls = c->nbd_listen.loopback && !c->certificate ? HUB_NBD_TLS_OFF
								       : HUB_NBD_TLS_REQUIRED;
	if (!settings_line(r, "limits", "jobs-per-source") &&
		c->most_jobs_per_source > c->most_jobs)
		c->most_jobs_per_source = c->most_jobs;
	char host[256] = "hub";
	if (!c->name && gethostname(host, sizeof host - 1) < 0)
		host[0] = '\0';
	if (!c->name && !(c->name = strdup(host[0] ? host : "hub")))
		return err_errno(err, ENOMEM, "cannot keep the name");
	check_tls(r, c);
	check_listen(r, c);
	check_webhook(r, c);
	check_repositories(r, c);
	return 0;
}

static const struct settings_named named[] = {
	{"repository", offsetof(struct hub_config, repositories),
		offsetof(struct hub_config, nr_repositories), sizeof(struct job_repository),
		offsetof(struct job_repository, name)},
	{0},
};

static const struct settings settings = {
	.owner = "hub",
	.made_by = "sendense hub init",
	.bytes = sizeof(struct hub_config),
	.path = offsetof(struct hub_config, path),
	.table = table,
	.nr_table = ARRAY_LENGTH(table),
	.named = named,
	.check = check_rule,
	.derive = derive,
};

/* --- the whole ------------------------------------------------------------------------------ */

struct hub_config *hub_config_parse(const char *path, char *text, size_t length, struct err *err)
{
	return settings_parse(&settings, path, text, length, err);
}

struct hub_config *hub_config_load(
	const char *path, settings_tell *tell, void *context, struct err *err)
{
	return settings_load(&settings, path, tell, context, err);
}

struct hub_config *hub_config_reload(const struct hub_config *old)
{
	return settings_reload(&settings, old);
}

void hub_config_free(struct hub_config *config)
{
	settings_free(&settings, config);
}

const struct job_repository *hub_config_repository(
	const struct hub_config *config, const char *name)
{
	for (size_t i = 0; i < config->nr_repositories; i++)
		if (strcmp(config->repositories[i].name, name) == 0)
			return &config->repositories[i];
	return NULL;
}

json_t *hub_config_settings(void)
{
	return settings_defaults(&settings);
}
