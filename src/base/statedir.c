#include "statedir.h"

#include "file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of the environment, where it is an absolute path. */
static const char *folder_of(const char *name)
{
	const char *value = getenv(name);
	return value && value[0] == '/' ? value : NULL;
}

int statedir_find(const char *given, const char *what, char path[STATEDIR_BYTES], struct err *err)
{
	const char *state = folder_of("XDG_STATE_HOME"), *home = folder_of("HOME");
	int length;
	if (!given)
		given = getenv("SENDENSE_STATE_DIR");
	if (given && given[0])
		length = snprintf(path, STATEDIR_BYTES, "%s", given);
	else if (geteuid() == 0)
		length = snprintf(path, STATEDIR_BYTES, "/var/lib/sendense/%s", what);
	else if (state)
		length = snprintf(path, STATEDIR_BYTES, "%s/sendense/%s", state, what);
	else if (home)
		length = snprintf(path, STATEDIR_BYTES, "%s/.local/state/sendense/%s", home, what);
	else
		return err_set(err, ERR_USAGE,
			"which folder keeps the state between runs? (--state-dir DIR, or "
			"SENDENSE_STATE_DIR)");
	if (length < 0 || length >= (int)STATEDIR_BYTES)
		return err_set(err, ERR_USAGE, "the name of the state folder is too long");
	return 0;
}

int statedir_make(const char *path, struct err *err)
{
	char part[STATEDIR_BYTES];
	snprintf(part, sizeof part, "%s", path);
	for (char *at = part + 1; *at; at++) {
		struct stat st;
		if (*at != '/')
			continue;
		*at = '\0';
		/* What cannot be made, because it lies in what others own, may be there. */
		if (stat(part, &st) < 0 && file_make_dir(AT_FDCWD, part, 0700, err) < 0)
			return err_context(err, "the state folder %s", path);
		*at = '/';
	}
	if (file_make_dir(AT_FDCWD, part, 0700, err) < 0)
		return err_context(err, "the state folder");
	return 0;
}
