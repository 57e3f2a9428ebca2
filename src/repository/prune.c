/*
 * Prune: which restore points of a VM go, and in which order.
 *
 *   all points ─► held ones, rules ─► deleted: those on which nothing stands, newest first
 *                                     ─► merged with their child: the others, oldest first
 *
 * Deletes give space, so they come first; merged from the oldest on, each point's own bytes
 * are written once.  The VM's lock is taken for one point at a time, so that a backup waits
 * for one of them and not for all.
 */
#include "repository_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define CLOCK_AHEAD_MOST_S (INT64_C(366) * 86400)

struct candidate {
	char id[REPOSITORY_POINT_BYTES];
	int64_t started, finished; /* by the clock of then; 0: not known */
	bool damaged, is_protected, has_child;
	enum repository_verified verified;
	char protected_until[CLOCK_UTC_BYTES];
	bool settled; /* its fate is known */
	enum repository_fate fate;
	char why[ERR_TEXT_BYTES];
	int64_t freed_bytes;
};

struct prune {
	struct repository *repo;
	const struct repository_prune_options *options;
	struct repository_prune_result *result;
	const char *vm;
	struct candidate *points; /* oldest first */
	size_t nr_points, room;
	struct err err; /* of a callback */
};

/* --- the points ------------------------------------------------------------------- */

static int add_point(void *context, const struct repository_point *point)
{
	struct prune *prune = context;
	if (prune->nr_points == prune->room) {
		size_t room = prune->room ? 2 * prune->room : 64;
		struct candidate *more = reallocarray(prune->points, room, sizeof *more);
		if (!more)
			return err_errno(&prune->err, ENOMEM, "cannot list restore points");
		prune->points = more;
		prune->room = room;
	}
	struct candidate *before = prune->nr_points ? &prune->points[prune->nr_points - 1] : NULL;
	struct candidate *c = &prune->points[prune->nr_points++];
	*c = (struct candidate){.damaged = point->damage != NULL,
		.is_protected = point->is_protected,
		.verified = point->verified,
		.started = name_seconds_utc(point->started),
		.finished = name_seconds_utc(point->finished)};
	memcpy(c->id, point->id, sizeof c->id);
	memcpy(c->protected_until, point->protected_until, sizeof c->protected_until);
	for (size_t i = 0; before && !point->damage && i < point->nr_disks; i++)
		if (point->disks[i].backing && strcmp(point->disks[i].backing, before->id) == 0)
			before->has_child = true;
	/* It may stand on anything. */
	if (before && point->damage)
		before->has_child = true;
	return 0;
}

static void settle(struct candidate *c, enum repository_fate fate, const char *why)
{
	c->settled = true;
	c->fate = fate;
	snprintf(c->why, sizeof c->why, "%s", why);
}

/* --- what stays ---------------------------------------------------------------------- */

/* Why it stays whatever the rules say; "" if they may decide. */
static void tell_hold(const struct prune *prune, size_t i, size_t last_good, char *why, size_t room)
{
	const struct candidate *c = &prune->points[i];
	why[0] = '\0';
	if (c->is_protected)
		snprintf(why, room, "protected%s%s", c->protected_until[0] ? " until " : "",
			c->protected_until);
	else if (c->damaged)
		snprintf(why, room, "its manifest is damaged");
	else if (c->verified == REPOSITORY_DAMAGED)
		snprintf(why, room, "found damaged by verify");
	else if (i == last_good)
		snprintf(why, room, "the last one verified good");
}

/*
 * When what it holds was read: a backup that was interrupted, and read all again later, has the
 * id of its first attempt.  Where a clock went back time stands still.
 */
static int64_t time_of(const struct candidate *c, int64_t before)
{
	int64_t then = c->started > 0 ? c->started : name_seconds(c->id);
	return then > before ? then : before;
}

static int apply_rules(struct prune *prune, struct err *err)
{
	size_t last_good = SIZE_MAX;
	char hold[64];
	for (size_t i = 0; i < prune->nr_points; i++)
		if (!prune->points[i].damaged && prune->points[i].verified == REPOSITORY_GOOD)
			last_good = i;
	struct retention_point *AUTO_FREE points = calloc(prune->nr_points, sizeof *points);
	if (!points)
		return err_errno(err, ENOMEM, "cannot prune VM \"%s\"", prune->vm);
	for (size_t i = 0; i < prune->nr_points; i++) {
		tell_hold(prune, i, last_good, hold, sizeof hold);
		points[i].time = time_of(&prune->points[i], i ? points[i - 1].time : 0);
		points[i].held = hold[0] != '\0';
	}
	if (retention_apply(prune->options->policy, points, prune->nr_points, err) < 0)
		return -1;
	for (size_t i = 0; i < prune->nr_points; i++) {
		char why[sizeof hold + sizeof points[i].why + 2];
		struct candidate *c = &prune->points[i];
		tell_hold(prune, i, last_good, hold, sizeof hold);
		bool by_hold_alone = hold[0] && strcmp(points[i].why, "held") == 0;
		snprintf(why, sizeof why, "%s%s%s", hold, hold[0] && !by_hold_alone ? ", " : "",
			by_hold_alone ? "" : points[i].why);
		if (points[i].keep)
			settle(c, REPOSITORY_KEPT, why);
		else
			snprintf(c->why, sizeof c->why, "%s", why);
	}
	return 0;
}

