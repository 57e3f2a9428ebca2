/*
 * Deciding, disk by disk, between a full and an increment.
 *
 * An increment needs a parent that holds (the VM's latest point has the disk at this size,
 * its chain opens, neither a verification nor an audit found it wrong) and something that
 * tells what changed since just that point.  Where either is missing it is a full, and the
 * reason is kept in words.  What does not cost a look at files is asked first.
 */
#include "disk_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct decide {
	struct repository *repo;
	const char *vm;
	bool wants_full, wants_incremental;
	struct repository_point *latest; /* may be damaged; NULL: the VM has no points */
};

/* Cut behind a word where it is too long, so that no number or letter is half there. */
__attribute__((format(printf, 2, 3))) static void say(
	struct repository_decision *decision, const char *format, ...)
{
	static const char ellipsis[] = " ...";
	char *reason = decision->reason;
	va_list args;
	va_start(args, format);
	int length = vsnprintf(reason, sizeof decision->reason, format, args);
	va_end(args);
	if (length < (int)sizeof decision->reason)
		return;
	size_t end = sizeof decision->reason - sizeof ellipsis;
	while (end > 0 && reason[end] != ' ')
		end--;
	memcpy(reason + end, ellipsis, sizeof ellipsis);
}

/* --- identity ------------------------------------------------------------------------ */

static const char *find_pair(const struct repository_source *source, const char *name)
{
	for (size_t i = 0; i < source->nr_identity; i++)
		if (strcmp(source->identity[i].name, name) == 0)
			return source->identity[i].value;
	return NULL;
}

/* As it is kept in records. */
static bool same_text(const char *given, const char *kept)
{
	char *AUTO_FREE text = strdup(given);
	if (!text)
		return false;
	name_printable(given, text, strlen(given) + 1);
	return strcmp(text, kept) == 0;
}

static int check_pair(const struct decide *decide, const struct repository_offer *offer,
	const struct repository_source *kept, const char *point, const char *name, struct err *err)
{
	const char *now = find_pair(&offer->source, name), *then = find_pair(kept, name);
	if (!now || !then || same_text(now, then))
		return 0;
	if (decide->wants_full) {
		log_warning("disk %s of VM \"%s\" had %s %s at restore point %s, and has %s now",
			offer->key, decide->vm, name, then, point, now);
		return 0;
	}
	err_set(err, ERR_DENIED,
		"disk %s of VM \"%s\" is not the one that was backed up: %s is %s, and was %s at "
		"restore point %s",
		offer->key, decide->vm, name, now, then, point);
	return err_hint(err, "another machine needs another name (--vm); --mode full takes it all "
			     "the same");
}

/* A stranger of the same name is told by what it cannot share with the one we know. */
static int check_identity(const struct decide *decide, const struct repository_point *known,
	const struct repository_offer *offer, struct err *err)
{
	static const char *const of_disk[] = {"vm-uuid", "disk-uuid", "source-id"};
	if (check_pair(decide, offer, &known->source, known->id, "vm-uuid", err) < 0)
		return -1;
	for (size_t i = 0; i < known->nr_disks; i++) {
		const struct repository_disk_info *disk = &known->disks[i];
		bool same = strcmp(disk->key, offer->key) == 0;
		for (unsigned k = 0; k < (same ? ARRAY_LENGTH(of_disk) : 1); k++)
			if (check_pair(decide, offer, &disk->source, known->id, of_disk[k], err) <
				0)
				return -1;
	}
	return 0;
}

/* --- the parent ------------------------------------------------------------------------ */

/* Whether what made it fail will not pass by itself: then a full helps. */
static bool is_lasting(const struct err *err)
{
	switch (err->code) {
	case ERR_NOT_FOUND:
	case ERR_CORRUPT:
	case ERR_FORMAT:
	case ERR_UNSUPPORTED:
		return true;
	default:
		return err->code == ERR_IO && err->sys_errno == EIO;
	}
}

/*
 * 1: the parent holds; 0: it does not, the decision says why; -1: that cannot be told.
 * Its checksums are read whole, as they are at the end: else damage in them would fail that
 * backup, and each that follows.
 */
static int check_chain(const struct decide *decide, const struct repository_offer *offer,
	struct repository_decision *decision, struct err *err)
{
	struct err why = ERR_INIT;
	struct repository_disk *disk = repository_disk_open(
		decide->repo, decide->vm, decide->latest->id, offer->key, NULL, &why);
	const char *damaged = disk ? chain_damaged(disk_chain(disk)) : NULL;
	int rc = 1;
	if (damaged) {
		say(decision,
			"verification found restore point %s damaged, on which it would stand",
			damaged);
		rc = 0;
	} else if (!disk || chain_check_sums(disk_chain(disk), &why) < 0) {
		rc = is_lasting(&why) ? 0 : err_copy(err, &why);
		say(decision, "its parent cannot be read: %s", why.text);
	}
	repository_disk_close(disk);
	return rc;
}

/* --- what tells the changes ---------------------------------------------------------------- */

