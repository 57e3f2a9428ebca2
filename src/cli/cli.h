/*
 * cli: the commands of the one binary.
 *
 * A command is a table of its options and a function.  The function returns the
 * exit status 0, or 3 (it found damage and reported it), or -1 with an error
 * that main() tells: as text on stderr, with --json as an object on stdout.
 * Exit status: 0 done, 1 failed (cancelled as well), 2 wrong usage, 3 damage.
 */
#ifndef SENDENSE_CLI_H
#define SENDENSE_CLI_H

#include "options.h"

#include "copy.h"

#include <jansson.h>

#define EXIT_FAILED 1
#define EXIT_USAGE 2
#define EXIT_DAMAGE 3

/* --- commands ---------------------------------------------------------------- */

/* Options that many commands have. */
struct cli_common {
	bool help, json, quiet, verbose;
	const char *progress;
};

#define COMMON_JSON 1u /* --json: it reports something */
#define COMMON_PROGRESS 2u /* --progress: it moves data */

struct cli {
	const struct command *command;
	struct cli_common common;
	struct option_list arguments;
	struct cancel *cancel; /* requested by SIGINT, SIGTERM and SIGHUP */
};

struct command {
	const char *name; /* one word, or two: "repo init" */
	const char *arguments; /* for the synopsis: "SOURCE TARGET" */
	const char *summary; /* one line */
	const char *details; /* a paragraph a line; may be NULL */
	const struct option_spec *options;
	size_t nr_options;
	unsigned common; /* COMMON_* */
	unsigned min_arguments, max_arguments;
	enum option_words words; /* of its arguments */
	size_t values_bytes; /* the struct that the options describe */
	int (*run)(struct cli *cli, const void *values, struct err *err);
};

#define COMMAND_OPTIONS(table) .options = (table), .nr_options = ARRAY_LENGTH(table)

/* All commands, in the order of --help. */
extern const struct command *const cli_commands[];
extern const size_t cli_nr_commands;
/* What the program starts itself as: not told of anywhere.  One word each. */
extern const struct command *const cli_hidden_commands[];
extern const size_t cli_nr_hidden_commands;

extern const struct option_spec cli_common_options[];
extern const size_t cli_nr_common_options;
/* Whether this common option belongs to the command. */
bool cli_has_common(const struct command *command, const struct option_spec *spec);

/* The signal that requested the cancel; 0: none did. */
int cli_stop_signal(void);

/* Finds, parses, runs, reports; returns the exit status. */
int cli_main(int argc, const char *const *argv);

/*
 * Where a command tells of itself when there is no terminal but a worker's folder (worker.c): log
 * lines and errors go here instead of standard error, and a signal that comes when the command
 * is done is not heeded.  Set before cli_main(); lent.
 */
struct cli_hooks {
	log_sink *log;
	void (*error)(void *context, const struct err *err);
	void *context;
	const char *job; /* of the hub's or node's, that the command runs for */
};
void cli_set_hooks(const struct cli_hooks *hooks);
const struct cli_hooks *cli_hooks(void);

/* --- reporting --------------------------------------------------------------- */

#define SIZE_TEXT_BYTES 32
/* "3.6 GiB", "512 B"; returns out. */
const char *cli_size_text(uint64_t bytes, char out[SIZE_TEXT_BYTES]);
/* Spaces that bring text (UTF-8) to that many columns, 0 when it is wider. */
int cli_padding(const char *text, int width);
/* "0.8 s", "12 min 05 s", "3 h 20 min"; returns out. */
const char *cli_duration_text(int64_t ns, char out[SIZE_TEXT_BYTES]);

/* Prints one JSON object and a newline on stdout, flushed; takes it.  NULL
 * stands for memory that ran out while it was built. */
int cli_print_json(json_t *object, struct err *err);
/* Flushes stdout: -1 when what was printed could not be written. */
int cli_flush(struct err *err);

/* Tells the error and returns the exit status that belongs to it. */
int cli_report_error(bool json, const char *command, const struct err *err);

/* The five figures as members of object. */
void cli_json_figures(json_t *object, uint64_t size_bytes, const struct copy_progress *figures);

#endif
