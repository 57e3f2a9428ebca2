/*
 * settings: a file of settings (INI, read with libinih) by a table, strict: an unknown section or
 * setting, a value out of bounds, a setting given twice are errors that name their line.
 *
 *   struct settings (table: what there is) + text ─► a struct of the caller's, filled in
 *
 * The struct begins as zeros; the table says by offsets where each value lies.  What must fit
 * together looks the table's owner after, in derive.
 *
 * Thread rule: reading is one thread's at a time in a process (libinih's own settings are the
 * process's); the rest any thread's.
 */
#ifndef SENDENSE_DAEMON_SETTINGS_H
#define SENDENSE_DAEMON_SETTINGS_H

#include "base.h"

#include <jansson.h>

/* Where to listen: numeric, "[::1]:8080" or "127.0.0.1:8080". */
struct settings_address {
	char host[64];
	unsigned port; /* 0: the kernel picks */
	bool loopback;
};

#define SETTINGS_ADDRESS_BYTES 80
/* As it would be written; out. */
const char *settings_address_text(
	const struct settings_address *address, char out[SETTINGS_ADDRESS_BYTES]);
#define SETTINGS_URL_BYTES 300
/* Of who listens there; where that is all addresses, by its name (NULL: as it is). */
void settings_address_url(const struct settings_address *address, bool tls, const char *name,
	unsigned port, char out[SETTINGS_URL_BYTES]);

enum setting_kind {
	SETTING_TEXT, /* char * */
	SETTING_PATH, /* char *, absolute */
	SETTING_LIST, /* char **, ended by NULL; may be given several times */
	SETTING_ADDRESS, /* struct settings_address */
	SETTING_NUMBER, /* unsigned */
	SETTING_SIZE, /* uint64_t, bytes */
	SETTING_DURATION, /* uint64_t, seconds */
	SETTING_CHOICE, /* unsigned: which of the choices */
	SETTING_BOOL, /* bool */
	SETTING_PORTS, /* unsigned first, and the next member: last */
};

struct setting {
	const char *section, *name;
	enum setting_kind kind;
	size_t offset; /* in the struct; of a named section: in one of its members */
	const char *otherwise; /* the default, as it would be written; NULL: none.  Of named
				  sections it is told only: their members begin as zeros */
	uint64_t least, most; /* both 0: no bounds; of texts: the length */
	const char *const *choices; /* ended by NULL */
	bool live; /* counts without a restart; of named sections none does */
};

/* A section that may be there several times, each with a name: "[repository NAME]".  They lie
 * in an array, in the order of the file; the name (letters, digits, '_', '-', 1 to 32) is owned. */
struct settings_named {
	const char *section; /* "repository"; NULL ends the list */
	size_t array,
		nr; /* offsets in the struct: of the pointer to the first member, of a size_t */
	size_t bytes; /* of a member */
	size_t name; /* offset in a member: of a const char * */
};

struct settings_reading;

struct settings {
	const char *owner; /* "hub": whose settings they are */
	const char *made_by; /* "sendense hub init"; NULL: they are written by hand */
	size_t bytes; /* of the struct */
	size_t path; /* offset in it: of a char *, the file's absolute path, owned */
	const struct setting *table; /* nr_table */
	size_t nr_table;
	const struct settings_named *named; /* NULL: none */
	/* Looks at one more thing of a value; ERR_USAGE.  NULL: nothing. */
	int (*check)(const struct setting *setting, const char *text, struct err *err);
	/* All is read: defaults that depend on others (-1: there is no memory), and by
	 * settings_wrong() what does not fit together.  NULL: nothing. */
	int (*derive)(struct settings_reading *reading, void *values, struct err *err);
};

/* Called for each thing that is wrong or doubtful; line 0: not about one line. */
struct settings_finding {
	bool is_error; /* else it can start all the same */
	unsigned line;
	const char *text;
};
typedef void settings_tell(void *context, const struct settings_finding *finding);

/*
 * Reads the file, and what it says by itself: no other file is looked at.  tell (may be NULL)
 * hears all errors; err has the first: ERR_USAGE "FILE:LINE: what is wrong (what to do)", or
 * that the file cannot be read.  The struct, for settings_free().
 */
void *settings_load(const struct settings *settings, const char *path, settings_tell *tell,
	void *context, struct err *err);
/* The same of a text that is to become that file. */
void *settings_parse(const struct settings *settings, const char *path, char *text, size_t length,
	struct err *err);
/* NULL is harmless. */
void settings_free(const struct settings *settings, void *values);

/* --- for derive --------------------------------------------------------------------------- */

void settings_wrong(struct settings_reading *reading, unsigned line, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* The line in which it was given; 0: it was not. */
unsigned settings_line(
	const struct settings_reading *reading, const char *section, const char *name);
/* Of the i-th [section NAME]. */
unsigned settings_named_line(const struct settings_reading *reading, const char *section, size_t i);

/* --- reading anew --------------------------------------------------------------------------- */

/*
 * The file of old anew, for a daemon that runs: what does not count before a restart is as old has
 * it, so that it is what the daemon really does.  NULL: the old ones stay.  The log has what is
 * wrong in the file, and what waits for a restart.
 */
void *settings_reload(const struct settings *settings, const void *old);

/* The defaults, for check-config --json and the tests that hold documents against them:
 * {"section":{"key":"default"…}}; the caller's. */
json_t *settings_defaults(const struct settings *settings);
/* Whether a section may have this name: 1 to 32 of letters, digits, _ and -. */
bool settings_is_name(const char *name);

#endif
