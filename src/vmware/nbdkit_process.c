/* One nbdkit; see nbdkit_process.h and nbdkit.h. */
#include "nbdkit_process.h"

#include "nbdkit.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define PROBE_TIMEOUT_MS 30000
#define DIED_MS 1000 /* after its socket was closed, until it is seen to have ended */
#define LOOK_MS 10
#define ASK_MS 2000 /* after SIGTERM, until it is killed */
#define PASSWORD_FD 3
/* At SIGTERM it would leave what the plugin has open; so it ends after the last connection. */
#define EXITLAST "--filter=exitlast"
#define MODES "nbdssl:nbd"
#define SAID_BYTES 512
#define LINE_BYTES 1024
#define NR_ARGUMENTS 32
/* With the socket's own name it must fit into its address. */
#define FOLDER_BYTES (sizeof((struct sockaddr_un *)NULL)->sun_path - sizeof "/socket")

extern char **environ;

struct nbdkit_process {
	char folder[FOLDER_BYTES]; /* its socket and files; "": none */
	char *password; /* what is never repeated */
	pid_t pid; /* 0: none */
	int pidfd, output;
	struct cancel *stop; /* of the reader */
	pthread_t reader; /* of its output: nbdkit must not be held up by a full pipe */
	bool has_reader;
	pthread_mutex_t mutex; /* of the following */
	char line[LINE_BYTES], said[SAID_BYTES];
	size_t nr_line;
};

struct arguments {
	char *words[NR_ARGUMENTS + 1];
	size_t nr;
	bool failed;
};

/* --- what it writes -------------------------------------------------------------------------- */

/* With the mutex held: a whole line, of which the end may be missing. */
static void take_line(struct nbdkit_process *process)
{
	char *line = process->line;
	size_t length = process->nr_line, secret = strlen(process->password);
	/* What was cut off may have been half of a password. */
	if (length == LINE_BYTES - 1)
		length -= min_size(length, secret);
	line[length] = '\0';
	process->nr_line = 0;
	redact_word(line, process->password);
	for (char *c = line; *c; c++)
		*c = (unsigned char)*c < ' ' || *c == 127 ? ' ' : *c;
	if (!line[0])
		return;
	log_debug("nbdkit: %s", line);
	/* The last lines; whole ones, as long as there are several, and each once in a row. */
	size_t said = strlen(process->said);
	const char *latest = strrchr(process->said, '|');
	if (strncmp(latest ? latest + 1 : process->said, line, SAID_BYTES / 2) == 0)
		return;
	while (said > 0 && said + 1 + strlen(line) >= SAID_BYTES) {
		char *next = strchr(process->said, '|');
		size_t drop = next ? (size_t)(next + 1 - process->said) : said;
		memmove(process->said, process->said + drop, said + 1 - drop);
		said -= drop;
	}
	snprintf(process->said + said, SAID_BYTES - said, "%s%.*s", said ? "|" : "", SAID_BYTES / 2,
		line);
}

