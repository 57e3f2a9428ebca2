/*
 * The control socket: one line of JSON asks, one line answers (host.h).
 *
 * A connection has a thread of its own for as long as it stands; what takes long (opening a
 * session, waiting for one to change) keeps that thread alone.
 */
#include "host_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define CONTROLS_MOST 64u
#define SEND_TIMEOUT_MS 20000
#define OCTETS_TIMEOUT_MS 60000
#define IDLE_TIMEOUT_MS 3600000
#define NICE_LOOK_MS 500
#define NESTING_MOST 32u

struct control {
	struct control *previous, *next; /* under service.mutex */
	struct host_service *service;
	struct stream stream;
	char *line; /* HOST_LINE_BYTES */
	size_t start, used; /* what has come and was not taken yet */
};

/* --- reading --------------------------------------------------------------------- */

static int receive_some(
	struct control *control, void *buffer, size_t room, unsigned timeout_ms, struct err *err)
{
	struct iovec iov = {.iov_base = buffer, .iov_len = room};
	ssize_t n = stream_receive(&control->stream, &iov, 1, timeout_ms, "a request", err);
	return n < 0 ? -1 : (int)n;
}

/* The next line, without its end, in place; NULL at the end of the connection (err clear), or
 * where it broke the protocol. */
static char *read_line(struct control *control, struct err *err)
{
	memmove(control->line, control->line + control->start, control->used - control->start);
	control->used -= control->start;
	control->start = 0;
	for (size_t looked = 0;;) {
		char *end = memchr(control->line + looked, '\n', control->used - looked);
		if (end) {
			*end = '\0';
			control->start = (size_t)(end - control->line) + 1;
			return control->line;
		}
		looked = control->used;
		if (control->used == HOST_LINE_BYTES) {
			err_set(err, ERR_PROTOCOL, "a request of more than %u bytes",
				HOST_LINE_BYTES);
			return NULL;
		}
		struct err why = ERR_INIT;
		int n = receive_some(control, control->line + control->used,
			HOST_LINE_BYTES - control->used, IDLE_TIMEOUT_MS, &why);
		if (n < 0 && (why.code != ERR_DISCONNECTED || control->used > 0))
			err_copy(err, &why);
		if (n < 0)
			return NULL;
		control->used += (size_t)n;
	}
}

static int read_octets(
	struct control *control, const json_t *request, struct host_octets *octets, struct err *err)
{
	const json_t *count = json_object_get(request, "octets");
	json_int_t length = json_integer_value(count);
	if (!count)
		return 0;
	if (!json_is_integer(count) || length < 0 || length > (json_int_t)HOST_OCTETS_MOST)
		return err_set(
			err, ERR_PROTOCOL, "octets: a number from 0 to %u", HOST_OCTETS_MOST);
	octets->length = (size_t)length;
	octets->bytes = malloc(octets->length + 1);
	if (!octets->bytes)
		return err_errno(err, ENOMEM, "a request with %zu octets", octets->length);
	uint8_t *bytes = octets->bytes;
	size_t have = min_size(octets->length, control->used - control->start);
	memcpy(bytes, control->line + control->start, have);
	control->start += have;
	while (have < octets->length) {
		int n = receive_some(
			control, bytes + have, octets->length - have, OCTETS_TIMEOUT_MS, err);
		if (n < 0)
			return -1;
		have += (size_t)n;
	}
	return 0;
}

/* --- verbs ----------------------------------------------------------------------- */

static json_t *verb_status(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	char since[CLOCK_UTC_BYTES];
	(void)in, (void)out;
	if (host_unpack(request, "status", err, "{}") < 0)
		return NULL;
	clock_utc_text(service->started_s, since);
	json_t *answer = json_pack("{s:s, s:i, s:s, s:s, s:s, s:b}", "instance", service->instance,
		"pid", (int)getpid(), "software", service->software, "since", since, "config",
		service->config.digest, "tls", service->config.tls);
	exports_status(service->exports, answer);
	WITH_LOCK(&service->mutex);
	json_object_set_new(answer, "sessions", push_list(service));
	json_object_set_new(answer, "serves", serve_list(service));
	return answer;
}

