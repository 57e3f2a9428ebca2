/*
 * The frame around every command: finds it, parses its options, sets up signals
 * and logging, runs it, tells its error.  Help and completion come from the same
 * tables as the parsing.
 */
#include "cli.h"
#include "console.h"
#include "output.h"
#include "version.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* --- common options ----------------------------------------------------------- */

static const char *const progress_modes[] = {"none", "bar", "json", NULL};

const struct option_spec cli_common_options[] = {
	{.name = "json",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct cli_common, json),
		.help = "print one JSON object on standard output, also for an error"},
	{.name = "progress",
		.kind = OPTION_CHOICE,
		.offset = offsetof(struct cli_common, progress),
		.argument = "none|bar|json",
		.choices = progress_modes,
		.help = "progress on standard error (default: a bar on a terminal, else none)"},
	{.name = "quiet",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct cli_common, quiet),
		.help = "no bar, no report but --json's; warnings and errors are told"},
	{.name = "verbose",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct cli_common, verbose),
		.help = "log what happens on standard error (default: warnings and errors)"},
	{.name = "help",
		.letter = 'h',
		.kind = OPTION_FLAG,
		.offset = offsetof(struct cli_common, help),
		.help = "show this help"},
};
const size_t cli_nr_common_options = ARRAY_LENGTH(cli_common_options);

bool cli_has_common(const struct command *command, const struct option_spec *spec)
{
	if (strcmp(spec->name, "json") == 0)
		return command->common & COMMON_JSON;
	if (strcmp(spec->name, "progress") == 0)
		return command->common & COMMON_PROGRESS;
	return true;
}

/* The common options that the command has; out has room for all. */
static size_t common_of(const struct command *command, struct option_spec *out)
{
	size_t nr = 0;
	for (size_t i = 0; i < cli_nr_common_options; i++)
		if (cli_has_common(command, &cli_common_options[i]))
			out[nr++] = cli_common_options[i];
	return nr;
}

/* --- help ----------------------------------------------------------------------- */

static void print_command_help(const struct command *command, const struct option_group *groups)
{
	printf("Usage: sendense %s [OPTION]...%s%s\n\n%s.\n", command->name,
		command->arguments ? " " : "", command->arguments ? command->arguments : "",
		command->summary);
	if (command->details)
		printf("\n%s\n", command->details);
	printf("\nOptions:\n");
	options_print_help(stdout, groups, 2);
	printf("\nExit status: 0 done, 1 failed or cancelled, 2 wrong usage, 3 damage found.\n");
}