/* All that is there now; false: no more will come. */
static bool drain(struct nbdkit_process *process)
{
	WITH_LOCK(&process->mutex);
	char piece[512];
	ssize_t n;
	while ((n = read(process->output, piece, sizeof piece)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		for (ssize_t i = 0; i < n; i++) {
			if (piece[i] == '\n')
				take_line(process);
			else if (process->nr_line < LINE_BYTES - 1)
				process->line[process->nr_line++] = piece[i];
		}
	}
	return false;
}

static void *read_output(void *context)
{
	struct nbdkit_process *process = context;
	struct err ignored;
	do
		cancel_poll(process->stop, process->output, POLLIN, deadline_after_ms(INT_MAX),
			"what nbdkit writes", &ignored);
	while (drain(process) && !cancel_requested(process->stop));
	return NULL;
}

int nbdkit_process_explain(struct nbdkit_process *process, struct err *err)
{
	char how[128] = "";
	struct err ignored;
	if (!process || err->code == ERR_CANCELLED || process->pid <= 0)
		return -1;
	if (err->code == ERR_DISCONNECTED)
		cancel_poll(NULL, process->pidfd, POLLIN, deadline_after_ms(DIED_MS), "its end",
			&ignored);
	bool ended = proc_ended(process->pid, how, sizeof how);
	drain(process);
	redact_word(err->text, process->password);
	WITH_LOCK(&process->mutex);
	const char *said = process->said;
	if (ended || said[0])
		err_hint(err, "nbdkit%s%s%s%s", ended ? " " : "", how,
			said[0] ? (ended ? "; it last wrote: " : " last wrote: ") : "", said);
	return -1;
}

/* --- its folder ------------------------------------------------------------------------------ */

static int in_folder(const struct nbdkit_process *process, const char *name, char *path)
{
	return snprintf(path, FOLDER_BYTES + 16, "%s/%s", process->folder, name);
}

static int make_folder(struct nbdkit_process *process, struct err *err)
{
	const char *parent = getenv("TMPDIR");
	if (!parent || !parent[0])
		parent = "/tmp";
	char folder[FOLDER_BYTES];
	int n = snprintf(folder, sizeof folder, "%s/sendense-nbdkit-XXXXXX", parent);
	if (n < 0 || (size_t)n >= sizeof folder) {
		err_set(err, ERR_USAGE, "%s: a socket cannot have so long a name", parent);
		return err_hint(err, "another TMPDIR");
	}
	if (!mkdtemp(folder))
		return err_errno(err, errno, "cannot make a folder in %s", parent);
	memcpy(process->folder, folder, sizeof folder);
	return 0;
}

static void remove_folder(struct nbdkit_process *process)
{
	static const char *const names[] = {"socket", "pid", "config"};
	char path[FOLDER_BYTES + 16];
	if (!process->folder[0])
		return;
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
		in_folder(process, names[i], path);
		unlink(path);
	}
	if (rmdir(process->folder) < 0)
		log_warning("%s cannot be removed: %s", process->folder, strerrordesc_np(errno));
	process->folder[0] = '\0';
}

/* The library's: it reads it when it is initialised. */
static int write_config(
	struct nbdkit_process *process, const struct vddk_options *options, struct err *err)
{
	char path[FOLDER_BYTES + 16], text[256];
	int n = snprintf(text, sizeof text,
		"vixDiskLib.nfcAio.Session.BufSizeIn64KB=%u\n"
		"vixDiskLib.nfcAio.Session.BufCount=%u\n",
		options->nfc_buffer_kib / 64, options->nfc_buffers);
	in_folder(process, "config", path);
	return file_replace(AT_FDCWD, path, text, (size_t)n, 0600, err);
}

void nbdkit_process_uri(const struct nbdkit_process *process, char uri[NBDKIT_URI_BYTES])
{
	static const char plain[] = "/._-";
	size_t used = (size_t)snprintf(uri, NBDKIT_URI_BYTES, "nbd+unix:///?socket=");
	char path[FOLDER_BYTES + 16];
	in_folder(process, "socket", path);
	for (const char *c = path; *c; c++) {
		bool keep = isalnum((unsigned char)*c) || strchr(plain, *c);
		used += (size_t)snprintf(uri + used, NBDKIT_URI_BYTES - used,
			keep ? "%c" : "%%%02X", (unsigned char)*c);
	}
}

/* --- starting -------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void add(
	struct arguments *arguments, const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	assert(arguments->nr < NR_ARGUMENTS);
	if (vasprintf(&arguments->words[arguments->nr], format, ap) < 0)
		arguments->failed = true;
	else
		arguments->nr++;
	va_end(ap);
}

static void free_arguments(struct arguments *arguments)
{
	for (size_t i = 0; i < arguments->nr; i++)
		free(arguments->words[i]);
}

/* As nbdkit-vddk-plugin(1) has them. */
static void add_disk(
	struct arguments *arguments, const struct vddk_options *options, const char *library)
{
	add(arguments, "libdir=%s", library);
	add(arguments, "server=%s", options->server);
	if (options->port)
		add(arguments, "port=%u", options->port);
	add(arguments, "user=%s", options->user);
	add(arguments, "password=-%d", PASSWORD_FD);
	if (options->thumbprint)
		add(arguments, "thumbprint=%s", options->thumbprint);
	add(arguments, "vm=moref=%s", options->vm);
	add(arguments, "snapshot=%s", options->snapshot);
	add(arguments, "transports=%s", options->modes ? options->modes : MODES);
	if (options->compression)
		add(arguments, "compression=%s", options->compression);
	add(arguments, "file=%s", options->path);
}

