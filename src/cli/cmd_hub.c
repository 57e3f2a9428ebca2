/* sendense hub init, run, check-config, export, import. */
#include "commands.h"
#include "daemon_commands.h"
#include "version.h"

#include "hub.h"

#include <string.h>

#define CONFIG_OPTION_ROW(values) DAEMON_CONFIG_ROW(values, "hub", HUB_CONFIG_FILE)

static const char *config_path(const char *given)
{
	return given ? given : HUB_CONFIG_FILE;
}

/* --- init --------------------------------------------------------------------------------- */

struct init_values {
	const char *config, *state_dir, *runtime_dir, *listen, *nbd_listen, *name, *repository;
	struct option_list addresses, sources;
};

static const struct option_spec init_options[] = {
	CONFIG_OPTION_ROW(struct init_values),
	{.name = "state-dir",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, state_dir),
		.argument = "DIR",
		.words = WORDS_FOLDER,
		.help = "what the hub alone knows is kept there (default: " HUB_STATE_DIR ")"},
	{.name = "runtime-dir",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, runtime_dir),
		.argument = "DIR",
		.words = WORDS_FOLDER,
		.help = "sockets and running jobs (default: " HUB_RUNTIME_DIR ")"},
	{.name = "listen",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, listen),
		.argument = "ADDRESS:PORT",
		.help = "of the API (default: " HUB_LISTEN ")"},
	{.name = "nbd-listen",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, nbd_listen),
		.argument = "ADDRESS:PORT",
		.help = "of the NBD service (default: " HUB_NBD_LISTEN ")"},
	{.name = "name",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, name),
		.argument = "NAME",
		.help = "what clients call this machine (default: its host name)"},
	{.name = "address",
		.kind = OPTION_LIST,
		.offset = offsetof(struct init_values, addresses),
		.argument = "NAME",
		.help = "another name or address for the certificate; may be given several times"},
	{.name = "repository",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, repository),
		.argument = "[NAME=]DIR",
		.words = WORDS_FOLDER,
		.help = "a repository, made when it is not there (its name by default: main)"},
	{.name = "allow-source",
		.kind = OPTION_LIST,
		.offset = offsetof(struct init_values, sources),
		.argument = "PREFIX",
		.help = "what jobs may read (nbd://host:10809/); may be given several times"},
};

/* Splits "[NAME=]DIR"; the name's end is cut in copy. */
static void split_repository(
	const char *text, char *copy, size_t bytes, const char **name, const char **path)
{
	const char *equals = strchr(text, '=');
	*name = "main";
	*path = text;
	if (!equals || strchr(text, '/') < equals)
		return;
	snprintf(copy, bytes, "%.*s", (int)(equals - text), text);
	*name = copy;
	*path = equals + 1;
}

static void print_next_steps(const char *config, const struct hub_init_result *result)
{
	printf("\nNext:\n"
	       "  sendense hub check-config --config %s\n"
	       "  sendense hub run --config %s\n"
	       "  sendense ls --repo %s --token-file %s --ca-file %s\n",
		config, config, result->url, result->token_file, result->ca_file);
}

static int run_init(struct cli *cli, const void *values, struct err *err)
{
	const struct init_values *v = values;
	char name[64];
	struct daemon_steps report = {.quiet = cli->common.quiet};
	struct hub_init_result result = {0};
	struct hub_init_options options = {
		.config_path = config_path(v->config),
		.state_dir = v->state_dir,
		.runtime_dir = v->runtime_dir,
		.listen = v->listen,
		.nbd_listen = v->nbd_listen,
		.name = v->name,
		.addresses = v->addresses.items,
		.nr_addresses = v->addresses.nr,
		.allow_sources = v->sources.items,
		.nr_allow_sources = v->sources.nr,
		.did = daemon_tell_step,
		.context = &report,
	};
	if (v->repository)
		split_repository(v->repository, name, sizeof name, &options.repository,
			&options.repository_path);
	if (cli->common.json)
		report.list = json_array();
	if (hub_init(&options, &result, err) < 0) {
		json_decref(report.list);
		return -1;
	}
	if (report.list)
		return cli_print_json(
			json_pack("{s:o, s:s, s:s, s:s, s:s}", "did", report.list, "config",
				options.config_path, "url", result.url, "token_file",
				result.token_file, "ca_file", result.ca_file),
			err);
	if (!cli->common.quiet)
		print_next_steps(options.config_path, &result);
	return cli_flush(err);
}

const struct command command_hub_init = {
	.name = "hub init",
	.summary = "Make what a hub needs: CA, certificate, token, settings",
	.details = "Nothing that is there already is replaced; one that was interrupted is called\n"
		   "again. The token's file is the key to everything: it has mode 0600.",
	COMMAND_OPTIONS(init_options),
	.common = COMMON_JSON,
	.values_bytes = sizeof(struct init_values),
	.run = run_init,
};

/* --- run ------------------------------------------------------------------------------------ */

struct config_values {
	const char *config;
};

static const struct option_spec config_options[] = {CONFIG_OPTION_ROW(struct config_values)};

static int tell_ready(void *context, const char *url, const char *nbd_address, struct err *err)
{
	const struct cli *cli = context;
	if (cli->common.json)
		return cli_print_json(
			json_pack("{s:s, s:s?, s:i}", "url", url, "nbd",
				nbd_address[0] ? nbd_address : NULL, "pid", (int)getpid()),
			err);
	if (!cli->common.quiet)
		printf("%s\n", url);
	return cli_flush(err);
}

