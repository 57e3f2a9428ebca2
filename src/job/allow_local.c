/*
 * Local names beneath a rule's folder; see allow.h.  The folder itself is opened as the rule
 * says, the rest by the kernel with the promise not to leave it: neither by "..", nor by links,
 * nor by /proc's.
 */
#include "allow_internal.h"
#include "repository.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static int open_beneath(int dir_fd, const char *path)
{
	struct open_how how = {
		.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
	return (int)syscall(SYS_openat2, dir_fd, path, &how, sizeof how);
}

/* Where an open file is: without links. */
static int path_of(int fd, char path[PATH_MAX], struct err *err)
{
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, path, PATH_MAX - 1);
	if (n < 0)
		return err_errno(err, errno, "cannot tell where a file is");
	path[n] = '\0';
	return 0;
}

static int cannot(const char *path, struct err *err)
{
	if (errno == EXDEV || errno == ELOOP)
		return err_set(err, ERR_DENIED,
			"%s leads out of the folder that is allowed (by a symbolic link)", path);
	return err_errno(err, errno, "cannot use %s", path);
}

/* The folder of a file that is not there yet; base points into rest. */
static int find_folder(
	int dir_fd, const char *rest, const char *whole, char found[PATH_MAX], struct err *err)
{
	char folder[PATH_MAX];
	snprintf(folder, sizeof folder, "%s", rest);
	char *slash = strrchr(folder, '/');
	const char *base = slash ? rest + (slash - folder) + 1 : rest;
	if (slash)
		*slash = '\0';
	int AUTO_CLOSE fd = open_beneath(dir_fd, slash ? folder : ".");
	if (fd < 0)
		return cannot(whole, err);
	struct stat st;
	if (fstatat(fd, base, &st, AT_SYMLINK_NOFOLLOW) == 0)
		return err_set(err, ERR_DENIED, "%s is a symbolic link to nothing", whole);
	if (errno != ENOENT)
		return cannot(whole, err);
	if (path_of(fd, found, err) < 0)
		return -1;
	size_t used = strlen(found);
	if (used + strlen(base) + 2 > PATH_MAX)
		return err_set(err, ERR_USAGE, "%s: its path is too long", whole);
	snprintf(found + used, PATH_MAX - used, "%s%s", used == 1 ? "" : "/", base);
	return 0;
}

/* rest NULL: the rule's path itself. */
static int find(const char *folder, const char *rest, const char *whole, bool may_be_new,
	char found[PATH_MAX], struct err *err)
{
	int AUTO_CLOSE dir_fd = open(folder, O_PATH | O_CLOEXEC | (rest ? O_DIRECTORY : 0));
	if (dir_fd < 0)
		return err_errno(err, errno, "cannot use %s", whole);
	if (!rest)
		return path_of(dir_fd, found, err);
	int AUTO_CLOSE fd = open_beneath(dir_fd, rest);
	if (fd >= 0)
		return path_of(fd, found, err);
	if (errno == ENOENT && may_be_new)
		return find_folder(dir_fd, rest, whole, found, err);
	return cannot(whole, err);
}

/* The part of path behind the folder; NULL in *rest: it is the folder.  False: elsewhere. */
static bool behind(const char *folder, const char *path, const char **rest)
{
	size_t length = strcmp(folder, "/") == 0 ? 0 : strlen(folder);
	if (strncmp(folder, path, length) != 0 || (path[length] && path[length] != '/'))
		return false;
	*rest = path[length] && path[length + 1] ? path + length + 1 : NULL;
	return true;
}

/* SOCKET or SOCKET/DISK. */
static int find_machine(const char *folder, const char *rest, const char *whole,
	char found[PATH_MAX], struct err *err)
{
	struct stat st;
	if (find(folder, rest, whole, false, found, err) == 0)
		return 0;
	const char *slash = rest ? strrchr(rest, '/') : NULL;
	char socket[PATH_MAX];
	if (!slash || (err->code != ERR_NOT_FOUND && err->sys_errno != ENOTDIR))
		return -1;
	snprintf(socket, sizeof socket, "%.*s", (int)(slash - rest), rest);
	if (find(folder, socket, whole, false, found, NULL) < 0 || stat(found, &st) < 0 ||
		!S_ISSOCK(st.st_mode))
		return -1;
	size_t used = strlen(found);
	if (used + strlen(slash) + 1 > PATH_MAX)
		return err_set(err, ERR_USAGE, "%s: its path is too long", whole);
	snprintf(found + used, PATH_MAX - used, "%s", slash);
	err_clear(err);
	return 0;
}

