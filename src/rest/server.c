/*
 * The server.  We accept connections ourselves, so that limits are told of and silence gives
 * way (line.c); libmicrohttpd does the rest with a thread for each.
 */
#include "rest_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>

#define STACK_BYTES (512u << 10)
#define HEADER_BYTES (32u << 10) /* the request's line and header; 431 above */
#define REFUSED_TIMEOUT_S 5
#define STOP_MS 5000
#define PRIORITIES                                                                               \
	"NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-RSA:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:" \
	"+CHACHA20-POLY1305:-MAC-ALL:+AEAD:%SERVER_PRECEDENCE"

/* --- callbacks of the library ------------------------------------------------------------------
 */

__attribute__((format(printf, 2, 0))) static void log_library(
	void *context, const char *format, va_list words)
{
	char text[512];
	(void)context;
	vsnprintf(text, sizeof text, format, words);
	text[strcspn(text, "\n")] = 0;
	log_debug("REST: libmicrohttpd: %s", text);
}

static void connection_changed(void *context, struct MHD_Connection *connection,
	void **socket_context, enum MHD_ConnectionNotificationCode what)
{
	struct rest_server *server = context;
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	if (what == MHD_CONNECTION_NOTIFY_STARTED) {
		struct rest_line *line =
			info ? rest_lines_started(&server->lines, info->connect_fd) : NULL;
		*socket_context = line;
		if (line && line->refused)
			MHD_set_connection_option(
				connection, MHD_CONNECTION_OPTION_TIMEOUT, REFUSED_TIMEOUT_S);
	} else {
		rest_lines_remove(&server->lines, *socket_context);
		*socket_context = NULL;
	}
}

/* The library has the session point to its connection, and that to its server's notes. */
static int choose_certificate(gnutls_session_t session, const gnutls_datum_t *names, int nr_names,
	const gnutls_pk_algorithm_t *algorithms, int nr_algorithms, gnutls_pcert_st **chain,
	unsigned *nr_chain, gnutls_privkey_t *key)
{
	(void)names;
	(void)nr_names;
	(void)algorithms;
	(void)nr_algorithms;
	struct MHD_Connection *connection = gnutls_session_get_ptr(session);
	const union MHD_ConnectionInfo *info =
		connection ? MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)
			   : NULL;
	struct rest_line *line = info ? info->socket_context : NULL;
	if (!line)
		return -1;
	rest_certificates_get(line->certificates, chain, nr_chain, key);
	return 0;
}

/* --- accepting
 * --------------------------------------------------------------------------------------- */

static void admit(struct rest_server *server, int fd, const struct sockaddr_storage *peer,
	socklen_t peer_length)
{
	struct rest_address address;
	int one = 1;
	rest_address_of((const struct sockaddr *)peer, &address);
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	struct rest_line *line = rest_lines_add(&server->lines, &address, fd, clock_now_ns());
	if (!line) {
		close(fd);
		return;
	}
	line->certificates = server->certificates;
	/* It closes fd when it fails. */
	if (MHD_add_connection(server->daemon, fd, (const struct sockaddr *)peer, peer_length) !=
		MHD_YES)
		rest_lines_remove(&server->lines, line);
}

static void *accept_all(void *context)
{
	struct rest_server *server = context;
	struct pollfd fds[] = {{.fd = server->listener, .events = POLLIN},
		{.fd = cancel_fd(server->stop), .events = POLLIN}};
	while (!cancel_requested(server->stop)) {
		struct sockaddr_storage peer;
		socklen_t length = sizeof peer;
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			log_error("REST: waiting for connections: %s", strerror(errno));
		if (cancel_requested(server->stop))
			break;
		int fd = accept4(server->listener, (struct sockaddr *)&peer, &length,
			SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0) {
			admit(server, fd, &peer, length);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
			   errno == ENOBUFS) {
			log_error("REST: accepting a connection: %s", strerror(errno));
			cancel_sleep(server->stop, deadline_after_ms(200), NULL);
		}
	}
	return NULL;
}

/* --- start and stop
 * --------------------------------------------------------------------------------- */

static void set_defaults(struct rest_server_options *options)
{
	if (!options->most_connections)
		options->most_connections = 256;
	if (!options->most_per_address)
		options->most_per_address = 64;
	if (!options->idle_timeout_ms)
		options->idle_timeout_ms = 30000;
	if (!options->wrong_tokens_per_minute)
		options->wrong_tokens_per_minute = 10;
}

