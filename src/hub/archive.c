/*
 * An export is a tar file:
 *
 *   export.json   format, hub, software, created, and of each other file its name, size,
 *                 SHA-256 and where it was
 *   state.db      a copy of the state, whole in itself
 *   NAME...       configuration, CA, certificates, keys, as they were named to the export
 *
 * An import puts all into a new folder, beside the one that is wanted or, where that is there
 * already and empty, in it, and moves it into place when everything is there and sound.
 */
#include "archive.h"

#include "tar.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define FORMAT 1
#define LIST "export.json"
#define STATE "state.db"
#define PART_BYTES ((size_t)256 << 10)
#define LIST_BYTES (1u << 20)
#define FILE_BYTES (16u << 20) /* of each but the state */

static bool is_name(const char *name)
{
	static const char allowed[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-/";
	size_t length = strlen(name);
	if (length == 0 || length >= ARCHIVE_NAME_BYTES || strspn(name, allowed) != length ||
		name[0] == '.' || name[0] == '/' || name[length - 1] == '/')
		return false;
	/* No segment is hidden, "..", or empty. */
	return !strstr(name, "/.") && !strstr(name, "//");
}

/* It can be shown: there, and without what terminals act upon. */
static bool is_plain(const char *text)
{
	for (; text && *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			return false;
	return text != NULL;
}

/* --- export --------------------------------------------------------------------------------- */

static int open_source(const char *path, uint64_t *length, struct err *err)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) < 0) {
		err_errno(err, errno, "cannot open %s", path);
		if (fd >= 0)
			close(fd);
		return -1;
	}
	*length = (uint64_t)st.st_size;
	if (S_ISREG(st.st_mode))
		return fd;
	close(fd);
	return err_set(err, ERR_USAGE, "%s is no plain file", path);
}

static int hash_file(int fd, uint64_t offset, uint64_t length, const char *name,
	char hex[DIGEST_ROOT_HEX_BYTES], struct err *err)
{
	uint8_t hash[DIGEST_ROOT_BYTES];
	gnutls_hash_hd_t sum;
	char *AUTO_FREE buffer = malloc(PART_BYTES);
	if (!buffer || gnutls_hash_init(&sum, GNUTLS_DIG_SHA256) != 0)
		return err_errno(err, ENOMEM, "cannot read %s", name);
	int rc = 0;
	for (uint64_t at = 0; rc == 0 && at < length;) {
		size_t part = (size_t)min_u64(PART_BYTES, length - at);
		rc = file_pread(fd, buffer, part, offset + at, name, err);
		if (rc == 0 && gnutls_hash(sum, buffer, part) != 0)
			rc = err_set(err, ERR_IO, "cannot digest %s", name);
		at += part;
	}
	gnutls_hash_deinit(sum, hash);
	digest_hex(hash, sizeof hash, hex);
	return rc;
}

/* was: where it is for the hub. */
static int list_file(
	json_t *files, const struct archive_file *file, const char *was, struct err *err)
{
	uint64_t length;
	char hex[DIGEST_ROOT_HEX_BYTES];
	int AUTO_CLOSE fd = open_source(file->path, &length, err);
	if (fd < 0 || hash_file(fd, 0, length, file->path, hex, err) < 0)
		return -1;
	json_array_append_new(files, json_pack("{s:s, s:I, s:s, s:s}", "name", file->name, "size",
					     (json_int_t)length, "sha256", hex, "path", was));
	return 0;
}

static int add_file(struct tar_writer *tar, const struct archive_file *file, struct err *err)
{
	uint64_t length;
	int AUTO_CLOSE fd = open_source(file->path, &length, err);
	return fd < 0 ? -1 : tar_add(tar, file->name, length, time(NULL), fd, NULL, err);
}

