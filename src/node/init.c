/* node init: what setup.h makes for every daemon, and node.conf. */
#include "node_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct making {
	const struct node_init_options *options;
	struct node_init_result *result;
	struct daemon_setup setup;
	struct node_config *there; /* the settings, where the file was there before */
	const char *state_dir, *runtime_dir, *listen;
	char name[256];
	char tls_dir[SETUP_PATH_BYTES];
};

static void write_config(FILE *out, const struct making *m)
{
	fprintf(out,
		"# Settings of the Sendense node; docs/node.md tells of all.  Look at it with\n"
		"# \"sendense node check-config\"; \"systemctl reload sendense-node\" reads it "
		"anew.\n\n"
		"[node]\nstate-dir = %s\nruntime-dir = %s\nlisten = %s\nname = %s\n\n"
		"[tls]\ncertificate = %s/server.crt\nkey = %s/server.key\nca = %s\n\n",
		m->state_dir, m->runtime_dir, m->listen, m->name, m->tls_dir, m->tls_dir,
		m->result->ca_file);
	fputs("# Whose machines there are; the password is one line in a file of mode 0600.\n"
	      "# [vcenter main]\n"
	      "# url = vmware://backup%40vsphere.local@vcenter.example\n"
	      "# password-file = /etc/sendense/vcenter.password\n"
	      "# ca-file = /etc/sendense/vcenter.crt\n\n"
	      "# Where backups go.\n"
	      "# [repository main]\n"
	      "# path = /srv/backup\n",
		out);
}

/* Its text is looked at before the first thing is made: what is wrong in an option must neither
 * leave a half-made node nor a file that stays as it is. */
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
	struct node_config *config =
		node_config_parse(m->options->config_path, *text, *length, err);
	node_config_free(config);
	return config ? 0 : -1;
}

/* A file that is there stays as it is and counts. */
static int heed_config(struct making *m, struct err *err)
{
	const struct node_init_options *o = m->options;
	char listen[SETTINGS_ADDRESS_BYTES];
	if (!setup_exists(o->config_path))
		return 0;
	m->there = node_config_load(o->config_path, NULL, NULL, err);
	if (!m->there)
		return -1;
	const struct setup_said settings[] = {
		{"[node] state-dir", o->state_dir, m->there->state_dir},
		{"[node] runtime-dir", o->runtime_dir, m->there->runtime_dir},
		{"[node] listen", o->listen, settings_address_text(&m->there->listen, listen)},
		{"[node] name", o->name, m->there->name}};
	if (setup_check_said(o->config_path, settings, ARRAY_LENGTH(settings), err) < 0)
		return -1;
	m->state_dir = m->there->state_dir;
	m->runtime_dir = m->there->runtime_dir;
	snprintf(m->name, sizeof m->name, "%s", m->there->name);
	return 0;
}

static int check_options(const struct making *m, struct err *err)
{
	const struct setup_option paths[] = {
		{"state-dir", m->state_dir}, {"runtime-dir", m->runtime_dir}};
	return setup_check_paths(paths, ARRAY_LENGTH(paths), err) < 0
		       ? -1
		       : setup_check_name(m->name, err);
}

/* What the file says counts, also where it was there before: it is read back. */
static int tell_result(struct making *m, struct err *err)
{
	struct node_config *config = node_config_load(m->options->config_path, NULL, NULL, err);
	if (!config)
		return -1;
	settings_address_url(&config->listen, config->certificate != NULL, config->name,
		config->listen.port, m->result->url);
	node_config_free(config);
	return 0;
}

static int make_all(struct making *m, struct err *err)
{
	const struct node_init_options *o = m->options;
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
			       setup_config(&m->setup, o->config_path, text, length, err) < 0
		       ? -1
		       : 0;
}

int node_init(
	const struct node_init_options *options, struct node_init_result *result, struct err *err)
{
	struct making m = {
		.options = options,
		.result = result,
		.setup = {.kind = "node", .did = options->did, .context = options->context},
		.state_dir = options->state_dir ? options->state_dir : NODE_STATE_DIR,
		.runtime_dir = options->runtime_dir ? options->runtime_dir : NODE_RUNTIME_DIR,
		.listen = options->listen ? options->listen : NODE_LISTEN,
	};
	if (options->name)
		snprintf(m.name, sizeof m.name, "%s", options->name);
	else if (gethostname(m.name, sizeof m.name - 1) < 0 || !m.name[0])
		snprintf(m.name, sizeof m.name, "localhost");
	int rc = make_all(&m, err);
	node_config_free(m.there);
	if (rc < 0)
		return err_context(err, "node init");
	return tell_result(&m, err);
}
