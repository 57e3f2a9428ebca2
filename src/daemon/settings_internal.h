/* What a text means for each kind of setting: shared by settings.c (reads files) and
 * settings_text.c (their values). */
#ifndef SENDENSE_DAEMON_SETTINGS_INTERNAL_H
#define SENDENSE_DAEMON_SETTINGS_INTERNAL_H

#include "settings.h"

/* Puts the text's value where the setting says, below base.  ERR_USAGE says what is wrong
 * with the text, without the setting's name. */
int settings_text_set(const struct setting *setting, void *base, const char *text, struct err *err);
void settings_text_clear(const struct setting *setting, void *base);
/* Gives `to` (zeroed there) the value that `from` has. */
int settings_text_copy(const struct setting *setting, void *to, const void *from, struct err *err);
bool settings_text_equal(const struct setting *setting, const void *a, const void *b);

#endif
