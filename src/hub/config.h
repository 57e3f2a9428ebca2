/*
 * config: the hub's file of settings, read as settings.h says.  docs/hub.md describes each
 * setting; config.c has their table.
 *
 * What is in state.db (schedules, policies, machines, tokens) is not in here.
 *
 * Thread rule: an open configuration never changes; any number of threads may read it.
 */
#ifndef SENDENSE_HUB_CONFIG_H
#define SENDENSE_HUB_CONFIG_H

#include "daemon.h"
#include "job.h"

#define HUB_CONFIG_FILE "/etc/sendense/hub.conf"
/* Where nothing else is said. */
#define HUB_STATE_DIR "/var/lib/sendense"
#define HUB_RUNTIME_DIR "/run/sendense"
#define HUB_LISTEN "127.0.0.1:8080"
#define HUB_NBD_LISTEN "127.0.0.1:10809"

enum hub_stop { HUB_STOP_HAND_OVER, HUB_STOP_CANCEL };
enum hub_clients { HUB_CLIENTS_OPTIONAL, HUB_CLIENTS_REQUIRED };
enum hub_nbd_mode { HUB_NBD_SINGLE, HUB_NBD_RANGE };
enum hub_nbd_tls { HUB_NBD_TLS_OFF, HUB_NBD_TLS_REQUIRED };

struct hub_config {
	char *path; /* of the file, absolute */

	/* [hub] */
	char *state_dir, *runtime_dir; /* absolute */
	struct settings_address listen;
	char *name; /* default: the host's */
	enum hub_stop stop;
	uint64_t stop_timeout_s;
	enum logging_form log;
	unsigned log_level; /* enum log_level */
	char *time_zone; /* NULL: the local one */
	uint64_t keep_jobs_s; /* how long ended jobs and their logs are kept */
	uint64_t keep_events_s; /* the same of the audit log */

	/* [tls] */
	char *certificate, *key, *ca; /* NULL: none */
	enum hub_clients clients;

	/* [nbd] */
	struct settings_address nbd_listen;
	enum hub_nbd_mode nbd_mode;
	unsigned nbd_port_first, nbd_port_last;
	unsigned nbd_most_connections;
	enum hub_nbd_tls nbd_tls;
	char *nbd_address_for_clients; /* NULL: the address that the client called */

	/* [repository NAME], in the order of the file */
	struct job_repository *repositories;
	size_t nr_repositories;

	/* [limits] */
	unsigned most_jobs, most_jobs_per_source;
	uint64_t memory_per_job_bytes; /* 0: no limit */
	unsigned most_connections, most_connections_per_address;
	uint64_t node_silence_s; /* a node that was not heard of for so long has its jobs failed */

	/* [allow]; each ended by NULL */
	char **allow_sources, **allow_targets, **allow_webhooks;
	char **credentials; /* lines of credentials.h */

	/* [notify] */
	char *webhook, *webhook_secret_file, *mail_to, *mail_from, *sendmail; /* NULL: none */

	/* [builds]; each ended by NULL; patterns with * and ? of exact builds */
	char **builds_warn, **builds_allow;
};

/*
 * Reads the file, and what it says by itself: no other file is looked at.  tell (may be NULL)
 * hears all errors; err has the first: ERR_USAGE "FILE:LINE: what is wrong (what to do)", or
 * that the file cannot be read.
 */
struct hub_config *hub_config_load(
	const char *path, settings_tell *tell, void *context, struct err *err);
/* The same of a text that is to become that file. */
struct hub_config *hub_config_parse(const char *path, char *text, size_t length, struct err *err);
/* The file of old anew; see settings_reload(). */
struct hub_config *hub_config_reload(const struct hub_config *old);
/* NULL is harmless. */
void hub_config_free(struct hub_config *config);

/* NULL: there is none of that name. */
const struct job_repository *hub_config_repository(
	const struct hub_config *config, const char *name);

/* The settings' defaults, for check-config --json and the test that holds docs/hub.md against them:
 * {"section":{"key":"default"…}}. */
json_t *hub_config_settings(void);

#endif
