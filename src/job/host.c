/*
 * The process of the NBD service: "sendense nbd-service RUNTIME".
 *
 *   lock ─► nbd.json ─► exports ─► control socket ─► until SIGTERM or "stop" ─► sessions left,
 *                                                    serves closed ─► end
 *
 * A thread looks round once a second: leases that ended, ends that were told long enough.
 */
#include "host_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

#define CONFIG_BYTES_MOST 65536u
#define LOOK_ROUND_MS 1000
#define CONTROLS_END_MS 30000

/* --- what verbs share ------------------------------------------------------------ */

int host_check_id(const char *what, const char *id, struct err *err)
{
	size_t length = strlen(id);
	if (length > 0 && length < HOST_ID_BYTES &&
		strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") ==
			length)
		return 0;
	return err_set(err, ERR_USAGE, "%s: 1 to %u letters, digits, \"-\" or \"_\"", what,
		HOST_ID_BYTES - 1);
}

int host_unpack(const json_t *request, const char *verb, struct err *err, const char *format, ...)
{
	json_error_t bad;
	va_list args;
	va_start(args, format);
	int rc = json_vunpack_ex((json_t *)request, &bad, JSON_STRICT, format, args);
	va_end(args);
	return rc == 0 ? 0 : err_set(err, ERR_USAGE, "%s: %s", verb, bad.text);
}

/* --- repositories ---------------------------------------------------------------- */

static struct host_repository *find_repository(
	struct host_service *service, const char *path, bool writable)
{
	struct host_repository *at = service->repositories;
	while (at && (strcmp(at->path, path) != 0 || at->writable != writable))
		at = at->next;
	return at;
}

static struct host_repository *open_repository(const char *path, bool writable, struct err *err)
{
	struct host_repository *new = calloc(1, sizeof *new);
	if (!new || !(new->path = strdup(path))) {
		free(new);
		err_errno(err, ENOMEM, "cannot open repository %s", path);
		return NULL;
	}
	new->writable = writable;
	new->repo = repository_open(path, writable ? REPOSITORY_WRITE : REPOSITORY_READ, err);
	if (new->repo)
		return new;
	free(new->path);
	free(new);
	return NULL;
}

static int check_repository(const struct host_repository *of, const char *id, struct err *err)
{
	struct repository_info info;
	if (!id)
		return 0;
	if (repository_info(of->repo, &info, err) < 0)
		return -1;
	if (strcmp(info.id, id) == 0)
		return 0;
	err_set(err, ERR_REFUSED, "the repository in %s has the id %s, and not %s", of->path,
		info.id, id);
	return err_hint(err, "is it mounted?");
}

struct host_repository *host_repository_get(struct host_service *service, const char *path,
	const char *id, bool writable, struct err *err)
{
	/* A folder may be mounted anew: what is not used is not kept open. */
	pthread_mutex_lock(&service->mutex);
	struct host_repository *at = find_repository(service, path, writable);
	if (at)
		at->nr_users++;
	pthread_mutex_unlock(&service->mutex);
	if (!at) {
		/* Two at once open it twice, which does no harm. */
		at = open_repository(path, writable, err);
		if (!at)
			return NULL;
		at->nr_users = 1;
		WITH_LOCK(&service->mutex);
		at->next = service->repositories;
		service->repositories = at;
	}
	if (check_repository(at, id, err) == 0)
		return at;
	host_repository_put(service, at);
	return NULL;
}

void host_repository_put(struct host_service *service, struct host_repository *repository)
{
	if (!repository)
		return;
	pthread_mutex_lock(&service->mutex);
	bool last = --repository->nr_users == 0;
	struct host_repository **at = &service->repositories;
	while (*at != repository)
		at = &(*at)->next;
	if (last)
		*at = repository->next;
	pthread_mutex_unlock(&service->mutex);
	if (!last)
		return;
	repository_close(repository->repo);
	free(repository->path);
	free(repository);
}

/* --- settings -------------------------------------------------------------------- */

static int copy_path(const char *from, char **to, struct err *err)
{
	*to = from ? strdup(from) : NULL;
	return *to || !from ? 0 : err_errno(err, ENOMEM, "nbd.json");
}

static int parse_tls(struct host_config *config, const json_t *tls, struct err *err)
{
	const char *certificate = NULL, *key = NULL, *ca = NULL;
	if (!tls || json_is_null(tls))
		return 0;
	config->tls = true;
	if (host_unpack(tls, "nbd.json", err, "{s?s, s?s, s?s}", "certificate", &certificate, "key",
		    &key, "ca", &ca) < 0 ||
		copy_path(certificate, &config->certificate, err) < 0 ||
		copy_path(key, &config->key, err) < 0)
		return -1;
	return copy_path(ca, &config->ca, err);
}

