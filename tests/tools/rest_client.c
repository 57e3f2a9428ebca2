/*
 * One call by our room's client: rest_client URL METHOD PATH.  Prints the answer, or "CODE: TEXT"
 * and ends with 1.  Environment: CLIENT_CA, CLIENT_FINGERPRINT, CLIENT_TOKEN_FILE,
 * CLIENT_RETRY_MS; CLIENT_FOLLOW: the path is a stream, each event is printed.
 */
#include "rest.h"

#include <stdio.h>

static int print_event(void *context, const char *name, const json_t *data)
{
	(void)context;
	printf("%s ", name);
	json_dumpf(data, stdout, JSON_COMPACT);
	puts("");
	fflush(stdout);
	return !strcmp(name, "end");
}

static int call(struct rest_client *client, char **argv, struct err *err)
{
	json_t *reply = NULL;
	if (getenv("CLIENT_FOLLOW"))
		return rest_follow(client, argv[3], print_event, NULL, err);
	if (rest_call(client, argv[2], argv[3], NULL, &reply, err))
		return -1;
	if (reply)
		json_dumpf(reply, stdout, JSON_COMPACT);
	json_decref(reply);
	return 0;
}

int main(int argc, char **argv)
{
	struct err err = ERR_INIT;
	const char *retry = getenv("CLIENT_RETRY_MS");
	const struct rest_client_options options = {.url = argc == 4 ? argv[1] : "",
		.token_file = getenv("CLIENT_TOKEN_FILE"),
		.ca_file = getenv("CLIENT_CA"),
		.fingerprint = getenv("CLIENT_FINGERPRINT"),
		.connect_timeout_ms = 5000,
		.retry_ms = retry ? (unsigned)strtoul(retry, NULL, 10) : 1};
	struct rest_client *client = rest_client_new(&options, &err);
	int rc = client ? call(client, argv, &err) : -1;
	rest_client_free(client);
	if (rc)
		printf("%s: %s\n", err_code_name(err.code), err.text);
	return rc ? 1 : 0;
}
