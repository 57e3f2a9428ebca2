/*
 * service: the life of a server command (export, serve), from listening to
 * SIGTERM.
 *
 *   listen ─► serve on a thread ─► prove it by a handshake ─► pid file ─►
 *   print the URI ─► wait for a signal or the server's end ─► stop
 *
 * A socket that was inherited (LISTEN_FDS) was ready before this program
 * started: nothing is proven nor printed then.
 */
#ifndef SENDENSE_CLI_SERVICE_H
#define SENDENSE_CLI_SERVICE_H

#include "cli.h"
#include "nbd.h"

/* Options of all server commands; the member "service" of their values. */
struct service_options {
	const char *socket, *address, *pid_file;
	struct option_number port, max_connections;
	bool once;
	const char *tls_certificate, *tls_key, *tls_clients_ca, *tls_psk_file;
	bool tls_optional;
};

#define SERVICE_OPTION_ROWS(values)                                                            \
	{.name = "socket",                                                                     \
		.kind = OPTION_TEXT,                                                           \
		.offset = offsetof(values, service.socket),                                    \
		.argument = "PATH",                                                            \
		.words = WORDS_FILE,                                                           \
		.help = "listen on this Unix socket"},                                         \
		{.name = "port",                                                               \
			.kind = OPTION_NUMBER,                                                 \
			.offset = offsetof(values, service.port),                              \
			.argument = "N",                                                       \
			.maximum = 65535,                                                      \
			.help = "listen on this TCP port; 0: the kernel picks one"},           \
		{.name = "address",                                                            \
			.kind = OPTION_TEXT,                                                   \
			.offset = offsetof(values, service.address),                           \
			.argument = "ADDRESS",                                                 \
			.help = "with --port (default: 127.0.0.1); beyond loopback only with " \
				"TLS"},                                                        \
		{.name = "max-connections",                                                    \
			.kind = OPTION_NUMBER,                                                 \
			.offset = offsetof(values, service.max_connections),                   \
			.argument = "N",                                                       \
			.minimum = 1,                                                          \
			.maximum = 1024,                                                       \
			.help = "refuse more connections than that, saying so (default: 16)"}, \
		{.name = "once",                                                               \
			.kind = OPTION_FLAG,                                                   \
			.offset = offsetof(values, service.once),                              \
			.help = "end when the last connection has ended"},                     \
		{.name = "tls-certificate",                                                    \
			.kind = OPTION_TEXT,                                                   \
			.offset = offsetof(values, service.tls_certificate),                   \
			.argument = "FILE",                                                    \
			.words = WORDS_FILE,                                                   \
			.help = "demand TLS, and show this certificate (PEM)"},                \
		{.name = "tls-key",                                                            \
			.kind = OPTION_TEXT,                                                   \
			.offset = offsetof(values, service.tls_key),                           \
			.argument = "FILE",                                                    \
			.words = WORDS_FILE,                                                   \
			.help = "the certificate's key (PEM, for its owner alone)"},           \
		{.name = "tls-clients-ca",                                                     \
			.kind = OPTION_TEXT,                                                   \
			.offset = offsetof(values, service.tls_clients_ca),                    \
			.argument = "FILE",                                                    \
			.words = WORDS_FILE,                                                   \
			.help = "take clients with a certificate of this CA alone"},           \
		{.name = "tls-psk-file",                                                       \
			.kind = OPTION_TEXT,                                                   \
			.offset = offsetof(values, service.tls_psk_file),                      \
			.argument = "FILE",                                                    \
			.words = WORDS_FILE,                                                   \
			.help = "demand TLS, and take these pre-shared keys (IDENTITY:HEX)"},  \
		{.name = "tls-optional",                                                       \
			.kind = OPTION_FLAG,                                                   \
			.offset = offsetof(values, service.tls_optional),                      \
			.help = "take clients without TLS too (loopback alone)"},              \
	{                                                                                      \
		.name = "pid-file", .kind = OPTION_TEXT,                                       \
		.offset = offsetof(values, service.pid_file), .argument = "PATH",              \
		.words = WORDS_FILE, .help = "keep the process id there while it is ready"     \
	}

/* Checks the options before anything is opened: ERR_USAGE. */
int service_check(const struct service_options *options, struct err *err);

/* Serves until a signal comes (0) or the server fails. */
int service_run(struct cli *cli, const struct service_options *options,
	const struct nbd_export *exports, size_t nr_exports, struct err *err);

#endif