static bool changes_hold(const struct repository_offer *offer,
	const struct repository_point *latest, const struct repository_disk_info *parent,
	struct repository_decision *decision)
{
	decision->change = offer->change;
	if (offer->unusable) {
		say(decision, "%s", offer->unusable);
		return false;
	}
	switch (offer->change) {
	case REPOSITORY_CHANGE_EXTENTS:
		if (!parent->change_id)
			say(decision,
				"restore point %s recorded no change id, and the list of changes "
				"begins at %s",
				latest->id, offer->from);
		else if (!same_text(offer->from, parent->change_id))
			say(decision,
				"the list of changes begins at %s, restore point %s was made at %s",
				offer->from, latest->id, parent->change_id);
		else
			say(decision, "changed since %s by the list from outside", latest->id);
		return parent->change_id && same_text(offer->from, parent->change_id);
	case REPOSITORY_CHANGE_BITMAP:
		if (!parent->bitmap)
			say(decision,
				"restore point %s recorded no dirty bitmap, so %s tells nothing",
				latest->id, offer->bitmap);
		else if (!same_text(offer->bitmap, parent->bitmap))
			say(decision, "restore point %s recorded dirty bitmap %s, not %s",
				latest->id, parent->bitmap, offer->bitmap);
		else
			say(decision, "changed since %s by dirty bitmap %s", latest->id,
				offer->bitmap);
		return parent->bitmap && same_text(offer->bitmap, parent->bitmap);
	default:
		decision->change = REPOSITORY_CHANGE_COMPARE;
		say(decision, "compared with %s", latest->id);
		return true;
	}
}

/* --- one disk ----------------------------------------------------------------------------------
 */

/* As check_chain(). */
static int can_stand_on_latest(const struct decide *decide, const struct repository_offer *offer,
	struct repository_decision *decision, struct err *err)
{
	const struct repository_point *latest = decide->latest;
	if (latest->damage) {
		say(decision, "the latest restore point %s cannot be used: %s", latest->id,
			latest->damage);
		return 0;
	}
	const struct repository_disk_info *parent = repository_point_disk(latest, offer->key);
	const char *distrust = manifest_distrusted(latest, offer->key);
	decision->distrusts_changes |= distrust != NULL;
	if (!parent)
		say(decision, "restore point %s has no disk %s", latest->id, offer->key);
	else if (parent->size_bytes != offer->size_bytes)
		say(decision, "the disk was resized from %" PRIu64 " to %" PRIu64 " bytes",
			parent->size_bytes, offer->size_bytes);
	else if (distrust)
		say(decision, "an audit found what told of its changes to be wrong: %s", distrust);
	else if (changes_hold(offer, latest, parent, decision))
		return check_chain(decide, offer, decision, err);
	return 0;
}

static int decide_disk(const struct decide *decide, const struct repository_offer *offer,
	struct repository_decision *decision, struct err *err)
{
	int stands = 0;
	memset(decision, 0, sizeof *decision);
	decision->distrusts_changes = decide->wants_full;
	if (!decide->latest) {
		say(decision, "first backup");
	} else if (decide->wants_full) {
		say(decision, "--mode full");
	} else {
		stands = can_stand_on_latest(decide, offer, decision, err);
		decision->fallback = stands == 0;
	}
	if (stands < 0)
		return -1;
	decision->mode = stands ? REPOSITORY_INCREMENTAL : REPOSITORY_FULL;
	if (stands) {
		memcpy(decision->parent, decide->latest->id, sizeof decision->parent);
		return 0;
	}
	decision->change = REPOSITORY_CHANGE_NONE;
	if (!decide->wants_incremental)
		return 0;
	err_set(err, ERR_CONFLICT, "disk %s of VM \"%s\" cannot be backed up as an increment: %s",
		offer->key, decide->vm, decision->reason);
	return err_hint(err, "--mode auto makes a full instead");
}

/* --- all of them --------------------------------------------------------------------------------
 */

/* The latest point, and the newest one whose record can be read (the same, as a rule). */
static int find_points(struct decide *decide, struct repository_point **readable, struct err *err)
{
	struct path_names points;
	struct err why = ERR_INIT;
	*readable = NULL;
	if (list_points(decide->repo, decide->vm, &points, &why) < 0)
		return why.code == ERR_NOT_FOUND ? 0 : err_copy(err, &why);
	int rc = 0;
	for (size_t i = points.nr; i-- > 0 && !*readable;) {
		struct repository_point *point =
			manifest_load(decide->repo, decide->vm, points.name[i], NULL);
		if (!point) {
			rc = err_errno(err, ENOMEM, "cannot decide on a backup");
			break;
		}
		if (!point->damage)
			*readable = point;
		if (!decide->latest)
			decide->latest = point;
		else if (!*readable)
			repository_point_free(point);
	}
	path_names_free(&points);
	return rc;
}

static int parse_wish(struct decide *decide, const char *wish, struct err *err)
{
	decide->wants_full = strcmp(wish, "full") == 0;
	decide->wants_incremental = strcmp(wish, "incremental") == 0;
	if (decide->wants_full || decide->wants_incremental || strcmp(wish, "auto") == 0)
		return 0;
	return err_set(err, ERR_USAGE, "there is no mode \"%s\" (auto, full, incremental)", wish);
}

int repository_decide(struct repository *repo, const char *vm, const char *wish,
	const struct repository_offer *offers, size_t nr_offers,
	struct repository_decision *decisions, struct err *err)
{
	struct decide decide = {.repo = repo, .vm = vm};
	struct repository_point *readable = NULL;
	if (repository_name_check_vm(vm, err) < 0 || parse_wish(&decide, wish, err) < 0)
		return -1;
	int rc = find_points(&decide, &readable, err);
	for (size_t i = 0; i < nr_offers && rc == 0 && readable; i++)
		rc = check_identity(&decide, readable, &offers[i], err);
	for (size_t i = 0; i < nr_offers && rc == 0; i++)
		rc = decide_disk(&decide, &offers[i], &decisions[i], err);
	if (readable != decide.latest)
		repository_point_free(readable);
	repository_point_free(decide.latest);
	return rc;
}
