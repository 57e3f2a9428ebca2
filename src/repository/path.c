/* Paths below a repository, and whole folders on their way to disk. */
#include "repository_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

void path_vm(const char *vm, char path[NAME_PATH_BYTES])
{
	char folder[REPOSITORY_FOLDER_BYTES];
	repository_name_folder(vm, folder);
	snprintf(path, NAME_PATH_BYTES, "vms/%s", folder);
}

void path_vm_file(const char *vm, const char *file, char path[NAME_PATH_BYTES])
{
	char folder[REPOSITORY_FOLDER_BYTES];
	repository_name_folder(vm, folder);
	snprintf(path, NAME_PATH_BYTES, "vms/%s/%s", folder, file);
}

void path_point(const char *vm, const char *point, const char *file, char path[NAME_PATH_BYTES])
{
	char folder[REPOSITORY_FOLDER_BYTES];
	repository_name_folder(vm, folder);
	snprintf(path, NAME_PATH_BYTES, "vms/%s/points%s%s%s%s", folder, point[0] ? "/" : "", point,
		file[0] ? "/" : "", file);
}

void path_disk(const char *vm, const char *key, const char *point, const char *ending,
	char path[NAME_PATH_BYTES])
{
	char folder[REPOSITORY_FOLDER_BYTES];
	repository_name_folder(vm, folder);
	snprintf(path, NAME_PATH_BYTES, "vms/%s/disks/%s%s%s%s", folder, key, point[0] ? "/" : "",
		point, ending);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int path_names(int dir_fd, const char *path, struct path_names *names, struct err *err)
{
	memset(names, 0, sizeof *names);
	int fd = openat(dir_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	DIR *folder = fd < 0 ? NULL : fdopendir(fd);
	if (!folder) {
		int why = errno;
		if (fd >= 0)
			close(fd);
		return err_errno(err, why, "cannot read folder %s", path);
	}
	size_t room = 0;
	int rc = 0;
	for (const struct dirent *entry; (errno = 0, entry = readdir(folder));) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (names->nr == room) {
			room = room ? 2 * room : 64;
			char **more = reallocarray(names->name, room, sizeof *more);
			if (!more)
				break;
			names->name = more;
		}
		names->name[names->nr] = strdup(entry->d_name);
		if (!names->name[names->nr])
			break;
		names->nr++;
	}
	if (errno)
		rc = err_errno(err, errno, "cannot read folder %s", path);
	closedir(folder);
	if (rc < 0)
		path_names_free(names);
	else if (names->nr)
		qsort(names->name, names->nr, sizeof *names->name, by_name);
	return rc;
}

void path_names_free(struct path_names *names)
{
	for (size_t i = 0; i < names->nr; i++)
		free(names->name[i]);
	free(names->name);
	memset(names, 0, sizeof *names);
}

bool path_exists(int dir_fd, const char *path)
{
	return faccessat(dir_fd, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

int path_look(int dir_fd, const char *path, bool *is_there, struct err *err)
{
	*is_there = path_exists(dir_fd, path);
	if (*is_there || errno == ENOENT || errno == ENOTDIR)
		return 0;
	return err_errno(err, errno, "cannot look for %s", path);
}

bool path_has_suffix(const char *text, const char *suffix)
{
	size_t length = strlen(text), tail = strlen(suffix);
	return length >= tail && strcmp(text + length - tail, suffix) == 0;
}
