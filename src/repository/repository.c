/* Repositories: making one, opening one, and finding out that a path lies in one. */
#include "repository_internal.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define RECORD "repository.json"

static const char *const folders[] = {".incoming", ".locks", "vms"};

/* --- making ----------------------------------------------------------------- */

static bool is_ours(const char *name)
{
	for (unsigned i = 0; i < ARRAY_LENGTH(folders); i++)
		if (strcmp(name, folders[i]) == 0)
			return true;
	return strcmp(name, RECORD ".new") == 0 || strcmp(name, "lost+found") == 0 ||
	       strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* ERR_EXISTS unless the folder holds nothing but what an interrupted init made. */
static int check_empty(int dir_fd, const char *path, struct err *err)
{
	if (faccessat(dir_fd, RECORD, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
		return err_set(err, ERR_EXISTS, "%s is a repository already", path);
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *folder = fd < 0 ? NULL : fdopendir(fd);
	if (!folder) {
		int why = errno;
		if (fd >= 0)
			close(fd);
		return err_errno(err, why, "cannot read folder %s", path);
	}
	int rc = 0;
	for (const struct dirent *entry; rc == 0 && (entry = readdir(folder));) {
		char shown[NAME_MAX + 1];
		name_printable(entry->d_name, shown, sizeof shown);
		if (!is_ours(entry->d_name))
			rc = err_set(err, ERR_EXISTS,
				"%s is not empty: it holds \"%s\" (a repository needs a folder of "
				"its own)",
				path, shown);
	}
	closedir(folder);
	return rc;
}

static json_t *make_record(const struct repository_settings *settings, struct err *err)
{
	uint8_t id[16], seed[DIGEST_SEED_BYTES];
	char id_hex[33], seed_hex[2 * DIGEST_SEED_BYTES + 1], now[CLOCK_UTC_BYTES];
	char sha256[DIGEST_ROOT_HEX_BYTES];
	if (file_random(id, sizeof id, err) < 0 || file_random(seed, sizeof seed, err) < 0)
		return NULL;
	digest_hex(id, sizeof id, id_hex);
	digest_hex(seed, sizeof seed, seed_hex);
	name_now(now);
	json_t *record = json_pack("{s:i, s:s, s:s, s:s, s:o, s:s}", "format", REPOSITORY_FORMAT,
		"id", id_hex, "created", now, "software", "sendense", "settings",
		settings_to_json(settings), "digest_seed", seed_hex);
	if (!record) {
		err_errno(err, ENOMEM, "cannot make " RECORD);
		return NULL;
	}
	if (record_digest(record, NULL, sha256, err) < 0 ||
		json_object_set_new(record, "sha256", json_string(sha256)) < 0) {
		json_decref(record);
		return NULL;
	}
	return record;
}

/* The folder that path lies in, allocated. */
static char *parent_of(const char *path)
{
	size_t length = strlen(path);
	while (length > 1 && path[length - 1] == '/')
		length--;
	while (length > 0 && path[length - 1] != '/')
		length--;
	return length ? strndup(path, length) : strdup(".");
}

int repository_init(const char *path, const struct repository_settings *settings, struct err *err)
{
	char *AUTO_FREE parent = parent_of(path);
	json_t *record = NULL;
	int AUTO_CLOSE dir_fd = -1;
	int rc = -1;
	if (settings_check(settings, err) < 0 || !parent)
		goto out;
	if (repository_path_guard(parent, err) < 0)
		goto out;
	if (mkdir(path, 0700) < 0 && errno != EEXIST) {
		err_errno(err, errno, "cannot make folder %s", path);
		goto out;
	}
	dir_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0) {
		err_errno(err, errno, "cannot open folder %s", path);
		goto out;
	}
	/* The folder may be a symbolic link into a repository, whatever its parent is. */
	if (check_empty(dir_fd, path, err) < 0 || repository_path_guard(path, err) < 0)
		goto out;
	if (fchmod(dir_fd, 0700) < 0) {
		err_errno(err, errno, "cannot make %s private", path);
		goto out;
	}
	for (unsigned i = 0; i < ARRAY_LENGTH(folders); i++)
		if (file_make_dir(dir_fd, folders[i], 0700, err) < 0)
			goto out;
	/* "Web" and "web" are two machines. */
	if (path_exists(dir_fd, "VMS")) {
		err_set(err, ERR_UNSUPPORTED,
			"its file system does not tell upper case from lower case in names");
		goto out;
	}
	record = make_record(settings, err);
	if (!record || file_sync_dir(dir_fd, ".", err) < 0 ||
		file_sync_dir(AT_FDCWD, parent, err) < 0)
		goto out;
	rc = record_store(dir_fd, RECORD, record, err);
out:
	json_decref(record);
	if (rc < 0)
		err_context(err, "cannot make repository %s", path);
	return rc;
}

/* --- opening ------------------------------------------------------------------ */

static int parse_record(struct repository *repo, const json_t *record, struct err *err)
{
	struct repository_info *info = &repo->info;
	uint64_t format;
	if (record_check_format(record, RECORD, err) < 0 ||
		record_check_digest(record, record, "sha256", "sha256", RECORD, err) < 0 ||
		record_u64(record, "format", &format, RECORD, err) < 0 ||
		record_text_into(record, "id", info->id, sizeof info->id, RECORD, err) < 0 ||
		record_text_into(
			record, "created", info->created, sizeof info->created, RECORD, err) < 0)
		return -1;
	info->format = (unsigned)format;
	const json_t *settings = record_object(record, "settings", RECORD, err);
	if (!settings || settings_from_json(&info->settings, settings, RECORD, err) < 0)
		return -1;
	const char *seed_hex = record_string(record, "digest_seed", RECORD, err);
	if (!seed_hex)
		return -1;
	if (strlen(seed_hex) != 2 * sizeof repo->seed ||
		!digest_unhex(seed_hex, repo->seed, sizeof repo->seed))
		return err_set(err, ERR_FORMAT, RECORD ": \"digest_seed\" is not 32 bytes of hex");
	digest_key_init(&repo->key, info->settings.digest, repo->seed);
	return 0;
}

static int open_folder(struct repository *repo, const char *path, struct err *err)
{
	char real[PATH_MAX];
	if (!realpath(path, real))
		return err_errno(err, errno, "%s", path);
	snprintf(repo->info.path, sizeof repo->info.path, "%s", real);
	repo->dir_fd = open(real, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (repo->dir_fd < 0)
		return err_errno(err, errno, "%s", real);
	if (faccessat(repo->dir_fd, RECORD, F_OK, 0) < 0 && errno == ENOENT) {
		err_set(err, ERR_FORMAT, "%s is not a repository: it has no " RECORD, real);
		return err_hint(err, "sendense repo init makes one");
	}
	return 0;
}

struct repository *repository_open(const char *path, enum repository_mode mode, struct err *err)
{
	struct repository *repo = calloc(1, sizeof *repo);
	json_t *record = NULL;
	if (!repo) {
		err_errno(err, ENOMEM, "cannot open repository %s", path);
		return NULL;
	}
	repo->dir_fd = -1;
	pthread_mutex_init(&repo->locks_mutex, NULL);
	thread_cond_init(&repo->locks_changed);
	if (open_folder(repo, path, err) < 0)
		goto fail;
	record = record_load(repo->dir_fd, RECORD, err);
	if (!record || parse_record(repo, record, err) < 0)
		goto fail;
	/* access() and not a trial file: opening leaves no trace.  The mount's flag on top,
	 * because not every system's access() heeds it for root. */
	struct statvfs vfs;
	bool is_mounted_read_only =
		fstatvfs(repo->dir_fd, &vfs) == 0 && (vfs.f_flag & ST_RDONLY) != 0;
	if (is_mounted_read_only)
		errno = EROFS;
	repo->read_only = is_mounted_read_only || faccessat(repo->dir_fd, ".locks", W_OK, 0) < 0 ||
			  faccessat(repo->dir_fd, "vms", W_OK, 0) < 0;
	repo->info.read_only = repo->read_only;
	if (repo->read_only && mode == REPOSITORY_WRITE) {
		err_set(err, ERR_DENIED, "it cannot be written to: %s",
			errno == EROFS ? "its file system is read-only" : strerror(errno));
		goto fail;
	}
	json_decref(record);
	return repo;
fail:
	json_decref(record);
	err_context(err, "cannot open repository %s", path);
	repository_close(repo);
	return NULL;
}

void repository_close(struct repository *repo)
{
	if (!repo)
		return;
	assert(repo->nr_users == 0 && !repo->locks);
	if (repo->beating) {
		pthread_mutex_lock(&repo->locks_mutex);
		repo->stopping = true;
		pthread_cond_signal(&repo->locks_changed);
		pthread_mutex_unlock(&repo->locks_mutex);
		pthread_join(repo->beater, NULL);
	}
	if (repo->dir_fd >= 0)
		close(repo->dir_fd);
	pthread_mutex_destroy(&repo->locks_mutex);
	pthread_cond_destroy(&repo->locks_changed);
	free(repo);
}

int repository_free_bytes(
	struct repository *repo, uint64_t *free_bytes, uint64_t *total_bytes, struct err *err)
{
	struct statvfs vfs;
	if (fstatvfs(repo->dir_fd, &vfs) < 0)
		return err_errno(err, errno, "cannot tell the free space of %s", repo->info.path);
	if (!mul_u64(vfs.f_bavail, vfs.f_frsize, free_bytes))
		*free_bytes = UINT64_MAX;
	if (!mul_u64(vfs.f_blocks, vfs.f_frsize, total_bytes))
		*total_bytes = UINT64_MAX;
	return 0;
}

int repository_info(struct repository *repo, struct repository_info *info, struct err *err)
{
	*info = repo->info;
	return repository_free_bytes(repo, &info->free_bytes, &info->total_bytes, err);
}

/* --- paths inside -------------------------------------------------------------- */

/* realpath() of the longest part of path that exists. */
static bool real_ancestor(const char *path, char real[PATH_MAX])
{
	char *AUTO_FREE rest = strdup(path[0] ? path : ".");
	while (rest && !realpath(rest, real)) {
		size_t length = strlen(rest);
		if (errno == ELOOP || errno == EACCES || length >= PATH_MAX)
			return false;
		while (length > 1 && rest[length - 1] == '/')
			length--;
		while (length > 0 && rest[length - 1] != '/')
			length--;
		if (length == 0)
			return realpath(".", real) != NULL;
		if (length == 1)
			return realpath("/", real) != NULL;
		rest[length - 1] = '\0';
	}
	return rest != NULL;
}

bool repository_path_inside(const char *path, char root[4096])
{
	char real[PATH_MAX], probe[PATH_MAX + sizeof "/" RECORD];
	if (!real_ancestor(path, real))
		return false;
	for (;;) {
		struct stat st;
		snprintf(probe, sizeof probe, "%s/" RECORD, real);
		if (lstat(probe, &st) == 0) {
			if (root)
				snprintf(root, 4096, "%s", real);
			return true;
		}
		char *slash = strrchr(real, '/');
		if (!slash || strcmp(real, "/") == 0 || real[0] == '\0')
			return false;
		*slash = '\0'; /* the empty text stands for the top */
	}
}

int repository_path_guard(const char *path, struct err *err)
{
	char root[4096];
	if (!repository_path_inside(path, root))
		return 0;
	return err_set(err, ERR_DENIED,
		"%s lies inside the repository %s, where only backups may write", path,
		root[0] ? root : "/");
}

void repository_seed(struct repository *repo, uint8_t seed[DIGEST_SEED_BYTES])
{
	memcpy(seed, repo->seed, DIGEST_SEED_BYTES);
}
