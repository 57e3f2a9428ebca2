/* Files of JOBDIR; see job_internal.h. */
#include "job_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

json_t *jobdir_load(int dir_fd, const char *name, struct err *err)
{
	char *AUTO_FREE bytes = NULL;
	size_t length;
	json_error_t why;
	if (file_load(dir_fd, name, JOBDIR_FILE_MOST, &bytes, &length, err) < 0)
		return NULL;
	json_t *object = json_loadb(bytes, length, JSON_REJECT_DUPLICATES, &why);
	if (json_is_object(object))
		return object;
	json_decref(object);
	err_set(err, ERR_FORMAT, "%s: it is no JSON object", name);
	return NULL;
}

int jobdir_store(int dir_fd, const char *name, const json_t *object, struct err *err)
{
	char temporary[64];
	snprintf(temporary, sizeof temporary, "%s.new", name);
	char *AUTO_FREE text = object ? json_dumps(object, JSON_COMPACT) : NULL;
	if (!text)
		return err_errno(err, ENOMEM, "cannot write %s", name);
	int AUTO_CLOSE fd =
		openat(dir_fd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_errno(err, errno, "cannot write %s", name);
	if (file_pwrite(fd, text, strlen(text), 0, name, err) < 0)
		return -1;
	if (renameat(dir_fd, temporary, dir_fd, name) < 0)
		return err_errno(err, errno, "cannot rename %s", temporary);
	return 0;
}

/* --- logs -------------------------------------------------------------------------------- */

/* Puts what is in one file behind the other. */
static int append(int from_dir, const char *from, int to_dir, const char *to, struct err *err)
{
	char buffer[65536];
	int AUTO_CLOSE in = openat(from_dir, from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (in < 0)
		return errno == ENOENT ? 0 : err_errno(err, errno, "cannot open %s", from);
	int AUTO_CLOSE out =
		openat(to_dir, to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (out < 0)
		return err_errno(err, errno, "cannot open %s", to);
	ssize_t n = 0;
	size_t left = JOBDIR_FILE_MOST + MIB; /* a log has its bounds */
	while (left > 0 && (n = read(in, buffer, min_size(left, sizeof buffer))) > 0) {
		if (write(out, buffer, (size_t)n) != n)
			return err_errno(err, errno, "cannot write %s", to);
		left -= (size_t)n;
	}
	return n < 0 ? err_errno(err, errno, "cannot read %s", from) : 0;
}

int jobdir_keep(int dir_fd, int kept_fd, struct err *err)
{
	int rc = append(dir_fd, JOBDIR_LOG, kept_fd, JOBDIR_LOG, err);
	unlinkat(dir_fd, JOBDIR_LOG, 0);
	unlinkat(kept_fd, JOBDIR_REPORT, 0);
	if (append(dir_fd, JOBDIR_REPORT, kept_fd, JOBDIR_REPORT, rc < 0 ? NULL : err) < 0)
		rc = -1;
	return rc;
}

void jobdir_tail(int dir_fd, const char *name, char *out, size_t bytes)
{
	struct stat st;
	out[0] = '\0';
	int AUTO_CLOSE fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size == 0)
		return;
	off_t room = (off_t)bytes - 1;
	ssize_t n = pread(fd, out, bytes - 1, st.st_size > room ? st.st_size - room : 0);
	out[n > 0 ? n : 0] = '\0';
}

/* --- removing ------------------------------------------------------------------------------ */

/* Files alone are in it. */
int jobdir_remove(int parent_fd, const char *name, struct err *err)
{
	int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : err_errno(err, errno, "cannot open folder %s", name);
	DIR *dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return err_errno(err, errno, "cannot read folder %s", name);
	}
	const struct dirent *entry;
	while ((entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			unlinkat(fd, entry->d_name, 0);
	closedir(dir);
	if (unlinkat(parent_fd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		return err_errno(err, errno, "cannot remove folder %s", name);
	return 0;
}
