/*
 * Structure: is everything there that should be, and nothing that should not?
 *
 * A file is known when a restore point with a manifest owns it, or an open plan
 * lists it.  Jobs run meanwhile, so a file that seems unknown is looked up again
 * (manifest, then plans anew) before it is reported.
 */
#include "chain.h"
#include "check_internal.h"
#include "merge_internal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const char *const finding_names[] = {
	[REPOSITORY_FINDING_DAMAGE] = "damage",
	[REPOSITORY_FINDING_MISSING] = "missing",
	[REPOSITORY_FINDING_FOREIGN] = "foreign",
	[REPOSITORY_FINDING_LEAK] = "leak",
	[REPOSITORY_FINDING_JOB] = "job",
	[REPOSITORY_FINDING_LOCK] = "lock",
	[REPOSITORY_FINDING_REPAIRED] = "repaired",
};

const char *repository_finding_name(enum repository_finding_kind kind)
{
	return finding_names[kind];
}

bool repository_finding_is_damage(enum repository_finding_kind kind)
{
	return kind == REPOSITORY_FINDING_DAMAGE || kind == REPOSITORY_FINDING_MISSING ||
	       kind == REPOSITORY_FINDING_FOREIGN;
}

/* --- reporting -------------------------------------------------------------------- */

void check_report(
	struct check_run *run, struct repository_finding *finding, const char *format, ...)
{
	char text[ERR_TEXT_BYTES + 256];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	finding->text = text;
	/* Anybody may have named the file. */
	char file[NAME_PATH_BYTES];
	const char *raw_file = finding->file;
	if (raw_file) {
		name_printable(raw_file, file, sizeof file);
		finding->file = file;
	}
	if (!finding->remedy)
		finding->remedy = "";
	run->nr[finding->kind]++;
	if (run->finding)
		run->finding(run->context, finding);
	finding->file = raw_file;
}

/* --- known files ------------------------------------------------------------------- */

static bool plan_lists(const json_t *plan, const char *field, const char *path)
{
	size_t i;
	const json_t *value;
	json_array_foreach(json_object_get(plan, field), i, value)
	{
		const char *listed = json_string_value(value);
		if (listed && strcmp(listed, path) == 0)
			return true;
	}
	return false;
}

bool check_is_planned(struct repository *repo, const char *path)
{
	struct path_names jobs;
	bool found = false;
	if (path_names(repo->dir_fd, ".incoming", &jobs, NULL) < 0)
		return false;
	for (size_t i = 0; i < jobs.nr && !found; i++) {
		struct plan plan;
		if (!name_is_job(jobs.name[i]) || plan_load(repo, jobs.name[i], &plan, NULL) < 0)
			continue;
		found = plan_lists(plan.json, "files", path) ||
			plan_lists(plan.json, "folders", path);
		plan_free(&plan);
	}
	path_names_free(&jobs);
	return found;
}

bool check_has_manifest(struct repository *repo, const char *vm, const char *point)
{
	char path[NAME_PATH_BYTES];
	path_point(vm, point, "manifest.json", path);
	return path_exists(repo->dir_fd, path);
}

static void report_foreign(struct check_run *run, const char *vm, const char *path)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	/* It went while we looked. */
	if (!path_exists(run->repo->dir_fd, path))
		return;
	/* Removed, while a process of an NFS client has it open. */
	if (strncmp(name, ".nfs", 4) == 0 && strspn(name + 4, "0123456789abcdef") >= 16)
		return;
	struct repository_finding finding = {.kind = REPOSITORY_FINDING_FOREIGN,
		.vm = vm,
		.file = path,
		.remedy = "it is kept; look at it, and move it away if nobody needs it"};
	check_report(run, &finding, "no restore point and no unfinished job knows of it");
}

/* Ours by its name, but of a restore point that does not exist, or knows nothing of it. */
static void report_orphan(
	struct check_run *run, const char *vm, const char *point, const char *path)
{
	struct repository_finding finding = {.kind = REPOSITORY_FINDING_DAMAGE,
		.vm = vm,
		.point = point,
		.file = path,
		.remedy = "it is kept: bring the manifest back from a copy of the repository, or "
			  "move "
			  "the file away; qemu-img convert reads an image without its manifest"};
	if (!path_exists(run->repo->dir_fd, path))
		return; /* pruned while we looked */
	if (check_has_manifest(run->repo, vm, point)) {
		finding.remedy = "it is kept; move it away when nobody needs it";
		check_report(run, &finding, "restore point %s has a manifest that does not list it",
			point);
	} else {
		check_report(run, &finding,
			"restore point %s has no manifest, and no unfinished job", point);
	}
}