static json_t *make_list(const struct archive_export_options *options,
	const struct archive_file *state, struct err *err)
{
	char now[CLOCK_UTC_BYTES];
	json_t *files = json_array();
	clock_utc_text(time(NULL), now);
	int rc = list_file(files, state, options->state_path, err);
	for (size_t i = 0; rc == 0 && i < options->nr_files; i++) {
		const struct archive_file *file = &options->files[i];
		if (!is_name(file->name) || strcmp(file->name, STATE) == 0 ||
			strcmp(file->name, LIST) == 0)
			rc = err_set(
				err, ERR_USAGE, "\"%s\" cannot be a name in an export", file->name);
		else
			rc = list_file(files, file, file->path, err);
	}
	if (rc < 0) {
		json_decref(files);
		return NULL;
	}
	return json_pack("{s:i, s:s, s:s, s:s, s:o}", "sendense-hub-export", FORMAT, "hub",
		options->hub, "software", options->software, "created", now, "files", files);
}

static int write_archive(const struct archive_export_options *options, struct tar_writer *tar,
	const struct archive_file *state, struct err *err)
{
	json_t *list = make_list(options, state, err);
	char *AUTO_FREE text = list ? json_dumps(list, JSON_INDENT(1)) : NULL;
	json_decref(list);
	if (!text)
		return -1;
	if (tar_add(tar, LIST, strlen(text), time(NULL), -1, text, err) < 0 ||
		add_file(tar, state, err) < 0)
		return -1;
	for (size_t i = 0; i < options->nr_files; i++)
		if (add_file(tar, &options->files[i], err) < 0)
			return -1;
	if (tar_end(tar, err) < 0)
		return -1;
	return fsync(tar->fd) < 0 ? err_errno(err, errno, "cannot sync %s", tar->path) : 0;
}

static int sync_parent(const char *path, struct err *err)
{
	char *AUTO_FREE copy = strdup(path);
	if (!copy)
		return err_errno(err, ENOMEM, "cannot sync %s", path);
	return file_sync_dir(AT_FDCWD, dirname(copy), err);
}

int archive_export(const struct archive_export_options *options, const char *out, struct err *err)
{
	char *AUTO_FREE copy = NULL;
	if (options->nr_files > ARCHIVE_FILES_MOST)
		return err_set(
			err, ERR_USAGE, "an export holds at most %d files", ARCHIVE_FILES_MOST);
	int AUTO_CLOSE fd = open(out, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		int error = errno;
		err_errno(err, error, "cannot make %s", out);
		return error == EEXIST ? err_hint(err, "no file is overwritten: name another one")
				       : -1;
	}
	/* Beside it, where there is room for it, and nobody else reads. */
	if (asprintf(&copy, "%s." STATE, out) < 0) {
		copy = NULL;
		unlink(out);
		return err_errno(err, ENOMEM, "cannot export to %s", out);
	}
	struct tar_writer tar = {.fd = fd, .path = out};
	const struct archive_file state = {STATE, copy};
	int rc = state_copy(options->state_path, copy, err);
	if (rc == 0) {
		rc = write_archive(options, &tar, &state, err);
		unlink(copy);
	}
	if (rc == 0)
		rc = sync_parent(out, err);
	if (rc == 0)
		return 0;
	unlink(out);
	return err_context(err, "cannot export the hub to %s", out);
}

/* --- keep ----------------------------------------------------------------------------------- */

int archive_keep(struct state *state, const char *scratch, const char *hub, struct repository *repo,
	struct err *err)
{
	char *AUTO_FREE copy = NULL, *AUTO_FREE where = NULL;
	struct repository_info info;
	if (repository_info(repo, &info, err) < 0)
		return -1;
	if (asprintf(&copy, "%s/state-%s.copy", scratch, info.id) < 0)
		return err_errno(err, ENOMEM, "cannot copy the hub's state");
	/* Of a hub that was killed while it copied. */
	if (unlink(copy) < 0 && errno != ENOENT)
		return err_errno(err, errno, "cannot remove %s", copy);
	if (state_backup(state, copy, err) < 0)
		return -1;
	int AUTO_CLOSE fd = open(copy, O_RDONLY | O_CLOEXEC);
	int rc = fd < 0 ? err_errno(err, errno, "cannot open %s", copy)
			: repository_hub_state_store(repo, hub, fd, err);
	unlink(copy);
	if (rc == 0 && asprintf(&where, "%s/hub/%s/" STATE, info.path, hub) < 0)
		rc = err_errno(err, ENOMEM, "cannot note where the hub's state was copied to");
	return rc < 0 ? -1 : state_copied(state, where, err);
}

