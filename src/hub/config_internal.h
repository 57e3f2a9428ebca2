/* The table of settings, shared by config.c (reads them) and config_text.c (their values). */
#ifndef SENDENSE_HUB_CONFIG_INTERNAL_H
#define SENDENSE_HUB_CONFIG_INTERNAL_H

#include "config.h"

enum config_kind {
	CONFIG_TEXT, /* char * */
	CONFIG_PATH, /* char *, absolute */
	CONFIG_LIST, /* char **, ended by NULL; may be given several times */
	CONFIG_ADDRESS, /* struct hub_address */
	CONFIG_NUMBER, /* unsigned */
	CONFIG_SIZE, /* uint64_t, bytes */
	CONFIG_DURATION, /* uint64_t, seconds */
	CONFIG_CHOICE, /* unsigned: which of the choices */
	CONFIG_BOOL, /* bool */
	CONFIG_PORTS, /* unsigned first, and the next member: last */
};

struct config_setting {
	const char *section, *name; /* section "repository": each [repository NAME] */
	enum config_kind kind;
	size_t offset; /* in struct hub_config, or in struct job_repository */
	const char *otherwise; /* the default, as it would be written; NULL: none */
	uint64_t least, most; /* both 0: no bounds; of texts: the length */
	const char *const *choices;
	bool live; /* counts after SIGHUP */
};

extern const struct config_setting config_settings[];
extern const size_t config_nr_settings;

/* Puts the text's value where the setting says, below base.  ERR_USAGE says what is wrong
 * with the text, without the setting's name. */
int config_set(const struct config_setting *setting, void *base, const char *text, struct err *err);
void config_clear(const struct config_setting *setting, void *base);
/* Gives `to` (zeroed there) the value that `from` has. */
int config_copy(const struct config_setting *setting, void *to, const void *from, struct err *err);
bool config_equal(const struct config_setting *setting, const void *a, const void *b);

#endif
