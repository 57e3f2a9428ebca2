/*
 * hub: the daemon near the storage.  Configuration, REST handlers, the schedule, supervision.
 *
 *   configuration ─► lock ─► state ─► NBD service ─► jobs (reconciled) ─► schedule ─► REST ─► ready
 *
 * and the other way round at its end.  What takes time is a job (job.h) in a process of its
 * own; what comes over NBD is in the NBD service's process (host.h).
 */
#ifndef SENDENSE_HUB_H
#define SENDENSE_HUB_H

#include "archive.h"
#include "config.h"

/* --- run ------------------------------------------------------------------------------ */

struct hub_run_options {
	const char *config_path;
	const char *version; /* "0.1.0" */
	const char *build; /* the exact commit, "1a2b3c4d5e6f": told by /health, held against
			      [builds] */
	const char *software; /* "sendense 0.1.0 (git 1a2b3c4d5e6f)" */
	const char *program; /* this binary; NULL: /proc/self/exe */
	struct cancel *cancel; /* asks for a clean stop */
	/* Called once, when all listens and answers: URL, and the NBD service's address. */
	int (*ready)(void *context, const char *url, const char *nbd_address, struct err *err);
	void *context;
	bool quiet; /* errors alone are logged */
	bool verbose; /* everything is logged, whatever the file says */
};

/*
 * Until it is asked to stop: 0.  Takes SIGHUP (the configuration is read anew).  Errors of the
 * configuration are ERR_USAGE; ERR_BUSY: another hub runs on this state folder, named by its pid.
 */
int hub_run(const struct hub_run_options *options, struct err *err);

/* --- check-config ------------------------------------------------------------------------ */

/* The file, and what it names: folders, repositories, certificates, keys' modes.  Starts
 * nothing, changes nothing.  Returns the number of errors told. */
unsigned hub_check_config(const char *path, settings_tell *tell, void *context);

/* --- init -------------------------------------------------------------------------------- */

struct hub_init_options {
	const char *config_path;
	const char *state_dir, *runtime_dir; /* NULL: as the configuration's defaults */
	const char *listen, *nbd_listen; /* NULL: the defaults */
	const char *name; /* NULL: the host's */
	const char *const *addresses; /* more names and addresses for the certificate */
	size_t nr_addresses;
	const char *repository, *repository_path; /* made when it is not there; NULL: none */
	const char *const *allow_sources; /* nr_allow_sources */
	size_t nr_allow_sources;
	void (*did)(void *context, const char *text); /* each thing that was made */
	void *context;
};

struct hub_init_result {
	char url[SETTINGS_URL_BYTES]; /* where it will listen */
	char token_file[SETUP_PATH_BYTES], ca_file[SETUP_PATH_BYTES];
};

/*
 * Makes what a hub needs and what is not there yet: folders, a CA, a certificate, the admin
 * token's file, state, repository, configuration.  Nothing that exists is replaced; an
 * interrupted one is called again.
 */
int hub_init(
	const struct hub_init_options *options, struct hub_init_result *result, struct err *err);

/* --- export (import is archive.h's) ----------------------------------------------------------- */

/* The hub's own state (schedules, policies, machines, tokens' hashes, jobs, audit log), its
 * settings, CA, certificates, keys and token file as one file; works while the hub runs.
 * software: as in hub_run_options.  nr_files (may be NULL).  ERR_EXISTS. */
int hub_export(const char *config_path, const char *software, const char *out, unsigned *nr_files,
	struct err *err);

#endif
