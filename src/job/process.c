/* Processes of workers; see process.h. */
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define OOM_SCORE "500" /* before the hub and the NBD service, long before the guests */
#define EXEC_TIMEOUT_MS 30000

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
	__has_feature(memory_sanitizer)
#define HAS_SANITIZER 1
#endif
#endif
#ifndef HAS_SANITIZER
#define HAS_SANITIZER 0 /* they keep shadows that are no use to limit */
#endif

extern char **environ;

/* --- who it is --------------------------------------------------------------------- */

/* False when there is no such process, or only its exit status is left of it. */
static bool read_start(pid_t pid, uint64_t *start)
{
	struct proc_stat stat;
	if (!proc_stat(pid, &stat) || stat.state == 'Z' || stat.state == 'X')
		return false;
	*start = stat.start;
	return true;
}

json_t *process_to_json(const struct process *process)
{
	return json_pack("{s:i, s:I, s:s}", "pid", (int)process->pid, "start",
		(json_int_t)process->start, "boot", process->boot);
}

bool process_find(struct process *process, const json_t *object)
{
	*process = PROCESS_NONE;
	json_int_t pid = json_integer_value(json_object_get(object, "pid"));
	json_int_t start = json_integer_value(json_object_get(object, "start"));
	const char *boot = json_string_value(json_object_get(object, "boot"));
	char now[PROC_BOOT_BYTES];
	proc_boot(now);
	if (pid <= 1 || pid > INT32_MAX || !boot || !now[0] || strcmp(boot, now) != 0)
		return false;
	/* First the handle, then the look: what is looked at is what the handle holds. */
	int fd = pidfd_open((pid_t)pid, 0);
	uint64_t is;
	if (fd < 0)
		return false;
	if (!read_start((pid_t)pid, &is) || is != (uint64_t)start) {
		close(fd);
		return false;
	}
	process->pid = (pid_t)pid;
	process->start = is;
	process->pidfd = fd;
	memcpy(process->boot, now, sizeof now);
	return true;
}

/* --- starting ------------------------------------------------------------------------ */

/* What the child needs, made before the fork: after it, in a process of many threads, only
 * what is safe in a signal handler may be called. */
struct start {
	const char *program;
	char *const *argv, *const *envp;
	uint64_t memory_bytes;
	int stderr_fd, null_fd, gate_fd, report_fd;
};

static _Noreturn void child_fails(const struct start *s)
{
	int number = errno;
	ssize_t n = write(s->report_fd, &number, sizeof number);
	_exit(n < 0 ? 126 : 127);
}

