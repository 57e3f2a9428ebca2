/*
 * The supervision of ssh; see tunnel.h for its states.
 *
 * What ssh writes to its standard error is read by a thread of its own, goes to the
 * log, and its last line is kept: when ssh ends, that is the reason.
 */
#include "transport.h"
#include "transport_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONNECT_MS 30000u
#define LOOK_MS 30000u
#define PAUSE_FIRST_MS 1000u
#define PAUSE_MOST_MS 60000u
#define PROVE_MS 15000u /* the longest that one look takes; or look_ms, if that is shorter */
/* Between two tries to prove what has just been started. */
#define PROVE_AGAIN_MS 100u
#define FAILURES_MOST 2u
#define END_MS 3000
#define FORWARDS_MOST 256u
#define ARGUMENTS_FIXED 40u
#define LINE_BYTES 512u

struct tunnel {
	const struct tunnel_options *options;
	pid_t pid;
	int pidfd; /* readable when ssh has ended; -1: none runs */
	int errors_fd;
	pthread_t reader;
	char last[LINE_BYTES]; /* that ssh wrote; read after the reader was joined */
	/* Of the last look at all forwards. */
	size_t nr_proven, nr_silent;
	bool up;
};

/* --- what it says ------------------------------------------------------------------------ */

static void say_line(struct tunnel *tunnel, const char *line)
{
	if (line[0] == '\0')
		return;
	snprintf(tunnel->last, sizeof tunnel->last, "%s", line);
	log_info("ssh: %s", line);
}

static void *read_errors(void *arg)
{
	struct tunnel *tunnel = arg;
	char line[LINE_BYTES];
	size_t used = 0;
	char byte;
	while (read(tunnel->errors_fd, &byte, 1) == 1) {
		if (byte != '\n' && byte != '\r') {
			/* The rest of a long line is dropped; others' bytes stay out of the log. */
			if (used + 1 < sizeof line)
				line[used++] = byte >= ' ' && byte != 0x7f ? byte : '?';
			continue;
		}
		line[used] = '\0';
		used = 0;
		say_line(tunnel, line);
	}
	line[used] = '\0';
	say_line(tunnel, line);
	return NULL;
}

static void tell(struct tunnel *tunnel, bool up, const char *text)
{
	if (tunnel->options->changed)
		tunnel->options->changed(tunnel->options->context, up, text);
	if (!up)
		log_warning("tunnel: %s", text);
	tunnel->up = up;
}

static unsigned look_ms(const struct tunnel_options *o)
{
	return o->look_ms ? o->look_ms : LOOK_MS;
}

/* --- the process --------------------------------------------------------------------------- */

struct arguments {
	const char *items[ARGUMENTS_FIXED + 2 * FORWARDS_MOST];
	char forwards[FORWARDS_MOST][160];
	char port[16], destination[512], known_hosts[4200], alive[48];
	size_t nr;
};

static void add(struct arguments *a, const char *text)
{
	a->items[a->nr++] = text;
}

static void add_option(struct arguments *a, const char *text)
{
	add(a, "-o");
	add(a, text);
}

static void fill_arguments(struct arguments *a, const struct tunnel_options *o)
{
	add(a, o->program ? o->program : "ssh");
	add(a, "-F"); /* no settings of this user's or the machine's */
	add(a, "none");
	add(a, "-N");
	add(a, "-T");
	add_option(a, "BatchMode=yes");
	add_option(a, "ExitOnForwardFailure=yes");
	add_option(a, "StrictHostKeyChecking=yes");
	snprintf(a->known_hosts, sizeof a->known_hosts, "UserKnownHostsFile=\"%s\"",
		o->known_hosts_file);
	add_option(a, a->known_hosts);
	add_option(a, "GlobalKnownHostsFile=/dev/null");
	add_option(a, "UpdateHostKeys=no");
	add_option(a, "PreferredAuthentications=publickey");
	add_option(a, "IdentitiesOnly=yes");
	add_option(a, "ConnectTimeout=10");
	snprintf(a->alive, sizeof a->alive, "ServerAliveInterval=%u",
		look_ms(o) >= 4000 ? look_ms(o) / 2000 : 1);
	add_option(a, a->alive);
	add_option(a, "ServerAliveCountMax=3");
	add_option(a, "LogLevel=INFO");
	/* What goes through is compressed, or random, already. */
	add_option(a, "Compression=no");
	/* OpenSSH's own order begins with ChaCha20. */
	if (tls_has_aes())
		add_option(a, "Ciphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com");
	add(a, "-i");
	add(a, o->identity_file);
	snprintf(a->port, sizeof a->port, "%u", o->port ? o->port : 22);
	add(a, "-p");
	add(a, a->port);
	for (size_t i = 0; i < o->nr_forwards; i++) {
		const struct tunnel_forward *f = &o->forwards[i];
		snprintf(a->forwards[i], sizeof a->forwards[i], "%s:%s", f->listen, f->to);
		add(a, f->reverse ? "-R" : "-L");
		add(a, a->forwards[i]);
	}
	snprintf(a->destination, sizeof a->destination, "%s@%s", o->user, o->host);
	add(a, "--");
	add(a, a->destination);
	add(a, NULL);
}

