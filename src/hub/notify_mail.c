/*
 * Mail through sendmail -t; see notify.h.
 *
 * The program gets its message by a pipe and has a minute, in which it takes the message into its
 * queue; delivery is its business.  What it says on standard error is kept in memory, for the
 * reason when it fails.
 */
#include "notify_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <time.h>

/* --- the message ---------------------------------------------------------------------- */

static bool is_plain(const char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 32 || (unsigned char)*text > 126)
			return false;
	return true;
}

/* Header text: as it is when it is ASCII, else as encoded words (RFC 2047) of 45 bytes each,
 * cut between characters. */
static void put_header_text(FILE *out, const char *text)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	if (is_plain(text)) {
		fputs(text, out);
		return;
	}
	for (bool first = true; *text; first = false) {
		size_t length = strnlen(text, 45);
		while (text[length] && length > 1 && ((unsigned char)text[length] & 0xc0) == 0x80)
			length--;
		fprintf(out, "%s=?UTF-8?B?", first ? "" : "\n ");
		for (size_t i = 0; i < length; i += 3) {
			uint32_t word = 0;
			size_t n = length - i < 3 ? length - i : 3;
			for (size_t j = 0; j < 3; j++)
				word = word << 8 | (j < n ? (unsigned char)text[i + j] : 0);
			for (size_t j = 0; j < 4; j++)
				fputc(j <= n ? digits[word >> (18 - 6 * j) & 63] : '=', out);
		}
		fputs("?=", out);
		text += length;
	}
}

char *notify_mail_text(
	const struct hub_config *config, const json_t *body, int64_t now, struct err *err)
{
	char *bytes = NULL, date[64], subject[512];
	size_t length;
	struct tm tm;
	time_t t = (time_t)now;
	FILE *out = open_memstream(&bytes, &length);
	if (!out) {
		err_errno(err, errno, "cannot write a mail");
		return NULL;
	}
	gmtime_r(&t, &tm);
	strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S +0000", &tm);
	snprintf(subject, sizeof subject, "[sendense %s] %s", config->name,
		json_string_value(json_object_get(body, "title")));
	if (config->mail_from)
		fprintf(out, "From: %s\n", config->mail_from);
	fprintf(out, "To: %s\nSubject: ", config->mail_to);
	put_header_text(out, subject);
	fprintf(out,
		"\nDate: %s\nAuto-Submitted: auto-generated\nMIME-Version: 1.0\n"
		"Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n\n%s\n",
		date, json_string_value(json_object_get(body, "text")));
	bool bad = ferror(out);
	if (fclose(out) != 0 || bad) {
		free(bytes);
		err_errno(err, ENOMEM, "cannot write a mail");
		return NULL;
	}
	return bytes;
}

/* --- the program ------------------------------------------------------------------------ */

struct sending {
	pid_t pid;
	int pid_fd, in, said; /* -1: not open */
};

static int start(struct sending *s, const char *program, struct err *err)
{
	char *argv[] = {(char *)program, "-t", "-i", NULL};
	char *envp[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", NULL};
	int pipe_fds[2];
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attributes;
	sigset_t none, all;
	s->said = memfd_create("sendmail", MFD_CLOEXEC);
	if (s->said < 0 || pipe2(pipe_fds, O_CLOEXEC) < 0)
		return err_errno(err, errno, "cannot start %s", program);
	s->in = pipe_fds[1];
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&files);
	posix_spawnattr_init(&attributes);
	posix_spawn_file_actions_adddup2(&files, pipe_fds[0], 0);
	posix_spawn_file_actions_adddup2(&files, s->said, 1);
	posix_spawn_file_actions_adddup2(&files, s->said, 2);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	int rc = posix_spawn(&s->pid, program, &files, &attributes, argv, envp);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&files);
	close(pipe_fds[0]);
	if (rc != 0) {
		s->pid = -1;
		return err_errno(err, rc, "cannot start %s", program);
	}
	s->pid_fd = pidfd_open(s->pid, 0);
	if (s->pid_fd < 0 || fcntl(s->in, F_SETFL, O_NONBLOCK) < 0)
		return err_errno(err, errno, "cannot watch %s", program);
	return 0;
}

static int write_all(struct sending *s, const char *text, const struct cancel *cancel,
	struct deadline until, struct err *err)
{
	size_t length = strlen(text), done = 0;
	while (done < length) {
		ssize_t n = write(s->in, text + done, length - done);
		if (n > 0) {
			done += (size_t)n;
			continue;
		}
		/* It has ended: its exit status says why. */
		if (n < 0 && errno == EPIPE)
			break;
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return err_errno(err, errno, "cannot write to sendmail");
		if (cancel_poll(cancel, s->in, POLLOUT, until, "sendmail to take a mail", err) < 0)
			return -1;
	}
	close(s->in);
	s->in = -1;
	return 0;
}

static int wait_for(struct sending *s, const char *program, const struct cancel *cancel,
	struct deadline until, struct err *err)
{
	int status;
	char said[200];
	if (cancel_poll(cancel, s->pid_fd, POLLIN, until, "sendmail to end", err) < 0)
		return -1;
	if (waitpid(s->pid, &status, 0) < 0)
		return err_errno(err, errno, "cannot wait for %s", program);
	s->pid = -1;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	ssize_t length = pread(s->said, said, sizeof said - 1, 0);
	said[length > 0 ? length : 0] = '\0';
	said[strcspn(said, "\r\n")] = '\0';
	if (WIFSIGNALED(status))
		return err_set(
			err, ERR_IO, "%s was killed by signal %d", program, WTERMSIG(status));
	return err_set(err, ERR_IO, "%s ended with status %d%s%s", program, WEXITSTATUS(status),
		said[0] ? ": " : "", said);
}

/* Whatever happened, nothing of it is left. */
static void finish(struct sending *s)
{
	if (s->pid > 0) {
		kill(s->pid, SIGKILL);
		waitpid(s->pid, NULL, 0);
	}
	const int fds[] = {s->pid_fd, s->in, s->said};
	for (size_t i = 0; i < ARRAY_LENGTH(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

int notify_mail(const struct hub_config *config, const json_t *body, int64_t now,
	const struct cancel *cancel, struct err *err)
{
	struct sending sending = {.pid = -1, .pid_fd = -1, .in = -1, .said = -1};
	struct deadline until = deadline_after_ms(NOTIFY_MAIL_MS);
	if (!config->mail_to)
		return err_set(err, ERR_USAGE, "no address for mail is configured any more");
	char *AUTO_FREE text = notify_mail_text(config, body, now, err);
	if (!text)
		return -1;
	int rc = start(&sending, config->sendmail, err);
	if (rc == 0)
		rc = write_all(&sending, text, cancel, until, err);
	if (rc == 0)
		rc = wait_for(&sending, config->sendmail, cancel, until, err);
	finish(&sending);
	return rc < 0 ? err_context(err, "mail to %s", config->mail_to) : 0;
}
