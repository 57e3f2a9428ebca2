/*
 * A restore point X goes: the journal of docs/repository-format.md ("Prune and merge").
 *
 *   listed ─ plan ─► prepared ─ manifest.json to merging.json ─► taken out ─┐
 *     ▲                 │                                         │         │ nobody uses it
 *     └──── plan dropped, manifest renamed back ◄─────────────────┘         ▼
 *   gone ◄─ X's files removed ◄─ child's manifest ◄─ each disk merged ◄─ begun
 *
 * Until it has begun everything is put back; from then on it only goes forwards, and
 * every step may be done again: by whoever takes the VM's write lock next, after a crash.
 * All that damage could make fail is tried before it begins.
 */
#include "merge_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Kept free for records and the metadata of images. */
#define SPACE_MARGIN (2 * MIB)

static void set_stage(struct merge *merge, const char *stage)
{
	struct err err = ERR_INIT;
	if (plan_write_stage(merge->repo, merge->job, stage, ++merge->nr_stages, &err) < 0)
		log_warning("%s", err.text);
	if (merge->on_stage)
		merge->on_stage(merge->context, merge->vm, merge->point, stage);
}

/* The folder that the file is, or was, in. */
static int sync_folder_of(struct repository *repo, const char *path, struct err *err)
{
	char folder[NAME_PATH_BYTES];
	snprintf(folder, sizeof folder, "%s", path);
	*strrchr(folder, '/') = '\0';
	return file_sync_dir(repo->dir_fd, folder, err);
}

static int rename_synced(struct repository *repo, const char *from, const char *to, struct err *err)
{
	if (renameat(repo->dir_fd, from, repo->dir_fd, to) < 0)
		return err_errno(err, errno, "cannot rename %s to %s", from, to);
	return sync_folder_of(repo, to, err);
}

static int check_lock(const struct merge *merge, struct err *err)
{
	return merge->lock ? lock_still_ours(merge->lock, err) : 0;
}

/* --- what all of it takes on disk ------------------------------------------------------ */

