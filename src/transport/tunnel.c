/*
 * The supervision of ssh; see tunnel.h for its states.
 *
 * What ssh writes to its standard error is read by a thread of its own, goes to the
 * log, and its last line is kept: when ssh ends, that is the reason.
 */
#include "tunnel.h"

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
#define PROVE_MS 15000u
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
	tunnel->up = up;
}

/* --- the process --------------------------------------------------------------------------- */

struct arguments {
	const char *items[ARGUMENTS_FIXED + 2 * FORWARDS_MOST];
	char forwards[FORWARDS_MOST][160];
	char port[16], destination[512], known_hosts[4200];
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
	add_option(a, "ServerAliveInterval=15");
	add_option(a, "ServerAliveCountMax=3");
	add_option(a, "LogLevel=INFO");
	/* What goes through is compressed, or random, already. */
	add_option(a, "Compression=no");
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
		     /* A supervisor that is killed leaves no tunnel behind. */
		     prctl(PR_SET_PDEATHSIG, SIGTERM) == 0;
	if (ready && getppid() == parent) {
		signal(SIGPIPE, SIG_DFL);
		execvp(a->items[0], (char *const *)(uintptr_t)a->items);
	}
	static const char text[] = "cannot be executed (is OpenSSH's client installed?)\n";
	ssize_t n = write(2, text, sizeof text - 1);
	(void)n;
	_exit(127);
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

static int prove_all(struct tunnel *tunnel, struct deadline until, struct err *err)
{
	const struct tunnel_options *o = tunnel->options;
	for (size_t i = 0; i < o->nr_forwards; i++) {
		const struct tunnel_forward *f = &o->forwards[i];
		if (cancel_check(o->cancel, err) < 0)
			return -1;
		if (f->prove && f->prove(f->context, f, until, err) < 0)
			return err_context(err, "nothing answers through forward \"%s\" (%s)",
				f->name, f->reverse ? f->to : f->listen);
	}
	return 0;
}

/* Sleeps, but no longer than ssh lives: -1 when it has ended, or cancelled. */
static int sleep_beside(struct tunnel *tunnel, struct deadline until, struct err *err)
{
	struct err why = ERR_INIT;
	if (cancel_poll(tunnel->options->cancel, tunnel->pidfd, POLLIN, until, "ssh", &why) >= 0)
		return err_set(err, ERR_DISCONNECTED, "ssh ended");
	return why.code == ERR_TIMEOUT ? 0 : err_copy(err, &why);
}

static int come_up(struct tunnel *tunnel, struct err *err)
{
	const struct tunnel_options *o = tunnel->options;
	struct deadline until =
		deadline_after_ms(o->connect_timeout_ms ? o->connect_timeout_ms : CONNECT_MS);
	for (;;) {
		struct err why = ERR_INIT;
		if (prove_all(tunnel, until, &why) == 0)
			return has_ended(tunnel, 0) ? err_set(err, ERR_DISCONNECTED, "ssh ended")
						    : 0;
		if (why.code == ERR_CANCELLED || deadline_passed(until))
			return err_copy(err, &why);
		if (sleep_beside(tunnel, deadline_min(deadline_after_ms(PROVE_AGAIN_MS), until),
			    err) < 0)
			return -1;
	}
}

/* Until something is wrong. */
static int stay_up(struct tunnel *tunnel, struct err *err)
{
	const struct tunnel_options *o = tunnel->options;
	unsigned nr_failures = 0;
	for (;;) {
		struct err why = ERR_INIT;
		if (sleep_beside(
			    tunnel, deadline_after_ms(o->look_ms ? o->look_ms : LOOK_MS), err) < 0)
			return -1;
		if (prove_all(tunnel, deadline_after_ms(PROVE_MS), &why) == 0) {
			nr_failures = 0;
			continue;
		}
		if (why.code == ERR_CANCELLED || ++nr_failures == FAILURES_MOST)
			return err_copy(err, &why);
		log_warning(
			"tunnel: %s; looked at once more before ssh is started again", why.text);
	}
}

/* One life of ssh; always -1. */
static int live(struct tunnel *tunnel, struct err *err)
{
	if (start(tunnel, err) < 0)
		return -1;
	if (come_up(tunnel, err) == 0) {
		tell(tunnel, true, "");
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

int tunnel_check(const struct tunnel_options *o, struct err *err)
{
	if (o->nr_forwards == 0 || o->nr_forwards > FORWARDS_MOST)
		return err_set(err, ERR_USAGE, "a tunnel has 1 to %u forwards, not %zu",
			FORWARDS_MOST, o->nr_forwards);
	/* They become arguments of ssh. */
	if (o->host[0] == '-' || o->host[0] == '\0' || o->user[0] == '-' || o->user[0] == '\0' ||
		strchr(o->user, '@') || strpbrk(o->host, " \t@"))
		return err_set(err, ERR_USAGE, "%s@%s is no user and host", o->user, o->host);
	if (strpbrk(o->known_hosts_file, "\"\\%$"))
		return err_set(err, ERR_USAGE,
			"cannot use known hosts file %s: ssh reads quotes, backslashes, %% and $ "
			"in "
			"its name in its own way",
			o->known_hosts_file);
	if (check_file(o->identity_file, "the key", true, err) < 0)
		return -1;
	if (check_file(o->known_hosts_file, "known hosts file", false, err) < 0)
		return err_hint(err,
			"it holds the server's public keys: ssh-keyscan -p %u %s, compared "
			"with what the server's own console shows",
			o->port ? o->port : 22, o->host);
	return 0;
}

/* --- running ------------------------------------------------------------------------------------
 */

int tunnel_run(const struct tunnel_options *options, struct err *err)
{
	struct tunnel tunnel = {.options = options, .pidfd = -1};
	unsigned first_ms = options->pause_first_ms ? options->pause_first_ms : PAUSE_FIRST_MS;
	unsigned most_ms = options->pause_most_ms ? options->pause_most_ms : PAUSE_MOST_MS;
	unsigned pause_ms = first_ms;
	if (tunnel_check(options, err) < 0)
		return -1;
	for (;;) {
		struct err why = ERR_INIT;
		tunnel.up = false;
		live(&tunnel, &why);
		if (tunnel.up)
			pause_ms = first_ms; /* it worked: this is another fault */
		if (why.code == ERR_CANCELLED)
			return err_copy(err, &why);
		tell(&tunnel, false, why.text);
		log_warning("tunnel: %s; tried again in %.1f s", why.text, pause_ms / 1000.0);
		if (cancel_sleep(options->cancel, deadline_after_ms(pause_ms), err) < 0)
			return -1;
		pause_ms = pause_ms < most_ms / 2 ? pause_ms * 2 : most_ms;
	}
}