static int load_tls(struct rest_server *server, struct err *err)
{
	const struct rest_server_options *options = &server->options;
	size_t length;
	if (!options->certificate_file != !options->key_file)
		return err_set(err, ERR_USAGE, "TLS takes a certificate and its key");
	if (options->clients_ca_file && !options->certificate_file)
		return err_set(err, ERR_USAGE,
			"certificates of clients are demanded, but the server has none itself");
	if (!options->certificate_file)
		return 0;
	server->certificates =
		rest_certificates_new(options->certificate_file, options->key_file, err);
	if (!server->certificates)
		return -1;
	if (options->clients_ca_file && file_load(AT_FDCWD, options->clients_ca_file, 1u << 20,
						&server->clients_ca, &length, err))
		return err_context(err, "loading the CA of clients");
	return 0;
}

static int start_listening(struct rest_server *server, struct err *err)
{
	bool loopback;
	server->port = server->options.port;
	server->listener =
		rest_address_listen(server->options.address, &server->port, &loopback, err);
	if (server->listener < 0)
		return -1;
	if (!loopback && !server->certificates)
		return err_set(err, ERR_USAGE,
			"listening at %s: without TLS only loopback addresses are allowed (set a "
			"certificate and its key)",
			server->options.address);
	return 0;
}

static int start_library(struct rest_server *server, struct err *err)
{
	unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION |
			 MHD_USE_POLL | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ITC | MHD_USE_ERROR_LOG;
	struct MHD_OptionItem tls[] = {
		{MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t)PRIORITIES},
		{MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)(uintptr_t)choose_certificate},
		{server->clients_ca ? MHD_OPTION_HTTPS_MEM_TRUST : MHD_OPTION_END, 0,
			server->clients_ca},
		{MHD_OPTION_END, 0, NULL},
	};
	struct MHD_OptionItem none[] = {{MHD_OPTION_END, 0, NULL}};
	if (server->certificates)
		flags |= MHD_USE_TLS;
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	server->daemon = MHD_start_daemon(flags, 0, NULL, NULL, rest_handle_call, server,
		MHD_OPTION_EXTERNAL_LOGGER, log_library, NULL, MHD_OPTION_ARRAY,
		server->certificates ? tls : none, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
		(size_t)HEADER_BYTES, MHD_OPTION_THREAD_STACK_SIZE, (size_t)STACK_BYTES,
		MHD_OPTION_CONNECTION_LIMIT,
		server->options.most_connections + REST_LINES_RESERVE + REST_LINES_EVICTED,
		MHD_OPTION_CONNECTION_TIMEOUT, (server->options.idle_timeout_ms + 999) / 1000,
		MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_URI_LOG_CALLBACK, rest_handle_target,
		server, MHD_OPTION_NOTIFY_COMPLETED, rest_handle_end, server,
		MHD_OPTION_NOTIFY_CONNECTION, connection_changed, server, MHD_OPTION_END);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return server->daemon ? 0 : err_set(err, ERR_IO, "starting the REST server: see the log");
}

struct rest_server *rest_server_start(const struct rest_server_options *options, struct err *err)
{
	struct rest_server *server = calloc(1, sizeof *server);
	if (!server) {
		err_set(err, ERR_NO_MEMORY, "starting the REST server: no memory");
		return NULL;
	}
	server->options = *options;
	set_defaults(&server->options);
	server->listener = -1;
	rest_lines_init(
		&server->lines, server->options.most_connections, server->options.most_per_address);
	rest_wrong_init(&server->wrong, server->options.wrong_tokens_per_minute);
	rest_once_init(&server->once);
	server->stop = cancel_new(err);
	if (!server->stop || load_tls(server, err) || start_listening(server, err) ||
		start_library(server, err))
		goto fail;
	if (thread_start(&server->acceptor, "rest-accept", accept_all, server, err))
		goto fail;
	server->accepts = true;
	return server;
fail:
	rest_server_stop(server);
	return NULL;
}

unsigned rest_server_port(const struct rest_server *server)
{
	return server->port;
}

int rest_server_reload(struct rest_server *server, struct err *err)
{
	return server->certificates ? rest_certificates_reload(server->certificates, err) : 0;
}

void rest_server_stop(struct rest_server *server)
{
	if (!server)
		return;
	atomic_store(&server->stopping, true);
	if (server->accepts) {
		cancel_request(server->stop);
		pthread_join(server->acceptor, NULL);
	}
	if (server->listener >= 0)
		close(server->listener);
	rest_lines_wait(&server->lines, deadline_after_ms(STOP_MS));
	if (server->daemon)
		MHD_stop_daemon(server->daemon);
	rest_lines_clear(&server->lines);
	rest_wrong_clear(&server->wrong);
	rest_once_clear(&server->once);
	rest_certificates_free(server->certificates);
	free(server->clients_ca);
	cancel_free(server->stop);
	free(server);
}