/* With a wrong clock protections end too early, and new points get odd names. */
static int check_clock(const struct prune *prune, struct err *err)
{
	const struct candidate *newest = &prune->points[prune->nr_points - 1];
	char now_text[CLOCK_UTC_BYTES], then_text[CLOCK_UTC_BYTES];
	int64_t now = time(NULL);
	/* Not the time in its id, which may run ahead of a clock that went back. */
	int64_t then = newest->finished > 0 ? newest->finished : name_seconds(newest->id);
	if (prune->options->trust_clock || (then <= now && now - then < CLOCK_AHEAD_MOST_S))
		return 0;
	clock_utc_text(now, now_text);
	clock_utc_text(then, then_text);
	err_set(err, ERR_CONFLICT,
		"the clock says %s, and the newest restore point of VM \"%s\" was made at %s, %s",
		now_text, prune->vm, then_text,
		then > now ? "which is still to come" : "a year and more before");
	return err_hint(err, "nothing of it is pruned; set the clock right, or give --trust-clock "
			     "if it is right");
}

/* --- what goes -------------------------------------------------------------------------- */

/* Another job was faster. */
static bool is_gone(const struct prune *prune, const char *id)
{
	char path[NAME_PATH_BYTES];
	bool listed = true, merging = true;
	path_point(prune->vm, id, "manifest.json", path);
	if (path_look(prune->repo->dir_fd, path, &listed, NULL) < 0)
		return false;
	path_point(prune->vm, id, "merging.json", path);
	return path_look(prune->repo->dir_fd, path, &merging, NULL) == 0 && !listed && !merging;
}

/* The VM's lock is held. */
static int prune_locked(struct prune *prune, struct candidate *c, const struct lock *lock,
	const char *job, bool delete_only, struct err *err)
{
	const struct repository_prune_options *options = prune->options;
	struct merge_options merge = {.lock = lock,
		.job = job,
		.software = options->software ? options->software : "sendense",
		.delete_only = delete_only,
		.cancel = options->cancel,
		.progress = options->progress,
		.stage = options->stage,
		.context = options->context};
	struct clean clean = {.what = REPOSITORY_CLEAN_EXPIRED,
		.vm = prune->vm,
		.vm_is_locked = true,
		.must_finish = c->id,
		.cancel = options->cancel};
	bool begun = false;
	int rc = plan_clean(prune->repo, &clean, err);
	prune->result->freed_bytes += clean.freed_signed_bytes;
	if (rc < 0)
		return -1;
	rc = merge_point(prune->repo, &merge, prune->vm, c->id, &c->freed_bytes, &begun, err);
	prune->result->freed_bytes += c->freed_bytes;
	if (rc < 0 && begun)
		err_context(err, "out of the list, and to be finished by the next prune or backup");
	return rc;
}

/* What somebody reads is left for the next time, which is no failure. */
static void note_failure(struct prune *prune, bool failed, unsigned nr, const char *why)
{
	struct repository_prune_result *result = prune->result;
	if (!failed)
		return;
	if (result->failed == 0)
		snprintf(result->failure, sizeof result->failure, "%s", why);
	result->failed += nr;
}

/* -1: no other point of the VM can be done now either, and err says why. */
static int prune_point(struct prune *prune, struct candidate *c, bool delete_only, struct err *err)
{
	const struct repository_prune_options *options = prune->options;
	const struct lock_wait wait = {.wait_ms = options->wait_ms};
	char job[REPOSITORY_JOB_BYTES];
	struct err why = ERR_INIT;
	if (name_make_job(time(NULL), job, err) < 0)
		return -1;
	struct lock *lock = lock_take_write(
		prune->repo, LOCK_TASK_PRUNE, prune->vm, job, &wait, options->cancel, err);
	if (!lock)
		return -1;
	int rc = prune_locked(prune, c, lock, job, delete_only, &why);
	lock_let_others(prune->repo, lock, options->cancel);
	if (rc == 0) {
		char reason[sizeof c->why];
		memcpy(reason, c->why, sizeof reason);
		settle(c, REPOSITORY_PRUNED, reason);
		return 0;
	}
	if (why.code == ERR_CANCELLED) {
		settle(c, REPOSITORY_LEFT, why.text);
		return err_copy(err, &why);
	}
	if (why.code == ERR_NOT_FOUND && is_gone(prune, c->id))
		settle(c, REPOSITORY_PRUNED, "another job was faster");
	else if (!delete_only || why.code != ERR_CONFLICT) {
		settle(c, REPOSITORY_LEFT, why.text);
		note_failure(prune, why.code != ERR_BUSY, 1, why.text);
	}
	return 0;
}

