/* hub init: what setup.h makes for every daemon, a repository, and hub.conf. */
#include "hub_internal.h"

#include "repository.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct making {
	const struct hub_init_options *options;
	struct hub_init_result *result;
	struct daemon_setup setup;
	struct hub_config *there; /* the settings, where the file was there before */
	const char *state_dir, *runtime_dir, *listen, *nbd_listen;
	char name[256];
	char tls_dir[SETUP_PATH_BYTES];
};

/* --- repository and configuration ----------------------------------------------------------- */

static int make_repository(const struct making *m, struct err *err)
{
	const char *path = m->options->repository_path;
	char file[4096 + 32];
	struct repository_settings settings;
	if (!path)
		return 0;
	snprintf(file, sizeof file, "%s/repository.json", path);
	if (setup_exists(file))
		return 0;
	repository_settings_default(&settings);
	if (repository_init(path, &settings, err) < 0)
		return -1;
	setup_did(&m->setup, "made a repository in %s", path);
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

/* --- all of it ------------------------------------------------------------------------------ */

/* A file that is there stays as it is and counts. */
static int heed_config(struct making *m, struct err *err)
{
	const struct hub_init_options *o = m->options;
	char listen[SETTINGS_ADDRESS_BYTES], nbd_listen[SETTINGS_ADDRESS_BYTES];
	if (!setup_exists(o->config_path))
		return 0;
	m->there = hub_config_load(o->config_path, NULL, NULL, err);
	if (!m->there)
		return -1;
	const struct setup_said settings[] = {
		{"[hub] state-dir", o->state_dir, m->there->state_dir},
		{"[hub] runtime-dir", o->runtime_dir, m->there->runtime_dir},
		{"[hub] listen", o->listen, settings_address_text(&m->there->listen, listen)},
		{"[nbd] listen", o->nbd_listen,
			settings_address_text(&m->there->nbd_listen, nbd_listen)},
		{"[hub] name", o->name, m->there->name}};
	if (setup_check_said(o->config_path, settings, ARRAY_LENGTH(settings), err) < 0)
		return -1;
	m->state_dir = m->there->state_dir;
	m->runtime_dir = m->there->runtime_dir;
	if (m->there->name)
		snprintf(m->name, sizeof m->name, "%s", m->there->name);
	return 0;
}

static int check_options(const struct making *m, struct err *err)
{
	const struct setup_option paths[] = {{"state-dir", m->state_dir},
		{"runtime-dir", m->runtime_dir}, {"repository", m->options->repository_path}};
	return setup_check_paths(paths, ARRAY_LENGTH(paths), err) < 0
		       ? -1
		       : setup_check_name(m->name, err);
}

/* What the file says counts, also where it was there before: it is read back. */
static int tell_result(struct making *m, struct err *err)
{
	struct hub_config *config = hub_config_load(m->options->config_path, NULL, NULL, err);
	if (!config)
		return -1;
	settings_address_url(&config->listen, config->certificate != NULL, config->name,
		config->listen.port, m->result->url);
	hub_config_free(config);
	return 0;
}

static int make_all(struct making *m, struct err *err)
{
	const struct hub_init_options *o = m->options;
	char *AUTO_FREE text = NULL; /* of the settings; NULL: they are there */
	size_t length = 0;
	if (check_options(m, err) < 0 || heed_config(m, err) < 0 ||
		setup_join(m->tls_dir, m->state_dir, "tls", err) < 0 ||
		setup_join(m->result->ca_file, m->tls_dir, "ca.crt", err) < 0 ||
		draft_config(m, &text, &length, err) < 0 ||
		setup_folder(&m->setup, m->state_dir, 0700, err) < 0)
		return -1;
	/* What is there is kept: a CA whose key others have would be. */
	return folder_own(m->state_dir, false, err) < 0 ||
			       setup_certificates(&m->setup, m->tls_dir, m->name, o->addresses,
				       o->nr_addresses, err) < 0 ||
			       setup_token(&m->setup, m->state_dir, m->result->token_file, err) <
				       0 ||
			       make_repository(m, err) < 0 ||
			       setup_config(&m->setup, o->config_path, text, length, err) < 0
		       ? -1
		       : 0;
}

int hub_init(
	const struct hub_init_options *options, struct hub_init_result *result, struct err *err)
{
	struct making m = {
		.options = options,
		.result = result,
		.setup = {.kind = "hub", .did = options->did, .context = options->context},
		.state_dir = options->state_dir ? options->state_dir : HUB_STATE_DIR,
		.runtime_dir = options->runtime_dir ? options->runtime_dir : HUB_RUNTIME_DIR,
		.listen = options->listen ? options->listen : HUB_LISTEN,
		.nbd_listen = options->nbd_listen ? options->nbd_listen : HUB_NBD_LISTEN,
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