/* --- import --------------------------------------------------------------------------------- */

struct import {
	const char *in;
	int fd; /* of in */
	int folder; /* that is filled */
	json_t *list; /* export.json; NULL: a bare state */
	struct archive_summary *summary;
};

static const json_t *find_listed(const json_t *list, const char *name)
{
	size_t i;
	const json_t *file;
	json_array_foreach(json_object_get(list, "files"), i, file)
	{
		const char *listed = json_string_value(json_object_get(file, "name"));
		if (listed && strcmp(listed, name) == 0)
			return file;
	}
	return NULL;
}

static int load_list(struct import *import, const struct tar_member *member, struct err *err)
{
	if (strcmp(member->name, LIST) != 0 || member->length > LIST_BYTES)
		return err_set(
			err, ERR_FORMAT, "%s is an archive, but no hub's export", import->in);
	char *AUTO_FREE text = malloc(LIST_BYTES);
	if (!text)
		return err_errno(err, ENOMEM, "cannot read %s", import->in);
	if (file_pread(import->fd, text, (size_t)member->length, member->offset, import->in, err) <
		0)
		return -1;
	import->list = json_loadb(text, (size_t)member->length, JSON_REJECT_DUPLICATES, NULL);
	const json_t *format = json_object_get(import->list, "sendense-hub-export");
	if (!json_is_integer(format))
		return err_set(
			err, ERR_FORMAT, "%s is an archive, but no hub's export", import->in);
	if (json_integer_value(format) != FORMAT)
		return err_set(err, ERR_UNSUPPORTED,
			"%s has format %" JSON_INTEGER_FORMAT ", this program knows %d (a newer "
			"Sendense wrote it: import it with that one)",
			import->in, json_integer_value(format), FORMAT);
	const struct {
		const char *name;
		char *out;
		size_t room;
	} members[] = {
		{"hub", import->summary->hub, sizeof import->summary->hub},
		{"software", import->summary->software, sizeof import->summary->software},
		{"created", import->summary->created, sizeof import->summary->created},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(members); i++) {
		const char *value =
			json_string_value(json_object_get(import->list, members[i].name));
		if (!is_plain(value) || strlen(value) >= members[i].room)
			return err_set(err, ERR_FORMAT,
				"%s: its list is not as an export has it (\"%s\")", import->in,
				members[i].name);
		snprintf(members[i].out, members[i].room, "%s", value);
	}
	return 0;
}

static int make_parents(int folder, const char *name, struct err *err)
{
	char path[ARCHIVE_NAME_BYTES];
	snprintf(path, sizeof path, "%s", name);
	for (char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		if (file_make_dir(folder, path, 0700, err) < 0)
			return -1;
		*slash = '/';
	}
	return 0;
}

