/* The list of commands, in the order of --help. */
#include "commands.h"

const struct command *const cli_commands[] = {
	&command_version,
	&command_completion,
};
const size_t cli_nr_commands = ARRAY_LENGTH(cli_commands);
