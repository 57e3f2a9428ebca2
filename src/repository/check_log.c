/*
 * points.log against the manifests: a point that was committed and is gone, one that
 * the log does not know, and one whose facts are not those that were committed.
 */
#include "check_internal.h"

#include <stdlib.h>
#include <string.h>

struct check_line {
	char point[REPOSITORY_POINT_BYTES];
	char facts_sha256[DIGEST_ROOT_HEX_BYTES];
	bool committed, pruned;
};

/* Lines are told about once, when the log is checked as a whole. */
struct reading {
	struct check_run *run;
	const char *path;
	bool tell;
};

void check_log_forget(struct check_run *run)
{
	free(run->log.lines);
	memset(&run->log, 0, sizeof run->log);
}

static int take_line(void *context, const struct pointslog_event *event)
{
	struct reading *reading = context;
	struct check_log *log = &reading->run->log;
	if (event->damage) {
		struct repository_finding finding = {.kind = REPOSITORY_FINDING_DAMAGE,
			.vm = log->vm,
			.file = reading->path,
			.remedy = "restore points are not harmed; what the line told is lost"};
		if (reading->tell)
			check_report(reading->run, &finding, "line %u cannot be read: %s",
				event->line, event->damage);
		return 0;
	}
	/* Doubled whenever the number is a power of two. */
	if ((log->nr & (log->nr - 1)) == 0) {
		struct check_line *more =
			reallocarray(log->lines, log->nr ? 2 * log->nr : 1, sizeof *log->lines);
		if (!more)
			return -1;
		log->lines = more;
	}
	struct check_line *line = &log->lines[log->nr++];
	memcpy(line->point, event->point, sizeof line->point);
	memcpy(line->facts_sha256, event->facts_sha256, sizeof line->facts_sha256);
	line->committed = event->committed;
	line->pruned = event->pruned;
	return 0;
}

static int by_point(const void *a, const void *b)
{
	const struct check_line *left = a, *right = b;
	return strcmp(left->point, right->point);
}

static void load(struct check_run *run, const char *vm, bool tell)
{
	char path[NAME_PATH_BYTES];
	struct err err = ERR_INIT;
	check_log_forget(run);
	snprintf(run->log.vm, sizeof run->log.vm, "%s", vm);
	path_vm_file(vm, "points.log", path);
	struct reading reading = {.run = run, .path = path, .tell = tell};
	if (pointslog_read(run->repo, vm, take_line, &reading, &err) < 0 && tell) {
		struct repository_finding finding = {
			.kind = REPOSITORY_FINDING_DAMAGE, .vm = run->log.vm, .file = path};
		check_report(
			run, &finding, "%s", err.code == ERR_NONE ? "out of memory" : err.text);
	}
	if (run->log.nr)
		qsort(run->log.lines, run->log.nr, sizeof *run->log.lines, by_point);
}

/* Of the lines about a point, one that is as wanted; NULL: none. */
static const struct check_line *find(
	const struct check_log *log, const char *point, bool committed, bool pruned)
{
	size_t low = 0, high = log->nr;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (strcmp(log->lines[middle].point, point) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	for (; low < log->nr && strcmp(log->lines[low].point, point) == 0; low++)
		if ((committed && log->lines[low].committed) || (pruned && log->lines[low].pruned))
			return &log->lines[low];
	return NULL;
}

/* Out of the list, its line not written yet, or written since we read the log; or back in
 * the list. */
static bool is_being_pruned(struct check_run *run, const char *vm, const char *point)
{
	char folder[NAME_PATH_BYTES];
	path_point(vm, point, "", folder);
	if (check_is_planned(run->repo, folder) || check_has_manifest(run->repo, vm, point))
		return true;
	struct check_run anew = {.repo = run->repo};
	load(&anew, vm, false);
	bool pruned = find(&anew.log, point, false, true) != NULL;
	check_log_forget(&anew);
	return pruned;
}

void check_log(struct check_run *run, const char *vm)
{
	char path[NAME_PATH_BYTES];
	path_vm_file(vm, "points.log", path);
	load(run, vm, true);
	for (size_t i = 0; i < run->log.nr; i++) {
		const char *point = run->log.lines[i].point;
		struct repository_finding finding = {.kind = REPOSITORY_FINDING_MISSING,
			.vm = vm,
			.point = point,
			.file = path,
			.remedy = "it cannot be restored unless its manifest.json is brought back "
				  "from a copy; restore points that are not named here are not "
				  "harmed"};
		if (run->log.lines[i].committed && !check_has_manifest(run->repo, vm, point) &&
			!find(&run->log, point, false, true) && !is_being_pruned(run, vm, point))
			check_report(run, &finding,
				"restore point %s was committed and has no manifest now", point);
	}
}

/* The maker writes the line, then drops the plan: without a plan the line is there. */
static const struct check_line *find_anew(
	struct check_run *run, const struct repository_point *point, bool *is_open)
{
	char folder[NAME_PATH_BYTES];
	path_point(point->vm, point->id, "", folder);
	*is_open = check_is_planned(run->repo, folder);
	load(run, point->vm, false);
	return find(&run->log, point->id, true, false);
}

bool check_logged(struct check_run *run, const struct repository_point *point)
{
	char log_path[NAME_PATH_BYTES], manifest_path[NAME_PATH_BYTES];
	bool is_open = false;
	const struct check_line *line = strcmp(run->log.vm, point->vm) == 0
						? find(&run->log, point->id, true, false)
						: NULL;
	if (!line)
		line = find_anew(run, point, &is_open);
	path_vm_file(point->vm, "points.log", log_path);
	path_point(point->vm, point->id, "manifest.json", manifest_path);
	struct repository_finding finding = {.kind = REPOSITORY_FINDING_DAMAGE,
		.vm = point->vm,
		.point = point->id,
		.file = log_path,
		.remedy = "the log lost lines, or the restore point was put there by hand; bring "
			  "points.log back from a copy of the repository"};
	if (!line && !is_open)
		check_report(run, &finding,
			"restore point %s is there, but its commit is not in points.log",
			point->id);
	if (!line)
		return is_open;
	if (!line->facts_sha256[0] || strcmp(line->facts_sha256, manifest_facts_sha256(point)) == 0)
		return true;
	finding.file = manifest_path;
	finding.remedy = CHECK_REMEDY_MANIFEST;
	check_report(run, &finding,
		"the facts in it are not those that were committed (points.log has their digest)");
	return false;
}
