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
			.help = "with --port: a loopback address (default: 127.0.0.1)"},       \
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
