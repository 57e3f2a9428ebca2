/* hub export: what belongs into the archive. */
#include "hub_internal.h"

#include "archive.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define FILES_MOST 16

struct collecting {
	struct archive_file files[FILES_MOST];
	char names[FILES_MOST][ARCHIVE_NAME_BYTES];
	char paths[FILES_MOST][4096 + 64];
	size_t nr;
};

/* A file that is not there is not missed: a token's file may have been taken away on purpose. */
static void add(struct collecting *c, const char *name, const char *path)
{
	if (!path || c->nr == FILES_MOST || access(path, F_OK) < 0)
		return;
	for (size_t i = 0; i < c->nr; i++)
		if (strcmp(c->paths[i], path) == 0)
			return;
	snprintf(c->names[c->nr], sizeof c->names[0], "%s", name);
	snprintf(c->paths[c->nr], sizeof c->paths[0], "%s", path);
	c->files[c->nr] = (struct archive_file){.name = c->names[c->nr], .path = c->paths[c->nr]};
	c->nr++;
}

static void add_from(struct collecting *c, const char *folder, const char *name)
{
	char path[4096 + 64];
	snprintf(path, sizeof path, "%s/%s", folder, name);
	add(c, name, path);
}

int hub_export(const char *config_path, const char *software, const char *out, unsigned *nr_files,
	struct err *err)
{
	char state[4096 + 16];
	struct hub_config *config = hub_config_load(config_path, NULL, NULL, err);
	struct collecting *c = calloc(1, sizeof *c);
	int rc = -1;
	if (config && !c)
		err_errno(err, ENOMEM, "cannot export");
	if (config && c) {
		static const char *const ours[] = {"admin.token", "tls/ca.crt", "tls/ca.key",
			"tls/server.crt", "tls/server.key"};
		add(c, "hub.conf", config->path);
		for (size_t i = 0; i < ARRAY_LENGTH(ours); i++)
			add_from(c, config->state_dir, ours[i]);
		add(c, "tls/certificate", config->certificate);
		add(c, "tls/key", config->key);
		add(c, "tls/clients-ca", config->ca);
		add(c, "webhook.secret", config->webhook_secret_file);
		snprintf(state, sizeof state, "%s/state.db", config->state_dir);
		const struct archive_export_options options = {.state_path = state,
			.hub = config->name,
			.software = software,
			.files = c->files,
			.nr_files = c->nr};
		rc = archive_export(&options, out, err);
		if (nr_files)
			*nr_files = (unsigned)c->nr;
	}
	free(c);
	hub_config_free(config);
	return rc;
}