static int spawn(struct nbdkit_process *process, struct arguments *arguments, int password,
	int output, struct err *err)
{
	if (arguments->failed)
		return err_errno(err, ENOMEM, "cannot start nbdkit");
	const char *program = arguments->words[0];
	posix_spawnattr_t attributes;
	posix_spawn_file_actions_t files;
	sigset_t none, all;
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&files, output, 1);
	posix_spawn_file_actions_adddup2(&files, output, 2);
	if (password >= 0)
		posix_spawn_file_actions_adddup2(&files, password, PASSWORD_FD);
	posix_spawn_file_actions_addclosefrom_np(&files, PASSWORD_FD + (password >= 0));
	int number = posix_spawnp(
		&process->pid, program, &files, &attributes, arguments->words, environ);
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attributes);
	if (number != 0) {
		process->pid = 0;
		return err_errno(err, number, "cannot start %s", program);
	}
	/* Its pid is ours until we wait for it. */
	process->pidfd = pidfd_open(process->pid, 0);
	return process->pidfd >= 0 ? 0 : err_errno(err, errno, "cannot watch nbdkit");
}

/* The read end of a pipe that holds it; above the number that it gets in nbdkit. */
static int password_pipe(const char *password, struct err *err)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
		return err_errno(err, errno, "cannot make a pipe to nbdkit");
	int high = fcntl(ends[0], F_DUPFD_CLOEXEC, PASSWORD_FD + 1);
	int flags = fcntl(ends[0], F_SETFL, 0);
	size_t length = strlen(password);
	ssize_t n = high < 0 || flags < 0 ? -1 : write(ends[1], password, length);
	int number = errno;
	close(ends[0]);
	close(ends[1]);
	if (n >= 0 && (size_t)n == length)
		return high;
	if (high >= 0)
		close(high);
	return err_errno(err, n < 0 ? number : EMSGSIZE, "cannot hand the password to nbdkit");
}

static int run(
	struct nbdkit_process *process, struct arguments *arguments, int password, struct err *err)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC) < 0)
		return err_errno(err, errno, "cannot make a pipe from nbdkit");
	process->output = ends[0];
	int AUTO_CLOSE output = fcntl(ends[1], F_DUPFD_CLOEXEC, PASSWORD_FD + 1);
	close(ends[1]);
	if (output < 0 || fcntl(process->output, F_SETFL, O_NONBLOCK) < 0)
		return err_errno(err, errno, "cannot make a pipe from nbdkit");
	process->stop = cancel_new(err);
	if (!process->stop || spawn(process, arguments, password, output, err) < 0)
		return -1;
	process->has_reader =
		thread_start(&process->reader, "nbdkit", read_output, process, err) == 0;
	return process->has_reader ? 0 : -1;
}

/* nbdkit writes its process number when it listens. */
static int wait_until_it_listens(struct nbdkit_process *process, struct cancel *cancel,
	struct deadline until, struct err *err)
{
	char path[FOLDER_BYTES + 16];
	struct err looked;
	struct stat st;
	in_folder(process, "pid", path);
	while (stat(path, &st) < 0 || st.st_size == 0) {
		struct deadline look = deadline_min(deadline_after_ms(LOOK_MS), until);
		if (cancel_check(cancel, err) < 0)
			return -1;
		if (deadline_passed(until)) {
			err_set(err, ERR_TIMEOUT, "nbdkit did not begin to listen in time");
			return nbdkit_process_explain(process, err);
		}
		if (cancel_poll(cancel, process->pidfd, POLLIN, look, "nbdkit", &looked) >= 0) {
			err_set(err, ERR_REFUSED, "nbdkit ended before it listened");
			return nbdkit_process_explain(process, err);
		}
	}
	return 0;
}

static struct nbdkit_process *new_process(const char *password, struct err *err)
{
	struct nbdkit_process *process = calloc(1, sizeof *process);
	char *secret = strdup(password ? password : "");
	if (!process || !secret) {
		free(process);
		free(secret);
		err_errno(err, ENOMEM, "cannot start nbdkit");
		return NULL;
	}
	process->password = secret;
	process->pidfd = process->output = -1;
	pthread_mutex_init(&process->mutex, NULL);
	return process;
}

