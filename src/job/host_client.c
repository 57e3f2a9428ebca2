/*
 * The hub's way to its NBD service: finds or starts it, and asks it.
 *
 * The process is known by a pidfd, so that a number that is used anew is never taken for it.
 */
#include "host.h"
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#define ANSWER_BYTES_MOST (16u << 20)
#define OCTETS_BYTES_MOST (16u << 20)
#define FIRST_BYTES 4096u
#define READY_MS 15000
#define LOOK_MS 10
#define STATUS_MS 5000
#define SILENT_MS 10000 /* one that is there and does not answer for so long hangs */
#define STOP_MS 5000
#define STOP_LEAST_MS 1000
#define LOG_BYTES_MOST (4 << 20)
#define INSTANCE_BYTES 33

struct host {
	char *runtime_dir, *program;
	char *config; /* the text of nbd.json */
	char config_digest[DIGEST_ROOT_HEX_BYTES];
	pthread_mutex_t start; /* one starts it at a time */
	pthread_mutex_t mutex; /* over what follows */
	pid_t pid; /* 0: none */
	int pidfd;
	bool is_child; /* ours to reap */
	char instance[INSTANCE_BYTES];
};

/* --- asking ---------------------------------------------------------------------- */

static int connect_to(const char *runtime_dir, struct err *err)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int n = snprintf(address.sun_path, sizeof address.sun_path, "%s/nbd.sock", runtime_dir);
	if (n >= (int)sizeof address.sun_path)
		return err_set(err, ERR_USAGE, "%s is too long for a socket's path", runtime_dir);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_errno(err, errno, "cannot ask the NBD service");
	if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	if (errno == ENOENT || errno == ECONNREFUSED)
		err_set(err, ERR_DISCONNECTED, "the NBD service does not run");
	else
		err_errno(err, errno, "cannot ask the NBD service");
	close(fd);
	return -1;
}

struct answer {
	struct stream stream;
	struct deadline until;
	const struct cancel *cancel;
	char *bytes;
	size_t used, room;
};

/* At least one more byte, and at most so many in all. */
static int receive_more(struct answer *answer, size_t most, struct err *err)
{
	if (answer->used == answer->room) {
		size_t room = answer->room ? 2 * answer->room : FIRST_BYTES;
		if (answer->room >= most)
			return err_set(err, ERR_PROTOCOL, "its answer is too long");
		char *bytes = realloc(answer->bytes, room);
		if (!bytes)
			return err_errno(err, ENOMEM, "its answer");
		answer->bytes = bytes;
		answer->room = room;
	}
	if (deadline_passed(answer->until))
		return err_set(err, ERR_TIMEOUT, "it did not answer in time");
	if (cancel_poll(answer->cancel, answer->stream.fd, POLLIN, answer->until, "its answer",
		    err) < 0)
		return -1;
	struct iovec iov = {answer->bytes + answer->used, answer->room - answer->used};
	ssize_t n = stream_receive(&answer->stream, &iov, 1,
		(unsigned)deadline_left_ms(answer->until), "its answer", err);
	if (n < 0)
		return -1;
	answer->used += (size_t)n;
	return 0;
}

static int receive_line(struct answer *answer, size_t *length, struct err *err)
{
	for (size_t looked = 0;;) {
		char *end = answer->bytes
				    ? memchr(answer->bytes + looked, '\n', answer->used - looked)
				    : NULL;
		if (end) {
			*length = (size_t)(end - answer->bytes) + 1;
			return 0;
		}
		looked = answer->used;
		if (receive_more(answer, ANSWER_BYTES_MOST, err) < 0)
			return -1;
	}
}

static int take_octets(struct answer *answer, const json_t *object, size_t start, void **octets,
	size_t *length, struct err *err)
{
	json_int_t n = json_integer_value(json_object_get(object, "octets"));
	if (n < 0 || n > (json_int_t)OCTETS_BYTES_MOST)
		return err_set(
			err, ERR_PROTOCOL, "its answer has %" JSON_INTEGER_FORMAT " octets", n);
	while (answer->used < start + (size_t)n)
		if (receive_more(answer, ANSWER_BYTES_MOST + OCTETS_BYTES_MOST, err) < 0)
			return -1;
	if (!octets || !length)
		return 0;
	*octets = malloc((size_t)n + 1);
	if (!*octets)
		return err_errno(err, ENOMEM, "its answer");
	memcpy(*octets, answer->bytes + start, (size_t)n);
	*length = (size_t)n;
	return 0;
}

