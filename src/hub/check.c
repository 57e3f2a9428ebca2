/* check-config: what a configuration names, looked at without changing anything. */
#include "hub_internal.h"

#include "repository.h"
#include "zone.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* --- credentials of disks ------------------------------------------------------------------ */

static void check_credentials(struct inspect *c, const struct hub_config *config)
{
	const char *where = "[allow] credentials";
	for (size_t i = 0; config->credentials && config->credentials[i]; i++) {
		json_t *one = credentials_parse(config->credentials[i], NULL);
		const char *psk = json_string_value(json_object_get(one, "psk_file"));
		const char *folder = json_string_value(json_object_get(one, "certificates"));
		char path[4096 + 32];
		if (psk)
			inspect_file(c, where, psk, true);
		if (folder) {
			snprintf(path, sizeof path, "%s/ca-cert.pem", folder);
			inspect_file(c, where, path, false);
			snprintf(path, sizeof path, "%s/client-key.pem", folder);
			if (access(path, F_OK) == 0)
				inspect_file(c, where, path, true);
		}
		json_decref(one);
	}
}

/* --- repositories
 * ---------------------------------------------------------------------------------- */

static void check_repository(struct inspect *c, struct hub *hub, const struct job_repository *r)
{
	struct err err = ERR_INIT;
	struct repository_info info;
	struct repository *repo = hub_repository_open(hub, r->name, true, &err);
	if (!repo || repository_info(repo, &info, &err) < 0)
		inspect_say(c, true, "%s%s", err.text,
			err.code == ERR_NOT_FOUND || err.code == ERR_FORMAT
				? " (\"sendense repo init DIR\" makes one)"
				: "");
	else if (r->stop_free_bytes > 0 && info.free_bytes < r->stop_free_bytes)
		inspect_say(c, false,
			"repository %s: less than stop-free is free, backups are refused", r->name);
	repository_close(repo);
}

static void check_repositories(struct inspect *c, struct hub_config *config)
{
	/* Opening one asks for a hub's settings alone. */
	struct hub hub = {0};
	atomic_store(&hub.config, config);
	if (config->nr_repositories == 0)
		inspect_say(c, false, "there is no [repository NAME]: nothing can be backed up");
	for (size_t i = 0; i < config->nr_repositories; i++)
		check_repository(c, &hub, &config->repositories[i]);
}

/* --- the rest
 * ------------------------------------------------------------------------------------------ */

static void check_others(struct inspect *c, const struct hub_config *config)
{
	struct err err = ERR_INIT;
	struct zone *zone = zone_open(config->time_zone, &err);
	if (!zone)
		inspect_say(c, true, "[hub] time-zone: %s", err.text);
	zone_free(zone);
	if (config->webhook_secret_file)
		inspect_file(c, "[notify] webhook-secret-file", config->webhook_secret_file, true);
	if (config->mail_to && access(config->sendmail, X_OK) < 0)
		inspect_say(c, true, "[notify] mail-to: %s cannot be run: %s", config->sendmail,
			strerror(errno));
}

unsigned hub_check_config(const char *path, settings_tell *tell, void *context)
{
	struct inspect c = {.kind = "hub", .tell = tell, .context = context};
	struct err err = ERR_INIT;
	struct hub_config *config = hub_config_load(path, inspect_told, &c, &err);
	if (!config)
		return c.nr_errors > 0 ? c.nr_errors : 1;
	inspect_folder(&c, "state-dir", config->state_dir, false);
	inspect_folder(&c, "runtime-dir", config->runtime_dir, true);
	inspect_state(&c, config->state_dir, config->listen.loopback);
	inspect_tls(&c, config->certificate, config->key, config->ca);
	inspect_config(&c, config->path);
	check_credentials(&c, config);
	check_repositories(&c, config);
	check_others(&c, config);
	hub_config_free(config);
	return c.nr_errors;
}
