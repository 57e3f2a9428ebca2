/* The client: where it calls, whom it trusts, its connections. */
#include "client_internal.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <strings.h>

static int wrong_url(const char *url, const char *why, struct err *err)
{
	return err_set(err, ERR_USAGE, "the hub's address %s: %s (like https://hub.example:8443)",
		url, why);
}

/* An address: "127.evil.example" is a name of anybody's. */
static bool is_loopback(const char *host)
{
	struct in_addr address;
	return !strcasecmp(host, "localhost") || !strcmp(host, "[::1]") ||
	       (inet_pton(AF_INET, host, &address) == 1 && ntohl(address.s_addr) >> 24 == 127);
}

static bool has_part(CURLU *parts, CURLUPart part)
{
	char *text = NULL;
	bool has = curl_url_get(parts, part, &text, 0) == CURLUE_OK && strcmp(text, "/") != 0;
	curl_free(text);
	return has;
}

static int take_url(struct rest_client *client, const char *url, CURLU *parts, struct err *err)
{
	char *scheme = NULL, *host = NULL, *port = NULL;
	int rc = -1;
	if (curl_url_set(parts, CURLUPART_URL, url, 0) ||
		curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) ||
		curl_url_get(parts, CURLUPART_HOST, &host, 0) ||
		curl_url_get(parts, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT)) {
		wrong_url(url, "not a URL", err);
		goto out;
	}
	client->loopback = is_loopback(host);
	if (has_part(parts, CURLUPART_USER) || has_part(parts, CURLUPART_PASSWORD))
		wrong_url(url, "holds a user or password; the token comes from a file", err);
	else if (has_part(parts, CURLUPART_PATH) || has_part(parts, CURLUPART_QUERY) ||
		 has_part(parts, CURLUPART_FRAGMENT))
		wrong_url(url, "more than scheme, host and port", err);
	else if (strcmp(scheme, "https") != 0 && strcmp(scheme, "http") != 0)
		wrong_url(url, "neither https:// nor http://", err);
	else if (!strcmp(scheme, "http") && !client->loopback)
		wrong_url(url, "plain HTTP goes to loopback only; take https://", err);
	else if (asprintf(&client->base, "%s://%s:%s", scheme, host, port) < 0)
		err_set(err, ERR_NO_MEMORY, "noting the hub's address: no memory");
	else
		rc = 0;
out:
	curl_free(scheme);
	curl_free(host);
	curl_free(port);
	return rc;
}

static int take_fingerprint(struct rest_client *client, const char *text, struct err *err)
{
	client->trust.fingerprint = client->fingerprint;
	return digest_unhex_pairs(text, client->fingerprint, sizeof client->fingerprint)
		       ? 0
		       : err_set(err, ERR_USAGE,
				 "the fingerprint of the hub: must be SHA-256 in hex");
}

static char *copy(const char *text, bool *failed)
{
	char *made = text ? strdup(text) : NULL;
	*failed = *failed || (text && !made);
	return made;
}

static int take_options(
	struct rest_client *client, const struct rest_client_options *options, struct err *err)
{
	bool failed = false;
	client->options = *options;
	client->token_file = copy(options->token_file, &failed);
	client->ca_file = copy(options->ca_file, &failed);
	client->trust.ca_file = client->ca_file;
	CURLU *parts = curl_url();
	if (failed || !parts) {
		curl_url_cleanup(parts);
		return err_set(err, ERR_NO_MEMORY, "making a client: no memory");
	}
	int rc = take_url(client, options->url, parts, err);
	curl_url_cleanup(parts);
	if (!rc && options->fingerprint)
		rc = take_fingerprint(client, options->fingerprint, err);
	if (!client->options.connect_timeout_ms)
		client->options.connect_timeout_ms = 10000;
	if (!client->options.silence_timeout_ms)
		client->options.silence_timeout_ms = 60000;
	if (!client->options.retry_ms)
		client->options.retry_ms = 30000;
	if (!rc && client->ca_file && access(client->ca_file, R_OK))
		rc = err_set(
			err, ERR_USAGE, "the CA's certificate %s can't be read", client->ca_file);
	return rc;
}

struct rest_client *rest_client_new(const struct rest_client_options *options, struct err *err)
{
	http_start();
	struct rest_client *client = calloc(1, sizeof *client);
	if (!client) {
		err_set(err, ERR_NO_MEMORY, "making a client: no memory");
		return NULL;
	}
	pthread_mutex_init(&client->mutex, NULL);
	if (take_options(client, options, err)) {
		rest_client_free(client);
		return NULL;
	}
	return client;
}

/* --- connections --------------------------------------------------------------------------------
 */

static void free_line(struct rest_client_line *line)
{
	curl_easy_cleanup(line->easy);
	curl_multi_cleanup(line->multi);
	free(line);
}

void rest_client_free(struct rest_client *client)
{
	if (!client)
		return;
	while (client->idle) {
		struct rest_client_line *line = client->idle;
		client->idle = line->next;
		free_line(line);
	}
	pthread_mutex_destroy(&client->mutex);
	free(client->base);
	free(client->token_file);
	free(client->ca_file);
	free(client);
}

struct rest_client_line *rest_client_line_take(struct rest_client *client, struct err *err)
{
	pthread_mutex_lock(&client->mutex);
	struct rest_client_line *line = client->idle;
	if (line) {
		client->idle = line->next;
		client->nr_idle--;
	}
	pthread_mutex_unlock(&client->mutex);
	if (line)
		return line;
	line = calloc(1, sizeof *line);
	if (line) {
		line->multi = curl_multi_init();
		line->easy = curl_easy_init();
		if (line->multi && line->easy)
			return line;
		free_line(line);
	}
	err_set(err, ERR_NO_MEMORY, "calling the hub: no memory");
	return NULL;
}

void rest_client_line_give(struct rest_client *client, struct rest_client_line *line, bool reusable)
{
	pthread_mutex_lock(&client->mutex);
	if (reusable && client->nr_idle < REST_CLIENT_LINES) {
		line->next = client->idle;
		client->idle = line;
		client->nr_idle++;
		line = NULL;
	}
	pthread_mutex_unlock(&client->mutex);
	if (line)
		free_line(line);
}

/* --- paths
 * ---------------------------------------------------------------------------------------- */

int rest_path_append(char *out, size_t bytes, const char *text, struct err *err)
{
	size_t length = strlen(out);
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;
		bool plain = isalnum(c) || strchr("-._~", c);
		if (length + 4 > bytes)
			return err_set(err, ERR_USAGE, "the path is too long");
		length +=
			(size_t)snprintf(out + length, bytes - length, plain ? "%c" : "%%%02X", c);
	}
	return 0;
}
