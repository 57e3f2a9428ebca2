/* A server command's life; see service.h. */
#include "service.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/eventfd.h>

#define PROBE_TIMEOUT_MS 10000
#define AN_HOUR_MS 3600000

struct service {
	struct cli *cli;
	const struct service_options *options;
	const struct nbd_export *exports;
	size_t nr_exports;
	struct listener listener;
	bool inherited;
	struct listener where; /* what the listener was, for the URIs */
	char socket_path[PATH_MAX]; /* absolute, so that the URI works from any folder */
	struct tls_server *tls; /* NULL: without TLS */
	struct nbd_server *server;
	int ended_fd; /* readable when the server's thread ends */
	int run_rc; /* with run_err: how it ended */
	struct err run_err;
};

static bool is_activated(void)
{
	return getenv("LISTEN_FDS") != NULL;
}

static bool has_tls(const struct service_options *options)
{
	return options->tls_certificate || options->tls_key || options->tls_clients_ca ||
	       options->tls_psk_file;
}

int service_check(const struct service_options *options, struct err *err)
{
	if (options->tls_optional && !has_tls(options))
		return err_set(err, ERR_USAGE,
			"--tls-optional needs a certificate (--tls-certificate) or keys "
			"(--tls-psk-file)");
	if (options->socket && options->port.given)
		return err_set(err, ERR_USAGE, "--socket and --port: only one of them");
	if (options->address && !options->port.given)
		return err_set(err, ERR_USAGE, "--address is for --port");
	if (!options->socket && !options->port.given && !is_activated())
		return err_set(err, ERR_USAGE,
			"where to listen? (--socket PATH, or --port N; --port 0: the kernel "
			"picks)");
	return 0;
}

/* --- listening ------------------------------------------------------------------- */

static int start_listening(struct service *service, struct err *err)
{
	const struct service_options *options = service->options;
	int rc = transport_listen_inherited(&service->listener, err);
	if (rc < 0)
		return -1;
	service->inherited = rc == 1;
	if (service->inherited && (options->socket || options->port.given)) {
		listener_close(&service->listener);
		return err_set(err, ERR_USAGE,
			"a socket was passed (LISTEN_FDS): --socket and --port "
			"have no place then");
	}
	if (service->inherited)
		return 0;
	if (options->socket)
		return transport_listen_unix(&service->listener, options->socket, err);
	if (!options->port.given)
		return err_set(err, ERR_USAGE,
			"LISTEN_FDS is set, but no socket was passed to this "
			"process (--socket PATH, or --port N)");
	const char *address = options->address ? options->address : "127.0.0.1";
	unsigned port = (unsigned)options->port.value;
	/* Beyond this machine nobody gets a disk who has not shown who he is. */
	if (service->tls && !options->tls_optional && tls_server_authenticates(service->tls))
		return transport_listen_tcp_public(&service->listener, address, port, err);
	if (transport_listen_tcp(&service->listener, address, port, err) == 0)
		return 0;
	if (err && err->code == ERR_DENIED && service->tls)
		err_hint(err, "--tls-psk-file or --tls-clients-ca, without --tls-optional");
	return -1;
}

static int set_up_tls(struct service *service, struct err *err)
{
	const struct service_options *options = service->options;
	struct tls_server_options tls = {
		.certificate = options->tls_certificate,
		.key = options->tls_key,
		.clients_ca = options->tls_clients_ca,
		.clients = options->tls_clients_ca ? TLS_CLIENTS_REQUIRED : TLS_CLIENTS_ANY,
		.psk_file = options->tls_psk_file,
	};
	if (!has_tls(options))
		return 0;
	service->tls = tls_server_new(&tls, err);
	return service->tls ? 0 : err_context(err, "TLS");
}

/* Characters that a URI may hold as they are, here; all others become %XX. */
static void put_escaped(char *out, size_t bytes, const char *text)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
				    "-._~/:,@";
	size_t used = strlen(out);
	for (; *text && used + 4 < bytes; text++) {
		if (strchr(plain, *text))
			used += (size_t)snprintf(out + used, bytes - used, "%c", *text);
		else
			used += (size_t)snprintf(
				out + used, bytes - used, "%%%02X", (unsigned char)*text);
	}
}

/* The URI of the export of that name. */
static void make_uri(const struct service *service, const char *name, char *out, size_t bytes)
{
	const struct listener *where = &service->where;
	const char *scheme = service->tls && !service->options->tls_optional ? "nbds" : "nbd";
	if (!where->is_tcp) {
		snprintf(out, bytes, "%s+unix:///", scheme);
		put_escaped(out, bytes, name);
		size_t used = strlen(out);
		snprintf(out + used, bytes - used, "?socket=");
		put_escaped(out, bytes, service->socket_path);
		return;
	}
	bool is_v6 = strchr(where->address, ':') != NULL;
	snprintf(out, bytes, is_v6 ? "%s://[%s]:%u" : "%s://%s:%u", scheme, where->address,
		where->port);
	size_t used = strlen(out);
	snprintf(out + used, bytes - used, "/");
	put_escaped(out, bytes, name);
}

/* --- ready ------------------------------------------------------------------------- */

#define URI_BYTES 8192

static int print_json(const struct service *service, const char *uri, struct err *err)
{
	json_t *exports = json_array();
	for (size_t i = 0; i < service->nr_exports; i++) {
		const struct nbd_export *export = &service->exports[i];
		if (export->hidden)
			continue;
		char each[URI_BYTES];
		make_uri(service, export->name, each, sizeof each);
		const struct block_info *info = block_info(export->block);
		json_array_append_new(
			exports, json_pack("{s:s, s:s, s:I, s:b}", "name", export->name, "uri",
					 each, "size", (json_int_t)info->size_bytes, "read_only",
					 export->read_only || info->read_only));
	}
	return cli_print_json(
		json_pack("{s:s, s:i, s:o}", "uri", uri, "pid", (int)getpid(), "exports", exports),
		err);
}