/* --- the top and the jobs ------------------------------------------------------------- */

static bool is_one_of(const char *name, const char *const *list)
{
	for (; *list; list++)
		if (strcmp(name, *list) == 0)
			return true;
	return false;
}

static int check_top(struct check_run *run, struct err *err)
{
	static const char *const known[] = {"repository.json", "repository.json.new", "vms",
		".incoming", ".locks", "hub", "lost+found", NULL};
	struct path_names names;
	if (path_names(run->repo->dir_fd, ".", &names, err) < 0)
		return -1;
	for (size_t i = 0; i < names.nr; i++)
		if (!is_one_of(names.name[i], known))
			report_foreign(run, NULL, names.name[i]);
	path_names_free(&names);
	return 0;
}

/* Copies of hubs' own states; what a kill left of one is overwritten by the next. */
static int check_hubs(struct check_run *run, struct err *err)
{
	struct path_names hubs, files;
	char folder[NAME_PATH_BYTES], path[NAME_PATH_BYTES];
	if (!path_exists(run->repo->dir_fd, "hub"))
		return 0;
	if (path_names(run->repo->dir_fd, "hub", &hubs, err) < 0)
		return -1;
	for (size_t i = 0; i < hubs.nr; i++) {
		snprintf(folder, sizeof folder, "hub/%.200s", hubs.name[i]);
		if (!hubstate_is_name(hubs.name[i]) ||
			path_names(run->repo->dir_fd, folder, &files, NULL) < 0) {
			report_foreign(run, NULL, folder);
			continue;
		}
		for (size_t k = 0; k < files.nr; k++) {
			snprintf(path, sizeof path, "%.220s/%.255s", folder, files.name[k]);
			if (!hubstate_is_file(files.name[k]))
				report_foreign(run, NULL, path);
		}
		path_names_free(&files);
	}
	path_names_free(&hubs);
	return 0;
}

static int tell_job(void *context, const struct repository_job *job)
{
	struct check_run *run = context;
	char path[NAME_PATH_BYTES];
	snprintf(path, sizeof path, ".incoming/%s", job->id);
	struct repository_finding finding = {.kind = REPOSITORY_FINDING_JOB,
		.vm = job->vm[0] ? job->vm : NULL,
		.point = job->point[0] ? job->point : NULL,
		.file = path};
	if (job->damage) {
		finding.kind = REPOSITORY_FINDING_DAMAGE;
		finding.remedy = "it is kept, and so is what it listed; remove both by hand when "
				 "nobody needs them";
		check_report(run, &finding, "the plan of job %s cannot be used: %s", job->id,
			job->damage);
	} else if (job->alive) {
		finding.remedy = "it is running";
		check_report(run, &finding,
			"%s job %s runs on host %s (pid %" PRId64 ", stage %s since %s)",
			repository_job_kind_name(job->kind), job->id, job->host, job->pid,
			job->stage, job->stage_since);
	} else if (job->kind == REPOSITORY_JOB_PRUNE) {
		finding.remedy = "no harm is done; the next backup or prune of this VM or "
				 "sendense repo check --repair finishes it";
		check_report(run, &finding,
			"prune job %s, which takes out restore point %s, ended in stage %s at %s",
			job->id, job->point, job->stage, job->stage_since);
	} else {
		finding.remedy = "the next backup of this VM or sendense repo check --repair "
				 "closes it";
		check_report(run, &finding,
			"job %s ended in stage %s at %s; what it left (%" PRIu64
			" bytes) is kept until %s at the latest",
			job->id, job->stage, job->stage_since, job->stored_bytes, job->keep_until);
	}
	return 0;
}

