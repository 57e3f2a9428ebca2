/* The commands, one file each. */
#ifndef SENDENSE_CLI_COMMANDS_H
#define SENDENSE_CLI_COMMANDS_H

#include "cli.h"

extern const struct command command_backup, command_restore, command_ls, command_verify,
	command_serve, command_export, command_copy, command_measure, command_repo_init,
	command_repo_info, command_repo_check, command_doctor, command_version, command_completion,
	command_prune, command_protect;

#endif
