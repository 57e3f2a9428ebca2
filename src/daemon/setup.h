/*
 * setup: what every daemon's "init" makes: folders, certificates, the first token, the file of
 * settings.  Each thing only where it is missing, so that one that was interrupted is called
 * again; nothing is replaced.
 *
 *   STATE/            0700
 *   STATE/state.db    with the first token's hash
 *   STATE/admin.token 0600, the token
 *   STATE/tls/        ca.crt ca.key server.crt server.key
 */
#ifndef SENDENSE_DAEMON_SETUP_H
#define SENDENSE_DAEMON_SETUP_H

#include "settings.h"

#define SETUP_PATH_BYTES 4096

struct daemon_setup {
	const char *kind; /* "hub": whose it is */
	void (*did)(void *context, const char *text); /* each thing that was made; may be NULL */
	void *context;
};

void setup_did(const struct daemon_setup *setup, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

bool setup_exists(const char *path);
/* FOLDER/NAME; ERR_USAGE: too long. */
int setup_join(char out[SETUP_PATH_BYTES], const char *folder, const char *name, struct err *err);
int setup_folder(const struct daemon_setup *setup, const char *path, mode_t mode, struct err *err);

/* Options of paths and of the name; a path that is NULL was not given. */
struct setup_option {
	const char *name, *value;
};
int setup_check_paths(const struct setup_option *paths, size_t nr, struct err *err);
int setup_check_name(const char *name, struct err *err);

/* A CA and a certificate of it for the name and these other names and addresses. */
int setup_certificates(const struct daemon_setup *setup, const char *folder, const char *name,
	const char *const *addresses, size_t nr_addresses, struct err *err);

/* The admin token, its hash in STATE/state.db; file: where it is. */
int setup_token(const struct daemon_setup *setup, const char *state_dir,
	char file[SETUP_PATH_BYTES], struct err *err);

/* What a file that is there says, and what the options ask for, must be the same: an option that
 * says something else would make what the daemon never looks at.  ERR_EXISTS. */
struct setup_said {
	const char *setting, *given, *said; /* "[hub] listen"; either may be NULL */
};
int setup_check_said(
	const char *config_path, const struct setup_said *settings, size_t nr, struct err *err);

/* Writes the settings, 0640, in a folder that is made; text NULL: they are there and stay. */
int setup_config(const struct daemon_setup *setup, const char *config_path, const char *text,
	size_t length, struct err *err);

#endif