static void print_help(void)
{
	printf("Usage: sendense COMMAND [OPTION]... [ARGUMENT]...\n\n"
	       "Backs up virtual machines' disks into plain QCOW2 files, and gets them back.\n\n"
	       "Commands:\n");
	for (size_t i = 0; i < cli_nr_commands; i++)
		printf("  %-18s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
	printf("\nDisks are named as raw:PATH, qcow2:PATH, nbd://HOST[:PORT]/NAME,\n"
	       "nbd+unix:///NAME?socket=PATH or null:SIZE, a machine in QEMU as qemu:SOCKET,\n"
	       "one of a vCenter as vmware://USER@HOST/VM;\n"
	       "a format is never guessed.\n"
	       "More: sendense COMMAND --help, man sendense\n");
}

/* Whether the command's name is "first something". */
static bool begins_with(const struct command *command, const char *first)
{
	size_t length = strlen(first);
	return strncmp(command->name, first, length) == 0 && command->name[length] == ' ';
}

/* "sendense repo --help"; false when no command has two words of which this is one. */
static bool print_group_help(const char *first)
{
	bool found = false;
	for (size_t i = 0; i < cli_nr_commands; i++) {
		if (!begins_with(cli_commands[i], first))
			continue;
		if (!found)
			printf("Usage: sendense %s COMMAND [OPTION]... "
			       "[ARGUMENT]...\n\nCommands:\n",
				first);
		found = true;
		printf("  %-18s %s\n", cli_commands[i]->name, cli_commands[i]->summary);
	}
	if (found)
		printf("\nMore: sendense %s COMMAND --help\n", first);
	return found;
}

/* --- finding a command ------------------------------------------------------------ */

/* Whether the command's name is "first second". */
static bool is_named(const struct command *command, const char *first, const char *second)
{
	return begins_with(command, first) &&
	       strcmp(command->name + strlen(first) + 1, second) == 0;
}

/* 2 or 1 words of argv are its name; NULL when none is. */
static const struct command *find_command(int argc, const char *const *argv, int *nr_words)
{
	for (size_t i = 0; i < cli_nr_hidden_commands; i++) {
		*nr_words = 1;
		if (strcmp(cli_hidden_commands[i]->name, argv[0]) == 0)
			return cli_hidden_commands[i];
	}
	for (size_t i = 0; i < cli_nr_commands; i++) {
		*nr_words = 2;
		if (argc > 1 && is_named(cli_commands[i], argv[0], argv[1]))
			return cli_commands[i];
		*nr_words = 1;
		if (strcmp(cli_commands[i]->name, argv[0]) == 0)
			return cli_commands[i];
	}
	return NULL;
}

/* Says what could have been meant: "repo" lists its second words. */
static int unknown_command(int argc, const char *const *argv, struct err *err)
{
	char follow[128] = "";
	const char *names[64];
	size_t nr = 0, length = strlen(argv[0]);
	for (size_t i = 0; i < cli_nr_commands && nr < ARRAY_LENGTH(names); i++) {
		const char *name = cli_commands[i]->name;
		names[nr++] = name;
		if (!begins_with(cli_commands[i], argv[0]))
			continue;
		size_t used = strlen(follow);
		snprintf(follow + used, sizeof follow - used, "%s%s", used ? ", " : "",
			name + length + 1);
	}
	if (follow[0] && argc > 1)
		return err_set(err, ERR_USAGE, "%s %s: no such command (there is: %s)", argv[0],
			argv[1], follow);
	if (follow[0])
		return err_set(err, ERR_USAGE, "%s: what of it? (one of: %s)", argv[0], follow);
	const char *near = options_nearest(argv[0], names, nr);
	if (near)
		return err_set(
			err, ERR_USAGE, "%s: no such command (did you mean %s?)", argv[0], near);
	return err_set(err, ERR_USAGE, "%s: no such %s", argv[0],
		argv[0][0] == '-' ? "option" : "command");
}

/* --- signals and logging ------------------------------------------------------------ */

static const struct cli_hooks *hooks;

void cli_set_hooks(const struct cli_hooks *to)
{
	hooks = to;
}

const struct cli_hooks *cli_hooks(void)
{
	return hooks;
}

static struct cancel *signal_cancel;
static volatile sig_atomic_t stop_signal;

static void on_signal(int number)
{
	stop_signal = number;
	cancel_request(signal_cancel);
}

int cli_stop_signal(void)
{
	return stop_signal;
}

/* The first signal asks to stop; a second one kills.  Not a worker, which may be giving something
 * back: its supervisor, and the next one, ask again, and have SIGKILL when that takes too long. */
static void catch_signals(struct cancel *cancel)
{
	static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
	signal_cancel = cancel;
	struct sigaction action = {
		.sa_handler = on_signal, .sa_flags = hooks ? 0 : (int)SA_RESETHAND};
	sigemptyset(&action.sa_mask);
	for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++) {
		struct sigaction old;
		/* nohup and background jobs of a shell ignore some on purpose. */
		if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
			sigaction(numbers[i], &action, NULL);
	}
	signal(SIGPIPE, SIG_IGN);
	/* A full file size limit is an error of the write, not the end. */
	signal(SIGXFSZ, SIG_IGN);
}

/* A chain of 500 images, and several disks at once, are more files than the usual limit. */
static void raise_limits(void)
{
	struct rlimit files;
	if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
}

static void log_to_console(void *context, enum log_level level, const char *text)
{
	(void)context;
	char line[2200];
	snprintf(line, sizeof line, "sendense: %s: %s", log_level_name(level), text);
	console_line(line);
}

static void set_logging(const struct cli_common *common)
{
	if (hooks) {
		log_set_sink(hooks->log, hooks->context, LOG_LEVEL_INFO);
		return;
	}
	/* Who asks for quiet wants to hear nothing, unless there is something. */
	log_set_sink(log_to_console, NULL,
		common->verbose && !common->quiet ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARNING);
}

/* --- running -------------------------------------------------------------------------- */

