/* A session's folder; see scratch.h. */
#include "scratch.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define PREFIX "sendense-"
#define OWNER_MOST 8192u
#define UNKNOWN_AGE_S 60 /* a folder without an owner may be in the making for so long */

bool scratch_is_id(const char *text)
{
	if (strncmp(text, PREFIX, strlen(PREFIX)) != 0 || strlen(text) != SCRATCH_ID_BYTES - 1)
		return false;
	for (const char *c = text + strlen(PREFIX); *c; c++)
		if (!isdigit((unsigned char)*c) && (*c < 'a' || *c > 'f'))
			return false;
	return true;
}

/* --- making ----------------------------------------------------------------------------- */

static int write_owner(struct scratch *scratch, const char *qmp_socket, struct err *err)
{
	char path[PATH_MAX];
	scratch->owner_fd =
		openat(scratch->dir_fd, "owner", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (scratch->owner_fd < 0)
		return err_errno(err, errno, "cannot make %s/owner", scratch->folder);
	if (flock(scratch->owner_fd, LOCK_EX | LOCK_NB) < 0)
		return err_errno(err, errno, "cannot lock %s/owner", scratch->folder);
	json_t *owner = json_pack("{s:s, s:I}", "qmp",
		realpath(qmp_socket, path) ? path : qmp_socket, "pid", (json_int_t)getpid());
	char *text = owner ? json_dumps(owner, JSON_COMPACT) : NULL;
	json_decref(owner);
	if (!text)
		return err_errno(err, ENOMEM, "cannot write %s/owner", scratch->folder);
	int rc = file_pwrite(scratch->owner_fd, text, strlen(text), 0, "owner", err);
	free(text);
	return rc;
}

int scratch_open(struct scratch *scratch, const char *base, const char *qmp_socket, struct err *err)
{
	uint32_t random;
	char real[PATH_MAX];
	*scratch = (struct scratch){.dir_fd = -1, .owner_fd = -1};
	if (!realpath(base, real))
		return err_errno(err, errno, "cannot use the scratch folder %s", base);
	if (file_random(&random, sizeof random, err) < 0)
		return -1;
	snprintf(scratch->id, sizeof scratch->id, PREFIX "%08" PRIx32, random);
	int length = snprintf(scratch->folder, sizeof scratch->folder, "%s/%s", real, scratch->id);
	/* A socket's path has 107 bytes at most. */
	if (length < 0 || (size_t)length + sizeof "/" SCRATCH_SOCKET > 108)
		return err_set(err, ERR_USAGE,
			"the scratch folder %s: its name is too long for a socket in it "
			"(--scratch with a shorter one)",
			real);
	if (mkdir(scratch->folder, 0700) < 0) {
		err_errno(err, errno, "cannot make %s", scratch->folder);
		scratch->folder[0] = '\0';
		return -1;
	}
	scratch->dir_fd = open(scratch->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (scratch->dir_fd < 0)
		err_errno(err, errno, "cannot open %s", scratch->folder);
	if (scratch->dir_fd >= 0 && write_owner(scratch, qmp_socket, err) == 0)
		return 0;
	scratch_close(scratch);
	return -1;
}

static void remove_files(int dir_fd, const char *folder)
{
	static const char *const names[] = {SCRATCH_SOCKET, "frozen", "owner"};
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		if (unlinkat(dir_fd, names[i], 0) < 0 && errno != ENOENT)
			log_warning("cannot remove %s/%s: %s", folder, names[i], strerror(errno));
	if (rmdir(folder) < 0 && errno != ENOENT)
		log_warning("cannot remove %s: %s", folder, strerror(errno));
}

void scratch_close(struct scratch *scratch)
{
	if (scratch->dir_fd >= 0) {
		remove_files(scratch->dir_fd, scratch->folder);
		close(scratch->dir_fd);
	} else if (scratch->folder[0]) {
		rmdir(scratch->folder);
	}
	if (scratch->owner_fd >= 0)
		close(scratch->owner_fd);
	*scratch = (struct scratch){.dir_fd = -1, .owner_fd = -1};
}

int scratch_file(const struct scratch *scratch, struct err *err)
{
	int fd = open(scratch->folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd >= 0)
		return fd;
	/* Not every file system has files without a name; a crash between the two calls leaves an
	 * empty one. */
	fd = openat(scratch->dir_fd, "scratch", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_errno(err, errno, "cannot make a scratch file in %s", scratch->folder);
	if (unlinkat(scratch->dir_fd, "scratch", 0) < 0)
		log_warning("cannot remove %s/scratch: %s", scratch->folder, strerror(errno));
	return fd;
}

int scratch_mark_frozen(const struct scratch *scratch, const char *agent, struct err *err)
{
	if (agent)
		return file_replace(scratch->dir_fd, "frozen", agent, strlen(agent), 0600, err);
	if (unlinkat(scratch->dir_fd, "frozen", 0) < 0 && errno != ENOENT)
		return err_errno(err, errno, "cannot remove %s/frozen", scratch->folder);
	return 0;
}

/* --- others' ---------------------------------------------------------------------------------- */

static void read_owner(int dir_fd, struct scratch_other *other)
{
	char *text = NULL;
	size_t length;
	if (file_load(dir_fd, "owner", OWNER_MOST, &text, &length, NULL) < 0)
		return;
	json_t *owner = json_loadb(text, length, 0, NULL);
	const char *qmp = json_string_value(json_object_get(owner, "qmp"));
	snprintf(other->qmp, sizeof other->qmp, "%s", qmp ? qmp : "");
	other->pid = (long)json_integer_value(json_object_get(owner, "pid"));
	json_decref(owner);
	free(text);
	text = NULL;
	if (file_load(dir_fd, "frozen", sizeof other->agent - 1, &text, &length, NULL) == 0)
		snprintf(other->agent, sizeof other->agent, "%s", text);
	free(text);
}

void scratch_look(const char *folder, struct scratch_other *other)
{
	struct stat st;
	*other = (struct scratch_other){.state = SCRATCH_GONE};
	snprintf(other->folder, sizeof other->folder, "%s", folder);
	int AUTO_CLOSE dir_fd = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	/* What another user made in a folder that all may write to is not trusted. */
	if (dir_fd < 0 || fstat(dir_fd, &st) < 0 || st.st_uid != geteuid())
		return;
	int AUTO_CLOSE owner_fd = openat(dir_fd, "owner", O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	if (owner_fd < 0) {
		bool making = time(NULL) - st.st_mtime < UNKNOWN_AGE_S;
		other->state = making ? SCRATCH_ALIVE : SCRATCH_DEAD;
		return;
	}
	other->state = flock(owner_fd, LOCK_EX | LOCK_NB) == 0 ? SCRATCH_DEAD : SCRATCH_ALIVE;
	read_owner(dir_fd, other);
}

void scratch_remove(const struct scratch_other *other)
{
	int AUTO_CLOSE dir_fd =
		open(other->folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (other->state != SCRATCH_DEAD || dir_fd < 0)
		return;
	remove_files(dir_fd, other->folder);
}

int scratch_scan(const char *base, scratch_callback *callback, void *context, struct err *err)
{
	char real[PATH_MAX], path[PATH_MAX];
	DIR *dir = realpath(base, real) ? opendir(real) : NULL;
	if (!dir)
		return err_errno(err, errno, "cannot use the scratch folder %s", base);
	int rc = 0;
	struct dirent *entry;
	while (rc == 0 && (entry = readdir(dir))) {
		struct scratch_other other;
		if (!scratch_is_id(entry->d_name))
			continue;
		int length = snprintf(path, sizeof path, "%s/%s", real, entry->d_name);
		if (length < 0 || (size_t)length >= sizeof path)
			continue;
		scratch_look(path, &other);
		if (other.state != SCRATCH_GONE)
			rc = callback(context, &other, err);
	}
	closedir(dir);
	return rc;
}