/* A path as a value in a URI. */
static void encode(const char *path, char *out, size_t bytes)
{
	size_t used = 0;
	for (; *path && used + 4 < bytes; path++) {
		bool plain = *path != '%' && *path != '&' && *path != '#' && *path != '?' &&
			     *path != '+' && (unsigned char)*path > 0x20 &&
			     (unsigned char)*path < 0x7f;
		used += (size_t)snprintf(
			out + used, bytes - used, plain ? "%c" : "%%%02x", (unsigned char)*path);
	}
	out[used] = '\0';
}

/* found is a path without links; what a rule names may have some. */
static int check_forbidden(
	const char *const *rules, const char *found, const char *whole, struct err *err)
{
	for (; *rules; rules++) {
		const char *rest;
		if (**rules != '!')
			continue;
		char *AUTO_FREE real = realpath(*rules + 1, NULL);
		if (behind(real ? real : *rules + 1, found, &rest))
			return err_set(err, ERR_DENIED,
				"%s is the daemon's own, or lies where no job may read or write",
				whole);
	}
	return 0;
}

/* --- what is open ------------------------------------------------------------------ */

static bool is_inside(const char *root, const char *path)
{
	const char *rest;
	return behind(root, path, &rest) && rest;
}

/* Local files that a rule covers, whatever scheme names them. */
static bool is_covered(const char *const *rules, enum allow_use use, const char *found)
{
	struct allow_name rule;
	struct stat st;
	const char *rest;
	for (; *rules; rules++) {
		if (**rules == '!' || allow_parse(&rule, *rules, true, use, NULL) < 0 ||
			rule.shape != ALLOW_FILE)
			continue;
		char *AUTO_FREE real = realpath(rule.path, NULL);
		if (!real)
			continue;
		if (behind(real, found, &rest))
			return true;
		char *slash = strrchr(real, '/');
		if (strcmp(rule.scheme, "qcow2:") != 0 || use != ALLOW_SOURCE ||
			stat(real, &st) < 0 || S_ISDIR(st.st_mode) || slash == real)
			continue;
		*slash = '\0';
		if (is_inside(real, found))
			return true;
	}
	return false;
}

int allow_opened(
	const struct allow_job *job, int fd, const char *path, const char *above, struct err *err)
{
	char found[PATH_MAX], root[4096];
	int flags = fd >= 0 ? fcntl(fd, F_GETFL) : O_RDONLY;
	if (flags < 0)
		return err_errno(err, errno, "cannot use %s", path);
	if (fd >= 0 && path_of(fd, found, err) < 0)
		return -1;
	if (fd < 0)
		snprintf(found, sizeof found, "%s", path);
	if (check_forbidden(job->sources, found, path, err) < 0 ||
		check_forbidden(job->targets, found, path, err) < 0)
		return -1;
	if (job->own && is_inside(job->own, above ? above : path))
		return 0;
	if (repository_path_inside(found, root))
		return err_set(err, ERR_DENIED,
			"%s leads into the repository %s: its files are no sources and no targets",
			path, root);
	bool writes = (flags & O_ACCMODE) != O_RDONLY;
	if (is_covered(job->targets, ALLOW_TARGET, found) ||
		(!writes && is_covered(job->sources, ALLOW_SOURCE, found)))
		return 0;
	return err_set(err, ERR_DENIED, "%s leads to %s, which is not allowed", path, found);
}

int allow_local(const char *const *rules, const struct allow_name *rule,
	const struct allow_name *name, enum allow_use use, char checked[ALLOW_NAME_BYTES],
	struct err *err)
{
	const char *rest;
	char found[PATH_MAX] = "";
	if (!behind(rule->path, name->path, &rest))
		return 0;
	bool may_be_new = use == ALLOW_TARGET && name->shape == ALLOW_FILE;
	int rc = name->shape == ALLOW_MACHINE
			 ? find_machine(rule->path, rest, name->path, found, err)
			 : find(rule->path, rest, name->path, may_be_new, found, err);
	if (rc < 0)
		return -1;
	char root[4096];
	if (check_forbidden(rules, found, name->path, err) < 0)
		return -1;
	if (repository_path_inside(found, root))
		return err_set(err, ERR_DENIED,
			"%s lies in the repository %s: its files are no sources and no targets",
			name->path, root);
	int used;
	if (name->shape == ALLOW_SOCKET) {
		char value[3 * PATH_MAX];
		encode(found, value, sizeof value);
		used = snprintf(checked, ALLOW_NAME_BYTES, "%s%.*s?socket=%s", name->scheme,
			(int)name->query_length, name->query, value);
	} else {
		used = snprintf(checked, ALLOW_NAME_BYTES, "%s%s", name->scheme, found);
	}
	if (used < 0 || used >= ALLOW_NAME_BYTES)
		return err_set(err, ERR_USAGE, "%s: the name is too long", name->path);
	return 1;
}
