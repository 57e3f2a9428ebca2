/* Folders that are one daemon's alone; see folder.h. */
#include "folder.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

int folder_own(const char *path, bool make, struct err *err)
{
	struct stat st;
	if (make && mkdir(path, 0700) < 0 && errno != EEXIST)
		return err_errno(err, errno, "cannot make %s", path);
	if (stat(path, &st) < 0)
		return err_errno(err, errno, "cannot look at %s", path);
	if (!S_ISDIR(st.st_mode))
		return err_set(err, ERR_USAGE, "%s is no folder", path);
	if (st.st_uid != geteuid() || (st.st_mode & 022) != 0)
		return err_set(err, ERR_DENIED,
			"%s belongs to uid %u and has mode %03o: others could change what is in it "
			"(chown and chmod 700 it)",
			path, (unsigned)st.st_uid, (unsigned)st.st_mode & 0777u);
	return 0;
}

int folder_lock(const char *folder, const char *kind, struct err *err)
{
	char path[4096 + 16], pid[32] = "";
	snprintf(path, sizeof path, "%s/%s.lock", folder, kind);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_errno(err, errno, "cannot open %s", path);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		int error = errno;
		ssize_t length = pread(fd, pid, sizeof pid - 1, 0);
		pid[length > 0 ? strcspn(pid, "\n") : 0] = '\0';
		close(fd);
		if (error != EWOULDBLOCK)
			return err_errno(err, error, "cannot lock %s", path);
		return err_set(err, ERR_BUSY,
			"another %s (pid %s) runs on %s (stop it, or give this one a folder of "
			"its own)",
			kind, pid[0] ? pid : "unknown", folder);
	}
	int length = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
	if (ftruncate(fd, 0) < 0 || pwrite(fd, pid, (size_t)length, 0) < 0)
		log_warning("%s does not tell our pid: %s", path, strerror(errno));
	return fd;
}

int folder_take(const char *state_dir, const char *runtime_dir, const char *kind, int locks[2],
	struct err *err)
{
	struct stat st;
	if (stat(state_dir, &st) < 0 && errno == ENOENT)
		return err_set(err, ERR_NOT_FOUND, "there is no %s (\"sendense %s init\" makes it)",
			state_dir, kind);
	if (folder_own(state_dir, false, err) < 0 || folder_own(runtime_dir, true, err) < 0)
		return -1;
	locks[0] = folder_lock(state_dir, kind, err);
	if (locks[0] < 0)
		return -1;
	locks[1] = folder_lock(runtime_dir, kind, err);
	return locks[1] < 0 ? -1 : 0;
}

void folder_give(int locks[2])
{
	for (unsigned i = 2; i-- > 0; locks[i] = -1)
		if (locks[i] >= 0)
			close(locks[i]);
}
