/* Files; see file.h. */
#include "file.h"

#include "bytes.h"
#include "cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

int file_pread(
	int fd, void *buffer, size_t length, uint64_t offset, const char *name, struct err *err)
{
	uint8_t *at = buffer;
	while (length > 0) {
		ssize_t n = pread(fd, at, length, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, errno,
				"cannot read %zu bytes at offset %" PRIu64 " of %s", length, offset,
				name);
		if (n == 0)
			return err_set(err, ERR_IO,
				"%s ends at offset %" PRIu64
				", %zu bytes before the end of what was to be read",
				name, offset, length);
		at += n;
		offset += (uint64_t)n;
		length -= (size_t)n;
	}
	return 0;
}

int file_pwrite(int fd, const void *buffer, size_t length, uint64_t offset, const char *name,
	struct err *err)
{
	const uint8_t *at = buffer;
	while (length > 0) {
		ssize_t n = pwrite(fd, at, length, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return err_errno(err, n < 0 ? errno : EIO,
				"cannot write %zu bytes at offset %" PRIu64 " of %s", length,
				offset, name);
		at += n;
		offset += (uint64_t)n;
		length -= (size_t)n;
	}
	return 0;
}

int file_sync_dir(int dir_fd, const char *path, struct err *err)
{
	int AUTO_CLOSE fd = openat(dir_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return err_errno(err, errno, "cannot open folder %s", path);
	if (fsync(fd) < 0)
		return err_errno(err, errno, "cannot sync folder %s", path);
	return 0;
}

/* The folder part of path, "." where there is none; the caller frees. */
static char *parent_of(const char *path)
{
	const char *slash = strrchr(path, '/');
	if (!slash)
		return strdup(".");
	return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

int file_replace(int dir_fd, const char *path, const void *bytes, size_t length, mode_t mode,
	struct err *err)
{
	char *AUTO_FREE folder = parent_of(path);
	char *AUTO_FREE temporary = NULL;
	if (!folder || asprintf(&temporary, "%s.new", path) < 0)
		return err_errno(err, ENOMEM, "cannot write %s", path);
	int fd = openat(
		dir_fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
	if (fd < 0)
		return err_errno(err, errno, "cannot create %s", temporary);
	int rc = file_pwrite(fd, bytes, length, 0, temporary, err);
	if (rc == 0 && fsync(fd) < 0)
		rc = err_errno(err, errno, "cannot sync %s", temporary);
	if (close(fd) < 0 && rc == 0)
		rc = err_errno(err, errno, "cannot close %s", temporary);
	if (rc == 0 && renameat(dir_fd, temporary, dir_fd, path) < 0)
		rc = err_errno(err, errno, "cannot rename %s to %s", temporary, path);
	if (rc < 0) {
		unlinkat(dir_fd, temporary, 0);
		return -1;
	}
	return file_sync_dir(dir_fd, folder, err);
}

int file_load(
	int dir_fd, const char *path, size_t most, char **bytes, size_t *length, struct err *err)
{
	*bytes = NULL;
	int AUTO_CLOSE fd = openat(dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0)
		return err_errno(err, errno, "cannot open %s", path);
	struct stat st;
	if (fstat(fd, &st) < 0)
		return err_errno(err, errno, "cannot stat %s", path);
	if (!S_ISREG(st.st_mode))
		return err_set(err, ERR_FORMAT, "%s is not a regular file", path);
	if (st.st_size < 0 || (uint64_t)st.st_size > most)
		return err_set(err, ERR_FORMAT,
			"%s has %" PRIu64 " bytes, more than the %zu it may have", path,
			(uint64_t)st.st_size, most);
	size_t size = (size_t)st.st_size;
	char *content = malloc(size + 1);
	if (!content)
		return err_errno(err, ENOMEM, "cannot read %s", path);
	if (file_pread(fd, content, size, 0, path, err) < 0) {
		free(content);
		return -1;
	}
	content[size] = '\0';
	*bytes = content;
	if (length)
		*length = size;
	return 0;
}

int file_make_dir(int dir_fd, const char *path, mode_t mode, struct err *err)
{
	if (mkdirat(dir_fd, path, mode) < 0 && errno != EEXIST)
		return err_errno(err, errno, "cannot make folder %s", path);
	return 0;
}

int file_random(void *buffer, size_t length, struct err *err)
{
	uint8_t *at = buffer;
	while (length > 0) {
		ssize_t n = getrandom(at, length, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, errno, "cannot get random bytes");
		at += n;
		length -= (size_t)n;
	}
	return 0;
}
