/* check-config: what a configuration names, looked at without changing anything. */
#include "node_internal.h"

#include <string.h>

static void look_at_file(struct inspect *inspect, const char *section, const char *name,
	const char *setting, const char *path)
{
	char where[96];
	snprintf(where, sizeof where, "[%s %s] %s", section, name, setting);
	if (path)
		inspect_file(inspect, where, path, strcmp(setting, "ca-file") != 0);
}

static void look_at_vcenter(struct inspect *inspect, const struct job_vcenter *vcenter)
{
	look_at_file(inspect, "vcenter", vcenter->name, "password-file", vcenter->password_file);
	look_at_file(inspect, "vcenter", vcenter->name, "ca-file", vcenter->ca_file);
}

static void look_at_repository(struct inspect *inspect, const struct job_repository *repository)
{
	struct err err = ERR_INIT;
	look_at_file(inspect, "repository", repository->name, "token-file", repository->token_file);
	look_at_file(inspect, "repository", repository->name, "ca-file", repository->ca_file);
	/* A hub is not asked. */
	if (repository->url || job_repository_check(repository, 0, &err) == 0)
		return;
	bool is_full = err.code == ERR_NO_SPACE;
	inspect_say(inspect, !is_full, "%s%s", err.text,
		err.code == ERR_NOT_FOUND || err.code == ERR_FORMAT
			? " (\"sendense repo init DIR\" makes one)"
			: "");
}

unsigned node_check_config(const char *path, settings_tell *tell, void *context)
{
	struct inspect inspect = {.kind = "node", .tell = tell, .context = context};
	struct err err = ERR_INIT;
	struct node_config *config = node_config_load(path, inspect_told, &inspect, &err);
	if (!config)
		return inspect.nr_errors > 0 ? inspect.nr_errors : 1;
	inspect_config(&inspect, config->path);
	inspect_folder(&inspect, "state-dir", config->state_dir, false);
	inspect_folder(&inspect, "runtime-dir", config->runtime_dir, true);
	inspect_state(&inspect, config->state_dir, config->listen.loopback);
	inspect_tls(&inspect, config->certificate, config->key, config->ca);
	for (size_t i = 0; i < config->nr_vcenters; i++)
		look_at_vcenter(&inspect, &config->vcenters[i].access);
	if (config->nr_vcenters == 0)
		inspect_say(
			&inspect, false, "there is no [vcenter NAME]: nothing can be backed up");
	for (size_t i = 0; i < config->nr_repositories; i++)
		look_at_repository(&inspect, &config->repositories[i]);
	if (config->nr_repositories == 0)
		inspect_say(
			&inspect, false, "there is no [repository NAME]: nothing can be backed up");
	if (config->hub_token_file)
		inspect_file(&inspect, "[hub] token-file", config->hub_token_file, true);
	if (config->hub_ca_file)
		inspect_file(&inspect, "[hub] ca-file", config->hub_ca_file, false);
	unsigned nr_errors = inspect.nr_errors;
	node_config_free(config);
	return nr_errors;
}
