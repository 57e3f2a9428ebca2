/*
 * Secrets in texts: errors, log lines and the labels of disks pass through here,
 * so that no caller has to think of it.
 */
#ifndef SENDENSE_REDACT_H
#define SENDENSE_REDACT_H

/*
 * In every URI (scheme://...) of the text, replaces by one '*' each:
 * the part before '@' when it holds a ':' (user:password), and what may be such
 * a part cut off or misspelt (a port that is no number); and the values of
 * parameters (?name=value), save those that are known to be no secrets (paths
 * of sockets, TLS settings).  The text never grows.
 */
void redact_uris(char *text);

/* A secret that is known: each place that holds it becomes one '*'.  "": nothing is done. */
void redact_word(char *text, const char *word);

#endif
