/* A password comes from a file that nobody else may read. */
#include "vsphere.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define PASSWORD_MOST 1024u

int vsphere_password_load(const char *path, char **password, size_t *length, struct err *err)
{
	struct stat st;
	if (stat(path, &st) < 0)
		return err_errno(err, errno, "cannot read the password in %s", path);
	if ((st.st_mode & 077) != 0)
		return err_set(err, ERR_DENIED,
			"cannot use the password in %s: others may read it (chmod 600 %s)", path,
			path);
	if (file_load(AT_FDCWD, path, PASSWORD_MOST, password, length, err) < 0)
		return err_context(err, "cannot read the password");
	size_t end = strcspn(*password, "\r\n");
	if (end > 0 && end + strspn(*password + end, "\r\n") == *length) {
		(*password)[end] = '\0';
		return 0;
	}
	explicit_bzero(*password, *length);
	free(*password);
	return err_set(err, ERR_USAGE, "%s does not hold one line with a password", path);
}