/* In the child; only what is safe behind a fork. */
static void become_ssh(const struct arguments *a, int errors_fd, pid_t parent)
{
	sigset_t none;
	sigemptyset(&none);
	int null_fd = open("/dev/null", O_RDWR);
	bool ready = null_fd >= 0 && dup2(null_fd, 0) == 0 && dup2(null_fd, 1) == 1 &&
		     dup2(errors_fd, 2) == 2 && close_range(3, ~0u, 0) == 0 &&
		     sigprocmask(SIG_SETMASK, &none, NULL) == 0 &&
		     /* A supervisor that is killed leaves no tunnel behind, not even one that
		      * stands still. */
		     prctl(PR_SET_PDEATHSIG, SIGKILL) == 0;
	if (ready && getppid() == parent) {
		signal(SIGPIPE, SIG_DFL);
		execvp(a->items[0], (char *const *)(uintptr_t)a->items);
	}
	static const char text[] = "cannot be executed (is OpenSSH's client installed?)\n";
	ssize_t n = write(2, text, sizeof text - 1);
	(void)n;
	_exit(127);
}

/* ssh names the port that it could not listen on, at best, not the forward; and whoever else
 * listens there could pass for what is behind it. */
static int check_port(const struct tunnel_forward *f, struct err *err)
{
	struct listener listener;
	char address[128];
	const char *colon = strrchr(f->listen, ':');
	bool brackets = f->listen[0] == '[';
	snprintf(address, sizeof address, "%.*s", (int)(colon - f->listen) - 2 * brackets,
		f->listen + brackets);
	if (transport_listen_tcp(&listener, address, (unsigned)strtoul(colon + 1, NULL, 10), err) <
		0)
		return err_context(err, "forward \"%s\"", f->name);
	listener_close(&listener);
	return 0;
}

static int check_ports(const struct tunnel_options *o, struct err *err)
{
	for (size_t i = 0; i < o->nr_forwards; i++)
		if (!o->forwards[i].reverse && check_port(&o->forwards[i], err) < 0)
			return -1;
	return 0;
}

static int start(struct tunnel *tunnel, struct err *err)
{
	struct arguments *a = calloc(1, sizeof *a);
	int fds[2] = {-1, -1};
	if (!a || pipe2(fds, O_CLOEXEC) < 0) {
		err_errno(err, a ? errno : ENOMEM, "cannot start ssh");
		free(a);
		return -1;
	}
	fill_arguments(a, tunnel->options);
	tunnel->last[0] = '\0';
	pid_t parent = getpid();
	tunnel->pid = fork();
	if (tunnel->pid == 0)
		become_ssh(a, fds[1], parent);
	int why = errno;
	free(a);
	close(fds[1]);
	if (tunnel->pid < 0) {
		close(fds[0]);
		return err_errno(err, why, "cannot start ssh");
	}
	tunnel->errors_fd = fds[0];
	tunnel->pidfd = (int)syscall(SYS_pidfd_open, tunnel->pid, 0);
	if (tunnel->pidfd >= 0 &&
		thread_start(&tunnel->reader, "ssh-errors", read_errors, tunnel, err) == 0)
		return 0;
	if (tunnel->pidfd < 0)
		err_errno(err, errno, "cannot watch ssh");
	else
		close(tunnel->pidfd);
	kill(tunnel->pid, SIGKILL);
	waitpid(tunnel->pid, NULL, 0);
	close(fds[0]);
	tunnel->pidfd = -1;
	return -1;
}

