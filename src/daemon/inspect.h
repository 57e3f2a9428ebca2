/*
 * inspect: what every daemon's "check-config" looks at: what the file of settings names, without
 * changing anything.
 */
#ifndef SENDENSE_DAEMON_INSPECT_H
#define SENDENSE_DAEMON_INSPECT_H

#include "settings.h"

struct inspect {
	const char *kind; /* "hub": whose settings */
	settings_tell *tell; /* may be NULL */
	void *context;
	unsigned nr_errors;
};

/* A settings_tell: counts, and tells on; context is the inspect. */
void inspect_told(void *context, const struct settings_finding *finding);
void inspect_say(struct inspect *inspect, bool is_error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Others may not write to the file of settings itself. */
void inspect_config(struct inspect *inspect, const char *path);
/* A folder that "[KIND] setting" names.  made_later: it need not be there. */
void inspect_folder(
	struct inspect *inspect, const char *setting, const char *path, bool made_later);
/* STATE/state.db, and that there is a first token. */
void inspect_state(struct inspect *inspect, const char *state_dir, bool loopback);
/* Certificate and key, NULL: none; ca may be NULL. */
void inspect_tls(struct inspect *inspect, const char *certificate, const char *key, const char *ca);
/* A file that can be read, by the owner alone if it is a secret.  where: "[allow] credentials". */
void inspect_file(struct inspect *inspect, const char *where, const char *path, bool is_secret);

#endif
