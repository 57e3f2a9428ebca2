/* logging: where a daemon's log lines go: standard error, which is the journal's under systemd. */
#ifndef SENDENSE_DAEMON_LOGGING_H
#define SENDENSE_DAEMON_LOGGING_H

#include "base.h"
#include "log.h"

/* AUTO: the journal's under systemd, else text. */
enum logging_form { LOGGING_AUTO, LOGGING_JOURNAL, LOGGING_JSON, LOGGING_TEXT };

/* As settings name them, each ended by NULL: enum logging_form, enum log_level. */
extern const char *const logging_forms[], *const logging_levels[];

void logging_set(enum logging_form form, enum log_level most);

#endif