static int run_run(struct cli *cli, const void *values, struct err *err)
{
	const struct config_values *v = values;
	char software[128];
	snprintf(software, sizeof software, "sendense %s", version_text());
	const struct hub_run_options options = {
		.config_path = config_path(v->config),
		.version = BUILD_VERSION,
		.build = version_build(),
		.software = software,
		.cancel = cli->cancel,
		.ready = tell_ready,
		.context = cli,
		.quiet = cli->common.quiet,
		.verbose = cli->common.verbose,
	};
	return hub_run(&options, err);
}

const struct command command_hub_run = {
	.name = "hub run",
	.summary = "Run the hub: many machines' backups over the network, by schedule",
	.details =
		"When it is ready it prints its URI in one line, tells systemd, and stays until\n"
		"SIGTERM. SIGHUP: the settings are read anew.",
	COMMAND_OPTIONS(config_options),
	.common = COMMON_JSON,
	.values_bytes = sizeof(struct config_values),
	.run = run_run,
};

/* --- check-config ------------------------------------------------------------------------------
 */

static int run_check(struct cli *cli, const void *values, struct err *err)
{
	const struct config_values *v = values;
	return daemon_check(
		cli, config_path(v->config), hub_check_config, hub_config_settings, err);
}

const struct command command_hub_check_config = {
	.name = "hub check-config",
	.summary = "Check the hub's settings, and what they name",
	.details = "Reads the file and looks at the folders, repositories, certificates and keys "
		   "that\n"
		   "it names; starts and changes nothing. Ends with status 2 when a hub would not "
		   "start\n"
		   "with it. Run it as the user that the hub runs as.",
	COMMAND_OPTIONS(config_options),
	.common = COMMON_JSON,
	.values_bytes = sizeof(struct config_values),
	.run = run_check,
};

/* --- export, import
 * ------------------------------------------------------------------------------- */

static int run_export(struct cli *cli, const void *values, struct err *err)
{
	const struct config_values *v = values;
	const char *out = cli->arguments.items[0];
	unsigned nr_files;
	char software[128];
	snprintf(software, sizeof software, "sendense %s", version_text());
	if (hub_export(config_path(v->config), software, out, &nr_files, err) < 0)
		return -1;
	if (cli->common.json)
		return cli_print_json(
			json_pack("{s:s, s:i}", "file", out, "files", (int)nr_files), err);
	if (!cli->common.quiet)
		printf("%s holds the hub's state and %u files, private keys among them: keep it as "
		       "a secret.\n",
			out, nr_files);
	return cli_flush(err);
}

const struct command command_hub_export = {
	.name = "hub export",
	.arguments = "FILE",
	.summary = "Write the hub's own state, settings and keys into one file",
	.details = "Works while the hub runs. The repositories are not in it.",
	COMMAND_OPTIONS(config_options),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.words = WORDS_FILE,
	.values_bytes = sizeof(struct config_values),
	.run = run_export,
};

struct import_values {
	const char *state_dir;
};

static const struct option_spec import_options[] = {
	{.name = "state-dir",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct import_values, state_dir),
		.argument = "DIR",
		.words = WORDS_FOLDER,
		.help = "new or empty (default: " HUB_STATE_DIR ")"},
};

static void tell_file(void *context, const char *name, const char *old_path)
{
	const struct daemon_steps *report = context;
	if (report->list)
		json_array_append_new(
			report->list, json_pack("{s:s, s:s?}", "name", name, "was", old_path));
	else if (!report->quiet)
		printf("%s (was %s)\n", name, old_path ? old_path : "?");
}

/* A repository's copy holds the state alone. */
static void tell_next(const char *folder, const struct archive_summary *summary)
{
	if (!summary->hub[0]) {
		printf("%s has the state of a hub as of its last copy, without settings and keys.\n"
		       "Next: sendense hub init --state-dir %s ... makes new ones.\n",
			folder, folder);
		return;
	}
	printf("%s has the state of the hub %s as of %s.\n"
	       "Its settings still name folders of the old machine. Next:\n"
	       "  change them in %s/hub.conf, and copy that to " HUB_CONFIG_FILE "\n"
	       "  sendense hub check-config\n",
		folder, summary->hub, summary->created, folder);
}

static int run_import(struct cli *cli, const void *values, struct err *err)
{
	const struct import_values *v = values;
	const char *folder = v->state_dir ? v->state_dir : HUB_STATE_DIR;
	struct daemon_steps report = {.quiet = cli->common.quiet};
	struct archive_summary summary = {.file = tell_file, .context = &report};
	if (cli->common.json)
		report.list = json_array();
	if (archive_import(cli->arguments.items[0], folder, &summary, err) < 0) {
		json_decref(report.list);
		return -1;
	}
	if (report.list)
		return cli_print_json(json_pack("{s:s, s:s, s:s, s:s, s:o}", "folder", folder,
					      "hub", summary.hub, "software", summary.software,
					      "created", summary.created, "files", report.list),
			err);
	if (!cli->common.quiet)
		tell_next(folder, &summary);
	return cli_flush(err);
}

const struct command command_hub_import = {
	.name = "hub import",
	.arguments = "FILE",
	.summary = "Bring the hub's own state back from an export, or a repository's copy of it",
	.details = "FILE: what \"hub export\" wrote, or hub/NAME/state.db of a repository. All is "
		   "looked at\n"
		   "before the first file is in place.",
	COMMAND_OPTIONS(import_options),
	.common = COMMON_JSON,
	.min_arguments = 1,
	.max_arguments = 1,
	.words = WORDS_FILE,
	.values_bytes = sizeof(struct import_values),
	.run = run_import,
};
