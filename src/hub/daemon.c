/*
 * The NBD service's process, looked after.  It is no child that must be waited for in one
 * place only (a hub that was started again finds it), so its end is seen through a pidfd; it
 * is started again with a back-off, and everything else goes on meanwhile.
 */
#include "hub_internal.h"

#include "job.h"
#include "log.h"
#include "thread.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define BACK_OFF_LEAST_MS 100
#define BACK_OFF_MOST_MS 30000
#define BACK_OFF_ANSWERED_MS 1000 /* at most for one that had come to answer */
#define ASK_MS 5000 /* for an answer that is at hand */
#define ASK_LEAST_MS 1000
#define STEADY_MS 1000 /* whoever lived that long begins with the least back-off again */

struct hub_daemon {
	pthread_t thread;
	struct cancel *ends;
};

static json_t *tls_json(const struct hub_config *c)
{
	if (c->nbd_tls == HUB_NBD_TLS_OFF)
		return json_null();
	json_t *tls = json_object();
	if (c->certificate) {
		json_object_set_new(tls, "certificate", json_string(c->certificate));
		json_object_set_new(tls, "key", json_string(c->key));
	}
	if (c->ca)
		json_object_set_new(tls, "ca", json_string(c->ca));
	return tls;
}

static json_t *daemon_config(const struct hub_config *c)
{
	json_t *config = json_pack("{s:{s:s, s:i}, s:s, s:[i, i], s:i, s:o}", "listen", "address",
		c->nbd_listen.host, "port", (int)c->nbd_listen.port, "mode",
		c->nbd_mode == HUB_NBD_SINGLE ? "single" : "range", "port_range",
		(int)c->nbd_port_first, (int)c->nbd_port_last, "max_connections",
		(int)c->nbd_most_connections, "tls", tls_json(c));
	if (config && c->nbd_address_for_clients)
		json_object_set_new(
			config, "address_for_clients", json_string(c->nbd_address_for_clients));
	return config;
}

/* Until the service's process ends, or we do. */
static void wait_for_end(struct hub_daemon *daemon, pid_t pid)
{
	int AUTO_CLOSE fd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
	if (fd < 0)
		return; /* gone already */
	struct err err = ERR_INIT;
	while (!cancel_requested(daemon->ends)) {
		int ready = cancel_poll(daemon->ends, fd, POLLIN, deadline_after_ms(3600000),
			"the NBD service's end", &err);
		if (ready > 0 || err.code == ERR_CANCELLED)
			return;
	}
}

static void *look_after(void *context)
{
	struct hub *hub = context;
	struct hub_daemon *daemon = hub->daemon;
	int64_t back_off_ms = BACK_OFF_LEAST_MS;
	while (!cancel_requested(daemon->ends)) {
		int64_t since = clock_now_ns();
		pid_t pid = host_pid(hub->host);
		wait_for_end(daemon, pid);
		if (cancel_requested(daemon->ends))
			break;
		if (clock_now_ns() - since > (int64_t)STEADY_MS * 1000000)
			back_off_ms = BACK_OFF_LEAST_MS;
		log_error("the NBD service (pid %d) ended; it is started again in %" PRId64 " ms",
			(int)pid, back_off_ms);
		if (cancel_sleep(daemon->ends, deadline_after_ms(back_off_ms), NULL) < 0)
			break;
		struct err err = ERR_INIT;
		int revived = host_revive(hub->host, &err);
		int64_t most_ms = revived < 0 ? BACK_OFF_MOST_MS : BACK_OFF_ANSWERED_MS;
		back_off_ms = back_off_ms * 2 > most_ms ? most_ms : back_off_ms * 2;
		if (revived < 0) {
			log_error("%s", err.text);
		} else if (revived > 0) {
			log_warning(
				"the NBD service runs again (pid %d)", (int)host_pid(hub->host));
		}
		hub_event(hub, "hub", "nbd-service.restart", revived < 0 ? err.text : "done", NULL);
		hub_sessions_wake(hub);
	}
	return NULL;
}

