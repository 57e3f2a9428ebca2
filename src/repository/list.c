/* Listing: VMs and restore points, one manifest in memory at a time. */
#include "repository_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* A folder whose name was shortened tells its VM's name in a manifest. */
static bool name_from_manifest(
	struct repository *repo, const char *folder, char vm[REPOSITORY_VM_BYTES])
{
	char path[NAME_PATH_BYTES], encoded[REPOSITORY_FOLDER_BYTES];
	struct path_names points;
	bool found = false;
	snprintf(path, sizeof path, "vms/%.200s/points", folder);
	if (path_names(repo->dir_fd, path, &points, NULL) < 0)
		return false;
	for (size_t i = 0; i < points.nr && !found; i++) {
		snprintf(path, sizeof path, "vms/%.200s/points/%.100s/manifest.json", folder,
			points.name[i]);
		json_t *manifest = record_load(repo->dir_fd, path, NULL);
		const char *name = json_string_value(
			json_object_get(json_object_get(manifest, "facts"), "vm"));
		if (name && repository_name_check_vm(name, NULL) == 0) {
			repository_name_folder(name, encoded);
			found = strcmp(encoded, folder) == 0;
		}
		if (found)
			snprintf(vm, REPOSITORY_VM_BYTES, "%s", name);
		json_decref(manifest);
	}
	path_names_free(&points);
	return found;
}

bool list_vm_of_folder(struct repository *repo, const char *folder, char vm[REPOSITORY_VM_BYTES])
{
	return name_unfolder(folder, vm) || name_from_manifest(repo, folder, vm);
}

bool list_holds_points(struct repository *repo, const char *folder)
{
	char path[NAME_PATH_BYTES];
	struct path_names points;
	bool holds = false;
	snprintf(path, sizeof path, "vms/%.255s/points", folder);
	if (path_names(repo->dir_fd, path, &points, NULL) < 0)
		return false;
	for (size_t i = 0; i < points.nr && !holds; i++) {
		snprintf(path, sizeof path, "vms/%.200s/points/%.100s/manifest.json", folder,
			points.name[i]);
		holds = repository_name_is_point(points.name[i]) && path_exists(repo->dir_fd, path);
	}
	path_names_free(&points);
	return holds;
}

/* What a list cannot show is not left out in silence. */
static void warn_of_nameless(struct repository *repo, const char *folder)
{
	char shown[NAME_PATH_BYTES];
	name_printable(folder, shown, sizeof shown);
	if (list_holds_points(repo, folder))
		log_warning("vms/%s is not listed: nothing in it tells of which VM it is "
			    "(sendense verify says more)",
			shown);
}

int repository_list_vms(
	struct repository *repo, repository_vm_callback *callback, void *context, struct err *err)
{
	struct path_names folders;
	if (path_names(repo->dir_fd, "vms", &folders, err) < 0)
		return -1;
	int rc = 0;
	for (size_t i = 0; i < folders.nr && rc == 0; i++) {
		char vm[REPOSITORY_VM_BYTES];
		if (list_vm_of_folder(repo, folders.name[i], vm))
			rc = callback(context, vm);
		else
			warn_of_nameless(repo, folders.name[i]);
	}
	path_names_free(&folders);
	return 0;
}