static int check_jobs(struct check_run *run, struct err *err)
{
	struct path_names names;
	if (repository_jobs(run->repo, tell_job, run, err) < 0 ||
		path_names(run->repo->dir_fd, ".incoming", &names, err) < 0)
		return -1;
	for (size_t i = 0; i < names.nr; i++) {
		static const char *const known[] = {
			"plan.json", "plan.json.new", "stage.json", "stage.json.new", NULL};
		char folder[NAME_PATH_BYTES], path[NAME_PATH_BYTES];
		struct path_names files;
		snprintf(folder, sizeof folder, ".incoming/%.200s", names.name[i]);
		if (!name_is_job(names.name[i])) {
			report_foreign(run, NULL, folder);
			continue;
		}
		if (path_names(run->repo->dir_fd, folder, &files, NULL) < 0)
			continue; /* it ended meanwhile */
		for (size_t k = 0; k < files.nr; k++) {
			snprintf(path, sizeof path, "%.230s/%.255s", folder, files.name[k]);
			if (!is_one_of(files.name[k], known))
				report_foreign(run, NULL, path);
		}
		path_names_free(&files);
	}
	path_names_free(&names);
	return 0;
}

/* --- locks ------------------------------------------------------------------------------ */

static void check_lock(struct check_run *run, const char *path)
{
	struct lock_record record;
	struct err err = ERR_INIT;
	bool alive;
	struct repository_finding finding = {.kind = REPOSITORY_FINDING_LOCK, .file = path};
	if (lock_look(run->repo, path, &record, &alive, &err) < 0) {
		finding.remedy = "the next job that needs it takes it over";
		if (err.code != ERR_NOT_FOUND)
			check_report(run, &finding, "%s", err.text);
		return;
	}
	if (alive)
		return;
	finding.vm = record.vm;
	finding.point = record.point[0] ? record.point : NULL;
	finding.remedy = "the next job that needs it takes it over; sendense repo check --repair "
			 "removes it";
	check_report(run, &finding,
		"its owner is dead: job %s (pid %" PRId64 " on host %s, since %s)", record.job,
		record.owner.pid, record.owner.host, record.since);
	if (run->repair && lock_remove_dead(run->repo, path, &err) == 0) {
		finding.kind = REPOSITORY_FINDING_REPAIRED;
		finding.remedy = NULL;
		check_report(run, &finding, "the dead job's lock was removed");
	}
}

static int check_locks(struct check_run *run, struct err *err)
{
	struct path_names names;
	if (path_names(run->repo->dir_fd, ".locks", &names, err) < 0)
		return -1;
	for (size_t i = 0; i < names.nr; i++) {
		char path[NAME_PATH_BYTES];
		const char *name = names.name[i];
		snprintf(path, sizeof path, ".locks/%.255s", name);
		if (path_has_suffix(name, ".write") || path_has_suffix(name, ".read"))
			check_lock(run, path);
		else if (strcmp(name, "guard") != 0 && strncmp(name, "new-", 4) != 0 &&
			 !strstr(name, ".seen-"))
			report_foreign(run, NULL, path);
	}
	path_names_free(&names);
	return 0;
}

/* --- a VM's files ------------------------------------------------------------------------ */

/* One of the files of a restore point's disks; taken for one where that cannot be told. */
static bool is_owned(struct check_run *run, const char *vm, const char *point_id, const char *path)
{
	if (!check_has_manifest(run->repo, vm, point_id))
		return false;
	struct repository_point *point = manifest_load(run->repo, vm, point_id, NULL);
	bool owned = !point || point->damage;
	for (size_t i = 0; !owned && i < point->nr_disks; i++)
		owned = strcmp(point->disks[i].image, path) == 0 ||
			strcmp(point->disks[i].sums, path) == 0;
	repository_point_free(point);
	return owned;
}

/* Files of the disks: POINT.qcow2 and POINT.sums of points that exist. */
static void check_disk_folder(struct check_run *run, const char *vm, const char *key)
{
	char folder[NAME_PATH_BYTES], path[NAME_PATH_BYTES];
	struct path_names names;
	path_disk(vm, key, "", "", folder);
	if (path_names(run->repo->dir_fd, folder, &names, NULL) < 0) {
		report_foreign(run, vm, folder);
		return;
	}
	for (size_t i = 0; i < names.nr; i++) {
		const char *name = names.name[i];
		char point[REPOSITORY_POINT_BYTES];
		snprintf(point, sizeof point, "%.*s", (int)sizeof point - 1, name);
		const char *ending = name + strlen(point);
		bool shaped = repository_name_is_point(point) &&
			      (strcmp(ending, ".qcow2") == 0 || strcmp(ending, ".sums") == 0);
		snprintf(path, sizeof path, "%.250s/%.255s", folder, name);
		if ((shaped && is_owned(run, vm, point, path)) || check_is_planned(run->repo, path))
			continue;
		/* Committed between our two looks. */
		if (shaped && is_owned(run, vm, point, path))
			continue;
		if (shaped)
			report_orphan(run, vm, point, path);
		else
			report_foreign(run, vm, path);
	}
	path_names_free(&names);
}