static size_t nr_shown(const struct service *service)
{
	size_t nr = 0;
	for (size_t i = 0; i < service->nr_exports; i++)
		nr += !service->exports[i].hidden;
	return nr;
}

/* With several exports the line names the server; each has its own URI in JSON. */
static int tell_ready(struct service *service, struct err *err)
{
	char uri[URI_BYTES];
	make_uri(service, nr_shown(service) == 1 ? service->exports[0].name : "", uri, sizeof uri);
	if (service->cli->common.json)
		return print_json(service, uri, err);
	printf("%s\n", uri);
	return cli_flush(err);
}

static int write_pid_file(const char *path, struct err *err)
{
	char text[32];
	int length = snprintf(text, sizeof text, "%ld\n", (long)getpid());
	if (file_replace(AT_FDCWD, path, text, (size_t)length, 0644, err) < 0)
		return err_context(err, "--pid-file");
	return 0;
}

static int prove_ready(struct service *service, struct err *err)
{
	char uri[URI_BYTES];
	make_uri(service, service->exports[0].name, uri, sizeof uri);
	if (nbd_probe(uri, deadline_after_ms(PROBE_TIMEOUT_MS), err) < 0)
		return err_context(err, "the server does not answer on %s", uri);
	return 0;
}

/* --- running ------------------------------------------------------------------------- */

static void *serve(void *arg)
{
	struct service *service = arg;
	service->run_rc = nbd_server_run(service->server, &service->listener, &service->run_err);
	uint64_t one = 1;
	ssize_t n = write(service->ended_fd, &one, sizeof one);
	(void)n;
	return NULL;
}

/* Until a signal or the end of the server. */
static void wait_for_end(struct service *service)
{
	struct err err = ERR_INIT;
	do {
		err_clear(&err);
		cancel_poll(service->cli->cancel, service->ended_fd, POLLIN,
			deadline_after_ms(AN_HOUR_MS), "the end of the server", &err);
	} while (err.code == ERR_TIMEOUT);
}

static int serve_until_end(struct service *service, struct err *err)
{
	const char *pid_file = service->options->pid_file;
	int rc = service->inherited ? 0 : prove_ready(service, err);
	bool has_pid_file = false;
	if (rc == 0 && pid_file) {
		rc = write_pid_file(pid_file, err);
		has_pid_file = rc == 0;
	}
	/* Nobody may be reading: a server serves all the same. */
	struct err told = ERR_INIT;
	if (rc == 0 && !service->inherited && tell_ready(service, &told) < 0)
		log_warning("%s", told.text);
	if (rc == 0)
		wait_for_end(service);
	if (has_pid_file)
		unlink(pid_file);
	return rc;
}

static int serve_on_thread(struct service *service, struct err *err)
{
	pthread_t thread;
	if (thread_start(&thread, "server", serve, service, err) < 0) {
		listener_close(&service->listener);
		return -1;
	}
	int rc = serve_until_end(service, err);
	nbd_server_stop(service->server);
	pthread_join(thread, NULL);
	/* Why it ended by itself says more than that it does not answer. */
	if (service->run_rc < 0)
		rc = err_copy(err, &service->run_err);
	return rc;
}

static int serve_listener(struct service *service, struct err *err)
{
	struct nbd_server_options options = {
		.max_connections = (unsigned)service->options->max_connections.value,
		.once = service->options->once,
		.tls = !service->tls                    ? NBD_TLS_OFF
		       : service->options->tls_optional ? NBD_TLS_ALLOWED
							: NBD_TLS_REQUIRED,
		.tls_server = service->tls,
	};
	int rc = -1;
	service->server = nbd_server_new(&options, err);
	if (!service->server)
		goto close_listener;
	for (size_t i = 0; i < service->nr_exports; i++)
		if (nbd_server_add_export(service->server, &service->exports[i], err) < 0)
			goto free_server;
	service->ended_fd = eventfd(0, EFD_CLOEXEC);
	if (service->ended_fd < 0) {
		err_errno(err, errno, "cannot make an event descriptor");
		goto free_server;
	}
	rc = serve_on_thread(service, err);
	if (!nbd_server_free(service->server)) {
		/* The disk keeps a request.  Its thread uses all there is, so nothing can
		 * be taken down: an image is left as a crash leaves it. */
		_exit(cli_report_error(service->cli->common.json, "", err));
	}
	close(service->ended_fd);
	return rc;
free_server:
	(void)nbd_server_free(service->server); /* it had no clients */
close_listener:
	listener_close(&service->listener);
	return rc;
}

int service_run(struct cli *cli, const struct service_options *options,
	const struct nbd_export *exports, size_t nr_exports, struct err *err)
{
	struct service service = {
		.cli = cli,
		.options = options,
		.exports = exports,
		.nr_exports = nr_exports,
		.ended_fd = -1,
	};
	if (set_up_tls(&service, err) < 0)
		return -1;
	if (start_listening(&service, err) < 0) {
		tls_server_free(service.tls);
		return -1;
	}
	/* run() takes the listener; its place is needed for the URIs. */
	service.where = service.listener;
	if (!service.where.is_tcp && !service.inherited &&
		!realpath(options->socket, service.socket_path))
		snprintf(service.socket_path, sizeof service.socket_path, "%s", options->socket);
	int rc = serve_listener(&service, err);
	tls_server_free(service.tls);
	return rc;
}