static json_t *receive_answer(struct answer *answer, void **octets, size_t *length, struct err *err)
{
	size_t end;
	json_error_t bad;
	if (receive_line(answer, &end, err) < 0)
		return NULL;
	json_t *object = json_loadb(answer->bytes, end, 0, &bad);
	if (!object) {
		err_set(err, ERR_PROTOCOL, "its answer is no JSON: %s", bad.text);
		return NULL;
	}
	if (json_is_true(json_object_get(object, "ok")) &&
		take_octets(answer, object, end, octets, length, err) == 0) {
		json_object_del(object, "ok");
		json_object_del(object, "octets");
		return object;
	}
	const json_t *error = json_object_get(object, "error");
	const char *text = json_string_value(json_object_get(error, "text"));
	if (text)
		err_set(err,
			err_code_parse(json_string_value(json_object_get(error, "code")), ERR_IO),
			"%s", text);
	else if (!err || err->code == ERR_NONE)
		err_set(err, ERR_PROTOCOL, "its answer is none");
	json_decref(object);
	return NULL;
}

static int send_request(struct stream *stream, const json_t *request, const void *octets,
	size_t length, struct err *err)
{
	json_t *copy = json_copy((json_t *)request);
	if (octets)
		json_object_set_new(copy, "octets", json_integer((json_int_t)length));
	char *AUTO_FREE text = json_dumps(copy, JSON_COMPACT);
	json_decref(copy);
	if (!text)
		return err_errno(err, ENOMEM, "a request");
	struct iovec iov[] = {
		{text, strlen(text)}, {(void *)"\n", 1}, {(void *)octets, octets ? length : 0}};
	return stream_send(stream, iov, octets && length ? 3 : 2, "a request", err);
}

static json_t *call(const char *runtime_dir, const json_t *request, const void *octets,
	size_t length, void **answer_octets, size_t *answer_length, struct deadline until,
	const struct cancel *cancel, struct err *err)
{
	struct answer answer = {.until = until, .cancel = cancel};
	struct err why = ERR_INIT;
	json_t *object = NULL;
	int left_ms = deadline_left_ms(until), fd = connect_to(runtime_dir, err);
	if (fd < 0)
		return NULL;
	stream_init(&answer.stream, fd, left_ms > 0 ? (unsigned)left_ms : 1);
	if (send_request(&answer.stream, request, octets, length, &why) == 0)
		object = receive_answer(&answer, answer_octets, answer_length, &why);
	stream_close(&answer.stream);
	free(answer.bytes);
	if (object)
		return object;
	err_copy(err, &why);
	if (why.code == ERR_DISCONNECTED)
		err_set(err, ERR_DISCONNECTED, "the NBD service ended over \"%s\"",
			json_string_value(json_object_get(request, "verb")));
	else if (why.code == ERR_TIMEOUT)
		err_set(err, ERR_TIMEOUT, "the NBD service did not answer \"%s\" in time",
			json_string_value(json_object_get(request, "verb")));
	else if (why.code == ERR_CANCELLED)
		err_set(err, ERR_CANCELLED, "the NBD service's answer to \"%s\" is not waited for",
			json_string_value(json_object_get(request, "verb")));
	return NULL;
}

static json_t *call_verb(const char *runtime_dir, const char *verb, int timeout_ms, struct err *err)
{
	json_t *request = json_pack("{s:s}", "verb", verb);
	json_t *answer = request ? call(runtime_dir, request, NULL, 0, NULL, NULL,
					   deadline_after_ms(timeout_ms), NULL, err)
				 : NULL;
	json_decref(request);
	return answer;
}

json_t *host_call(struct host *host, const json_t *request, const void *octets, size_t length,
	void **answer_octets, size_t *answer_length, struct deadline until,
	const struct cancel *cancel, struct err *err)
{
	return call(host->runtime_dir, request, octets, length, answer_octets, answer_length, until,
		cancel, err);
}

/* --- the process ----------------------------------------------------------------- */

static bool has_ended(int pidfd)
{
	struct pollfd fd = {.fd = pidfd, .events = POLLIN};
	return pidfd < 0 || poll(&fd, 1, 0) > 0;
}

static void forget_process(struct host *host)
{
	WITH_LOCK(&host->mutex);
	if (host->is_child && host->pid > 0)
		(void)waitpid(host->pid, NULL, WNOHANG);
	if (host->pidfd >= 0)
		close(host->pidfd);
	host->pidfd = -1;
	host->pid = 0;
	host->is_child = false;
	host->instance[0] = '\0';
}