static void check_point_folder(struct check_run *run, const char *vm, const char *point)
{
	static const char *const known[] = {
		"manifest.json", "state.json", "state.json.new", "config", NULL};
	char folder[NAME_PATH_BYTES], path[NAME_PATH_BYTES];
	struct path_names names;
	path_point(vm, point, "", folder);
	if (path_names(run->repo->dir_fd, folder, &names, NULL) < 0) {
		report_foreign(run, vm, folder);
		return;
	}
	bool listed = check_has_manifest(run->repo, vm, point);
	for (size_t i = 0; i < names.nr; i++) {
		snprintf(path, sizeof path, "%.250s/%.255s", folder, names.name[i]);
		if (listed && is_one_of(names.name[i], known))
			continue;
		if (!check_is_planned(run->repo, path) &&
			!(check_has_manifest(run->repo, vm, point) &&
				is_one_of(names.name[i], known)))
			report_foreign(run, vm, path);
	}
	if (names.nr == 0 && !check_is_planned(run->repo, folder) &&
		!check_has_manifest(run->repo, vm, point))
		report_foreign(run, vm, folder);
	path_names_free(&names);
}

static void check_folders(struct check_run *run, const char *vm)
{
	static const char *const known[] = {"disks", "points", "points.log", NULL};
	char folder[NAME_PATH_BYTES], path[NAME_PATH_BYTES];
	struct path_names names;
	path_vm(vm, folder);
	if (path_names(run->repo->dir_fd, folder, &names, NULL) == 0) {
		for (size_t i = 0; i < names.nr; i++) {
			snprintf(path, sizeof path, "%.200s/%.255s", folder, names.name[i]);
			if (!is_one_of(names.name[i], known))
				report_foreign(run, vm, path);
		}
		path_names_free(&names);
	}
	snprintf(path, sizeof path, "%.200s/disks", folder);
	if (path_names(run->repo->dir_fd, path, &names, NULL) == 0) {
		for (size_t i = 0; i < names.nr; i++) {
			snprintf(path, sizeof path, "%.200s/disks/%.255s", folder, names.name[i]);
			if (repository_name_check_key(names.name[i], NULL) == 0)
				check_disk_folder(run, vm, names.name[i]);
			else
				report_foreign(run, vm, path);
		}
		path_names_free(&names);
	}
	path_point(vm, "", "", path);
	if (path_names(run->repo->dir_fd, path, &names, NULL) == 0) {
		for (size_t i = 0; i < names.nr; i++)
			check_point_folder(run, vm, names.name[i]);
		path_names_free(&names);
	}
}

/* --- points, their images and sums ---------------------------------------------------------- */

struct image_findings {
	struct check_run *run;
	const struct repository_point *point;
	const struct repository_disk_info *disk;
	unsigned nr_told;
};

static void tell_image_finding(void *context, const char *text)
{
	struct image_findings *findings = context;
	if (findings->nr_told++ >= 8)
		return;
	struct repository_finding finding = {.kind = REPOSITORY_FINDING_DAMAGE,
		.vm = findings->point->vm,
		.point = findings->point->id,
		.key = findings->disk->key,
		.file = findings->disk->image,
		.remedy = CHECK_REMEDY_DISK};
	check_report(findings->run, &finding, "%s", text);
}

static void drop_finding(void *context, const char *text)
{
	(void)context;
	(void)text;
}

