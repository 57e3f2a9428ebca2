/* sendense node init, run, check-config, enrol. */
#include "commands.h"
#include "daemon_commands.h"
#include "version.h"

#include "node.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
		.help = "what the node alone knows is kept there (default: " NODE_STATE_DIR ")"},
	{.name = "runtime-dir",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, runtime_dir),
		.argument = "DIR",
		.words = WORDS_FOLDER,
		.help = "running jobs (default: " NODE_RUNTIME_DIR ")"},
	{.name = "listen",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct init_values, listen),
		.argument = "ADDRESS:PORT",
		.help = "of the API (default: " NODE_LISTEN ")"},
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

/* --- enrol --------------------------------------------------------------------------------- */

#define CODE_MOST 256

struct enrol_values {
	const char *config, *hub, *ca_file, *code_file;
};

static const struct option_spec enrol_options[] = {
	CONFIG_OPTION_ROW(struct enrol_values),
	{.name = "hub",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct enrol_values, hub),
		.argument = "URL",
		.help = "of its API, or where a tunnel leads to it (https://hub.example:8443)"},
	{.name = "ca-file",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct enrol_values, ca_file),
		.argument = "FILE",
		.words = WORDS_FILE,
		.help = "the only CA that counts for the hub's certificate; it stays there"},
	{.name = "code-file",
		.kind = OPTION_TEXT,
		.offset = offsetof(struct enrol_values, code_file),
		.argument = "FILE",
		.words = WORDS_FILE,
		.help = "that holds the code (default: standard input)"},
};

/* One line; never an argument, which everybody can see. */
static int read_code(const char *path, char code[CODE_MOST], struct err *err)
{
	FILE *in = path ? fopen(path, "re") : stdin;
	if (!in)
		return err_errno(err, errno, "cannot read the code, %s", path);
	bool good = fgets(code, CODE_MOST, in) != NULL;
	if (path)
		fclose(in);
	code[good ? strcspn(code, " \t\r\n") : 0] = '\0';
	return code[0] ? 0
		       : err_set(err, ERR_USAGE, "%s holds no code",
				 path ? path : "standard input");
}

static int run_enrol(struct cli *cli, const void *values, struct err *err)
{
	const struct enrol_values *v = values;
	struct daemon_steps steps = {.quiet = cli->common.quiet};
	char code[CODE_MOST];
	char *AUTO_FREE ca_file = v->ca_file ? realpath(v->ca_file, NULL) : NULL;
	if (!v->hub)
		return err_set(err, ERR_USAGE, "--hub is missing");
	if (v->ca_file && !ca_file)
		return err_errno(err, errno, "cannot use %s", v->ca_file);
	if (read_code(v->code_file, code, err) < 0)
		return -1;
	const struct node_enrol_options options = {
		.config_path = config_path(v->config),
		.hub = v->hub,
		.ca_file = ca_file,
		.code = code,
		.version = BUILD_VERSION,
		.build = version_build(),
		.cancel = cli->cancel,
		.did = daemon_tell_step,
		.context = &steps,
	};
	if (cli->common.json)
		steps.list = json_array();
	int rc = node_enrol(&options, err);
	explicit_bzero(code, sizeof code);
	if (rc == 0 && steps.list)
		return cli_print_json(
			json_pack("{s:o, s:s}", "did", steps.list, "config", options.config_path),
			err);
	json_decref(steps.list);
	return rc < 0 ? -1 : cli_flush(err);
}

const struct command command_node_enrol = {
	.name = "node enrol",
	.summary = "Have a hub give this node its work",
	.details = "An administrator of the hub makes a code for the node's name (POST\n"
		   "/api/v1/nodes/codes), which is good once. The node gets its token for it, kept "
		   "in\n"
		   "STATE/hub.token (mode 0600), and [hub] and the hub's repositories are put into "
		   "the\n"
		   "settings; then the node is started again.",
	COMMAND_OPTIONS(enrol_options),
	.common = COMMON_JSON,
	.values_bytes = sizeof(struct enrol_values),
	.run = run_enrol,
};