int list_points(struct repository *repo, const char *vm, struct path_names *points, struct err *err)
{
	char path[NAME_PATH_BYTES], folder[NAME_PATH_BYTES];
	memset(points, 0, sizeof *points);
	if (repository_name_check_vm(vm, err) < 0)
		return -1;
	path_vm(vm, folder);
	if (!path_exists(repo->dir_fd, folder)) {
		err_set(err, ERR_NOT_FOUND, "repository %s has no VM \"%s\"", repo->info.path, vm);
		return strchr(vm, '@')
			       ? err_hint(err, "a restore point is named VM@POINT, with the "
					       "point's whole id as sendense ls shows it")
			       : -1;
	}
	path_point(vm, "", "", path);
	if (!path_exists(repo->dir_fd, path))
		return 0;
	struct path_names all;
	if (path_names(repo->dir_fd, path, &all, err) < 0)
		return -1;
	/* A folder without a manifest is a restore point that is being made, or
	 * whose making failed. */
	size_t kept = 0;
	for (size_t i = 0; i < all.nr; i++) {
		char manifest[NAME_PATH_BYTES];
		bool listed = repository_name_is_point(all.name[i]);
		if (listed) {
			path_point(vm, all.name[i], "manifest.json", manifest);
			/* When one cannot tell, loading it will say why. */
			if (path_look(repo->dir_fd, manifest, &listed, NULL) < 0)
				listed = true;
		}
		if (listed)
			all.name[kept++] = all.name[i];
		else
			free(all.name[i]);
	}
	all.nr = kept;
	*points = all;
	return 0;
}

int repository_list_points(struct repository *repo, const char *vm,
	repository_point_callback *callback, void *context, struct err *err)
{
	struct path_names points;
	if (list_points(repo, vm, &points, err) < 0)
		return -1;
	int rc = 0;
	for (size_t i = 0; i < points.nr && rc == 0; i++) {
		struct err why = ERR_INIT;
		struct repository_point *point = manifest_load(repo, vm, points.name[i], &why);
		if (!point) {
			rc = err_copy(err, &why);
			break;
		}
		/* Pruned while we were listing. */
		if (why.code != ERR_NOT_FOUND)
			rc = callback(context, point);
		repository_point_free(point);
	}
	path_names_free(&points);
	return rc < 0 ? -1 : 0;
}

/* All that is told of a point changes by renaming a file into its folder, which gives the folder
 * another time.  Clocks of file systems tick slowly: what changed within the last seconds
 * may change again without a trace. */
#define YOUNG_S 3

static bool is_young(const struct stat *st)
{
	return llabs((long long)time(NULL) - (long long)st->st_mtim.tv_sec) <= YOUNG_S;
}

static void make_mark(const struct stat *st, char mark[REPOSITORY_MARK_BYTES])
{
	mark[0] = '\0';
	if (!is_young(st))
		snprintf(mark, REPOSITORY_MARK_BYTES, "%llu %lld.%09ld",
			(unsigned long long)st->st_ino, (long long)st->st_mtim.tv_sec,
			st->st_mtim.tv_nsec);
}