bool check_has_image(struct check_run *run, const struct repository_point *point,
	const struct repository_disk_info *disk)
{
	struct err why = ERR_INIT;
	bool is_there;
	struct repository_finding finding = {.kind = REPOSITORY_FINDING_MISSING,
		.vm = point->vm,
		.point = point->id,
		.key = disk->key,
		.file = disk->image,
		.remedy = CHECK_REMEDY_LOST};
	if (path_look(run->repo->dir_fd, disk->image, &is_there, NULL) < 0 ||
		(is_there && chain_check_size(run->repo, disk, &why) == 0))
		return true; /* or whoever opens it tells what is wrong */
	/* Pruned or merged while we looked. */
	struct repository_point *now = manifest_load(run->repo, point->vm, point->id, NULL);
	const struct repository_disk_info *info = repository_point_disk(now, disk->key);
	bool changed = !info || info->image_bytes != disk->image_bytes;
	repository_point_free(now);
	if (changed)
		return true;
	if (is_there)
		finding.kind = REPOSITORY_FINDING_DAMAGE;
	check_report(run, &finding, "%s", is_there ? why.text : "the image is missing");
	return false;
}

/* The image's own tables, twice when there is damage: first to tell leaks from
 * errors, then for the words. */
int check_image(struct check_run *run, const struct repository_point *point,
	const struct repository_disk_info *disk, bool *good, struct err *err)
{
	struct image_findings findings = {.run = run, .point = point, .disk = disk};
	struct qcow2_check_result result;
	struct err why = ERR_INIT;
	char *AUTO_FREE path = NULL;
	*good = true;
	if (asprintf(&path, "%s/%s", run->repo->info.path, disk->image) < 0)
		return err_errno(err, ENOMEM, "cannot check %s", disk->image);
	struct repository_finding finding = {.vm = point->vm,
		.point = point->id,
		.key = disk->key,
		.file = disk->image,
		.remedy = CHECK_REMEDY_DISK};
	if (qcow2_check(path, false, run->cancel, drop_finding, NULL, &result, &why) < 0) {
		if (why.code == ERR_CANCELLED)
			return err_copy(err, &why);
		*good = false;
		finding.kind = why.code == ERR_NOT_FOUND ? REPOSITORY_FINDING_MISSING
							 : REPOSITORY_FINDING_DAMAGE;
		check_report(run, &finding, "%s", why.text);
		return 0;
	}
	if (result.errors) {
		*good = false;
		return qcow2_check(
			path, false, run->cancel, tell_image_finding, &findings, &result, err);
	}
	if (result.leaks) {
		finding.kind = REPOSITORY_FINDING_LEAK;
		finding.remedy = "only space is lost; nothing is harmed";
		check_report(run, &finding, "%" PRIu64 " clusters are counted and not used",
			result.leaks);
	}
	return 0;
}

static int check_disk(struct check_run *run, const struct repository_point *point,
	const struct repository_disk_info *disk, struct err *err)
{
	struct err why = ERR_INIT;
	bool good;
	struct repository_finding finding = {.kind = REPOSITORY_FINDING_DAMAGE,
		.vm = point->vm,
		.point = point->id,
		.key = disk->key,
		.file = disk->sums,
		.remedy = CHECK_REMEDY_SUMS};
	run->images++;
	if (!check_has_image(run, point, disk))
		return 0;
	struct repository_disk *open =
		repository_disk_open(run->repo, point->vm, point->id, disk->key, NULL, &why);
	int rc = open ? sums_reader_check(disk_sums(open), run->cancel, &why) : -1;
	repository_disk_close(open);
	if (rc < 0 && why.code == ERR_CANCELLED)
		return err_copy(err, &why);
	if (rc < 0) {
		if (why.code == ERR_NOT_FOUND)
			finding.kind = REPOSITORY_FINDING_MISSING;
		if (!open) {
			finding.file = NULL; /* the text names it */
			finding.remedy = CHECK_REMEDY_DISK;
		}
		check_report(run, &finding, "%s", why.text);
	}
	return check_image(run, point, disk, &good, err);
}

static void check_config_folder(struct check_run *run, const struct repository_point *point)
{
	char folder[NAME_PATH_BYTES], path[NAME_PATH_BYTES];
	struct path_names names;
	path_point(point->vm, point->id, "config", folder);
	if (path_names(run->repo->dir_fd, folder, &names, NULL) < 0)
		return;
	for (size_t i = 0; i < names.nr; i++) {
		snprintf(path, sizeof path, "%.250s/%.255s", folder, names.name[i]);
		if (!check_config_knows(point, names.name[i]))
			report_foreign(run, point->vm, path);
	}
	path_names_free(&names);
}

