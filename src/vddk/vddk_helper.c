/* The helper process: started, spoken to, ended. */
#include "vddk_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

extern char **environ;

void vddk_helper_init(struct vddk_helper *helper)
{
	*helper = (struct vddk_helper){.pidfd = -1, .socket = -1, .output = -1, .memory_fd = -1};
}

/* Its size cannot be changed any more: else a helper that shrinks it could have us killed by
 * SIGBUS. */
static int make_memory(struct vddk_helper *helper, unsigned nr_slots, struct err *err)
{
	helper->memory_bytes = (size_t)nr_slots * VDDK_SLOT_BYTES;
	helper->memory_fd = memfd_create("sendense-vddk", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (helper->memory_fd < 0 ||
		ftruncate(helper->memory_fd, (off_t)helper->memory_bytes) < 0 ||
		fcntl(helper->memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) <
			0)
		return err_errno(err, errno, "cannot make the memory shared with the helper");
	void *memory = mmap(NULL, helper->memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
		helper->memory_fd, 0);
	if (memory == MAP_FAILED)
		return err_errno(err, errno, "cannot map the memory shared with the helper");
	helper->memory = memory;
	return 0;
}

/* The environment with the library's folder in LD_LIBRARY_PATH, for that process alone: what
 * the library brings along must not be found by any other.  To be freed: [0], and the array. */
static char **make_environment(const char *folder)
{
	static const char name[] = "LD_LIBRARY_PATH=";
	size_t nr = 0;
	while (environ[nr])
		nr++;
	char **all = calloc(nr + 2, sizeof *all);
	if (!all || asprintf(&all[0], "%s%s/lib64", name, folder) < 0) {
		free(all);
		return NULL;
	}
	size_t used = 1;
	for (size_t i = 0; i < nr; i++) {
		if (strncmp(environ[i], name, sizeof name - 1) != 0)
			all[used++] = environ[i];
	}
	return all;
}

/* 0: its socket, 1 and 2: its output, 3: the memory; nothing else is left open. */
static int spawn(
	struct vddk_helper *helper, const char *program, const char *folder, int socket, int output)
{
	char *argv[] = {(char *)(uintptr_t)program, NULL};
	char **environment = make_environment(folder);
	if (!environment)
		return ENOMEM;
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
	posix_spawn_file_actions_adddup2(&files, socket, 0);
	posix_spawn_file_actions_adddup2(&files, output, 1);
	posix_spawn_file_actions_adddup2(&files, output, 2);
	posix_spawn_file_actions_adddup2(&files, helper->memory_fd, VDDK_MEMORY_FD);
	posix_spawn_file_actions_addclosefrom_np(&files, VDDK_MEMORY_FD + 1);
	int rc = posix_spawn(&helper->pid, program, &files, &attributes, argv, environment);
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attributes);
	free(environment[0]);
	free(environment);
	if (rc != 0)
		helper->pid = 0;
	return rc;
}

/* Above the numbers that they get in the helper: there each is put in place in turn. */
static int lift(int *fd)
{
	if (*fd > VDDK_MEMORY_FD)
		return 0;
	int higher = fcntl(*fd, F_DUPFD_CLOEXEC, VDDK_MEMORY_FD + 1);
	if (higher < 0)
		return -1;
	close(*fd);
	*fd = higher;
	return 0;
}

int vddk_helper_start(struct vddk_helper *helper, const char *program, const char *folder,
	unsigned nr_slots, struct err *err)
{
	int pair[2] = {-1, -1}, output[2] = {-1, -1};
	int rc = -1;
	if (make_memory(helper, nr_slots, err) < 0)
		return -1;
	/* A full pipe loses what is written; it must not hold up the library. */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 ||
		pipe2(output, O_CLOEXEC | O_NONBLOCK) < 0 || lift(&pair[1]) < 0 ||
		lift(&output[1]) < 0 || lift(&helper->memory_fd) < 0) {
		err_errno(err, errno, "cannot prepare the helper");
		goto out;
	}
	helper->socket = pair[0];
	helper->output = output[0];
	pair[0] = output[0] = -1;
	int number = spawn(helper, program, folder, pair[1], output[1]);
	if (number != 0) {
		err_errno(err, number, "cannot start %s", program);
		goto out;
	}
	/* Its pid is ours until we wait for it. */
	helper->pidfd = pidfd_open(helper->pid, 0);
	rc = helper->pidfd >= 0 ? 0 : err_errno(err, errno, "cannot watch the helper");
out:
	for (int i = 0; i < 2; i++) {
		if (pair[i] >= 0)
			close(pair[i]);
		if (output[i] >= 0)
			close(output[i]);
	}
	return rc;
}

int vddk_helper_send(struct vddk_helper *helper, const struct vddk_message *message,
	const char *text, struct err *err)
{
	struct iovec parts[2] = {
		{(void *)(uintptr_t)message, sizeof *message},
		{(void *)(uintptr_t)text, message->text_bytes},
	};
	struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t n;
	do
		n = sendmsg(helper->socket, &packet, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return err_errno(err, errno, "cannot speak to the helper");
	return 0;
}

int vddk_helper_receive(struct vddk_helper *helper, struct vddk_message *message,
	char text[VDDK_TEXT_BYTES], struct err *err)
{
	struct iovec parts[2] = {
		{message, sizeof *message},
		{text, VDDK_TEXT_BYTES - 1},
	};
	struct msghdr packet = {.msg_iov = parts, .msg_iovlen = 2};
	ssize_t n;
	do
		n = recvmsg(helper->socket, &packet, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	if (n <= 0)
		return err_set(err, ERR_DISCONNECTED, "the helper closed its socket");
	size_t got = (size_t)n;
	if (got < sizeof *message || (packet.msg_flags & MSG_TRUNC) ||
		message->text_bytes != got - sizeof *message)
		return err_set(err, ERR_PROTOCOL, "the helper sent what is no message");
	text[message->text_bytes] = '\0';
	return 1;
}

void vddk_helper_drain_output(struct vddk_helper *helper)
{
	char piece[512];
	ssize_t n;
	while (helper->output >= 0 && (n = read(helper->output, piece, sizeof piece)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return;
		size_t got = (size_t)n;
		size_t over = helper->nr_said + got >= sizeof helper->said
				      ? helper->nr_said + got - sizeof helper->said + 1
				      : 0;
		memmove(helper->said, helper->said + over, helper->nr_said - over);
		helper->nr_said -= over;
		helper->said_more |= over > 0;
		memcpy(helper->said + helper->nr_said, piece, got);
		helper->nr_said += got;
		helper->said[helper->nr_said] = '\0';
	}
	/* All that had its other end are gone. */
	if (helper->output >= 0)
		close(helper->output);
	helper->output = -1;
}

bool vddk_helper_end(struct vddk_helper *helper, struct deadline until, char *how, size_t room)
{
	if (helper->pid <= 0)
		return false;
	bool badly = proc_end(helper->pid, helper->pidfd, until, how, room);
	helper->pid = 0;
	vddk_helper_drain_output(helper);
	return badly;
}

void vddk_helper_fini(struct vddk_helper *helper)
{
	assert(helper->pid == 0);
	if (helper->memory)
		munmap(helper->memory, helper->memory_bytes);
	const int fds[] = {helper->memory_fd, helper->pidfd, helper->socket, helper->output};
	for (size_t i = 0; i < ARRAY_LENGTH(fds); i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	vddk_helper_init(helper);
}