static int prune_points(struct prune *prune, struct err *err)
{
	for (size_t i = prune->nr_points; i-- > 0;) {
		struct candidate *c = &prune->points[i];
		if (c->settled || c->has_child)
			continue;
		if (prune_point(prune, c, true, err) < 0)
			return -1;
		/* What stood on the one before is gone, if this was all. */
		if (c->settled && c->fate == REPOSITORY_PRUNED && i > 0)
			prune->points[i - 1].has_child = false;
	}
	for (size_t i = 0; i < prune->nr_points; i++)
		if (!prune->points[i].settled &&
			prune_point(prune, &prune->points[i], false, err) < 0)
			return -1;
	return 0;
}

/* --- one VM, all VMs -------------------------------------------------------------------------- */

static void foresee(struct prune *prune)
{
	for (size_t i = 0; i < prune->nr_points; i++) {
		struct candidate *c = &prune->points[i];
		struct err why = ERR_INIT;
		if (c->settled)
			continue;
		char reason[sizeof c->why];
		memcpy(reason, c->why, sizeof reason);
		if (merge_look_use(prune->repo, prune->vm, c->id, &why) < 0)
			settle(c, REPOSITORY_LEFT, why.text);
		else
			settle(c, REPOSITORY_PRUNED, reason);
	}
}

static void tell(struct prune *prune)
{
	struct repository_prune_result *result = prune->result;
	for (size_t i = 0; i < prune->nr_points; i++) {
		const struct candidate *c = &prune->points[i];
		result->kept += c->fate == REPOSITORY_KEPT;
		result->pruned += c->fate == REPOSITORY_PRUNED;
		result->left += c->fate == REPOSITORY_LEFT;
		if (prune->options->point)
			prune->options->point(prune->options->context, prune->vm, c->id, c->fate,
				c->why, c->freed_bytes);
	}
}

/* What a VM's lock that is busy, or its clock, keeps from being done is told; other errors
 * end the prune. */
static int prune_vm(struct prune *prune, struct err *err)
{
	struct err why = ERR_INIT;
	/* What a killed prune left, also when the rules take nothing out now. */
	struct clean clean = {.what = REPOSITORY_CLEAN_EXPIRED,
		.vm = prune->vm,
		.cancel = prune->options->cancel};
	if (!prune->options->dry_run && plan_clean(prune->repo, &clean, err) < 0)
		return -1;
	prune->result->freed_bytes += clean.freed_signed_bytes;
	if (repository_list_points(prune->repo, prune->vm, add_point, prune, &why) < 0)
		return err_copy(err, prune->err.code ? &prune->err : &why);
	if (prune->nr_points == 0)
		return 0;
	if (check_clock(prune, err) < 0 || apply_rules(prune, err) < 0)
		return -1;
	int rc = 0;
	if (prune->options->dry_run)
		foresee(prune);
	else
		rc = prune_points(prune, &why);
	/* What a cancelled one is left in is not what the others are left in. */
	const char *rest = why.code == ERR_CANCELLED ? "cancelled" : why.text;
	for (size_t i = 0; i < prune->nr_points; i++)
		if (!prune->points[i].settled) {
			settle(&prune->points[i], REPOSITORY_LEFT, rest);
			note_failure(prune, true, 1, rest);
		}
	tell(prune);
	return rc < 0 && why.code != ERR_BUSY ? err_copy(err, &why) : 0;
}

struct all_vms {
	struct repository *repo;
	const struct repository_prune_options *options;
	struct repository_prune_result *result;
	struct err refused, failed;
};

static int prune_next(void *context, const char *vm)
{
	struct all_vms *all = context;
	struct prune prune = {
		.repo = all->repo, .options = all->options, .result = all->result, .vm = vm};
	struct err why = ERR_INIT;
	int rc = prune_vm(&prune, &why);
	free(prune.points);
	if (rc == 0 || (why.code == ERR_NOT_FOUND && !all->options->vm))
		return 0;
	if (why.code != ERR_CONFLICT) {
		err_copy(&all->failed, &why);
		return 1;
	}
	if (all->refused.code == ERR_NONE)
		err_copy(&all->refused, &why);
	else
		log_warning("%s", why.text);
	return 0;
}

int repository_prune(struct repository *repo, const struct repository_prune_options *options,
	struct repository_prune_result *result, struct err *err)
{
	struct all_vms all = {.repo = repo, .options = options, .result = result};
	memset(result, 0, sizeof *result);
	/* A policy that is none is told before anything is looked at. */
	if (retention_apply(options->policy, NULL, 0, err) < 0)
		return -1;
	if (repo->read_only && !options->dry_run)
		return err_set(
			err, ERR_DENIED, "repository %s cannot be written to", repo->info.path);
	if (options->vm) {
		if (repository_name_check_vm(options->vm, err) < 0)
			return -1;
		prune_next(&all, options->vm);
	} else if (repository_list_vms(repo, prune_next, &all, err) < 0) {
		return -1;
	}
	if (all.failed.code != ERR_NONE)
		return err_copy(err, &all.failed);
	return all.refused.code != ERR_NONE ? err_copy(err, &all.refused) : 0;
}