int hub_daemon_start(struct hub *hub, struct err *err)
{
	const struct hub_config *c = hub_config(hub);
	struct hub_daemon *daemon = calloc(1, sizeof *daemon);
	json_t *config = daemon_config(c);
	if (!daemon || !config) {
		err_errno(err, ENOMEM, "cannot start the NBD service");
		goto free_daemon;
	}
	daemon->ends = cancel_new(err);
	if (!daemon->ends)
		goto free_daemon;
	const struct host_options options = {
		.runtime_dir = c->runtime_dir, .program = hub->options->program, .config = config};
	hub->host = host_start(&options, err);
	if (!hub->host) {
		err_context(
			err, "the NBD service on %s:%u", c->nbd_listen.host, c->nbd_listen.port);
		goto free_cancel;
	}
	hub->daemon = daemon;
	if (thread_start(&daemon->thread, "nbd-service", look_after, hub, err) < 0)
		goto close_host;
	json_decref(config);
	return 0;
close_host:
	hub->daemon = NULL;
	host_stop(hub->host, deadline_after_ms(5000), NULL);
	host_close(hub->host);
	hub->host = NULL;
free_cancel:
	cancel_free(daemon->ends);
free_daemon:
	json_decref(config);
	free(daemon);
	return -1;
}

/* Also while the hub stops. */
static json_t *ask(struct hub *hub, const json_t *request, struct deadline until, struct err *err)
{
	int left_ms = deadline_left_ms(deadline_min(until, deadline_after_ms(ASK_MS)));
	return host_call(hub->host, request, NULL, 0, NULL, NULL,
		deadline_after_ms(left_ms > ASK_LEAST_MS ? left_ms : ASK_LEAST_MS), NULL, err);
}

/* Also where it does not tell: the next hub asks it again. */
static bool may_have_work(struct hub *hub, struct deadline until)
{
	struct err err = ERR_INIT;
	json_t *request = json_pack("{s:s}", "verb", "status");
	json_t *status = request ? ask(hub, request, until, &err) : NULL;
	bool works = !status && err.code == ERR_TIMEOUT;
	json_decref(request);
	size_t i;
	json_t *session;
	json_array_foreach(json_object_get(status, "sessions"), i, session)
	{
		const char *state = json_string_value(json_object_get(session, "state"));
		static const char *const ends[] = {
			"committed", "refused", "failed", "left", "expired", "aborted"};
		bool ended = false;
		for (size_t k = 0; state && k < ARRAY_LENGTH(ends); k++)
			ended |= strcmp(state, ends[k]) == 0;
		works |= !ended;
	}
	works |= json_array_size(json_object_get(status, "serves")) > 0;
	json_decref(status);
	return works;
}

void hub_daemon_stop(struct hub *hub, bool hand_over, struct deadline until)
{
	if (!hub->daemon)
		return;
	cancel_request(hub->daemon->ends);
	pthread_join(hub->daemon->thread, NULL);
	struct err err = ERR_INIT;
	if (hand_over && may_have_work(hub, until))
		log_info("the NBD service (pid %d) goes on with what it has",
			(int)host_pid(hub->host));
	else if (host_stop(hub->host, deadline_min(until, deadline_after_ms(10000)), &err) < 0)
		log_warning("the NBD service: %s", err.text);
	host_close(hub->host);
	hub->host = NULL;
	cancel_free(hub->daemon->ends);
	free(hub->daemon);
	hub->daemon = NULL;
}

void hub_daemon_address(struct hub *hub, char out[96])
{
	json_t *status = hub_host_call(hub, "status", NULL, NULL);
	const json_t *listen = json_object_get(status, "listen");
	const char *address = json_string_value(json_object_get(listen, "address"));
	out[0] = '\0';
	if (address)
		snprintf(out, 96, strchr(address, ':') ? "[%s]:%d" : "%s:%d", address,
			(int)json_integer_value(json_object_get(listen, "port")));
	json_decref(status);
}

void hub_daemon_reload(struct hub *hub)
{
	struct err err = ERR_INIT;
	json_t *config = daemon_config(hub_config(hub));
	json_t *request =
		config ? json_pack("{s:s, s:o}", "verb", "reload", "config", config) : NULL;
	json_t *answer = request ? ask(hub, request, deadline_after_ms(ASK_MS), &err) : NULL;
	json_decref(request);
	if (!answer)
		log_warning("the NBD service keeps its certificate: %s", err.text);
	json_decref(answer);
}
