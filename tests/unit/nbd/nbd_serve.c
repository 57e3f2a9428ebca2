/*
 * Serves one disk for the tests of the NBD server, with time-outs and limits
 * that the program itself does not offer.  Prints "ready PORT", logs
 * to standard error, stops at SIGTERM.
 *
 *   nbd_serve null:SIZE|raw:PATH (SOCKET|tcp) [OPTION=VALUE...]
 *
 * tls-dir=DIR takes the certificate and the keys that make_pki put there, and with
 * clients=1 or 2 asks for certificates or demands them.  secret=NAME is a second,
 * hidden export, for identity=WHO alone.
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

static bool set_text(const char *argument, const char *name, const char **value)
{
	size_t n = strlen(name);
	if (strncmp(argument, name, n) != 0 || argument[n] != '=')
		return false;
	*value = argument + n + 1;
	return true;
}

static struct tls_server *load_tls(const char *folder, unsigned clients, struct err *err)
{
	char certificate[512], key[512], ca[512], psk[512];
	snprintf(certificate, sizeof certificate, "%s/server-cert.pem", folder);
	snprintf(key, sizeof key, "%s/server-key.pem", folder);
	snprintf(ca, sizeof ca, "%s/ca-cert.pem", folder);
	snprintf(psk, sizeof psk, "%s/keys.psk", folder);
	struct tls_server_options options = {.certificate = certificate,
		.key = key,
		.clients_ca = ca,
		.clients = clients,
		.psk_file = psk};
	return tls_server_new(&options, err);
}

int main(int argc, char **argv)
{
	struct err err = ERR_INIT;
	struct nbd_server_options options = {.once = false};
	struct listener listener;
	unsigned budget = 0, read_only = 0, once = 0, tls = NBD_TLS_OFF, clients = 0;
	const char *tls_dir = NULL, *secret = NULL, *identity = NULL;
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
			!set_number(argv[i], "once", &once) && !set_number(argv[i], "tls", &tls) &&
			!set_number(argv[i], "clients", &clients) &&
			!set_text(argv[i], "tls-dir", &tls_dir) &&
			!set_text(argv[i], "secret", &secret) &&
			!set_text(argv[i], "identity", &identity))
			return 2;
	options.budget_bytes = budget;
	options.once = once;
	options.tls = tls;
	log_set_sink(log_to_stderr, NULL, LOG_LEVEL_DEBUG);
	struct block *block = NULL;
	if (strncmp(argv[1], "null:", 5) == 0)
		block = block_null_open(strtoull(argv[1] + 5, NULL, 10), &err);
	else if (strncmp(argv[1], "raw:", 4) == 0)
		block = block_raw_open(argv[1] + 4, read_only, &err);
	if (!block)
		goto fail;
	if (tls_dir && !(options.tls_server = load_tls(tls_dir, clients, &err)))
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
	struct nbd_export hidden = {
		.name = secret, .block = block, .hidden = true, .tls_identity = identity};
	if (secret && nbd_server_add_export(server, &hidden, &err) < 0)
		goto fail;
	printf("ready %u\n", listener.port);
	fflush(stdout);
	if (nbd_server_run(server, &listener, &err) < 0)
		goto fail;
	if (!nbd_server_free(server))
		return 1;
	server = NULL;
	tls_server_free(options.tls_server);
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