static int check_point(void *context, const struct repository_point *point)
{
	struct check_vm *vm = context;
	vm->run->points++;
	if (point->damage) {
		char path[NAME_PATH_BYTES];
		path_point(point->vm, point->id, "manifest.json", path);
		struct repository_finding finding = {.kind = REPOSITORY_FINDING_DAMAGE,
			.vm = point->vm,
			.point = point->id,
			.file = path,
			.remedy = CHECK_REMEDY_MANIFEST};
		check_report(vm->run, &finding, "%s", point->damage);
		return 0;
	}
	check_logged(vm->run, point);
	check_config(vm->run, point);
	check_config_folder(vm->run, point);
	for (size_t i = 0; i < point->nr_disks; i++)
		if (check_disk(vm->run, point, &point->disks[i], vm->err) < 0) {
			vm->failed = true;
			return 1;
		}
	return 0;
}

static int check_vm(struct check_run *run, const char *name, struct err *err)
{
	struct check_vm vm = {.run = run, .name = name, .err = err};
	check_folders(run, name);
	check_log(run, name);
	if (repository_list_points(run->repo, name, check_point, &vm, err) < 0 || vm.failed)
		return -1;
	return cancel_check(run->cancel, err);
}

bool check_nameless(struct check_run *run, const char *folder)
{
	char path[NAME_PATH_BYTES];
	if (!list_holds_points(run->repo, folder))
		return false;
	snprintf(path, sizeof path, "vms/%.255s", folder);
	struct repository_finding finding = {
		.kind = REPOSITORY_FINDING_DAMAGE, .file = path, .remedy = CHECK_REMEDY_MANIFEST};
	check_report(run, &finding,
		"it holds restore points, but no manifest that can be read tells of which VM");
	return true;
}

static int check_vms(struct check_run *run, unsigned *nr_vms, struct err *err)
{
	struct path_names folders;
	if (path_names(run->repo->dir_fd, "vms", &folders, err) < 0)
		return -1;
	int rc = 0;
	for (size_t i = 0; i < folders.nr && rc == 0; i++) {
		char vm[REPOSITORY_VM_BYTES], path[NAME_PATH_BYTES];
		snprintf(path, sizeof path, "vms/%.255s", folders.name[i]);
		if (list_vm_of_folder(run->repo, folders.name[i], vm)) {
			(*nr_vms)++;
			rc = check_vm(run, vm, err);
		} else if (!check_nameless(run, folders.name[i]) &&
			   !check_is_planned(run->repo, path)) {
			report_foreign(run, NULL, path);
		}
	}
	path_names_free(&folders);
	return rc;
}

int repository_check(struct repository *repo, const struct repository_check_options *options,
	struct repository_check_result *result, struct err *err)
{
	struct check_run run = {.repo = repo,
		.repair = options->repair && !repo->read_only,
		.cancel = options->cancel,
		.finding = options->finding,
		.context = options->context};
	memset(result, 0, sizeof *result);
	if (options->repair && repo->read_only)
		return err_set(
			err, ERR_DENIED, "repository %s cannot be written to", repo->info.path);
	if (run.repair) {
		struct clean clean = {.what = REPOSITORY_CLEAN_DEAD, .cancel = options->cancel};
		if (plan_clean(repo, &clean, err) < 0)
			return -1;
		struct repository_finding finding = {.kind = REPOSITORY_FINDING_REPAIRED};
		if (clean.nr_jobs)
			check_report(&run, &finding,
				"%u unfinished jobs were closed, %" PRIu64 " bytes freed",
				clean.nr_jobs, clean.freed_bytes);
	}
	int rc = check_top(&run, err);
	if (rc == 0)
		rc = check_hubs(&run, err);
	if (rc == 0)
		rc = check_jobs(&run, err);
	if (rc == 0)
		rc = check_locks(&run, err);
	if (rc == 0)
		rc = check_vms(&run, &result->vms, err);
	check_log_forget(&run);
	result->points = run.points;
	result->images = run.images;
	result->damages = run.nr[REPOSITORY_FINDING_DAMAGE] + run.nr[REPOSITORY_FINDING_MISSING];
	result->foreign = run.nr[REPOSITORY_FINDING_FOREIGN];
	result->leaks = run.nr[REPOSITORY_FINDING_LEAK];
	result->jobs = run.nr[REPOSITORY_FINDING_JOB];
	result->locks = run.nr[REPOSITORY_FINDING_LOCK];
	result->repaired = run.nr[REPOSITORY_FINDING_REPAIRED];
	return rc;
}
