/*
 * output: what commands print for people, cleaned on its way out.  Names and texts come from hubs,
 * repositories and clients, which may lie: none of it reaches a terminal as a command.  JSON, which
 * has escapes of its own, is not touched.
 */
#ifndef SENDENSE_CLI_OUTPUT_H
#define SENDENSE_CLI_OUTPUT_H

/* stdout writes what it is given, with other control characters than newline and tab as '?'. */
void output_clean(void);
/* As it was before; harmless where it is so. */
void output_restore(void);

#endif
