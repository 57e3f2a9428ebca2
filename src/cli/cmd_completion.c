/*
 * sendense completion bash: prints the completion for the shell, made from the
 * commands' tables.
 *
 * The script is one function.  It finds the command among the words typed so
 * far (two words first, then one), and offers for the word under the cursor: the
 * choices or files of the option before it, the command's options after a dash,
 * else what the command's arguments are.
 */
#include "cli.h"

#include <string.h>

static void print_options(const struct command *command, bool with_value_only)
{
	for (size_t i = 0; i < command->nr_options; i++)
		if (!with_value_only || command->options[i].kind != OPTION_FLAG)
			printf(" --%s", command->options[i].name);
	for (size_t i = 0; i < cli_nr_common_options; i++)
		if (cli_has_common(command, &cli_common_options[i]) &&
			(!with_value_only || cli_common_options[i].kind != OPTION_FLAG))
			printf(" --%s", cli_common_options[i].name);
}

/* What completes the value of an option, as a line of the script. */
static void print_value_case(const struct command *command, const struct option_spec *spec)
{
	printf("\t\"%s --%s\") ", command->name, spec->name);
	if (spec->kind == OPTION_CHOICE) {
		printf("COMPREPLY=($(compgen -W \"");
		for (size_t i = 0; spec->choices[i]; i++)
			printf("%s%s", i > 0 ? " " : "", spec->choices[i]);
		printf("\" -- \"$cur\"))");
	} else if (spec->words == WORDS_FOLDER) {
		printf("COMPREPLY=($(compgen -d -- \"$cur\"))");
	} else if (spec->words == WORDS_FILE) {
		printf("COMPREPLY=($(compgen -f -- \"$cur\"))");
	} else if (spec->words == WORDS_DISK) {
		printf("_sendense_disk");
	} else {
		printf("COMPREPLY=()");
	}
	printf("; return ;;\n");
}

static void print_argument_case(const struct command *command)
{
	static const char *const how[] = {
		[WORDS_NONE] = "COMPREPLY=()",
		[WORDS_FILE] = "COMPREPLY=($(compgen -f -- \"$cur\"))",
		[WORDS_FOLDER] = "COMPREPLY=($(compgen -d -- \"$cur\"))",
		[WORDS_DISK] = "_sendense_disk",
	};
	printf("\t\"%s\") %s ;;\n", command->name, how[command->words]);
}

static void print_cases(void)
{
	printf("\tcase \"$command $prev\" in\n");
	for (size_t i = 0; i < cli_nr_commands; i++) {
		const struct command *command = cli_commands[i];
		for (size_t k = 0; k < command->nr_options; k++)
			if (command->options[k].kind != OPTION_FLAG)
				print_value_case(command, &command->options[k]);
		for (size_t k = 0; k < cli_nr_common_options; k++)
			if (cli_common_options[k].kind != OPTION_FLAG &&
				cli_has_common(command, &cli_common_options[k]))
				print_value_case(command, &cli_common_options[k]);
	}
	printf("\tesac\n"
	       "\tif [[ $cur == -* ]]; then\n"
	       "\t\tcase \"$command\" in\n");
	for (size_t i = 0; i < cli_nr_commands; i++) {
		printf("\t\t\"%s\") words=\"", cli_commands[i]->name);
		print_options(cli_commands[i], false);
		printf("\" ;;\n");
	}
	printf("\t\tesac\n"
	       "\t\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
	       "\t\treturn\n"
	       "\tfi\n"
	       "\tcase \"$command\" in\n");
	for (size_t i = 0; i < cli_nr_commands; i++)
		print_argument_case(cli_commands[i]);
	printf("\tesac\n");
}

static void print_names(void)
{
	printf("\tcase \"${COMP_WORDS[1]}\" in\n");
	for (size_t i = 0; i < cli_nr_commands; i++)
		if (strchr(cli_commands[i]->name, ' '))
			printf("\t\"%.*s\") command=\"${COMP_WORDS[1]} ${COMP_WORDS[2]}\"; at=2 "
			       ";;\n",
				(int)strcspn(cli_commands[i]->name, " "), cli_commands[i]->name);
	printf("\thelp|completion) at=2 ;;\n"
	       "\tesac\n"
	       "\tif ((COMP_CWORD <= at)); then\n"
	       "\t\tcase \"$at ${COMP_WORDS[1]}\" in\n");
	for (size_t i = 0; i < cli_nr_commands; i++) {
		const char *name = cli_commands[i]->name, *space = strchr(name, ' ');
		if (space)
			printf("\t\t\"2 %.*s\") words+=\" %s\" ;;&\n", (int)(space - name), name,
				space + 1);
	}
	printf("\t\t\"2 completion\") words=bash ;;\n"
	       "\t\t1\\ *|\"2 help\") words=\"");
	for (size_t i = 0; i < cli_nr_commands; i++) {
		const char *name = cli_commands[i]->name;
		size_t length = strcspn(name, " ");
		/* The first word of "repo init", "repo info" once. */
		if (i == 0 || strncmp(cli_commands[i - 1]->name, name, length + 1) != 0)
			printf(" %.*s", (int)length, name);
	}
	printf(" help --help --version\" ;;\n"
	       "\t\tesac\n"
	       "\t\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
	       "\t\treturn\n"
	       "\tfi\n");
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	(void)values;
	if (strcmp(cli->arguments.items[0], "bash") != 0)
		return err_set(err, ERR_USAGE,
			"completion: \"%s\" is no shell that is known (bash is)",
			cli->arguments.items[0]);
	/* The shell cuts words at ':' and '=': a disk's name is put together again,
	 * and what stands before the last cut is not offered a second time. */
	printf("# bash completion for sendense, made by: sendense completion bash\n"
	       "_sendense_disk()\n{\n"
	       "\tcompopt -o nospace 2>/dev/null\n"
	       "\tlocal word=$cur before=${COMP_WORDS[COMP_CWORD - 1]}\n"
	       "\tif [[ $word == : || $before == : ]]; then\n"
	       "\t\t[[ $word == : ]] && word=\"\"\n"
	       "\t\tCOMPREPLY=($(compgen -f -- \"$word\"))\n"
	       "\telse\n"
	       "\t\tCOMPREPLY=($(compgen -W \"raw: qcow2: nbd:// nbd+unix:///\" -- \"$word\"))\n"
	       "\tfi\n"
	       "}\n\n"
	       "_sendense()\n{\n"
	       "\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}\n"
	       "\tlocal command=${COMP_WORDS[1]} at=1 words=\"\"\n"
	       "\tif [[ $prev == : || $cur == : ]]; then\n"
	       "\t\t_sendense_disk\n"
	       "\t\treturn\n"
	       "\tfi\n"
	       "\tif [[ $cur == = ]]; then\n"
	       "\t\tcur=\"\"\n"
	       "\telif [[ $prev == = ]]; then\n"
	       "\t\tprev=${COMP_WORDS[COMP_CWORD - 2]}\n"
	       "\tfi\n");
	print_names();
	print_cases();
	printf("}\ncomplete -F _sendense sendense\n");
	return cli_flush(err);
}

const struct command command_completion = {
	.name = "completion",
	.arguments = "bash",
	.summary = "Print the completion script for a shell",
	.min_arguments = 1,
	.max_arguments = 1,
	.run = run,
};
