/* node enrol: a code becomes a token, and the settings name the hub. */
#include "node_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define CONFIG_MOST ((size_t)1 << 20)

struct enrolling {
	const struct node_enrol_options *options;
	struct daemon_setup setup;
	struct node_config *config;
	char token_file[SETUP_PATH_BYTES];
};

static struct rest_client *client_of(
	const struct enrolling *e, const char *token_file, struct err *err)
{
	const struct rest_client_options options = {
		.url = e->options->hub,
		.token_file = token_file,
		.ca_file = e->options->ca_file,
		.cancel = e->options->cancel,
	};
	return rest_client_new(&options, err);
}

static int keep_token(const struct enrolling *e, const json_t *answer, struct err *err)
{
	char line[REST_TOKEN_BYTES + 1];
	const char *token = json_string_value(json_object_get(answer, "token"));
	if (!token || strlen(token) >= REST_TOKEN_BYTES)
		return err_set(err, ERR_PROTOCOL, "the hub's answer holds no token");
	int length = snprintf(line, sizeof line, "%s\n", token);
	int rc = file_replace(AT_FDCWD, e->token_file, line, (size_t)length, 0600, err);
	explicit_bzero(line, sizeof line);
	return rc;
}

static int show_code(const struct enrolling *e, struct err *err)
{
	const struct node_enrol_options *o = e->options;
	char digest[NODE_DIGEST_BYTES];
	struct err why = ERR_INIT;
	node_digest(digest);
	json_t *body = json_pack("{s:s, s:s, s:i, s:s, s:s, s:s}", "code", o->code, "name",
		e->config->name, "protocol", REST_PROTOCOL, "version", o->version, "build",
		o->build, "digest", digest);
	struct rest_client *client = client_of(e, NULL, err);
	json_t *answer = NULL;
	int rc = -1;
	if (client && body)
		rc = rest_call(client, "POST", "/api/v1/nodes", body, &answer, &why);
	if (rc < 0 && why.sys_errno == EKEYREJECTED) /* its hint is about tokens' files */
		err_set(err, ERR_DENIED,
			"the code is unknown, expired, used up, or for another name (a code is "
			"for the node's name, \"%s\", and good once: have another one made)",
			e->config->name);
	else if (rc < 0 && why.code != ERR_NONE)
		err_copy(err, &why);
	if (rc == 0)
		rc = keep_token(e, answer, err);
	rest_client_free(client);
	json_decref(answer);
	json_decref(body);
	return rc < 0 ? err_context(err, "cannot enrol at %s", o->hub) : 0;
}

/* --- the settings --------------------------------------------------------------------------- */

static bool has_repository(const struct node_config *config, const char *name)
{
	for (size_t i = 0; i < config->nr_repositories; i++)
		if (strcmp(config->repositories[i].name, name) == 0)
			return true;
	return false;
}

static void write_access(FILE *out, const struct enrolling *e)
{
	fprintf(out, "token-file = %s\n", e->token_file);
	if (e->options->ca_file)
		fprintf(out, "ca-file = %s\n", e->options->ca_file);
}

/* Those of the hub that have no section of that name yet. */
static int write_repositories(FILE *out, const struct enrolling *e, struct err *err)
{
	json_t *answer = NULL;
	size_t i;
	json_t *item;
	struct rest_client *client = client_of(e, e->token_file, err);
	int rc = client ? rest_call(client, "GET", "/api/v1/repositories?limit=1000", NULL, &answer,
				  err)
			: -1;
	json_array_foreach(json_object_get(answer, "items"), i, item)
	{
		const char *name = json_string_value(json_object_get(item, "name"));
		if (!name || has_repository(e->config, name))
			continue;
		/* What comes from outside must not write other settings. */
		if (!settings_is_name(name)) {
			rc = err_set(err, ERR_PROTOCOL,
				"the hub's repository \"%.60s\" has a name that is no name for a "
				"repository",
				name);
			break;
		}
		fprintf(out, "\n[repository %s]\nurl = %s/%s\n", name, e->options->hub, name);
		write_access(out, e);
	}
	json_decref(answer);
	rest_client_free(client);
	return rc;
}

static int draft(const struct enrolling *e, char **text, size_t *length, struct err *err)
{
	char *AUTO_FREE old = NULL;
	size_t old_length;
	FILE *out = open_memstream(text, length);
	if (!out)
		return err_errno(err, errno, "cannot write the settings");
	int rc = file_load(AT_FDCWD, e->options->config_path, CONFIG_MOST, &old, &old_length, err);
	if (rc == 0) {
		fwrite(old, 1, old_length, out);
		fprintf(out, "\n# Made by \"sendense node enrol\".\n[hub]\nurl = %s\n",
			e->options->hub);
		write_access(out, e);
		rc = write_repositories(out, e, err);
	}
	if (fclose(out) != 0 && rc == 0)
		rc = err_errno(err, errno, "cannot write the settings");
	return rc;
}

static int note_hub(const struct enrolling *e, struct err *err)
{
	char *AUTO_FREE text = NULL;
	size_t length = 0;
	if (draft(e, &text, &length, err) < 0)
		return -1;
	char *AUTO_FREE copy = strndup(text, length); /* it is taken apart as it is read */
	struct node_config *config =
		copy ? node_config_parse(e->options->config_path, copy, length, err) : NULL;
	node_config_free(config);
	return config ? setup_config(&e->setup, e->options->config_path, text, length, err) : -1;
}

int node_enrol(const struct node_enrol_options *options, struct err *err)
{
	struct enrolling e = {.options = options,
		.setup = {.kind = "node", .did = options->did, .context = options->context},
		.config = node_config_load(options->config_path, NULL, NULL, err)};
	if (!e.config)
		return -1;
	const char *hub = e.config->hub_url;
	int rc = hub && strcmp(hub, options->hub) != 0
			 ? err_set(err, ERR_EXISTS,
				   "%s names another hub, %s (take its [hub] out first)",
				   options->config_path, hub)
			 : setup_join(e.token_file, e.config->state_dir, "hub.token", err);
	if (rc == 0 && hub)
		snprintf(e.token_file, sizeof e.token_file, "%s", e.config->hub_token_file);
	if (rc == 0 && (rc = show_code(&e, err)) == 0)
		setup_did(&e.setup, "%s is enrolled at %s; its token is in %s", e.config->name,
			options->hub, e.token_file);
	if (rc == 0 && !hub)
		rc = note_hub(&e, err);
	node_config_free(e.config);
	return rc;
}