static int copy_out(
	struct import *import, const char *name, uint64_t offset, uint64_t length, struct err *err)
{
	if (make_parents(import->folder, name, err) < 0)
		return -1;
	int AUTO_CLOSE to = openat(
		import->folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (to < 0)
		return err_errno(err, errno, "cannot make %s", name);
	char *AUTO_FREE buffer = malloc(PART_BYTES);
	if (!buffer)
		return err_errno(err, ENOMEM, "cannot make %s", name);
	for (uint64_t at = 0; at < length;) {
		size_t part = (size_t)min_u64(PART_BYTES, length - at);
		if (file_pread(import->fd, buffer, part, offset + at, import->in, err) < 0 ||
			file_pwrite(to, buffer, part, at, name, err) < 0)
			return -1;
		at += part;
	}
	return fsync(to) < 0 ? err_errno(err, errno, "cannot sync %s", name) : 0;
}

static int bring_member(struct import *import, const struct tar_member *member, struct err *err)
{
	char hex[DIGEST_ROOT_HEX_BYTES];
	const json_t *file = find_listed(import->list, member->name);
	const char *hash = json_string_value(json_object_get(file, "sha256"));
	const char *path = json_string_value(json_object_get(file, "path"));
	bool is_state = strcmp(member->name, STATE) == 0;
	if (!file || !hash || !is_plain(path) || !is_name(member->name) ||
		(!is_state && member->length > FILE_BYTES))
		return err_set(err, ERR_FORMAT, "%s: \"%.96s\" does not belong into an export",
			import->in, member->name);
	if (hash_file(import->fd, member->offset, member->length, import->in, hex, err) < 0)
		return -1;
	if (strcmp(hash, hex) != 0)
		return err_set(err, ERR_CORRUPT,
			"%s: %s is not what was exported: the file was damaged or changed since",
			import->in, member->name);
	if (copy_out(import, member->name, member->offset, member->length, err) < 0)
		return -1;
	import->summary->nr_files++;
	if (import->summary->file)
		import->summary->file(import->summary->context, member->name, path);
	return 0;
}

static int bring_archive(struct import *import, struct err *err)
{
	struct tar_reader tar = {.fd = import->fd, .path = import->in};
	struct tar_member member;
	int rc = tar_next(&tar, &member, err);
	if (rc == 0)
		return err_set(err, ERR_FORMAT, "%s is empty", import->in);
	if (rc < 0 || load_list(import, &member, err) < 0)
		return -1;
	while ((rc = tar_next(&tar, &member, err)) > 0)
		if (bring_member(import, &member, err) < 0)
			return -1;
	size_t listed = json_array_size(json_object_get(import->list, "files"));
	if (rc == 0 && (import->summary->nr_files != listed || !find_listed(import->list, STATE)))
		rc = err_set(err, ERR_CORRUPT, "%s lacks files that it lists", import->in);
	return rc;
}

static int bring(struct import *import, struct err *err)
{
	char magic[16] = {0};
	struct stat st;
	if (fstat(import->fd, &st) < 0 || pread(import->fd, magic, sizeof magic, 0) < 0)
		return err_errno(err, errno, "cannot read %s", import->in);
	if (!S_ISREG(st.st_mode))
		return err_set(err, ERR_FORMAT, "%s is no plain file", import->in);
	if (memcmp(magic, "SQLite format 3", sizeof magic) != 0)
		return bring_archive(import, err);
	import->summary->nr_files = 1;
	return copy_out(import, STATE, 0, (uint64_t)st.st_size, err);
}

/* What an import that failed had made: all of it is ours. */
static void remove_tree(int parent, const char *name, unsigned depth)
{
	if (unlinkat(parent, name, 0) == 0 || depth > ARCHIVE_NAME_BYTES)
		return;
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir) {
		if (fd >= 0)
			close(fd);
		return;
	}
	for (const struct dirent *entry; (entry = readdir(dir));)
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			remove_tree(fd, entry->d_name, depth + 1);
	closedir(dir);
	unlinkat(parent, name, AT_REMOVEDIR);
}

