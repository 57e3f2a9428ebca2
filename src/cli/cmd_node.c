/* sendense node init, run, check-config. */
#include "commands.h"
#include "daemon_commands.h"
#include "version.h"

#include "node.h"

#define CONFIG_OPTION_ROW(values) DAEMON_CONFIG_ROW(values, "node", NODE_CONFIG_FILE)

static const char *config_path(const char *given)
{
	return given ? given : NODE_CONFIG_FILE;
}

/* --- init --------------------------------------------------------------------------------- */

struct init_values {
	const char *config, *state_dir, *runtime_dir, *listen, *name;
	struct option_list addresses;
};

static const struct option_spec init_options[] = {
	CONFIG_OPTION_ROW(struct init_values),
	{.name = "state-dir",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, state_dir),
		.argument = "DIR",
		.words = WORDS_FOLDER,
		.help = "what the node alone knows is kept there (default: "
			"/var/lib/sendense/node)"},
	{.name = "runtime-dir",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, runtime_dir),
		.argument = "DIR",
		.words = WORDS_FOLDER,
		.help = "running jobs (default: /run/sendense-node)"},
	{.name = "listen",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, listen),
		.argument = "ADDRESS:PORT",
		.help = "of the API (default: 127.0.0.1:8081)"},
	{.name = "name",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, name),
		.argument = "NAME",
		.help = "what the hub and clients call this machine (default: its host name)"},
	{.name = "address",
		.kind = OPTION_LIST,
		.offset = offsetof(struct init_values, addresses),
		.argument = "NAME",
		.help = "another name or address for the certificate; may be given several times"},
};

static void print_next_steps(const char *config, const struct node_init_result *result)
{
	printf("\nNext: a [vcenter NAME] and a [repository NAME] in %s, then\n"
	       "  sendense node check-config --config %s\n"
	       "  sendense node run --config %s\n"
	       "  curl --cacert %s %s/api/v1/health\n",
		config, config, config, result->ca_file, result->url);
}

static int run_init(struct cli *cli, const void *values, struct err *err)
{
	const struct init_values *v = values;
	struct daemon_steps steps = {.quiet = cli->common.quiet};
	struct node_init_result result = {0};
	const struct node_init_options options = {
		.config_path = config_path(v->config),
		.state_dir = v->state_dir,
		.runtime_dir = v->runtime_dir,
		.listen = v->listen,
		.name = v->name,
		.addresses = v->addresses.items,
		.nr_addresses = v->addresses.nr,
		.did = daemon_tell_step,
		.context = &steps,
	};
	if (cli->common.json)
		steps.list = json_array();
	if (node_init(&options, &result, err) < 0) {
		json_decref(steps.list);
		return -1;
	}
	if (steps.list)
		return cli_print_json(
			json_pack("{s:o, s:s, s:s, s:s, s:s}", "did", steps.list, "config",
				options.config_path, "url", result.url, "token_file",
				result.token_file, "ca_file", result.ca_file),
			err);
	if (!cli->common.quiet)
		print_next_steps(options.config_path, &result);
	return cli_flush(err);
}

const struct command command_node_init = {
	.name = "node init",
	.summary = "Make what a node needs: CA, certificate, token, settings",
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

static int tell_ready(void *context, const char *url, struct err *err)
{
	const struct cli *cli = context;
	if (cli->common.json)
		return cli_print_json(
			json_pack("{s:s, s:i}", "url", url, "pid", (int)getpid()), err);
	if (!cli->common.quiet)
		printf("%s\n", url);
	return cli_flush(err);
}

static int run_run(struct cli *cli, const void *values, struct err *err)
{
	const struct config_values *v = values;
	char software[128];
	snprintf(software, sizeof software, "sendense %s", version_text());
	const struct node_run_options options = {
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
	return node_run(&options, err);
}

const struct command command_node_run = {
	.name = "node run",
	.summary = "Run the node: backups and replication of a vCenter's machines",
	.details =
		"When it is ready it prints its URI in one line, tells systemd, and stays until\n"
		"SIGTERM. SIGHUP: the settings are read anew.",
	COMMAND_OPTIONS(config_options),
	.common = COMMON_JSON,
	.values_bytes = sizeof(struct config_values),
	.run = run_run,
};

/* --- check-config ------------------------------------------------------------------------- */

static int run_check(struct cli *cli, const void *values, struct err *err)
{
	const struct config_values *v = values;
	return daemon_check(
		cli, config_path(v->config), node_check_config, node_config_settings, err);
}

const struct command command_node_check_config = {
	.name = "node check-config",
	.summary = "Check the node's settings, and what they name",
	.details =
		"Reads the file and looks at the folders, repositories, certificates, passwords'\n"
		"and tokens' files that it names; starts and changes nothing, and asks neither\n"
		"vCenters nor hubs. Ends with status 2 when a node would not start with it. Run "
		"it\n"
		"as the user that the node runs as.",
	COMMAND_OPTIONS(config_options),
	.common = COMMON_JSON,
	.values_bytes = sizeof(struct config_values),
	.run = run_check,
};
