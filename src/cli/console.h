/*
 * console: stderr, shared by log lines and a status line that is drawn over and
 * over on a terminal.  Thread rule: any thread.
 */
#ifndef SENDENSE_CLI_CONSOLE_H
#define SENDENSE_CLI_CONSOLE_H

#include <stdbool.h>

bool console_is_terminal(void);

/* Columns of the terminal, 80 when unknown. */
unsigned console_width(void);

/* The byte, or what is shown in place of a control character; before: the byte before it. */
char console_clean(char c, char before);

/* One whole line; a newline is added.  Control characters become '?'. */
void console_line(const char *text);

/* Draws the status line anew; "" removes it.  Only for terminals. */
void console_status(const char *text);

/* Leaves the status line where it stands and goes to the next line. */
void console_status_keep(void);

#endif