static bool has_ended(const struct tunnel *tunnel, int timeout_ms)
{
	struct pollfd poll_fd = {.fd = tunnel->pidfd, .events = POLLIN};
	return poll(&poll_fd, 1, timeout_ms) > 0;
}

/* ssh ends, if it has not; it is reaped. */
static void finish(struct tunnel *tunnel)
{
	if (tunnel->pidfd < 0)
		return;
	if (!has_ended(tunnel, 0)) {
		kill(tunnel->pid, SIGTERM);
		if (!has_ended(tunnel, END_MS))
			kill(tunnel->pid, SIGKILL);
	}
	waitpid(tunnel->pid, NULL, 0);
	pthread_join(tunnel->reader, NULL);
	close(tunnel->errors_fd);
	close(tunnel->pidfd);
	tunnel->pidfd = -1;
}

/* --- proving -------------------------------------------------------------------------------- */

/* One look at all forwards: -1 and the first that does not answer.  Each has its time, so that
 * one that hangs says nothing of the others. */
static int prove_all(struct tunnel *tunnel, struct err *err)
{
	const struct tunnel_options *o = tunnel->options;
	unsigned most_ms = look_ms(o) < PROVE_MS ? look_ms(o) : PROVE_MS;
	tunnel->nr_proven = tunnel->nr_silent = 0;
	for (size_t i = 0; i < o->nr_forwards && !has_ended(tunnel, 0); i++) {
		const struct tunnel_forward *f = &o->forwards[i];
		struct err why = ERR_INIT;
		if (cancel_check(o->cancel, err) < 0)
			return -1;
		if (!f->prove)
			continue;
		if (f->prove(f->context, f, deadline_after_ms(most_ms), &why) == 0) {
			tunnel->nr_proven++;
		} else if (tunnel->nr_silent++ == 0) {
			err_copy(err, &why);
			err_context(err, "nothing answers through forward \"%s\" (%s)", f->name,
				f->reverse ? f->to : f->listen);
		}
	}
	if (has_ended(tunnel, 0)) {
		tunnel->nr_proven = 0;
		return err_set(err, ERR_DISCONNECTED, "ssh ended");
	}
	return tunnel->nr_silent > 0 ? -1 : 0;
}

/* Sleeps, but no longer than ssh lives: -1 when it has ended, or cancelled. */
static int sleep_beside(struct tunnel *tunnel, struct deadline until, struct err *err)
{
	struct err why = ERR_INIT;
	if (cancel_poll(tunnel->options->cancel, tunnel->pidfd, POLLIN, until, "ssh", &why) >= 0)
		return err_set(err, ERR_DISCONNECTED, "ssh ended");
	return why.code == ERR_TIMEOUT ? 0 : err_copy(err, &why);
}

/* Until it answers: all of it, or, at the deadline, a part. */
static int come_up(struct tunnel *tunnel, struct err *err)
{
	const struct tunnel_options *o = tunnel->options;
	struct deadline until =
		deadline_after_ms(o->connect_timeout_ms ? o->connect_timeout_ms : CONNECT_MS);
	for (;;) {
		struct err why = ERR_INIT;
		int rc = prove_all(tunnel, &why);
		if (why.code == ERR_CANCELLED)
			return err_copy(err, &why);
		if (sleep_beside(tunnel, deadline_after_ms(rc == 0 ? 0 : PROVE_AGAIN_MS), err) < 0)
			return -1;
		if (rc < 0 && !deadline_passed(until))
			continue;
		if (rc < 0 && tunnel->nr_proven == 0)
			return err_copy(err, &why);
		tell(tunnel, rc == 0, why.text);
		return 0;
	}
}

/* Until nothing answers any more, or ssh has ended. */
static int stay_up(struct tunnel *tunnel, struct err *err)
{
	unsigned nr_failures = tunnel->up ? 0 : FAILURES_MOST;
	for (;;) {
		struct err why = ERR_INIT;
		if (sleep_beside(tunnel, deadline_after_ms(look_ms(tunnel->options)), err) < 0)
			return -1;
		if (prove_all(tunnel, &why) == 0) {
			if (!tunnel->up)
				tell(tunnel, true, "");
			nr_failures = 0;
			continue;
		}
		if (why.code == ERR_CANCELLED)
			return err_copy(err, &why);
		nr_failures++;
		if (nr_failures >= FAILURES_MOST && tunnel->nr_proven == 0)
			return err_copy(err, &why);
		if (nr_failures < FAILURES_MOST)
			log_info("tunnel: %s; looked at once more", why.text);
		else if (tunnel->up)
			tell(tunnel, false, why.text);
	}
}

