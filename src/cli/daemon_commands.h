/* daemon_commands: what the commands of our daemons share: the option --config, what "init" and
 * "check-config" tell. */
#ifndef SENDENSE_CLI_DAEMON_COMMANDS_H
#define SENDENSE_CLI_DAEMON_COMMANDS_H

#include "cli.h"

#include "daemon.h"

/* values has a member config. */
#define DAEMON_CONFIG_ROW(values, daemon, path)                                            \
	{                                                                                  \
		.name = "config", .kind = OPTION_TEXT, .offset = offsetof(values, config), \
		.argument = "FILE", .words = WORDS_FILE,                                   \
		.help = "the " daemon "'s settings (default: " path ")"                    \
	}

/* What "init" made, step by step. */
struct daemon_steps {
	bool quiet;
	json_t *list; /* NULL: as text */
};
/* Context: the steps. */
void daemon_tell_step(void *context, const char *text);

/* ERR_USAGE when there are errors in it. */
int daemon_check(struct cli *cli, const char *path,
	unsigned (*check)(const char *path, settings_tell *tell, void *context),
	json_t *(*settings)(void), struct err *err);

#endif