static int check_arguments(const struct cli *cli, struct err *err)
{
	const struct command *command = cli->command;
	if (cli->arguments.nr < command->min_arguments)
		return err_set(err, ERR_USAGE, "%s: something is missing (usage: sendense %s %s)",
			command->name, command->name, command->arguments);
	if (cli->arguments.nr > command->max_arguments)
		return err_set(err, ERR_USAGE, "%s: \"%s\" is one argument too many", command->name,
			cli->arguments.items[command->max_arguments]);
	return 0;
}

static int run_command(struct cli *cli, const struct option_group *groups, int argc,
	const char *const *argv, struct err *err)
{
	const struct command *command = cli->command;
	if (options_ask_help(argc, argv)) {
		print_command_help(command, groups);
		return cli_flush(err);
	}
	if (options_parse(groups, 2, argc, argv, &cli->arguments, err) < 0 ||
		check_arguments(cli, err) < 0)
		return -1;
	cli->cancel = cancel_new(err);
	if (!cli->cancel)
		return -1;
	if (!cli->common.json && !hooks)
		output_clean();
	catch_signals(cli->cancel);
	set_logging(&cli->common);
	return command->run(cli, groups[0].values, err);
}

/* True when --json was asked for, also where parsing stopped before it. */
static bool asks_json(const struct command *command, int argc, const char *const *argv)
{
	for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
		if (strcmp(argv[i], "--json") == 0)
			return !command || command->common & COMMON_JSON;
	return false;
}

static int main_of(const struct command *command, int argc, const char *const *argv)
{
	struct err err = ERR_INIT;
	struct option_spec common[8];
	struct cli cli = {.command = command};
	void *values = calloc(1, command->values_bytes + 1);
	if (!values) {
		err_errno(&err, ENOMEM, "cannot start");
		return cli_report_error(false, command->name, &err);
	}
	const struct option_group groups[] = {
		{command->options, command->nr_options, values},
		{common, common_of(command, common), &cli.common},
	};
	int status = run_command(&cli, groups, argc, argv, &err);
	if (status < 0)
		status = cli_report_error(asks_json(command, argc, argv), command->name, &err);
	output_restore();
	log_set_sink(NULL, NULL, LOG_LEVEL_ERROR);
	options_free(groups, 2);
	option_list_free(&cli.arguments);
	free(values);
	/* The handlers stay: a late signal finds its cancel, which is not freed
	 * before they are gone. */
	signal(SIGINT, hooks ? SIG_IGN : SIG_DFL);
	signal(SIGTERM, hooks ? SIG_IGN : SIG_DFL);
	signal(SIGHUP, hooks ? SIG_IGN : SIG_DFL);
	cancel_free(cli.cancel);
	return status;
}

int cli_main(int argc, const char *const *argv)
{
	struct err err = ERR_INIT;
	raise_limits();
	argc--;
	argv++;
	/* "sendense help copy" is "sendense copy --help". */
	bool help = argc > 0 && strcmp(argv[0], "help") == 0;
	if (help) {
		argc--;
		argv++;
	}
	if (argc == 0 && !help) {
		err_set(&err, ERR_USAGE, "which command? (sendense --help lists them)");
		return cli_report_error(false, "", &err);
	}
	if (argc == 0 || strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0) {
		print_help();
		return cli_flush(&err) < 0 ? cli_report_error(false, "", &err) : 0;
	}
	if (strcmp(argv[0], "--version") == 0 || strcmp(argv[0], "-V") == 0) {
		printf("sendense %s\n", version_text());
		return cli_flush(&err) < 0 ? cli_report_error(false, "", &err) : 0;
	}
	int nr_words;
	const struct command *command = find_command(argc, argv, &nr_words);
	bool asked = help ? argc == 1 : argc > 1 && options_ask_help(1, argv + 1);
	if (!command && asked && print_group_help(argv[0]))
		return cli_flush(&err) < 0 ? cli_report_error(false, "", &err) : 0;
	if (!command) {
		unknown_command(argc, argv, &err);
		return cli_report_error(asks_json(NULL, argc, argv), "", &err);
	}
	static const char *const ask_help[] = {"--help"};
	if (help)
		return main_of(command, 1, ask_help);
	return main_of(command, argc - nr_words, argv + nr_words);
}
