/*
 * options: a command's options as a table, from which parsing, --help and the
 * shell completion are all made.
 *
 * Forms: --name, --name=value, --name value, -x (for those with a letter);
 * options and arguments in any order; "--" ends the options.  Names are not
 * abbreviated.  An option that is not a list is given at most once.
 */
#ifndef SENDENSE_CLI_OPTIONS_H
#define SENDENSE_CLI_OPTIONS_H

#include "base.h"

#include <stdio.h>

enum option_kind {
	OPTION_FLAG, /* bool */
	OPTION_TEXT, /* const char *, NULL when not given */
	OPTION_LIST, /* struct option_list */
	OPTION_CHOICE, /* const char *, one of the choices */
	OPTION_NUMBER, /* struct option_number, minimum..maximum */
	OPTION_SIZE, /* the same, bytes: 512, 64k, 1.5GiB */
	OPTION_RATE, /* the same, bytes a second: 20MiB, 20MiB/s */
	OPTION_DURATION, /* the same, seconds: 90, 90s, 15m, 2h, 1d, 4w, 1y */
};

/* What the shell offers to complete a word with. */
enum option_words { WORDS_NONE, WORDS_FILE, WORDS_FOLDER, WORDS_DISK };

struct option_list {
	const char **items; /* borrows argv's texts */
	size_t nr;
};

struct option_number {
	uint64_t value;
	bool given;
};

struct option_spec {
	const char *name; /* without dashes */
	char letter; /* 0: none */
	enum option_kind kind;
	size_t offset; /* of its value in the command's struct */
	const char *argument; /* "PATH"; NULL for a flag */
	const char *help; /* one line or two; the default value named */
	const char *const *choices; /* OPTION_CHOICE: NULL-terminated */
	uint64_t minimum, maximum; /* numbers; both 0: no limits */
	enum option_words words;
};

/* A table and the struct that its values go to (zeroed by the caller). */
struct option_group {
	const struct option_spec *specs;
	size_t nr_specs; /* at most 64 */
	void *values;
};

/*
 * Parses argv[0..argc): the options into the groups' values, the rest into
 * arguments.  Texts stay borrowed from argv.  -1 is ERR_USAGE naming the option
 * and, where one is near, what may have been meant.
 */
int options_parse(const struct option_group *groups, size_t nr_groups, int argc,
	const char *const *argv, struct option_list *arguments, struct err *err);

/* Frees the lists in the groups' values. */
void options_free(const struct option_group *groups, size_t nr_groups);
void option_list_free(struct option_list *list);

/* True when --help or -h stands before a "--". */
bool options_ask_help(int argc, const char *const *argv);

/* The lines of --help. */
void options_print_help(FILE *out, const struct option_group *groups, size_t nr_groups);

/* Of nr words, the one that is near to word (at most two letters away), or NULL. */
const char *options_nearest(const char *word, const char *const *words, size_t nr);

#endif