/* Each commit and prune makes or removes a folder, and appends to the log; a merge appends. */
int repository_vm_mark(
	struct repository *repo, const char *vm, char mark[REPOSITORY_MARK_BYTES], struct err *err)
{
	char points[NAME_PATH_BYTES], log[NAME_PATH_BYTES];
	struct stat folder, file;
	mark[0] = '\0';
	if (repository_name_check_vm(vm, err) < 0)
		return -1;
	path_point(vm, "", "", points);
	path_vm_file(vm, "points.log", log);
	if (fstatat(repo->dir_fd, points, &folder, AT_SYMLINK_NOFOLLOW) < 0 ||
		fstatat(repo->dir_fd, log, &file, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : err_errno(err, errno, "cannot look at %s", points);
	if (!is_young(&folder) && !is_young(&file))
		snprintf(mark, REPOSITORY_MARK_BYTES, "%llu %lld %llu %lld",
			(unsigned long long)folder.st_ino, (long long)folder.st_mtim.tv_sec,
			(unsigned long long)file.st_size, (long long)file.st_mtim.tv_sec);
	return 0;
}

int repository_list_marks(struct repository *repo, const char *vm,
	int (*callback)(void *context, const char *point, const char *mark), void *context,
	struct err *err)
{
	struct path_names points;
	char path[NAME_PATH_BYTES], mark[REPOSITORY_MARK_BYTES];
	if (list_points(repo, vm, &points, err) < 0)
		return -1;
	int rc = 0;
	for (size_t i = 0; i < points.nr && rc == 0; i++) {
		struct stat st;
		path_point(vm, points.name[i], "", path);
		if (fstatat(repo->dir_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0) {
			make_mark(&st, mark);
			rc = callback(context, points.name[i], mark);
		} else if (errno != ENOENT) {
			rc = err_errno(err, errno, "cannot look at %s", path);
		}
	}
	path_names_free(&points);
	return rc < 0 ? -1 : 0;
}

struct repository_point *repository_point_load(
	struct repository *repo, const char *vm, const char *id, struct err *err)
{
	char latest[REPOSITORY_POINT_BYTES], manifest[NAME_PATH_BYTES];
	if (!id || !id[0]) {
		struct path_names points;
		if (list_points(repo, vm, &points, err) < 0)
			return NULL;
		if (points.nr == 0) {
			path_names_free(&points);
			err_set(err, ERR_NOT_FOUND, "VM \"%s\" has no restore point", vm);
			return NULL;
		}
		snprintf(latest, sizeof latest, "%s", points.name[points.nr - 1]);
		path_names_free(&points);
		id = latest;
	} else if (repository_name_check_vm(vm, err) < 0) {
		return NULL;
	}
	bool is_there = repository_name_is_point(id);
	if (is_there) {
		path_point(vm, id, "manifest.json", manifest);
		if (path_look(repo->dir_fd, manifest, &is_there, err) < 0)
			return NULL;
	}
	if (!is_there) {
		char shown[64];
		name_printable(id, shown, sizeof shown);
		err_set(err, ERR_NOT_FOUND, "VM \"%s\" has no restore point %s", vm, shown);
		return NULL;
	}
	struct err why = ERR_INIT;
	struct repository_point *point = manifest_load(repo, vm, id, &why);
	if (point && !point->damage)
		return point;
	repository_point_free(point);
	err_copy(err, &why);
	err_context(err, "restore point %s of VM \"%s\" cannot be used", id, vm);
	err_hint(err, "sendense verify tells what else is damaged; sendense ls shows older points");
	return NULL;
}

/* Pruned meanwhile, or no manifest: another time it is not one either. */
static bool is_damage(enum err_code code)
{
	return code == ERR_NOT_FOUND || code == ERR_FORMAT || code == ERR_CORRUPT ||
	       code == ERR_UNSUPPORTED;
}

int repository_point_of_job(struct repository *repo, const char *vm, const char *hub_job,
	char point[REPOSITORY_POINT_BYTES], struct err *err)
{
	struct path_names points = {0};
	struct err why = ERR_INIT;
	if (list_points(repo, vm, &points, &why) < 0)
		return why.code == ERR_NOT_FOUND ? 0 : err_copy(err, &why);
	int found = 0;
	for (size_t i = points.nr; i-- > 0 && found <= 0;) {
		struct repository_point *made = manifest_load(repo, vm, points.name[i], &why);
		if (made && made->hub_job && strcmp(made->hub_job, hub_job) == 0) {
			found = 1;
			memcpy(point, made->id, REPOSITORY_POINT_BYTES);
		} else if (!made || (made->damage && !is_damage(why.code))) {
			found = err_copy(err, &why); /* it may be the one */
		}
		repository_point_free(made);
	}
	path_names_free(&points);
	if (found > 0)
		err_clear(err);
	return found;
}

struct repository_point *repository_latest(struct repository *repo, const char *vm, const char *key,
	const struct repository_disk_info **disk, struct err *err)
{
	struct err why = ERR_INIT;
	struct repository_point *point = repository_point_load(repo, vm, NULL, &why);
	*disk = repository_point_disk(point, key);
	if (*disk)
		return point;
	if (!point && why.code != ERR_NOT_FOUND)
		err_copy(err, &why);
	repository_point_free(point);
	return NULL;
}