static void child_signals(void)
{
	struct sigaction usual = {.sa_handler = SIG_DFL};
	sigset_t none;
	for (int number = 1; number < 32; number++)
		sigaction(number, &usual, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* That it cannot be moved is no reason not to work. */
static void child_oom_score(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	ssize_t n = write(fd, OOM_SCORE, sizeof OOM_SCORE - 1);
	(void)n;
	close(fd);
}

static _Noreturn void child(const struct start *s)
{
	char byte;
	child_signals();
	setsid();
	/* 3: the gate, 4: the report; both close at exec. */
	if (dup2(s->null_fd, 0) < 0 || dup2(s->null_fd, 1) < 0 || dup2(s->stderr_fd, 2) < 0 ||
		dup3(s->gate_fd, 3, O_CLOEXEC) < 0 || dup3(s->report_fd, 4, O_CLOEXEC) < 0 ||
		close_range(5, ~0u, 0) < 0)
		child_fails(s);
	struct start mine = *s;
	mine.report_fd = 4;
	if (!HAS_SANITIZER && s->memory_bytes > 0) {
		struct rlimit limit = {s->memory_bytes, s->memory_bytes};
		if (setrlimit(RLIMIT_DATA, &limit) < 0)
			child_fails(&mine);
	}
	child_oom_score();
	umask(077);
	/* The end of the pipe: whoever started it died before it was written down. */
	if (read(3, &byte, 1) != 1)
		_exit(125);
	execve(s->program, s->argv, s->envp);
	child_fails(&mine);
}

/* The caller's environment, but what systemd says to it alone. */
static char **make_environment(void)
{
	static const char *const not_its[] = {"NOTIFY_SOCKET=", "WATCHDOG_USEC=", "WATCHDOG_PID=",
		"LISTEN_FDS=", "LISTEN_PID=", "LISTEN_FDNAMES="};
	size_t nr = 0, kept = 0;
	while (environ[nr])
		nr++;
	char **envp = calloc(nr + 1, sizeof *envp);
	for (size_t i = 0; envp && i < nr; i++) {
		bool keep = true;
		for (size_t k = 0; k < ARRAY_LENGTH(not_its); k++)
			keep &= strncmp(environ[i], not_its[k], strlen(not_its[k])) != 0;
		if (keep)
			envp[kept++] = environ[i];
	}
	return envp;
}

/* Descriptors above those that the child gives its own ones to. */
static int above(int fd)
{
	if (fd < 0 || fd > 9)
		return fd;
	int moved = fcntl(fd, F_DUPFD_CLOEXEC, 10);
	close(fd);
	return moved;
}

static int open_pipe(int ends[2])
{
	if (pipe2(ends, O_CLOEXEC) < 0)
		return -1;
	ends[0] = above(ends[0]);
	ends[1] = above(ends[1]);
	return ends[0] < 0 || ends[1] < 0 ? -1 : 0;
}

/* *report: readable end of what the child says when it cannot go on. */
static int fork_it(struct process *process, struct start *s, struct err *err)
{
	int gate[2] = {-1, -1}, report[2] = {-1, -1};
	if (open_pipe(gate) < 0 || open_pipe(report) < 0) {
		err_errno(err, errno, "cannot make a pipe");
		goto fail;
	}
	s->gate_fd = gate[0];
	s->report_fd = report[1];
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* none of our handlers runs in the child */
	pid_t pid = fork();
	if (pid == 0)
		child(s);
	int why = errno;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (pid < 0) {
		err_errno(err, why, "cannot fork");
		goto fail;
	}
	close(gate[0]);
	close(report[1]);
	process->pid = pid;
	process->gate = gate[1];
	process->report = report[0];
	return 0;
fail:
	for (int i = 0; i < 2; i++) {
		if (gate[i] >= 0)
			close(gate[i]);
		if (report[i] >= 0)
			close(report[i]);
	}
	return -1;
}

int process_start(struct process *process, const struct process_options *options, struct err *err)
{
	*process = PROCESS_NONE;
	char **AUTO_FREE envp = make_environment();
	int AUTO_CLOSE null_fd = above(open("/dev/null", O_RDWR | O_CLOEXEC));
	int AUTO_CLOSE stderr_fd = above(open(options->stderr_path,
		O_WRONLY | O_CREAT | O_APPEND | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
	if (!envp)
		return err_errno(err, ENOMEM, "cannot start a worker");
	if (null_fd < 0 || stderr_fd < 0)
		return err_errno(err, errno, "cannot start a worker: cannot open %s",
			null_fd < 0 ? "/dev/null" : options->stderr_path);
	struct start s = {
		.program = options->program ? options->program : "/proc/self/exe",
		.argv = (char *const *)options->argv,
		.envp = envp,
		.memory_bytes = options->memory_bytes,
		.stderr_fd = stderr_fd,
		.null_fd = null_fd,
	};
	if (fork_it(process, &s, err) < 0)
		return err_context(err, "cannot start a worker");
	process->pidfd = pidfd_open(process->pid, 0);
	proc_boot(process->boot);
	if (process->pidfd >= 0 && read_start(process->pid, &process->start) && process->boot[0])
		return 0;
	err_errno(err, errno, "cannot start a worker: cannot tell who it is (is /proc mounted?)");
	process_abandon(process);
	return -1;
}

/* The gate closes: it ends by itself. */
void process_abandon(struct process *process)
{
	pid_t pid = process->pid;
	process_signal(process, SIGKILL, NULL);
	process_drop(process);
	waitpid(pid, NULL, 0);
}

int process_let_go(struct process *process, struct err *err)
{
	struct deadline until = deadline_after_ms(EXEC_TIMEOUT_MS);
	ssize_t n = write(process->gate, "g", 1);
	close(process->gate);
	process->gate = -1;
	int number = 0;
	if (n != 1 ||
		cancel_poll(NULL, process->report, POLLIN, until, "the worker's exec", err) < 0)
		n = -1;
	else
		n = read(process->report, &number, sizeof number);
	close(process->report);
	process->report = -1;
	if (n == 0)
		return 0;
	if (n == (ssize_t)sizeof number)
		err_errno(err, number, "cannot start a worker");
	else if (err && err->code == ERR_NONE)
		err_set(err, ERR_IO, "cannot start a worker: it ended at once");
	process_abandon(process);
	return -1;
}

/* --- watching ------------------------------------------------------------------------ */

int process_signal(const struct process *process, int number, struct err *err)
{
	if (process->pidfd < 0 || pidfd_send_signal(process->pidfd, number, NULL, 0) == 0 ||
		errno == ESRCH)
		return 0;
	return err_errno(
		err, errno, "cannot send signal %d to process %d", number, (int)process->pid);
}

bool process_has_ended(struct process *process, int *status)
{
	struct pollfd watch = {.fd = process->pidfd, .events = POLLIN};
	if (status)
		*status = -1;
	if (process->pidfd >= 0 && poll(&watch, 1, 0) <= 0)
		return false;
	siginfo_t how = {0};
	if (process->pidfd >= 0 &&
		waitid(P_PIDFD, (id_t)process->pidfd, &how, WEXITED | WNOHANG) == 0 &&
		how.si_pid != 0 && status)
		*status = how.si_code == CLD_EXITED ? W_EXITCODE(how.si_status, 0)
						    : W_EXITCODE(0, how.si_status & 0x7f);
	process_drop(process);
	return true;
}

void process_drop(struct process *process)
{
	int *const fds[] = {&process->pidfd, &process->gate, &process->report};
	for (size_t i = 0; i < ARRAY_LENGTH(fds); i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
	process->pid = 0;
}

const char *process_end_text(int status, char out[PROCESS_END_BYTES])
{
	if (status == -1)
		snprintf(out, PROCESS_END_BYTES, "ended");
	else if (WIFSIGNALED(status))
		snprintf(out, PROCESS_END_BYTES, "was killed by signal %d (%s)", WTERMSIG(status),
			strsignal(WTERMSIG(status)));
	else
		snprintf(out, PROCESS_END_BYTES, "ended with status %d", WEXITSTATUS(status));
	return out;
}
