/*
 * Before a restore point goes: what stands on it, and who reads it.
 *
 * Manifests tell which point stands on which; the images' headers are asked too, because a
 * manifest may have been lost, and what it told of must not lose what it stands on.
 */
#include "merge_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void merge_look_paths(const struct merge *merge, struct merge_disk *disk)
{
	path_disk(merge->vm, disk->key, merge->point, ".qcow2", disk->image);
	path_disk(merge->vm, disk->key, merge->point, ".sums", disk->sums);
	if (!disk->has_child)
		return;
	path_disk(merge->vm, disk->key, merge->child, ".qcow2", disk->child_image);
	path_disk(merge->vm, disk->key, merge->child, ".sums", disk->child_sums);
	path_disk(merge->vm, disk->key, merge->child, ".sums.part", disk->child_part);
}

/* --- which disk stands on which --------------------------------------------------------- */

/* The restore point listed behind this one; "" when it is the last. */
int merge_look_next(const struct merge *merge, char next[REPOSITORY_POINT_BYTES], struct err *err)
{
	struct path_names points;
	if (list_points(merge->repo, merge->vm, &points, err) < 0)
		return -1;
	next[0] = '\0';
	for (size_t i = 0; i < points.nr && !next[0]; i++)
		if (strcmp(points.name[i], merge->point) > 0)
			snprintf(next, REPOSITORY_POINT_BYTES, "%s", points.name[i]);
	path_names_free(&points);
	return 0;
}

/* Whether an image's header says that it stands on the point's; -1 when it cannot be read. */
static int stands_on_image(const struct merge *merge, const char *path)
{
	struct qcow2_facts facts;
	char backing[REPOSITORY_POINT_BYTES + sizeof ".qcow2"];
	char *AUTO_FREE full = NULL;
	snprintf(backing, sizeof backing, "%s.qcow2", merge->point);
	if (asprintf(&full, "%s/%s", merge->repo->info.path, path) < 0 ||
		qcow2_facts(full, &facts, NULL) < 0)
		return -1;
	return strcmp(facts.backing_file, backing) == 0;
}

/*
 * Held against the images themselves: what stands on this one and is no listed point's (its
 * manifest was lost, and may be brought back) needs it.  One whose header cannot be read
 * may be such a one.
 */
static int check_images(const struct merge *merge, const struct merge_disk *disk, struct err *err)
{
	char folder[NAME_PATH_BYTES];
	struct path_names names;
	int rc = 0;
	path_disk(merge->vm, disk->key, "", "", folder);
	if (path_names(merge->repo->dir_fd, folder, &names, err) < 0)
		return -1;
	for (size_t i = 0; i < names.nr && rc == 0; i++) {
		char path[NAME_PATH_BYTES];
		snprintf(path, sizeof path, "%.250s/%.255s", folder, names.name[i]);
		bool is_part = path_has_suffix(path, ".qcow2.part");
		if ((!is_part && !path_has_suffix(path, ".qcow2")) ||
			strcmp(path, disk->image) == 0)
			continue;
		bool is_child = disk->has_child && strcmp(path, disk->child_image) == 0;
		int stands = stands_on_image(merge, path);
		if (stands < 0 && is_part)
			continue; /* an unfinished backup's, whose parent is the newest point */
		if (stands < 0)
			rc = err_set(err, ERR_CORRUPT,
				"%s cannot be read, and may stand on it (sendense repo check says "
				"more)",
				path);
		else if (is_child && !stands)
			rc = err_set(err, ERR_CORRUPT,
				"%s does not stand on it, as its manifest says", path);
		else if (!is_child && stands)
			rc = err_set(err, ERR_CORRUPT,
				"%s stands on it, and no restore point tells of that (sendense "
				"repo check says more)",
				path);
	}
	path_names_free(&names);
	return rc;
}

int merge_look_child(const struct merge *merge, const struct merge_disk *disk, struct err *err)
{
	struct qcow2_facts facts;
	char backing[REPOSITORY_POINT_BYTES + sizeof ".qcow2"];
	char *AUTO_FREE full = NULL;
	snprintf(backing, sizeof backing, "%s%s", disk->backing, disk->backing[0] ? ".qcow2" : "");
	if (asprintf(&full, "%s/%s", merge->repo->info.path, disk->image) < 0)
		return err_errno(err, ENOMEM, "cannot open %s", disk->image);
	if (qcow2_facts(full, &facts, err) < 0)
		return -1;
	if (strcmp(facts.backing_file, backing) == 0 &&
		stands_on_image(merge, disk->child_image) == 1)
		return 0;
	return err_set(err, ERR_CORRUPT, "%s and %s do not stand on what the plan says",
		disk->image, disk->child_image);
}

