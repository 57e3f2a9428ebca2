/*
 * hub/NAME/state.db: copies of what only a hub knows, kept beside the restore points that it
 * made.
 *
 *   state.db.part ─► synced ─► state.db.1 becomes .2, state.db is linked as .1 as well,
 *                              .part is renamed to state.db: at no time is there none
 */
#include "repository_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define NAME_MOST 64
#define COPY_BYTES ((size_t)256 << 10)
#define STATE "state.db"
#define PART "state.db.part"

bool hubstate_is_name(const char *name)
{
	static const char allowed[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
	size_t length = strlen(name);
	return length > 0 && length <= NAME_MOST && name[0] != '.' &&
	       strspn(name, allowed) == length;
}

bool hubstate_is_file(const char *name)
{
	static const char *const files[] = {STATE, STATE ".1", STATE ".2", PART};
	for (size_t i = 0; i < ARRAY_LENGTH(files); i++)
		if (strcmp(name, files[i]) == 0)
			return true;
	return false;
}

/* The part, held by us alone: -1 with ERR_BUSY while another process has it. */
static int open_part(int folder, const char *name, struct err *err)
{
	struct stat ours, there;
	int fd = openat(
		folder, PART, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
	if (fd < 0)
		return err_errno(err, errno, "cannot make hub/%s/" PART, name);
	/* Where the file system has no locks, one hub for each name must do. */
	bool busy = flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;
	/* Whoever had it may have made it the state meanwhile. */
	if (!busy &&
		(fstat(fd, &ours) < 0 || fstatat(folder, PART, &there, AT_SYMLINK_NOFOLLOW) < 0 ||
			ours.st_ino != there.st_ino))
		busy = true;
	if (!busy)
		return fd;
	close(fd);
	return err_set(err, ERR_BUSY,
		"another process is storing the state of a hub named \"%s\" (two hubs must not "
		"have the same name)",
		name);
}

static int copy_all(int from, int to, const char *name, struct err *err)
{
	uint64_t at = 0;
	if (ftruncate(to, 0) < 0)
		return err_errno(err, errno, "cannot write hub/%s/" PART, name);
	char *AUTO_FREE buffer = malloc(COPY_BYTES);
	if (!buffer)
		return err_errno(err, ENOMEM, "cannot store the state of hub %s", name);
	for (;;) {
		ssize_t nr = pread(from, buffer, COPY_BYTES, (off_t)at);
		if (nr < 0 && errno == EINTR)
			continue;
		if (nr < 0)
			return err_errno(err, errno, "cannot read the state of hub %s", name);
		if (nr == 0)
			break;
		if (file_pwrite(to, buffer, (size_t)nr, at, "hub/.../" PART, err) < 0)
			return -1;
		at += (uint64_t)nr;
	}
	return fsync(to) < 0 ? err_errno(err, errno, "cannot sync hub/%s/" PART, name) : 0;
}

static int fail_move(const char *name, const char *file, struct err *err)
{
	return err_errno(err, errno, "cannot put hub/%s/%s in its place", name, file);
}

/* One that ended before its last step has made room already. */
static bool is_room_made(int folder)
{
	struct stat newest, second;
	return fstatat(folder, STATE, &newest, AT_SYMLINK_NOFOLLOW) == 0 &&
	       fstatat(folder, STATE ".1", &second, AT_SYMLINK_NOFOLLOW) == 0 &&
	       newest.st_ino == second.st_ino;
}

static int make_room(int folder, const char *name, struct err *err)
{
	if (renameat(folder, STATE ".1", folder, STATE ".2") < 0 && errno != ENOENT)
		return fail_move(name, STATE ".2", err);
	if (linkat(folder, STATE, folder, STATE ".1", 0) < 0 && errno != ENOENT)
		return fail_move(name, STATE ".1", err);
	return 0;
}

static int put_in_place(int folder, const char *name, struct err *err)
{
	if (!is_room_made(folder) && make_room(folder, name, err) < 0)
		return -1;
	if (renameat(folder, PART, folder, STATE) < 0)
		return fail_move(name, STATE, err);
	return file_sync_dir(folder, ".", err);
}

int repository_hub_state_store(struct repository *repo, const char *name, int file, struct err *err)
{
	char path[NAME_PATH_BYTES];
	if (!hubstate_is_name(name))
		return err_set(err, ERR_USAGE,
			"a hub's name is 1 to %d of A-Z a-z 0-9 _ . -, and does not begin with a "
			"dot",
			NAME_MOST);
	if (repo->read_only)
		return err_set(
			err, ERR_DENIED, "repository %s cannot be written to", repo->info.path);
	snprintf(path, sizeof path, "hub/%s", name);
	if (file_make_dir(repo->dir_fd, "hub", 0700, err) < 0 ||
		file_make_dir(repo->dir_fd, path, 0700, err) < 0 ||
		file_sync_dir(repo->dir_fd, "hub", err) < 0 ||
		file_sync_dir(repo->dir_fd, ".", err) < 0)
		return -1;
	int AUTO_CLOSE folder =
		openat(repo->dir_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (folder < 0)
		return err_errno(
			err, errno, "cannot open %s of repository %s", path, repo->info.path);
	int AUTO_CLOSE part = open_part(folder, name, err);
	if (part < 0)
		return -1;
	int rc = copy_all(file, part, name, err);
	if (rc == 0)
		rc = put_in_place(folder, name, err);
	else
		unlinkat(folder, PART, 0);
	return rc < 0 ? err_context(err, "repository %s", repo->info.path) : 0;
}