static int fill(const char *in, const char *part, struct archive_summary *summary, struct err *err)
{
	char *AUTO_FREE state = NULL;
	int AUTO_CLOSE fd = open(in, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return err_errno(err, errno, "cannot open %s", in);
	int AUTO_CLOSE folder = open(part, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (folder < 0)
		return err_errno(err, errno, "cannot open %s", part);
	struct import import = {.in = in, .fd = fd, .folder = folder, .summary = summary};
	int rc = bring(&import, err);
	json_decref(import.list);
	if (rc == 0 && asprintf(&state, "%s/" STATE, part) < 0)
		return err_errno(err, ENOMEM, "cannot import %s", in);
	if (rc == 0)
		rc = state_check(state, err);
	return rc < 0 ? -1 : file_sync_dir(folder, ".", err);
}

static bool is_empty(int folder)
{
	bool empty = true;
	int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = copy < 0 ? NULL : fdopendir(copy);
	if (!dir && copy >= 0)
		close(copy);
	for (const struct dirent *entry; dir && (entry = readdir(dir));)
		empty &= strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
	if (dir)
		closedir(dir);
	return dir && empty;
}

/* The state last: without it no hub takes the folder for its own. */
static int move_up(int folder, const char *part, struct err *err)
{
	char from[512];
	int rc = 0;
	int inner = openat(folder, part, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	DIR *dir = inner < 0 ? NULL : fdopendir(inner);
	if (!dir)
		return err_errno(err, errno, "cannot read %s", part);
	for (const struct dirent *entry; rc == 0 && (entry = readdir(dir));) {
		const char *name = entry->d_name;
		if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strcmp(name, STATE) != 0 &&
			renameat(inner, name, folder, name) < 0)
			rc = err_errno(err, errno, "cannot put %s in its place", name);
	}
	closedir(dir);
	snprintf(from, sizeof from, "%s/" STATE, part);
	if (rc == 0 && renameat(folder, from, folder, STATE) < 0)
		rc = err_errno(err, errno, "cannot put " STATE " in its place");
	if (rc == 0 && unlinkat(folder, part, AT_REMOVEDIR) < 0)
		rc = err_errno(err, errno, "cannot remove %s", part);
	return rc < 0 ? -1 : file_sync_dir(folder, ".", err);
}

/* Into a folder that is there: it keeps its owner and mode, and its parent need not be ours. */
static int import_into(const char *in, const char *target, int folder,
	struct archive_summary *summary, struct err *err)
{
	static const char part[] = ".import";
	char *AUTO_FREE path = NULL;
	if (!is_empty(folder))
		return err_set(err, ERR_EXISTS,
			"%s is not empty (an import needs a new or empty folder)", target);
	if (asprintf(&path, "%s/%s", target, part) < 0)
		return err_errno(err, ENOMEM, "cannot import %s", in);
	if (mkdirat(folder, part, 0700) < 0)
		return err_errno(err, errno, "cannot make %s", path);
	int rc = fill(in, path, summary, err);
	if (rc == 0)
		rc = move_up(folder, part, err);
	if (rc < 0)
		remove_tree(folder, part, 0);
	return rc;
}

/* A folder that is made: there as a whole or not at all. */
static int import_as(
	const char *in, const char *target, struct archive_summary *summary, struct err *err)
{
	char *AUTO_FREE part = NULL;
	if (asprintf(&part, "%s.import-XXXXXX", target) < 0)
		return err_errno(err, ENOMEM, "cannot import %s", in);
	if (!mkdtemp(part))
		return err_errno(err, errno, "cannot make a folder beside %s", target);
	int rc = fill(in, part, summary, err);
	if (rc == 0 && rename(part, target) < 0)
		rc = err_errno(err, errno, "cannot put %s in its place", target);
	if (rc == 0)
		return sync_parent(target, err);
	remove_tree(AT_FDCWD, part, 0);
	return -1;
}

int archive_import(
	const char *in, const char *folder, struct archive_summary *summary, struct err *err)
{
	char *AUTO_FREE target = strdup(folder);
	size_t length = strlen(folder);
	if (!target)
		return err_errno(err, ENOMEM, "cannot import %s", in);
	while (length > 1 && target[length - 1] == '/')
		target[--length] = '\0';
	summary->nr_files = 0;
	summary->hub[0] = summary->software[0] = summary->created[0] = '\0';
	int AUTO_CLOSE fd = open(target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc = -1;
	if (fd < 0 && errno != ENOENT)
		err_errno(err, errno, "cannot open %s", target);
	else if (fd < 0)
		rc = import_as(in, target, summary, err);
	else
		rc = import_into(in, target, fd, summary, err);
	return rc < 0 ? err_context(err, "cannot import %s", in) : 0;
}
