/*
 * Serves one disk for the tests of the NBD server, with time-outs and limits
 * that the program itself does not offer.  Prints "ready PORT", logs
 * to standard error, stops at SIGTERM.
 *
 *   nbd_serve null:SIZE|raw:PATH (SOCKET|tcp) [OPTION=VALUE...]
 */
#include "nbd.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>

static struct nbd_server *server;

static void on_signal(int number)
{
	(void)number;
	nbd_server_stop(server);
}

static void log_to_stderr(void *context, enum log_level level, const char *text)
{
	(void)context;
	fprintf(stderr, "%s: %s\n", log_level_name(level), text);
}

static bool set_number(const char *argument, const char *name, unsigned *value)
{
	size_t n = strlen(name);
	if (strncmp(argument, name, n) != 0 || argument[n] != '=')
		return false;
	*value = (unsigned)strtoul(argument + n + 1, NULL, 10);
	return true;
}

int main(int argc, char **argv)
{
	struct err err = ERR_INIT;
	struct nbd_server_options options = {.once = false};
	struct listener listener;
	unsigned budget = 0, read_only = 0, once = 0;
	if (argc < 3)
		return 2;
	for (int i = 3; i < argc; i++)
		if (!set_number(argv[i], "max-connections", &options.max_connections) &&
			!set_number(argv[i], "handshake-ms", &options.handshake_timeout_ms) &&
			!set_number(argv[i], "send-ms", &options.send_timeout_ms) &&
			!set_number(argv[i], "idle-ms", &options.idle_timeout_ms) &&
			!set_number(argv[i], "slow-ms", &options.slow_ms) &&
			!set_number(argv[i], "budget", &budget) &&
			!set_number(argv[i], "read-only", &read_only) &&
			!set_number(argv[i], "once", &once))
			return 2;
	options.budget_bytes = budget;
	options.once = once;
	log_set_sink(log_to_stderr, NULL, LOG_LEVEL_DEBUG);
	struct block *block = NULL;
	if (strncmp(argv[1], "null:", 5) == 0)
		block = block_null_open(strtoull(argv[1] + 5, NULL, 10), &err);
	else if (strncmp(argv[1], "raw:", 4) == 0)
		block = block_raw_open(argv[1] + 4, read_only, &err);
	if (!block)
		goto fail;
	server = nbd_server_new(&options, &err);
	if (!server)
		goto fail;
	signal(SIGTERM, on_signal);
	struct nbd_export export = {
		.name = "", .description = "a test", .block = block, .read_only = read_only};
	int rc = transport_listen_inherited(&listener, &err);
	if (rc == 0)
		rc = strcmp(argv[2], "tcp") == 0
			     ? transport_listen_tcp(&listener, "127.0.0.1", 0, &err)
			     : transport_listen_unix(&listener, argv[2], &err);
	if (rc < 0 || nbd_server_add_export(server, &export, &err) < 0)
		goto fail;
	printf("ready %u\n", listener.port);
	fflush(stdout);
	if (nbd_server_run(server, &listener, &err) < 0)
		goto fail;
	if (!nbd_server_free(server))
		return 1;
	server = NULL;
	rc = block_close(block, &err);
	block = NULL;
	if (rc == 0)
		return 0;
fail:
	fprintf(stderr, "nbd_serve: %s\n", err.text);
	if (!server || nbd_server_free(server))
		block_close(block, NULL);
	return 1;
}