static int parse_config(struct host_config *config, const json_t *json, struct err *err)
{
	const char *address = "127.0.0.1", *mode = "single", *for_clients = "";
	int port = 10809, first = 10100, last = 10200, connections = 256, sessions = 64;
	const json_t *tls = NULL;
	if (host_unpack(json, "nbd.json", err, "{s?{s?s, s?i}, s?s, s?[i, i!], s?i, s?i, s?s, s?o}",
		    "listen", "address", &address, "port", &port, "mode", &mode, "port_range",
		    &first, &last, "max_connections", &connections, "max_sessions", &sessions,
		    "address_for_clients", &for_clients, "tls", &tls) < 0)
		return -1;
	config->range = strcmp(mode, "range") == 0;
	if (!config->range && strcmp(mode, "single") != 0)
		return err_set(err, ERR_USAGE, "nbd.json: mode is \"single\" or \"range\"");
	if (port < 0 || port > 65535 || first < 1 || last > 65535 || first > last)
		return err_set(err, ERR_USAGE, "nbd.json: a port is out of range");
	if (connections < 1 || connections > 4096 || sessions < 1 || sessions > 4096)
		return err_set(err, ERR_USAGE,
			"nbd.json: max_connections and max_sessions are from 1 to 4096");
	if (strlen(address) >= sizeof config->address ||
		strlen(for_clients) >= sizeof config->address_for_clients)
		return err_set(err, ERR_USAGE, "nbd.json: an address is too long");
	memcpy(config->address, address, strlen(address) + 1);
	memcpy(config->address_for_clients, for_clients, strlen(for_clients) + 1);
	config->port = (unsigned)port;
	config->port_first = (unsigned)first;
	config->port_last = (unsigned)last;
	config->max_connections = (unsigned)connections;
	config->max_sessions = (unsigned)sessions;
	return parse_tls(config, tls, err);
}

static int load_config(struct host_service *service, int dir_fd, struct err *err)
{
	char *AUTO_FREE text = NULL;
	size_t length;
	uint8_t digest[DIGEST_ROOT_BYTES];
	json_error_t bad;
	if (file_load(dir_fd, "nbd.json", CONFIG_BYTES_MOST, &text, &length, err) < 0)
		return -1;
	digest_sha256(text, length, digest);
	digest_hex(digest, sizeof digest, service->config.digest);
	json_t *json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &bad);
	if (!json)
		return err_set(err, ERR_FORMAT, "nbd.json: %s", bad.text);
	int rc = parse_config(&service->config, json, err);
	json_decref(json);
	return rc;
}

static void free_config(struct host_config *config)
{
	free(config->certificate);
	free(config->key);
	free(config->ca);
}

/* --- the process ----------------------------------------------------------------- */

static void *look_round(void *arg)
{
	struct host_service *service = arg;
	while (cancel_sleep(service->stop, deadline_after_ms(LOOK_ROUND_MS), NULL) == 0) {
		push_look_round(service);
		serve_look_round(service);
	}
	return NULL;
}

/* Who still asks gets an answer, or finds the socket closed. */
static void wait_for_controls(struct host_service *service)
{
	struct deadline until = deadline_after_ms(CONTROLS_END_MS);
	WITH_LOCK(&service->mutex);
	while (service->nr_controls > 0 &&
		thread_cond_wait(&service->changed, &service->mutex, until))
		;
}

static int serve_until_stopped(struct host_service *service, struct err *err)
{
	struct listener listener;
	pthread_t thread;
	char *AUTO_FREE path = NULL;
	if (asprintf(&path, "%s/nbd.sock", service->runtime_dir) < 0)
		return err_errno(err, ENOMEM, "cannot serve NBD");
	if (transport_listen_unix(&listener, path, err) < 0)
		return -1;
	if (thread_start(&thread, "look-round", look_round, service, err) < 0) {
		listener_close(&listener);
		return -1;
	}
	log_info("the NBD service runs: process %ld, %s", (long)getpid(), path);
	int rc = host_control_run(service, &listener, err);
	cancel_request(service->stop);
	pthread_join(thread, NULL);
	push_hurry(service);
	host_control_shut(service);
	wait_for_controls(service);
	push_stop_all(service);
	serve_stop_all(service);
	/* Whoever asked for something that does not end uses it still. */
	if (service->nr_controls > 0)
		_exit(rc < 0);
	return rc;
}

static int run(struct host_service *service, int dir_fd, struct err *err)
{
	uint8_t random[(HOST_INSTANCE_BYTES - 1) / 2];
	int rc = -1;
	if (file_random(random, sizeof random, err) < 0)
		return -1;
	digest_hex(random, sizeof random, service->instance);
	if (load_config(service, dir_fd, err) == 0 &&
		(service->exports = exports_new(&service->config, err))) {
		rc = serve_until_stopped(service, err);
		if (!exports_free(service->exports)) {
			/* A disk keeps a request: its thread uses all there is. */
			log_error("the NBD service ends while a disk keeps a request");
			_exit(1);
		}
	}
	free_config(&service->config);
	return rc;
}

/* One at a time; -1 with ERR_BUSY. */
static int take_place(int dir_fd, const char *runtime_dir, struct err *err)
{
	int fd = openat(dir_fd, "nbd.lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_errno(err, errno, "cannot open %s/nbd.lock", runtime_dir);
	if (flock(fd, LOCK_EX | LOCK_NB) == 0)
		return fd;
	if (errno == EWOULDBLOCK)
		err_set(err, ERR_BUSY, "an NBD service runs in %s already", runtime_dir);
	else
		err_errno(err, errno, "cannot lock %s/nbd.lock", runtime_dir);
	close(fd);
	return -1;
}

int host_run(const char *runtime_dir, const char *software, struct cancel *cancel, struct err *err)
{
	struct host_service service = {
		.runtime_dir = runtime_dir, .software = software, .started_s = time(NULL)};
	int AUTO_CLOSE dir_fd = open(runtime_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return err_errno(err, errno, "%s", runtime_dir);
	int AUTO_CLOSE place = take_place(dir_fd, runtime_dir, err);
	if (place < 0)
		return -1;
	service.stop = cancel_new_part(cancel, err);
	if (!service.stop)
		return -1;
	pthread_mutex_init(&service.mutex, NULL);
	thread_cond_init(&service.changed);
	int rc = run(&service, dir_fd, err);
	pthread_cond_destroy(&service.changed);
	pthread_mutex_destroy(&service.mutex);
	cancel_free(service.stop);
	return rc;
}