static int start(struct nbdkit_process *process, const char *program,
	const struct vddk_options *options, struct err *err)
{
	char library[VDDK_PATH_BYTES], path[FOLDER_BYTES + 16];
	struct arguments arguments = {.nr = 0};
	if (vddk_find_folder(options->folder, library, err) < 0 || make_folder(process, err) < 0 ||
		(options->nfc_buffer_kib && write_config(process, options, err) < 0))
		return -1;
	int AUTO_CLOSE password = password_pipe(process->password, err);
	if (password < 0)
		return -1;
	add(&arguments, "%s", program);
	static const char *const flags[] = {
		"--foreground", "--exit-with-parent", "--readonly", "--log=stderr", EXITLAST};
	for (size_t i = 0; i < ARRAY_LENGTH(flags); i++)
		add(&arguments, "%s", flags[i]);
	in_folder(process, "pid", path);
	add(&arguments, "--pidfile=%s", path);
	in_folder(process, "socket", path);
	add(&arguments, "--unix=%s", path);
	add(&arguments, "vddk");
	add_disk(&arguments, options, library);
	if (options->nfc_buffer_kib) {
		in_folder(process, "config", path);
		add(&arguments, "config=%s", path);
	}
	int rc = run(process, &arguments, password, err);
	free_arguments(&arguments);
	return rc;
}

struct nbdkit_process *nbdkit_process_start(const char *program, const struct vddk_options *options,
	struct deadline until, struct err *err)
{
	struct nbdkit_process *process = new_process(options->password, err);
	if (process && start(process, program, options, err) == 0 &&
		wait_until_it_listens(process, options->cancel, until, err) == 0)
		return process;
	nbdkit_process_end(process, deadline_after_ms(0));
	return NULL;
}

void nbdkit_process_end(struct nbdkit_process *process, struct deadline until)
{
	char how[128];
	if (!process)
		return;
	if (process->pid > 0) {
		struct err ignored;
		if (deadline_passed(until) ||
			cancel_poll(NULL, process->pidfd, POLLIN, until, "its end", &ignored) < 0)
			kill(process->pid, SIGTERM);
		if (proc_end(process->pid, process->pidfd, deadline_after_ms(ASK_MS), how,
			    sizeof how))
			log_debug("nbdkit %s", how);
	}
	if (process->has_reader) {
		cancel_request(process->stop);
		pthread_join(process->reader, NULL);
	}
	remove_folder(process);
	const int fds[] = {process->pidfd, process->output};
	for (size_t i = 0; i < ARRAY_LENGTH(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	cancel_free(process->stop);
	explicit_bzero(process->password, strlen(process->password));
	free(process->password);
	pthread_mutex_destroy(&process->mutex);
	free(process);
}

/* --- looking --------------------------------------------------------------------------------- */

static int hint_install(struct err *err)
{
	return err_hint(err,
		"nbdkit-vddk:// needs nbdkit 1.20 or later with its vddk plugin, which Debian's "
		"nbdkit has not: build it from nbdkit's source, or take a distribution's "
		"nbdkit-vddk-plugin; --nbdkit names the program; vmware:// needs neither");
}

static int probe(
	struct nbdkit_process *process, const char *program, struct cancel *cancel, struct err *err)
{
	struct arguments arguments = {.nr = 0};
	char how[128];
	add(&arguments, "%s", program);
	add(&arguments, EXITLAST);
	add(&arguments, "--dump-plugin");
	add(&arguments, "vddk");
	int rc = run(process, &arguments, -1, err);
	free_arguments(&arguments);
	if (rc < 0)
		return hint_install(err);
	if (cancel_poll(cancel, process->pidfd, POLLIN, deadline_after_ms(PROBE_TIMEOUT_MS),
		    "nbdkit --dump-plugin vddk", err) < 0)
		return -1;
	bool badly = proc_end(process->pid, process->pidfd, deadline_after_ms(0), how, sizeof how);
	process->pid = 0;
	if (!badly)
		return 0;
	drain(process);
	WITH_LOCK(&process->mutex);
	err_set(err, ERR_UNSUPPORTED, "%s cannot use its vddk plugin: it %s%s%s", program, how,
		process->said[0] ? ": " : "", process->said);
	return hint_install(err);
}

int nbdkit_probe(const char *program, struct cancel *cancel, struct err *err)
{
	struct nbdkit_process *process = new_process(NULL, err);
	if (!process)
		return -1;
	int rc = probe(process, program, cancel, err);
	nbdkit_process_end(process, deadline_after_ms(0));
	return rc;
}
