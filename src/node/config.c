/* The node's settings: their table, and what must fit together; see config.h. */
#include "config.h"

#include "vsphere.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static const char *const stops[] = {"hand-over", "cancel", NULL};

#define NODE(member) .offset = offsetof(struct node_config, member)
#define VCENTER(member) .offset = offsetof(struct node_vcenter, member)
#define REPOSITORY(member) .offset = offsetof(struct job_repository, member)
#define YEAR UINT64_C(31536000)

#define DISCOVER_EVERY_S 300u

/* In the order of docs/node.md. */
static const struct setting table[] = {
	{"node", "state-dir", SETTING_PATH, NODE(state_dir), .otherwise = NODE_STATE_DIR},
	{"node", "runtime-dir", SETTING_PATH, NODE(runtime_dir), .otherwise = NODE_RUNTIME_DIR},
	{"node", "listen", SETTING_ADDRESS, NODE(listen), .otherwise = NODE_LISTEN},
	{"node", "name", SETTING_TEXT, NODE(name), .most = 255},
	{"node", "stop", SETTING_CHOICE, NODE(stop), .otherwise = "hand-over", .choices = stops,
		.live = true},
	{"node", "stop-timeout", SETTING_DURATION, NODE(stop_timeout_s), .otherwise = "30s",
		.most = 3600, .live = true},
	{"node", "log", SETTING_CHOICE, NODE(log), .otherwise = "auto", .choices = logging_forms,
		.live = true},
	{"node", "log-level", SETTING_CHOICE, NODE(log_level), .otherwise = "info",
		.choices = logging_levels, .live = true},
	{"node", "keep-jobs", SETTING_DURATION, NODE(keep_jobs_s), .otherwise = "90d",
		.least = 3600, .most = 100 * YEAR, .live = true},
	{"node", "keep-events", SETTING_DURATION, NODE(keep_events_s), .otherwise = "1y",
		.least = 3600, .most = 100 * YEAR, .live = true},

	{"tls", "certificate", SETTING_PATH, NODE(certificate)},
	{"tls", "key", SETTING_PATH, NODE(key)},
	{"tls", "ca", SETTING_PATH, NODE(ca)},

	{"vcenter", "url", SETTING_TEXT, VCENTER(access.url), .most = 1024},
	{"vcenter", "password-file", SETTING_PATH, VCENTER(access.password_file)},
	{"vcenter", "ca-file", SETTING_PATH, VCENTER(access.ca_file)},
	{"vcenter", "fingerprint", SETTING_TEXT, VCENTER(access.fingerprint), .least = 64,
		.most = 95},
	{"vcenter", "discover-every", SETTING_DURATION, VCENTER(discover_every_s),
		.otherwise = "5m", .least = 10, .most = 86400},

	{"repository", "path", SETTING_PATH, REPOSITORY(path)},
	{"repository", "url", SETTING_TEXT, REPOSITORY(url), .most = 1024},
	{"repository", "token-file", SETTING_PATH, REPOSITORY(token_file)},
	{"repository", "ca-file", SETTING_PATH, REPOSITORY(ca_file)},
	{"repository", "id", SETTING_TEXT, REPOSITORY(id), .least = 32, .most = 32},
	{"repository", "require-mount", SETTING_BOOL, REPOSITORY(require_mount), .otherwise = "no"},
	{"repository", "stop-free", SETTING_SIZE, REPOSITORY(stop_free_bytes)},

	{"vddk", "dir", SETTING_PATH, NODE(vddk_dir)},
	{"vddk", "transport-modes", SETTING_TEXT, NODE(transport_modes), .most = 255},

	{"allow", "target", SETTING_LIST, NODE(allow_targets)},

	{"limits", "jobs", SETTING_NUMBER, NODE(most_jobs), .otherwise = "4", .least = 1,
		.most = 1000},
	{"limits", "jobs-per-vcenter", SETTING_NUMBER, NODE(most_jobs_per_vcenter),
		.otherwise = "2", .least = 1, .most = 1000},
	{"limits", "memory-per-job", SETTING_SIZE, NODE(memory_per_job_bytes), .otherwise = "0",
		.least = 0, .most = UINT64_MAX},
	{"limits", "connections", SETTING_NUMBER, NODE(most_connections), .otherwise = "64",
		.least = 4, .most = 65536},

	{"hub", "url", SETTING_TEXT, NODE(hub_url), .most = 1024},
	{"hub", "token-file", SETTING_PATH, NODE(hub_token_file)},
	{"hub", "ca-file", SETTING_PATH, NODE(hub_ca_file)},
};

static int check_rule(const struct setting *setting, const char *text, struct err *err)
{
	return strcmp(setting->section, "allow") == 0 ? allow_check_rule(text, ALLOW_TARGET, err)
						      : 0;
}

/* --- what must fit together ---------------------------------------------------------------- */

static void check_listen(struct settings_reading *r, const struct node_config *c)
{
	if (!c->certificate != !c->key)
		settings_wrong(r, settings_line(r, "tls", c->key ? "key" : "certificate"),
			"[tls] certificate and key go together (give both, or none)");
	if (!c->listen.loopback && !c->certificate)
		settings_wrong(r, settings_line(r, "node", "listen"),
			"[node] listen = %s:%u is beyond loopback, and there is no TLS (give "
			"[tls] certificate and key, \"sendense node init\" makes them, or listen "
			"on 127.0.0.1)",
			c->listen.host, c->listen.port);
	if (strcmp(c->state_dir, c->runtime_dir) == 0)
		settings_wrong(r, settings_line(r, "node", "runtime-dir"),
			"[node] state-dir and runtime-dir are the same folder");
	if (c->most_jobs_per_vcenter > c->most_jobs &&
		settings_line(r, "limits", "jobs-per-vcenter"))
		settings_wrong(r, settings_line(r, "limits", "jobs-per-vcenter"),
			"[limits] jobs-per-vcenter = %u is more than jobs = %u",
			c->most_jobs_per_vcenter, c->most_jobs);
}