static int64_t blocks_of(const struct repository *repo, const char *path)
{
	struct stat st;
	return fstatat(repo->dir_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0
		       ? (int64_t)st.st_blocks * 512
		       : 0;
}

/* A folder with the files in it, but not what is in folders of it. */
static int64_t blocks_in(const struct repository *repo, const char *folder)
{
	struct path_names names;
	int64_t sum = blocks_of(repo, folder);
	if (path_names(repo->dir_fd, folder, &names, NULL) < 0)
		return sum;
	for (size_t i = 0; i < names.nr; i++) {
		char path[2 * NAME_PATH_BYTES];
		snprintf(path, sizeof path, "%s/%s", folder, names.name[i]);
		sum += blocks_of(repo, path);
	}
	path_names_free(&names);
	return sum;
}

/* Of every file and folder that changes when the point goes. */
static int64_t blocks_now(const struct merge *merge)
{
	const struct repository *repo = merge->repo;
	char path[NAME_PATH_BYTES];
	path_point(merge->vm, merge->point, "", path);
	int64_t sum = blocks_in(repo, path);
	path_point(merge->vm, merge->point, "config", path);
	/* The folder itself was counted with its parent. */
	sum += blocks_in(repo, path) - blocks_of(repo, path);
	path_point(merge->vm, "", "", path);
	sum += blocks_of(repo, path);
	path_vm_file(merge->vm, "points.log", path);
	sum += blocks_of(repo, path);
	if (merge->child[0]) {
		path_point(merge->vm, merge->child, "", path);
		sum += blocks_in(repo, path);
	}
	for (size_t i = 0; i < merge->nr_disks; i++) {
		const struct merge_disk *disk = &merge->disks[i];
		path_disk(merge->vm, disk->key, "", "", path);
		sum += blocks_of(repo, path) + blocks_of(repo, disk->image) +
		       blocks_of(repo, disk->sums);
		if (disk->has_child)
			sum += blocks_of(repo, disk->child_image) +
			       blocks_of(repo, disk->child_sums) +
			       blocks_of(repo, disk->child_part);
	}
	return sum;
}

/* A merge writes the child's own bytes at most, disk after disk; the sums come first. */
static int check_space(const struct merge *merge, struct err *err)
{
	int64_t sums = 0, most = 0;
	uint64_t free_bytes, total_bytes;
	for (size_t i = 0; i < merge->nr_disks; i++) {
		const struct merge_disk *disk = &merge->disks[i];
		if (!disk->has_child)
			continue;
		int64_t image = blocks_of(merge->repo, disk->child_image);
		sums += blocks_of(merge->repo, disk->sums) +
			blocks_of(merge->repo, disk->child_sums);
		most = image > most ? image : most;
	}
	if (!merge->child[0])
		return 0;
	uint64_t need = (uint64_t)sums + (uint64_t)most + SPACE_MARGIN;
	if (repository_free_bytes(merge->repo, &free_bytes, &total_bytes, err) < 0)
		return -1;
	if (need <= free_bytes)
		return 0;
	return err_set(err, ERR_NO_SPACE,
		"merging it with %s may take %" PRIu64 " MiB for a while, and %s has %" PRIu64
		" MiB free",
		merge->child, div_round_up(need, MIB), merge->repo->info.path, free_bytes / MIB);
}

/* --- the plan ----------------------------------------------------------------------------- */

static void add_path(json_t *list, const char *path)
{
	json_array_append_new(list, json_string(path));
}

static void add_config(const struct merge *merge, const struct repository_point *point,
	json_t *files, json_t *folders)
{
	const json_t *entry;
	char path[NAME_PATH_BYTES];
	size_t i;
	path_point(merge->vm, merge->point, "config", path);
	if (!path_exists(merge->repo->dir_fd, path))
		return;
	add_path(folders, path);
	json_array_foreach(
		json_object_get(json_object_get(manifest_json(point), "facts"), "config"), i, entry)
	{
		const char *name = json_string_value(json_object_get(entry, "name"));
		if (!name || strchr(name, '/') || name[0] == '.')
			continue;
		json_array_append_new(files, json_sprintf("%s/%s", path, name));
	}
}

/* In the order of their removal; the record of the chain goes last. */
static void add_files(const struct merge *merge, const struct repository_point *point,
	json_t *files, json_t *folders)
{
	static const char *const records[] = {"state.json.new", "state.json", "merging.json"};
	char path[NAME_PATH_BYTES];
	for (size_t i = 0; i < merge->nr_disks; i++) {
		const struct merge_disk *disk = &merge->disks[i];
		if (disk->has_child)
			add_path(files, disk->child_part);
		add_path(files, disk->sums);
		add_path(files, disk->image);
	}
	if (merge->child[0]) {
		path_point(merge->vm, merge->child, "manifest.json.new", path);
		add_path(files, path);
	}
	path_point(merge->vm, merge->point, "", path);
	add_path(folders, path);
	add_config(merge, point, files, folders);
	for (unsigned i = 0; i < ARRAY_LENGTH(records); i++) {
		path_point(merge->vm, merge->point, records[i], path);
		add_path(files, path);
	}
}

static json_t *make_plan(const struct merge *merge, const struct repository_point *point,
	const char *software, struct err *err)
{
	struct owner owner;
	char now[CLOCK_UTC_BYTES];
	if (owner_self(&owner, err) < 0)
		return NULL;
	json_t *files = json_array(), *folders = json_array(), *disks = json_array();
	json_t *who = json_object();
	owner_to_json(&owner, who);
	name_now(now);
	add_files(merge, point, files, folders);
	for (size_t i = 0; i < merge->nr_disks; i++) {
		const struct merge_disk *disk = &merge->disks[i];
		json_array_append_new(
			disks, json_pack("{s:s, s:I, s:s, s:s?, s:s?}", "key", disk->key,
				       "size_bytes", (json_int_t)disk->size_bytes, "action",
				       disk->has_child ? "merge" : "delete", "child",
				       disk->has_child ? merge->child : NULL, "backing",
				       disk->backing[0] ? disk->backing : NULL));
	}
	json_t *plan = json_pack(
		"{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:o, s:o, s:o, s:o, s:b}", "format",
		REPOSITORY_FORMAT, "job", merge->job, "kind", "prune", "vm", merge->vm, "point",
		merge->point, "started", now, "software", software, "keep_seconds", 0, "owner", who,
		"files", files, "folders", folders, "disks", disks, "begun", 0);
	if (!plan || json_array_size(disks) != merge->nr_disks) {
		json_decref(plan);
		err_errno(err, ENOMEM, "cannot plan to take out restore point %s", merge->point);
		return NULL;
	}
	return plan;
}

/* A point's id or null; false when it is neither. */
static bool take_point(const json_t *object, const char *field, char out[REPOSITORY_POINT_BYTES])
{
	const json_t *value = json_object_get(object, field);
	const char *text = json_string_value(value);
	out[0] = '\0';
	if (!text)
		return json_is_null(value);
	if (!repository_name_is_point(text))
		return false;
	memcpy(out, text, REPOSITORY_POINT_BYTES);
	return true;
}

static int parse_disk(
	const json_t *object, struct merge_disk *disk, char child[REPOSITORY_POINT_BYTES])
{
	const char *key = json_string_value(json_object_get(object, "key"));
	const char *action = json_string_value(json_object_get(object, "action"));
	if (!key || repository_name_check_key(key, NULL) < 0 || !action ||
		!take_point(object, "child", child) ||
		!take_point(object, "backing", disk->backing) ||
		record_u64(object, "size_bytes", &disk->size_bytes, "", NULL) < 0)
		return -1;
	snprintf(disk->key, sizeof disk->key, "%s", key);
	disk->has_child = strcmp(action, "merge") == 0;
	return disk->has_child == (child[0] != '\0') &&
			       (disk->has_child || strcmp(action, "delete") == 0)
		       ? 0
		       : -1;
}

int merge_parse_plan(struct plan *plan, const char *name, struct err *err)
{
	const json_t *disks = json_object_get(plan->json, "disks"), *object;
	const json_t *begun = json_object_get(plan->json, "begun");
	bool good = json_is_boolean(begun) && json_array_size(disks) > 0 &&
		    json_array_size(disks) <= REPOSITORY_DISKS_MAX;
	size_t i;
	plan->begun = json_is_true(begun);
	json_array_foreach(disks, i, object)
	{
		struct merge_disk disk;
		char child[REPOSITORY_POINT_BYTES];
		good = good && parse_disk(object, &disk, child) == 0 &&
		       strcmp(disk.backing, plan->point) < 0;
		if (!good || !child[0])
			continue;
		/* All disks of a point that have one have the same: the next point. */
		good = strcmp(child, plan->point) > 0 &&
		       (!plan->child[0] || strcmp(child, plan->child) == 0);
		memcpy(plan->child, child, sizeof plan->child);
	}
	return good ? 0
		    : err_set(err, ERR_FORMAT, "%s does not say what is to become of the disks",
			      name);
}

/* --- up to the point of no return ------------------------------------------------------------ */

static int prepare(struct merge *merge, const struct repository_point *point,
	const struct repository_point *child, struct err *err)
{
	char folder[NAME_PATH_BYTES];
	set_stage(merge, "check");
	for (size_t i = 0; i < merge->nr_disks; i++) {
		const struct merge_disk *disk = &merge->disks[i];
		if (!disk->has_child)
			continue;
		path_disk(merge->vm, disk->key, "", "", folder);
		if (merge_data_prepare(merge, disk, point, child, err) < 0 ||
			file_sync_dir(merge->repo->dir_fd, folder, err) < 0)
			return -1;
	}
	return 0;
}

/* Out of the list, unless somebody protected it meanwhile. */
static int take_out(struct merge *merge, struct err *err)
{
	char manifest[NAME_PATH_BYTES], merging[NAME_PATH_BYTES];
	set_stage(merge, "take-out");
	path_point(merge->vm, merge->point, "manifest.json", manifest);
	path_point(merge->vm, merge->point, "merging.json", merging);
	int AUTO_CLOSE guard = lock_guard(merge->repo, merge->cancel, err);
	if (guard < 0)
		return -1;
	struct repository_point *point = manifest_load(merge->repo, merge->vm, merge->point, err);
	bool is_protected = !point || point->is_protected;
	repository_point_free(point);
	if (is_protected)
		return err_set(err, ERR_BUSY, "it was protected meanwhile");
	if (check_lock(merge, err) < 0)
		return -1;
	return rename_synced(merge->repo, manifest, merging, err);
}

/* What is not done is undone; the plan goes when all is as it was. */
static int put_back(struct merge *merge, struct err *err)
{
	char manifest[NAME_PATH_BYTES], merging[NAME_PATH_BYTES], folder[NAME_PATH_BYTES];
	struct repository *repo = merge->repo;
	bool is_out, is_listed;
	for (size_t i = 0; i < merge->nr_disks; i++) {
		const struct merge_disk *disk = &merge->disks[i];
		if (!disk->has_child)
			continue;
		if (unlinkat(repo->dir_fd, disk->child_part, 0) < 0 && errno != ENOENT)
			return err_errno(err, errno, "cannot remove %s", disk->child_part);
		path_disk(merge->vm, disk->key, "", "", folder);
		if (file_sync_dir(repo->dir_fd, folder, err) < 0)
			return -1;
	}
	path_point(merge->vm, merge->point, "manifest.json", manifest);
	path_point(merge->vm, merge->point, "merging.json", merging);
	if (path_look(repo->dir_fd, merging, &is_out, err) < 0 ||
		path_look(repo->dir_fd, manifest, &is_listed, err) < 0)
		return -1;
	if (is_out && !is_listed && rename_synced(repo, merging, manifest, err) < 0)
		return -1;
	/* Whoever renamed it back may have ended before the sync. */
	if (is_listed && sync_folder_of(repo, manifest, err) < 0)
		return -1;
	return plan_drop(repo, merge->job, err);
}

/* 0 with *begun false: it was put back, and err says why. */
static int begin(struct merge *merge, const struct repository_point *point,
	const struct repository_point *child, json_t *plan, bool *begun, struct err *err)
{
	char path[NAME_PATH_BYTES];
	struct err why = ERR_INIT;
	snprintf(path, sizeof path, ".incoming/%s/plan.json", merge->job);
	*begun = false;
	if (prepare(merge, point, child, &why) == 0 && take_out(merge, &why) == 0 &&
		merge_look_use(merge->repo, merge->vm, merge->point, &why) == 0 &&
		merge_look_locks(merge, &why) == 0 && cancel_check(merge->cancel, &why) == 0 &&
		check_lock(merge, &why) == 0) {
		json_object_set_new(plan, "begun", json_true());
		if (record_store(merge->repo->dir_fd, path, plan, &why) == 0) {
			*begun = true;
			return 0;
		}
		/* It may have been written all the same. */
		struct plan written;
		bool is_known = plan_load(merge->repo, merge->job, &written, NULL) == 0;
		bool is_begun = is_known && written.begun;
		plan_free(&written);
		if (!is_known || is_begun)
			return err_copy(err, &why);
	}
	struct err back = ERR_INIT;
	/* Whoever took the lock away puts it back, too. */
	if (check_lock(merge, &back) == 0 && put_back(merge, &back) == 0)
		return err_copy(err, &why);
	log_warning("job %s: %s", merge->job, back.text);
	return err_copy(err, &why);
}

/* --- forwards ------------------------------------------------------------------------------------
 */

struct log_search {
	const char *point;
	bool found;
};

static int match_pruned(void *context, const struct pointslog_event *event)
{
	struct log_search *search = context;
	search->found |=
		!event->damage && event->pruned && strcmp(event->point, search->point) == 0;
	return search->found;
}

static int log_pruned(const struct merge *merge, struct err *err)
{
	struct log_search search = {.point = merge->point};
	if (pointslog_read(merge->repo, merge->vm, match_pruned, &search, err) < 0)
		return -1;
	if (search.found)
		return pointslog_sync(merge->repo, merge->vm, err);
	return pointslog_append(
		merge->repo, merge->vm, "pruned", merge->point, merge->job, NULL, err);
}

/*
 * Done when X's image is not there any more under its own name.  What is done already is
 * synced, as whoever did it may have ended before that.
 */
static int merge_disk(struct merge *merge, const struct merge_disk *disk, struct err *err)
{
	struct repository *repo = merge->repo;
	bool is_left, has_part;
	if (path_look(repo->dir_fd, disk->image, &is_left, err) < 0 ||
		(is_left && (merge_look_child(merge, disk, err) < 0 ||
				    merge_data_write(merge, disk, err) < 0)) ||
		check_lock(merge, err) < 0 ||
		path_look(repo->dir_fd, disk->child_part, &has_part, err) < 0)
		return -1;
	if (has_part &&
		renameat(repo->dir_fd, disk->child_part, repo->dir_fd, disk->child_sums) < 0)
		return err_errno(
			err, errno, "cannot rename %s to %s", disk->child_part, disk->child_sums);
	if (sync_folder_of(repo, disk->child_sums, err) < 0)
		return -1;
	return is_left ? rename_synced(repo, disk->image, disk->child_image, err) : 0;
}

static int move_storage(const struct merge *merge, const struct merge_disk *disk, json_t *storage,
	bool *changed, struct err *err)
{
	json_t *where = json_object_get(json_object_get(storage, "disks"), disk->key);
	const char *backing = json_string_value(json_object_get(where, "backing"));
	struct qcow2_facts facts;
	struct stat st;
	char *AUTO_FREE path = NULL;
	if (!backing || strcmp(backing, merge->point) != 0)
		return 0; /* done before */
	if (asprintf(&path, "%s/%s", merge->repo->info.path, disk->child_image) < 0)
		return err_errno(err, ENOMEM, "cannot read %s", disk->child_image);
	if (qcow2_facts(path, &facts, err) < 0)
		return -1;
	if (stat(path, &st) < 0)
		return err_errno(err, errno, "cannot stat %s", disk->child_image);
	int64_t stored = blocks_of(merge->repo, disk->child_image) +
			 blocks_of(merge->repo, disk->child_sums);
	json_object_set_new(
		where, "backing", disk->backing[0] ? json_string(disk->backing) : json_null());
	json_object_set_new(where, "cluster_bytes", json_integer(facts.cluster_bytes));
	json_object_set_new(where, "stored_bytes", json_integer(stored));
	json_object_set_new(where, "image_bytes", json_integer(st.st_size));
	*changed = true;
	return 0;
}

/* The child stands on what the point stood on. */
static int replace_manifest(struct merge *merge, struct err *err)
{
	char path[NAME_PATH_BYTES], facts_sha256[DIGEST_ROOT_HEX_BYTES];
	bool changed = false;
	int rc = 0;
	if (!merge->child[0])
		return 0;
	set_stage(merge, "manifest");
	path_point(merge->vm, merge->child, "manifest.json", path);
	struct repository_point *child =
		repository_point_load(merge->repo, merge->vm, merge->child, err);
	if (!child)
		return -1;
	json_t *storage = json_deep_copy(json_object_get(manifest_json(child), "storage"));
	for (size_t i = 0; i < merge->nr_disks && rc == 0; i++)
		if (merge->disks[i].has_child)
			rc = move_storage(merge, &merge->disks[i], storage, &changed, err);
	if (rc == 0 && changed) {
		json_int_t generation = json_integer_value(json_object_get(storage, "generation"));
		json_object_set_new(storage, "generation", json_integer(generation + 1));
		json_t *manifest =
			manifest_seal(json_incref(json_object_get(manifest_json(child), "facts")),
				storage, facts_sha256, err);
		storage = NULL;
		rc = manifest ? record_store(merge->repo->dir_fd, path, manifest, err) : -1;
		json_decref(manifest);
	}
	json_decref(storage);
	repository_point_free(child);
	if (rc == 0 && !changed)
		return sync_folder_of(merge->repo, path, err);
	if (rc == 0)
		rc = pointslog_append(
			merge->repo, merge->vm, "merged", merge->child, merge->job, NULL, err);
	return rc;
}

static int remove_rest(struct merge *merge, struct err *err)
{
	struct plan plan;
	set_stage(merge, "remove");
	for (size_t i = 0; i < merge->nr_disks; i++) {
		bool is_left = false;
		if (merge->disks[i].has_child &&
			path_look(merge->repo->dir_fd, merge->disks[i].image, &is_left, err) < 0)
			return -1;
		if (is_left)
			return err_set(
				err, ERR_CORRUPT, "%s is there again", merge->disks[i].image);
	}
	/* Read anew: what is removed is what stands in the file. */
	if (plan_load(merge->repo, merge->job, &plan, err) < 0)
		return -1;
	int rc = plan_remove_files(merge->repo, &plan, err);
	plan_free(&plan);
	return rc;
}

/* What cannot be, but in a repository that was copied while a prune was at work. */
static int check_taken_out(const struct merge *merge, struct err *err)
{
	char manifest[NAME_PATH_BYTES];
	bool is_listed;
	path_point(merge->vm, merge->point, "manifest.json", manifest);
	if (path_look(merge->repo->dir_fd, manifest, &is_listed, err) < 0)
		return -1;
	if (!is_listed)
		return 0;
	err_set(err, ERR_CORRUPT,
		"the plan says that restore point %s is taken out already, and it is listed",
		merge->point);
	return err_hint(err,
		"nothing of it is touched; .incoming/%s can be moved away if sendense "
		"verify finds the points of VM \"%s\" good",
		merge->job, merge->vm);
}

/* That it was taken out, and has begun, must outlast what is done now. */
static int sync_begun(const struct merge *merge, struct err *err)
{
	char path[NAME_PATH_BYTES];
	path_point(merge->vm, merge->point, "", path);
	if (path_exists(merge->repo->dir_fd, path) &&
		file_sync_dir(merge->repo->dir_fd, path, err) < 0)
		return -1;
	snprintf(path, sizeof path, ".incoming/%s", merge->job);
	return file_sync_dir(merge->repo->dir_fd, path, err);
}

static int go_forward(struct merge *merge, struct err *err)
{
	char points[NAME_PATH_BYTES];
	if (check_taken_out(merge, err) < 0 || log_pruned(merge, err) < 0)
		return -1;
	if (merge->child[0])
		set_stage(merge, "merge");
	for (size_t i = 0; i < merge->nr_disks; i++)
		if (merge->disks[i].has_child && merge_disk(merge, &merge->disks[i], err) < 0)
			return -1;
	path_point(merge->vm, "", "", points);
	if (check_lock(merge, err) < 0 || replace_manifest(merge, err) < 0 ||
		remove_rest(merge, err) < 0 || file_sync_dir(merge->repo->dir_fd, points, err) < 0)
		return -1;
	return plan_drop(merge->repo, merge->job, err);
}

/* --- one point, and what is left of one ------------------------------------------------------- */

static int start(struct merge *merge, const struct merge_options *options,
	const struct repository_point *point, const struct repository_point *child, int64_t *blocks,
	bool *begun, struct err *err)
{
	if (merge_look_actions(merge, point, child, err) < 0)
		return -1;
	*blocks = blocks_now(merge);
	if (options->delete_only && merge->child[0])
		return err_set(err, ERR_CONFLICT, "restore point %s stands on it", merge->child);
	if (check_space(merge, err) < 0)
		return -1;
	json_t *plan = make_plan(merge, point, options->software, err);
	if (!plan)
		return -1;
	int rc = plan_write(merge->repo, merge->job, plan, merge->cancel, err);
	if (rc < 0)
		plan_drop(merge->repo, merge->job, NULL);
	else
		rc = begin(merge, point, child, plan, begun, err);
	json_decref(plan);
	return rc;
}

int merge_point(struct repository *repo, const struct merge_options *options, const char *vm,
	const char *id, int64_t *freed_bytes, bool *begun, struct err *err)
{
	struct merge merge = {.repo = repo,
		.lock = options->lock,
		.cancel = options->cancel,
		.progress = options->progress,
		.on_stage = options->stage,
		.context = options->context};
	char next[REPOSITORY_POINT_BYTES];
	struct repository_point *child = NULL;
	*begun = false;
	*freed_bytes = 0;
	snprintf(merge.vm, sizeof merge.vm, "%s", vm);
	snprintf(merge.point, sizeof merge.point, "%s", id);
	snprintf(merge.job, sizeof merge.job, "%s", options->job);
	struct repository_point *point = repository_point_load(repo, vm, id, err);
	if (!point)
		return -1;
	int rc = merge_look_next(&merge, next, err);
	if (rc == 0 && next[0]) {
		child = repository_point_load(repo, vm, next, err);
		if (!child)
			rc = err_context(err, "restore point %s may stand on it", next);
	}
	int64_t before = 0;
	if (rc == 0)
		rc = start(&merge, options, point, child, &before, begun, err);
	if (rc == 0)
		rc = go_forward(&merge, err);
	if (*begun)
		*freed_bytes = before - blocks_now(&merge);
	repository_point_free(child);
	repository_point_free(point);
	free(merge.disks);
	return rc;
}

int merge_go_on(struct repository *repo, const struct plan *plan, struct cancel *cancel,
	int64_t *freed_bytes, struct err *err)
{
	const json_t *disks = json_object_get(plan->json, "disks"), *object;
	struct merge merge = {.repo = repo, .cancel = cancel};
	size_t i;
	memcpy(merge.vm, plan->vm, sizeof merge.vm);
	memcpy(merge.point, plan->point, sizeof merge.point);
	memcpy(merge.child, plan->child, sizeof merge.child);
	memcpy(merge.job, plan->job, sizeof merge.job);
	merge.nr_disks = json_array_size(disks);
	merge.disks = calloc(merge.nr_disks, sizeof *merge.disks);
	if (!merge.disks)
		return err_errno(err, ENOMEM, "cannot go on with job %s", plan->job);
	json_array_foreach(disks, i, object)
	{
		char child[REPOSITORY_POINT_BYTES];
		parse_disk(object, &merge.disks[i], child);
		merge_look_paths(&merge, &merge.disks[i]);
	}
	int64_t before = blocks_now(&merge);
	int rc = plan->begun ? sync_begun(&merge, err) : put_back(&merge, err);
	if (rc == 0 && plan->begun)
		rc = go_forward(&merge, err);
	*freed_bytes = before - blocks_now(&merge);
	free(merge.disks);
	return rc;
}
