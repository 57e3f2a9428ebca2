/* What the kernel tells of processes; see proc.h. */
#include "proc.h"

#include "cancel.h"
#include "cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#define KILL_MS 10000

/* As a string; false when there is nothing to read. */
static bool read_text(const char *path, char *text, size_t room)
{
	int AUTO_CLOSE fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, room - 1);
	text[n > 0 ? n : 0] = '\0';
	return n > 0;
}

/* Fields 3 and 22 of its stat file, counted from behind the last ')', because a program's
 * name may hold anything. */
bool proc_stat(int64_t pid, struct proc_stat *stat)
{
	char path[64], text[1024];
	snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", pid);
	if (!read_text(path, text, sizeof text))
		return false;
	char *at = strrchr(text, ')');
	if (!at || at[1] != ' ')
		return false;
	at += 2;
	stat->state = *at;
	for (int field = 3; field < 22; field++) {
		at = strchr(at, ' ');
		if (!at)
			return false;
		at++;
	}
	stat->start = strtoull(at, NULL, 10);
	return true;
}

void proc_word(const char *path, char *out, size_t room)
{
	read_text(path, out, room);
	out[strcspn(out, " \n")] = '\0';
}

void proc_boot(char boot[PROC_BOOT_BYTES])
{
	proc_word("/proc/sys/kernel/random/boot_id", boot, PROC_BOOT_BYTES);
}

/* --- children ------------------------------------------------------------------------------- */

static int wait_for(pid_t pid, siginfo_t *info, int flags)
{
	int rc;
	*info = (siginfo_t){0};
	do
		rc = waitid(P_PID, (id_t)pid, info, WEXITED | flags);
	while (rc < 0 && errno == EINTR);
	return rc;
}

static void tell_end(const siginfo_t *info, char *how, size_t room)
{
	if (info->si_code != CLD_EXITED)
		snprintf(how, room, "was killed by signal %d (SIG%s)", info->si_status,
			sigabbrev_np(info->si_status) ? sigabbrev_np(info->si_status) : "?");
	else
		snprintf(how, room, "ended with status %d", info->si_status);
}

bool proc_end(pid_t pid, int pidfd, struct deadline until, char *how, size_t room)
{
	struct err ignored;
	siginfo_t info;
	bool killed = cancel_poll(NULL, pidfd, POLLIN, until, "its end", &ignored) < 0;
	if (killed)
		kill(pid, SIGKILL);
	/* What the kernel does not let go is not waited for: it is gone when the kernel can. */
	bool stuck = killed && cancel_poll(NULL, pidfd, POLLIN, deadline_after_ms(KILL_MS),
				       "its end", &ignored) < 0;
	int rc = wait_for(pid, &info, stuck ? WNOHANG : 0);
	if (stuck)
		snprintf(how, room, "did not end in time, and could not be killed");
	else if (killed)
		snprintf(how, room, "did not end in time, and was killed");
	else if (rc < 0)
		snprintf(how, room, "was waited for by somebody else");
	else
		tell_end(&info, how, room);
	return killed || rc < 0 || info.si_code != CLD_EXITED || info.si_status != 0;
}

bool proc_ended(pid_t pid, char *how, size_t room)
{
	siginfo_t info;
	if (wait_for(pid, &info, WNOHANG | WNOWAIT) < 0 || info.si_pid == 0)
		return false;
	tell_end(&info, how, room);
	return true;
}