static json_t *verb_reload(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	const json_t *config = NULL;
	(void)in, (void)out;
	/* What it reads anew are the files that its settings name; others need a new process. */
	if (host_unpack(request, "reload", err, "{s?o}", "config", &config) < 0 ||
		exports_reload(service->exports, err) < 0)
		return NULL;
	return json_object();
}

static json_t *verb_stop(struct host_service *service, const json_t *request,
	const struct host_octets *in, struct host_octets *out, struct err *err)
{
	(void)in, (void)out;
	if (host_unpack(request, "stop", err, "{}") < 0)
		return NULL;
	cancel_request(service->stop);
	return json_object();
}

static const struct {
	const char *name;
	host_verb *verb;
} verbs[] = {
	{"status", verb_status},
	{"reload", verb_reload},
	{"stop", verb_stop},
	{"session-open", push_verb_open},
	{"session", push_verb_look},
	{"session-renew", push_verb_renew},
	{"session-digests", push_verb_digests},
	{"session-config", push_verb_config},
	{"session-distrust", push_verb_distrust},
	{"session-commit", push_verb_commit},
	{"session-abort", push_verb_abort},
	{"session-forget", push_verb_forget},
	{"serve-open", serve_verb_open},
	{"serve", serve_verb_look},
	{"serve-renew", serve_verb_renew},
	{"serve-close", serve_verb_close},
};

static host_verb *find_verb(const json_t *request, struct err *err)
{
	const char *name = json_string_value(json_object_get(request, "verb"));
	for (size_t i = 0; name && i < ARRAY_LENGTH(verbs); i++)
		if (strcmp(verbs[i].name, name) == 0)
			return verbs[i].verb;
	err_set(err, ERR_USAGE, name ? "there is no verb \"%s\"" : "the verb is missing%s",
		name ? name : "");
	return NULL;
}

/* --- answering ------------------------------------------------------------------- */

static int answer(struct control *control, json_t *members, const struct host_octets *octets,
	const struct err *why, struct err *err)
{
	json_t *object = members ? members : json_object();
	json_object_set_new(object, "ok", json_boolean(members != NULL));
	if (!members)
		json_object_set_new(object, "error",
			json_pack(
				"{s:s, s:s}", "code", err_code_name(why->code), "text", why->text));
	if (octets->bytes)
		json_object_set_new(object, "octets", json_integer((json_int_t)octets->length));
	char *AUTO_FREE text = json_dumps(object, JSON_COMPACT);
	json_decref(object);
	if (!text)
		return err_errno(err, ENOMEM, "an answer");
	struct iovec iov[] = {{text, strlen(text)}, {(void *)"\n", 1},
		{octets->bytes, octets->bytes ? octets->length : 0}};
	return stream_send(
		&control->stream, iov, octets->bytes && octets->length ? 3 : 2, "an answer", err);
}

/* Looked at before it is parsed, which takes stack for each level. */
static bool is_nested_deeply(const char *text)
{
	unsigned depth = 0;
	bool quoted = false;
	for (; *text; text++) {
		if (quoted && *text == '\\' && text[1])
			text++;
		else if (*text == '"')
			quoted = !quoted;
		else if (!quoted && (*text == '[' || *text == '{') && ++depth > NESTING_MOST)
			return true;
		else if (!quoted && (*text == ']' || *text == '}') && depth > 0)
			depth--;
	}
	return false;
}

static json_t *parse_line(const char *line, struct err *err)
{
	json_error_t bad;
	if (is_nested_deeply(line)) {
		err_set(err, ERR_PROTOCOL, "a request that is nested more than %u deep",
			NESTING_MOST);
		return NULL;
	}
	json_t *request = json_loads(line, JSON_REJECT_DUPLICATES, &bad);
	if (json_is_object(request))
		return request;
	err_set(err, ERR_PROTOCOL, "a request that is no object of JSON: %s",
		request ? "another kind of value" : bad.text);
	json_decref(request);
	return NULL;
}