/* Who answers now; false: nobody.  status (may be NULL) is the caller's. */
static bool adopt(struct host *host, bool is_child, json_t **status)
{
	json_t *first = call_verb(host->runtime_dir, "status", STATUS_MS, NULL);
	pid_t pid = (pid_t)json_integer_value(json_object_get(first, "pid"));
	int pidfd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
	/* It still answers: so the descriptor is of that process. */
	json_t *again = pidfd >= 0 ? call_verb(host->runtime_dir, "status", STATUS_MS, NULL) : NULL;
	const char *instance = json_string_value(json_object_get(again, "instance"));
	bool found = instance && json_equal(json_object_get(first, "instance"),
					 json_object_get(again, "instance"));
	if (found) {
		WITH_LOCK(&host->mutex);
		host->pid = pid;
		host->pidfd = pidfd;
		host->is_child = is_child;
		snprintf(host->instance, sizeof host->instance, "%s", instance);
	} else if (pidfd >= 0) {
		close(pidfd);
	}
	json_decref(first);
	if (found && status)
		*status = again;
	else
		json_decref(again);
	return found;
}

/* The log of the runs before is kept once. */
static void turn_log(int dir_fd)
{
	struct stat st;
	if (fstatat(dir_fd, "nbd.log", &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		st.st_size > LOG_BYTES_MOST)
		(void)renameat(dir_fd, "nbd.log", dir_fd, "nbd.log.1");
}

static int spawn(const struct host *host, pid_t *pid, struct err *err)
{
	char program[PATH_MAX] = "/proc/self/exe", log[PATH_MAX];
	char *argv[] = {(char *)"sendense", (char *)"nbd-service", host->runtime_dir, NULL};
	posix_spawnattr_t attributes;
	posix_spawn_file_actions_t actions;
	sigset_t none, all;
	if (host->program)
		snprintf(program, sizeof program, "%s", host->program);
	snprintf(log, sizeof log, "%s/nbd.log", host->runtime_dir);
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(
		&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_addopen(
		&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0600);
	posix_spawn_file_actions_adddup2(&actions, 1, 2);
	posix_spawn_file_actions_addclosefrom_np(&actions, 3);
	int rc = posix_spawn(pid, program, &actions, &attributes, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	return rc == 0 ? 0 : err_errno(err, rc, "cannot start the NBD service (%s)", program);
}

/* The last line that it wrote, for why it ended. */
static void last_line(int dir_fd, char *out, size_t room)
{
	char text[2048];
	struct stat st;
	out[0] = '\0';
	int AUTO_CLOSE fd = openat(dir_fd, "nbd.log", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) < 0)
		return;
	off_t start = st.st_size > (off_t)sizeof text - 1 ? st.st_size - (off_t)sizeof text + 1 : 0;
	ssize_t n = pread(fd, text, sizeof text - 1, start);
	while (n > 0 && text[n - 1] == '\n')
		n--;
	if (n <= 0)
		return;
	text[n] = '\0';
	const char *line = strrchr(text, '\n');
	snprintf(out, room, "%.*s", (int)room - 1, line ? line + 1 : text);
}

static int wait_until_ready(struct host *host, int dir_fd, pid_t pid, struct err *err)
{
	struct deadline until = deadline_after_ms(READY_MS);
	char line[512];
	while (!deadline_passed(until)) {
		if (waitpid(pid, NULL, WNOHANG) == pid) {
			last_line(dir_fd, line, sizeof line);
			return err_set(err, ERR_IO, "the NBD service ended at once: %s", line);
		}
		if (adopt(host, true, NULL))
			return 0;
		(void)cancel_sleep(NULL, deadline_after_ms(LOOK_MS), NULL);
	}
	kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
	return err_set(
		err, ERR_TIMEOUT, "the NBD service did not answer within %d s", READY_MS / 1000);
}

static int start(struct host *host, struct err *err)
{
	pid_t pid;
	int AUTO_CLOSE dir_fd = open(host->runtime_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return err_errno(err, errno, "%s", host->runtime_dir);
	if (file_replace(dir_fd, "nbd.json", host->config, strlen(host->config), 0600, err) < 0)
		return -1;
	turn_log(dir_fd);
	if (spawn(host, &pid, err) < 0)
		return -1;
	return wait_until_ready(host, dir_fd, pid, err);
}

int host_stop(struct host *host, struct deadline until, struct err *err)
{
	struct err why = ERR_INIT;
	pthread_mutex_lock(&host->mutex);
	int AUTO_CLOSE pidfd = host->pidfd >= 0 ? dup(host->pidfd) : -1;
	pid_t child = host->is_child ? host->pid : 0;
	pthread_mutex_unlock(&host->mutex);
	if (!has_ended(pidfd)) {
		int ask_ms = deadline_left_ms(deadline_min(until, deadline_after_ms(STOP_MS)));
		json_decref(call_verb(host->runtime_dir, "stop",
			ask_ms > STOP_LEAST_MS ? ask_ms : STOP_LEAST_MS, NULL));
		struct pollfd fd = {.fd = pidfd, .events = POLLIN};
		int left_ms = deadline_left_ms(until);
		if (poll(&fd, 1, left_ms > STOP_LEAST_MS ? left_ms : STOP_LEAST_MS) <= 0) {
			log_warning("the NBD service does not end: it is killed, and its sessions "
				    "can be gone on with");
			(void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
			if (poll(&fd, 1, STOP_MS) <= 0)
				err_set(&why, ERR_TIMEOUT,
					"the NBD service does not end: the kernel holds it");
		}
	}
	if (why.code != ERR_NONE)
		return err_copy(err, &why);
	if (child > 0)
		(void)waitpid(child, NULL, 0);
	forget_process(host);
	return 0;
}

/* Who listens there; 0: nobody.  It need not answer for that. */
static pid_t find_listener(const char *runtime_dir)
{
	struct ucred peer = {0};
	socklen_t length = sizeof peer;
	int AUTO_CLOSE fd = connect_to(runtime_dir, NULL);
	if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
		return 0;
	return peer.pid;
}

/* It takes calls and answers none.  What it had is gone on with, or told to have ended. */
static int kill_silent(const struct host *host, struct err *err)
{
	pid_t pid = find_listener(host->runtime_dir);
	int AUTO_CLOSE pidfd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
	/* It listens still: so the descriptor is of that process. */
	if (pidfd < 0 || find_listener(host->runtime_dir) != pid)
		return 0;
	log_warning(
		"the NBD service of an earlier hub (process %ld) does not answer: it is killed, "
		"and its sessions can be gone on with",
		(long)pid);
	struct pollfd fd = {.fd = pidfd, .events = POLLIN};
	(void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	if (poll(&fd, 1, STOP_MS) > 0)
		return 0;
	return err_set(err, ERR_TIMEOUT,
		"the NBD service of an earlier hub (process %ld) does not end: the kernel holds it",
		(long)pid);
}

/* What runs is kept if it is as we would start it, or in use. */
static int find_or_start(struct host *host, struct err *err)
{
	json_t *status = NULL;
	struct deadline silent = deadline_after_ms(SILENT_MS);
	bool found = adopt(host, false, &status);
	while (!found && find_listener(host->runtime_dir) > 0 && !deadline_passed(silent))
		found = adopt(host, false, &status);
	if (!found)
		return kill_silent(host, err) < 0 ? -1 : start(host, err);
	const char *digest = json_string_value(json_object_get(status, "config"));
	bool same = digest && strcmp(digest, host->config_digest) == 0;
	bool used = json_array_size(json_object_get(status, "sessions")) > 0 ||
		    json_array_size(json_object_get(status, "serves")) > 0;
	json_decref(status);
	if (!same && used)
		log_warning("the NBD service goes on with other settings, because it has sessions");
	else
		log_info("found the NBD service of an earlier hub: process %ld", (long)host->pid);
	if (same || used)
		return 0;
	if (host_stop(host, deadline_after_ms(STOP_MS), err) < 0)
		return -1;
	return start(host, err);
}

/* --- the hub's ------------------------------------------------------------------- */

struct host *host_start(const struct host_options *options, struct err *err)
{
	struct host *host = calloc(1, sizeof *host);
	uint8_t digest[DIGEST_ROOT_BYTES];
	if (!host) {
		err_errno(err, ENOMEM, "cannot start the NBD service");
		return NULL;
	}
	pthread_mutex_init(&host->start, NULL);
	pthread_mutex_init(&host->mutex, NULL);
	host->pidfd = -1;
	host->runtime_dir = strdup(options->runtime_dir);
	host->program = options->program ? strdup(options->program) : NULL;
	host->config = json_dumps(options->config, JSON_SORT_KEYS | JSON_INDENT(1));
	if (!host->runtime_dir || !host->program != !options->program || !host->config) {
		err_errno(err, ENOMEM, "cannot start the NBD service");
		goto fail;
	}
	digest_sha256(host->config, strlen(host->config), digest);
	digest_hex(digest, sizeof digest, host->config_digest);
	if (find_or_start(host, err) == 0)
		return host;
fail:
	host_close(host);
	return NULL;
}

void host_close(struct host *host)
{
	if (!host)
		return;
	forget_process(host);
	pthread_mutex_destroy(&host->mutex);
	pthread_mutex_destroy(&host->start);
	free(host->runtime_dir);
	free(host->program);
	free(host->config);
	free(host);
}

pid_t host_pid(struct host *host)
{
	WITH_LOCK(&host->mutex);
	return host->pid;
}

void host_instance(struct host *host, char instance[33])
{
	WITH_LOCK(&host->mutex);
	memcpy(instance, host->instance, INSTANCE_BYTES);
}

int host_revive(struct host *host, struct err *err)
{
	WITH_LOCK(&host->start);
	pthread_mutex_lock(&host->mutex);
	bool ended = has_ended(host->pidfd);
	pthread_mutex_unlock(&host->mutex);
	if (!ended)
		return 0;
	forget_process(host);
	return find_or_start(host, err) < 0 ? -1 : 1;
}