/* What is to become of each disk.  child may be NULL. */
int merge_look_actions(struct merge *merge, const struct repository_point *point,
	const struct repository_point *child, struct err *err)
{
	merge->disks = calloc(point->nr_disks, sizeof *merge->disks);
	if (!merge->disks)
		return err_errno(err, ENOMEM, "cannot take out restore point %s", point->id);
	merge->nr_disks = point->nr_disks;
	for (size_t i = 0; i < point->nr_disks; i++) {
		const struct repository_disk_info *info = &point->disks[i];
		struct merge_disk *disk = &merge->disks[i];
		const struct repository_disk_info *above = repository_point_disk(child, info->key);
		memcpy(disk->key, info->key, sizeof disk->key);
		disk->size_bytes = info->size_bytes;
		if (info->backing)
			snprintf(disk->backing, sizeof disk->backing, "%s", info->backing);
		disk->has_child = above && above->backing && strcmp(above->backing, point->id) == 0;
		if (disk->has_child)
			memcpy(merge->child, child->id, sizeof merge->child);
	}
	for (size_t i = 0; i < merge->nr_disks; i++) {
		merge_look_paths(merge, &merge->disks[i]);
		if (check_images(merge, &merge->disks[i], err) < 0)
			return -1;
	}
	return 0;
}

/* --- who uses it ---------------------------------------------------------------------------- */

/* Whether a disk of the other point stands on this one, in some steps; also where that
 * cannot be told. */
static bool stands_on(struct repository *repo, const char *vm, const char *other, const char *point)
{
	bool listed, found = false;
	struct repository_point *top = manifest_load_link(repo, vm, other, &listed, NULL);
	if (!top)
		return true;
	for (size_t i = 0; i < top->nr_disks && !found; i++) {
		char beneath[REPOSITORY_POINT_BYTES] = "";
		if (top->disks[i].backing)
			snprintf(beneath, sizeof beneath, "%s", top->disks[i].backing);
		while (strcmp(beneath, point) > 0) {
			struct repository_point *next =
				manifest_load_link(repo, vm, beneath, &listed, NULL);
			const struct repository_disk_info *info =
				repository_point_disk(next, top->disks[i].key);
			if (info)
				snprintf(beneath, sizeof beneath, "%s",
					info->backing && strcmp(info->backing, beneath) < 0
						? info->backing
						: "");
			else
				memcpy(beneath, point, sizeof beneath);
			repository_point_free(next);
		}
		found = strcmp(beneath, point) == 0;
	}
	repository_point_free(top);
	return found;
}

struct user_search {
	struct repository *repo;
	const char *vm, *point;
	struct err *err;
};

static int match_lease(void *context, const struct lock_record *lease)
{
	const struct user_search *search = context;
	int order = strcmp(lease->point, search->point);
	if (order < 0 ||
		(order > 0 && !stands_on(search->repo, search->vm, lease->point, search->point)))
		return 0;
	err_set(search->err, ERR_BUSY,
		"restore point %s is being read by process %" PRId64 " on host %s since %s",
		lease->point, lease->owner.pid, lease->owner.host, lease->since);
	return 1;
}

int merge_look_use(struct repository *repo, const char *vm, const char *point, struct err *err)
{
	struct err used = ERR_INIT;
	struct user_search search = {.repo = repo, .vm = vm, .point = point, .err = &used};
	if (lock_leases(repo, vm, match_lease, &search, err) < 0)
		return -1;
	return used.code == ERR_NONE ? 0 : err_copy(err, &used);
}

/* Programs that know no leases (QEMU's) are seen by their locks on the images. */
int merge_look_locks(const struct merge *merge, struct err *err)
{
	for (size_t i = 0; i < merge->nr_disks; i++) {
		const struct merge_disk *disk = &merge->disks[i];
		int AUTO_CLOSE fd = openat(merge->repo->dir_fd, disk->image,
			O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
		if (fd < 0)
			return err_errno(err, errno, "cannot open %s", disk->image);
		if (filelock_take(fd, disk->image,
			    disk->has_child ? FILELOCK_MERGE : FILELOCK_WRITE, err) < 0)
			return -1;
	}
	return 0;
}
