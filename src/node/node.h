/*
 * node: the daemon near the hypervisors.  It knows the machines of its vCenters, and backs them up
 * and replicates them when it is asked to.
 *
 *   configuration ─► locks ─► state ─► jobs (reconciled) ─► looks at the vCenters ─► REST ─► ready
 *
 * and the other way round at its end.  What takes time is a job (job.h) in a process of its
 * own, which outlives the node, and which the next node finds.
 */
#ifndef SENDENSE_NODE_H
#define SENDENSE_NODE_H

#include "config.h"

/* --- run ------------------------------------------------------------------------------ */

struct node_run_options {
	const char *config_path;
	const char *version; /* "0.1.0" */
	const char *build; /* the exact commit, "1a2b3c4d5e6f" */
	const char *software; /* "sendense 0.1.0 (git 1a2b3c4d5e6f)" */
	const char *program; /* this binary; NULL: /proc/self/exe */
	struct cancel *cancel; /* asks for a clean stop */
	/* Called once, when all listens and answers. */
	int (*ready)(void *context, const char *url, struct err *err);
	void *context;
	bool quiet; /* errors alone are logged */
	bool verbose; /* everything is logged, whatever the file says */
};

/*
 * Until it is asked to stop: 0.  Takes SIGHUP (the configuration is read anew).  Errors of the
 * configuration are ERR_USAGE; ERR_BUSY: another node runs on this state folder, named by its
 * pid.
 */
int node_run(const struct node_run_options *options, struct err *err);

/* --- check-config ------------------------------------------------------------------------ */

/* The file, and what it names: folders, repositories, certificates, passwords' modes.  Starts
 * nothing, changes nothing, asks no vCenter.  Returns the number of errors told. */
unsigned node_check_config(const char *path, settings_tell *tell, void *context);

/* --- init -------------------------------------------------------------------------------- */

struct node_init_options {
	const char *config_path;
	const char *state_dir, *runtime_dir; /* NULL: as the configuration's defaults */
	const char *listen; /* NULL: the default */
	const char *name; /* NULL: the host's */
	const char *const *addresses; /* more names and addresses for the certificate */
	size_t nr_addresses;
	void (*did)(void *context, const char *text); /* each thing that was made */
	void *context;
};

struct node_init_result {
	char url[SETTINGS_URL_BYTES]; /* where it will listen */
	char token_file[SETUP_PATH_BYTES], ca_file[SETUP_PATH_BYTES];
};

/*
 * Makes what a node needs and what is not there yet: folders, a CA, a certificate, the admin
 * token's file, state, configuration.  Nothing that exists is replaced; an interrupted one is
 * called again.
 */
int node_init(
	const struct node_init_options *options, struct node_init_result *result, struct err *err);

/* --- enrol -------------------------------------------------------------------------------- */

struct node_enrol_options {
	const char *config_path;
	const char *hub; /* "https://hub.example:8443" */
	const char *ca_file; /* absolute; NULL: the system's CAs */
	const char *code; /* as the hub told it */
	const char *version, *build;
	struct cancel *cancel;
	void (*did)(void *context, const char *text); /* each thing that was made */
	void *context;
};

/*
 * Shows the code to the hub, keeps the token that it gets in STATE/hub.token (0600), and notes the
 * hub and its repositories in the configuration.  Of a hub that is noted already the token is a new
 * one.  ERR_DENIED: the code is no good; ERR_EXISTS: the configuration names another hub.
 */
int node_enrol(const struct node_enrol_options *options, struct err *err);

#endif