/* One life of ssh; always -1.  worked: something came through it. */
static int live(struct tunnel *tunnel, bool *worked, struct err *err)
{
	*worked = false;
	if (check_ports(tunnel->options, err) < 0 || start(tunnel, err) < 0)
		return -1;
	if (come_up(tunnel, err) == 0) {
		*worked = true;
		stay_up(tunnel, err);
	}
	bool ended = has_ended(tunnel, 0);
	finish(tunnel);
	/* Its own words say more than ours. */
	if (ended && err->code != ERR_CANCELLED && tunnel->last[0])
		err_set(err, ERR_DISCONNECTED, "ssh ended: %s", tunnel->last);
	return -1;
}

/* --- checking --------------------------------------------------------------------------------- */

static int check_file(const char *path, const char *what, bool secret, struct err *err)
{
	struct stat st;
	if (stat(path, &st) < 0)
		return err_errno(err, errno, "cannot use %s %s", what, path);
	if (!S_ISREG(st.st_mode) || st.st_size == 0)
		return err_set(err, ERR_USAGE, "cannot use %s %s: it is %s", what, path,
			S_ISREG(st.st_mode) ? "empty" : "no file");
	if (secret && (st.st_mode & 077) != 0)
		return err_set(err, ERR_DENIED,
			"cannot use %s %s: others may read it (chmod 600 %s)", what, path, path);
	return 0;
}

/* ERR_USAGE, ERR_NOT_FOUND or ERR_DENIED for what cannot become right by trying again. */
static int check(const struct tunnel_options *o, struct err *err)
{
	const char *const files[] = {o->identity_file, o->known_hosts_file};
	if (o->nr_forwards == 0 || o->nr_forwards > FORWARDS_MOST)
		return err_set(err, ERR_USAGE, "a tunnel has 1 to %u forwards, not %zu",
			FORWARDS_MOST, o->nr_forwards);
	/* They become arguments of ssh. */
	if (o->host[0] == '-' || o->host[0] == '\0' || o->user[0] == '-' || o->user[0] == '\0' ||
		strchr(o->user, '@') || strpbrk(o->host, " \t@"))
		return err_set(err, ERR_USAGE, "%s@%s is no user and host", o->user, o->host);
	for (unsigned i = 0; i < 2; i++)
		if (strpbrk(files[i], "\"\\%$~"))
			return err_set(err, ERR_USAGE,
				"cannot use %s: ssh reads quotes, backslashes, %%, $ and ~ in the "
				"name of a file in its own way",
				files[i]);
	if (check_file(o->identity_file, "the key", true, err) < 0)
		return -1;
	if (check_file(o->known_hosts_file, "known hosts file", false, err) < 0)
		return err_hint(err,
			"it holds the server's public keys: ssh-keyscan -p %u %s, compared "
			"with what the server's own console shows",
			o->port ? o->port : 22, o->host);
	return 0;
}

/* --- running --------------------------------------------------------------------------------- */

int tunnel_run(const struct tunnel_options *options, struct err *err)
{
	struct tunnel tunnel = {.options = options, .pidfd = -1};
	unsigned first_ms = options->pause_first_ms ? options->pause_first_ms : PAUSE_FIRST_MS;
	unsigned most_ms = options->pause_most_ms ? options->pause_most_ms : PAUSE_MOST_MS;
	unsigned pause_ms = first_ms;
	if (check(options, err) < 0)
		return -1;
	for (;;) {
		struct err why = ERR_INIT;
		bool worked;
		tunnel.up = false;
		live(&tunnel, &worked, &why);
		if (why.code == ERR_CANCELLED)
			return err_copy(err, &why);
		if (worked)
			pause_ms = first_ms; /* this is another fault */
		tell(&tunnel, false, why.text);
		log_info("tunnel: tried again in %.1f s", pause_ms / 1000.0);
		if (cancel_sleep(options->cancel, deadline_after_ms(pause_ms), err) < 0)
			return -1;
		pause_ms = pause_ms < most_ms / 2 ? pause_ms * 2 : most_ms;
	}
}