/* -1: the connection is of no more use. */
static int do_request(struct control *control, const char *line, struct err *err)
{
	struct host_octets in = {0}, out = {0};
	struct err why = ERR_INIT;
	json_t *members = NULL, *request = parse_line(line, &why);
	int rc = request ? read_octets(control, request, &in, &why) : -1;
	if (rc == 0 && cancel_requested(control->service->stop))
		rc = err_set(&why, ERR_CANCELLED, "the NBD service stops");
	host_verb *verb = rc == 0 ? find_verb(request, &why) : NULL;
	if (verb) {
		json_object_del(request, "verb");
		json_object_del(request, "octets");
		members = verb(control->service, request, &in, &out, &why);
		if (!members && why.code == ERR_NONE)
			err_errno(&why, ENOMEM, "an answer");
	}
	if (answer(control, members, &out, &why, err) < 0)
		rc = -1;
	json_decref(request);
	free(in.bytes);
	free(out.bytes);
	return rc;
}

static void enlist(struct control *control)
{
	struct host_service *service = control->service;
	WITH_LOCK(&service->mutex);
	control->next = service->controls;
	if (control->next)
		control->next->previous = control;
	service->controls = control;
	service->nr_controls++;
	if (cancel_requested(service->stop))
		stream_shut(&control->stream, false);
}

static void delist(struct control *control)
{
	struct host_service *service = control->service;
	WITH_LOCK(&service->mutex);
	if (control->next)
		control->next->previous = control->previous;
	if (control->previous)
		control->previous->next = control->next;
	else
		service->controls = control->next;
}

/* Counted until nothing of it is left. */
static void end(struct control *control)
{
	struct host_service *service = control->service;
	delist(control);
	stream_close(&control->stream);
	free(control->line);
	free(control);
	WITH_LOCK(&service->mutex);
	service->nr_controls--;
	pthread_cond_broadcast(&service->changed);
}

static void *control_main(void *arg)
{
	struct control *control = arg;
	struct err err = ERR_INIT;
	char *line;
	while ((line = read_line(control, &err)) && do_request(control, line, &err) == 0)
		;
	if (err.code != ERR_NONE && err.code != ERR_DISCONNECTED)
		log_warning("control socket: %s", err.text);
	end(control);
	return NULL;
}

void host_control_shut(struct host_service *service)
{
	WITH_LOCK(&service->mutex);
	for (struct control *at = service->controls; at; at = at->next)
		stream_shut(&at->stream, false);
}

/* --- listening ------------------------------------------------------------------- */

static int start_control(struct host_service *service, int fd, struct err *err)
{
	pthread_t thread;
	struct control *control = calloc(1, sizeof *control);
	if (control)
		control->line = malloc(HOST_LINE_BYTES);
	if (!control || !control->line) {
		free(control);
		close(fd);
		return err_errno(err, ENOMEM, "a request");
	}
	control->service = service;
	stream_init(&control->stream, fd, SEND_TIMEOUT_MS);
	enlist(control);
	if (thread_start(&thread, "control", control_main, control, err) == 0) {
		pthread_detach(thread);
		return 0;
	}
	end(control);
	return -1;
}

/* Waits for a place: who asks waits in the socket's queue meanwhile. */
static int wait_for_place(struct host_service *service)
{
	WITH_LOCK(&service->mutex);
	while (service->nr_controls >= CONTROLS_MOST) {
		if (cancel_requested(service->stop))
			return -1;
		thread_cond_wait(
			&service->changed, &service->mutex, deadline_after_ms(NICE_LOOK_MS));
	}
	return 0;
}

int host_control_run(struct host_service *service, struct listener *listener, struct err *err)
{
	int rc = 0;
	while (wait_for_place(service) == 0) {
		struct err why = ERR_INIT;
		if (cancel_poll(service->stop, listener->fd, POLLIN, deadline_after_ms(INT32_MAX),
			    "a request", &why) < 0) {
			if (why.code == ERR_TIMEOUT)
				continue;
			rc = why.code == ERR_CANCELLED ? 0 : err_copy(err, &why);
			break;
		}
		int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0 && start_control(service, fd, &why) < 0)
			log_warning("control socket: %s", why.text);
	}
	listener_close(listener);
	return rc;
}