static void check_vcenter(
	struct settings_reading *r, const struct job_vcenter *vcenter, unsigned line)
{
	struct vsphere_url url = {0};
	struct err err = ERR_INIT;
	const char *name = vcenter->name;
	if (!vcenter->url)
		settings_wrong(r, line, "[vcenter %s] has no url (vmware://USER@HOST)", name);
	else if (vsphere_url_parse(vcenter->url, &url, &err) < 0)
		settings_wrong(r, line, "[vcenter %s] url: %s", name, err.text);
	else if (url.path[0] && strcmp(url.path, "/") != 0)
		settings_wrong(r, line,
			"[vcenter %s] url: it names a machine, too (leave \"%s\" out)", name,
			url.path);
	vsphere_url_free(&url);
	if (!vcenter->password_file)
		settings_wrong(r, line, "[vcenter %s] has no password-file", name);
	if (vcenter->ca_file && vcenter->fingerprint)
		settings_wrong(
			r, line, "[vcenter %s] ca-file and fingerprint: give one of them", name);
}

static void check_repository(
	struct settings_reading *r, const struct job_repository *one, unsigned line)
{
	const char *name = one->name;
	if (!one->path == !one->url)
		settings_wrong(r, line,
			"[repository %s] has %s path and url (give path = /FOLDER, or url = "
			"https://HUB/NAME)",
			name, one->path ? "both" : "neither");
	if (one->url && strncmp(one->url, "https://", 8) != 0 &&
		strncmp(one->url, "http://", 7) != 0)
		settings_wrong(r, line, "[repository %s] url: \"%s\" does not begin with https://",
			name, one->url);
	if (!one->url && (one->token_file || one->ca_file))
		settings_wrong(r, line,
			"[repository %s] token-file and ca-file are for one with a url", name);
	if (one->url && !one->token_file)
		settings_wrong(r, line, "[repository %s] has no token-file", name);
	if (one->url && (one->require_mount || one->stop_free_bytes))
		settings_wrong(r, line,
			"[repository %s] require-mount and stop-free are for one with a path",
			name);
}

static void check_hub(struct settings_reading *r, const struct node_config *c)
{
	if (!c->hub_url != !c->hub_token_file)
		settings_wrong(r, settings_line(r, "hub", c->hub_url ? "url" : "token-file"),
			"[hub] url and token-file go together (\"sendense node enrol\" makes "
			"them)");
}

/* Defaults that depend on other settings. */
static int derive(struct settings_reading *r, void *values, struct err *err)
{
	struct node_config *c = values;
	char host[256] = "node";
	if (!settings_line(r, "limits", "jobs-per-vcenter") &&
		c->most_jobs_per_vcenter > c->most_jobs)
		c->most_jobs_per_vcenter = c->most_jobs;
	if (!c->name && gethostname(host, sizeof host - 1) < 0)
		host[0] = '\0';
	if (!c->name && !(c->name = strdup(host[0] ? host : "node")))
		return err_errno(err, ENOMEM, "cannot keep the name");
	check_listen(r, c);
	check_hub(r, c);
	for (size_t i = 0; i < c->nr_vcenters; i++) {
		if (c->vcenters[i].discover_every_s == 0)
			c->vcenters[i].discover_every_s = DISCOVER_EVERY_S;
		check_vcenter(r, &c->vcenters[i].access, settings_named_line(r, "vcenter", i));
	}
	for (size_t i = 0; i < c->nr_repositories; i++)
		check_repository(r, &c->repositories[i], settings_named_line(r, "repository", i));
	return 0;
}

static const struct settings_named named[] = {
	{"vcenter", offsetof(struct node_config, vcenters),
		offsetof(struct node_config, nr_vcenters), sizeof(struct node_vcenter),
		offsetof(struct node_vcenter, access.name)},
	{"repository", offsetof(struct node_config, repositories),
		offsetof(struct node_config, nr_repositories), sizeof(struct job_repository),
		offsetof(struct job_repository, name)},
	{0},
};

static const struct settings settings = {
	.owner = "node",
	.made_by = "sendense node init",
	.bytes = sizeof(struct node_config),
	.path = offsetof(struct node_config, path),
	.table = table,
	.nr_table = ARRAY_LENGTH(table),
	.named = named,
	.check = check_rule,
	.derive = derive,
};

/* --- the whole ------------------------------------------------------------------------------ */

struct node_config *node_config_parse(const char *path, char *text, size_t length, struct err *err)
{
	return settings_parse(&settings, path, text, length, err);
}

struct node_config *node_config_load(
	const char *path, settings_tell *tell, void *context, struct err *err)
{
	return settings_load(&settings, path, tell, context, err);
}

struct node_config *node_config_reload(const struct node_config *old)
{
	return settings_reload(&settings, old);
}

void node_config_free(struct node_config *config)
{
	settings_free(&settings, config);
}

json_t *node_config_settings(void)
{
	return settings_defaults(&settings);
}
