/*
 * archive: the hub's own state carried away and brought back.
 *
 *   export ─► one tar file (0600): export.json, state.db, the configuration, CA and certificates
 *   import ─► a state folder that is new or empty
 *   keep   ─► REPO/hub/NAME/state.db, after changes, at most once in a while: see hub
 *
 * An export holds private keys: whoever has it can speak as this hub.
 *
 * Thread rule: any thread.
 */
#ifndef SENDENSE_HUB_ARCHIVE_H
#define SENDENSE_HUB_ARCHIVE_H

#include "catalogue.h"
#include "repository.h"

#define ARCHIVE_FILES_MOST 256
#define ARCHIVE_NAME_BYTES 97 /* segments of [A-Za-z0-9_.-], not beginning with a dot, "/" */

struct archive_file {
	const char *name; /* in the archive, and below the state folder after an import */
	const char *path; /* where it is */
};

struct archive_export_options {
	const char *state_path; /* state.db; a hub may be running on it */
	const char *hub; /* its name */
	const char *software; /* "sendense 0.1.0 (build ...)" */
	const struct archive_file *files; /* configuration, CA, certificates, keys, token files */
	size_t nr_files; /* one that is not there is an error */
};

/* Makes the new file out (ERR_EXISTS), mode 0600, durable. */
int archive_export(const struct archive_export_options *options, const char *out, struct err *err);

struct archive_summary {
	char hub[65], software[128], created[CLOCK_UTC_BYTES]; /* "" for a bare state.db */
	unsigned nr_files;
	/* Each file that was brought back, with where it was on the old machine; may be NULL. */
	void (*file)(void *context, const char *name, const char *old_path);
	void *context;
};

/*
 * in: an export, or a state.db as a repository's folder hub/NAME keeps it.  folder: a state folder
 * that does not exist (its parent does) or is empty (ERR_EXISTS).  All is looked at before
 * the first file is in place: digests, names, sizes, whether this program can read state.db
 * (ERR_FORMAT, ERR_CORRUPT, ERR_UNSUPPORTED).  Folders get 0700, files 0600.  A failure leaves the
 * folder as it was.
 */
int archive_import(
	const char *in, const char *folder, struct archive_summary *summary, struct err *err);

/* Stores a copy of the state in the repository, by way of a temporary file in scratch (a folder of
 * the hub's own), and notes in the state where the newest copies lie. */
int archive_keep(struct state *state, const char *scratch, const char *hub, struct repository *repo,
	struct err *err);

#endif
