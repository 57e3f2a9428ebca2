/*
 * config: the node's file of settings, read as settings.h says.  docs/node.md describes each
 * setting; config.c has their table.
 *
 * Thread rule: an open configuration never changes; any number of threads may read it.
 */
#ifndef SENDENSE_NODE_CONFIG_H
#define SENDENSE_NODE_CONFIG_H

#include "daemon.h"
#include "job.h"

#define NODE_CONFIG_FILE "/etc/sendense/node.conf"
/* Where nothing else is said. */
#define NODE_STATE_DIR "/var/lib/sendense/node"
#define NODE_RUNTIME_DIR "/run/sendense-node"
#define NODE_LISTEN "127.0.0.1:8081"

enum node_stop { NODE_STOP_HAND_OVER, NODE_STOP_CANCEL };

/* A vCenter or an ESXi host. */
struct node_vcenter {
	struct job_vcenter access;
	uint64_t discover_every_s;
};

struct node_config {
	char *path; /* of the file, absolute */

	/* [node] */
	char *state_dir, *runtime_dir; /* absolute */
	struct settings_address listen;
	char *name; /* default: the host's */
	enum node_stop stop;
	uint64_t stop_timeout_s;
	enum logging_form log;
	unsigned log_level; /* enum log_level */
	uint64_t keep_jobs_s; /* how long ended jobs and their logs are kept */
	uint64_t keep_events_s; /* the same of the audit log */

	/* [tls] */
	char *certificate, *key, *ca; /* NULL: none */

	/* [vcenter NAME], [repository NAME], in the order of the file */
	struct node_vcenter *vcenters;
	size_t nr_vcenters;
	struct job_repository *repositories;
	size_t nr_repositories;

	/* [vddk] */
	char *vddk_dir, *transport_modes; /* NULL: vddk_options' defaults */

	/* [allow]; ended by NULL */
	char **allow_targets;

	/* [limits] */
	unsigned most_jobs, most_jobs_per_vcenter;
	uint64_t memory_per_job_bytes; /* 0: no limit */
	unsigned most_connections;

	/* [hub]: where work comes from; NULL: from REST alone */
	char *hub_url, *hub_token_file, *hub_ca_file;
};

/*
 * Reads the file, and what it says by itself: no other file is looked at.  tell (may be NULL)
 * hears all errors; err has the first: ERR_USAGE "FILE:LINE: what is wrong (what to do)", or
 * that the file cannot be read.
 */
struct node_config *node_config_load(
	const char *path, settings_tell *tell, void *context, struct err *err);
/* The same of a text that is to become that file. */
struct node_config *node_config_parse(const char *path, char *text, size_t length, struct err *err);
/* The file of old anew; see settings_reload(). */
struct node_config *node_config_reload(const struct node_config *old);
/* NULL is harmless. */
void node_config_free(struct node_config *config);

/* The settings' defaults, for check-config --json and the test that holds docs/node.md against
 * them: {"section":{"key":"default"…}}. */
json_t *node_config_settings(void);

#endif
