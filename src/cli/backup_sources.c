/* The disks of "sendense backup" and what is decided about them; see backup.h. */
#include "backup.h"

#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#define ESTIMATE_CALLS_MOST 4096u

/* --- opening --------------------------------------------------------------------- */

static enum locator_kind kind_of(const char *name)
{
	enum locator_kind kind = LOCATOR_RAW;
	const char *rest;
	locator_parse(name, &kind, &rest, NULL); /* a bad name is refused when it is opened */
	return kind;
}

static const char *kind_name(const struct backup_disk *disk)
{
	static const char *const names[] = {
		[LOCATOR_RAW] = "raw",
		[LOCATOR_QCOW2] = "qcow2",
		[LOCATOR_NBD] = "nbd",
		[LOCATOR_NULL] = "null",
		[LOCATOR_QEMU] = "qemu",
	};
	return disk->vmware ? "vmware" : names[kind_of(disk->name)];
}

static bool is_machines(const struct backup_disk *disk)
{
	return disk->qemu || disk->vmware;
}

/* A list that belongs to another disk, or to another state of it, must not be followed. */
static int check_list(const struct backup_disk *disk, struct err *err)
{
	const struct changes_facts *facts = changes_facts(disk->changes);
	uint64_t size_bytes = block_info(disk->opened)->size_bytes;
	if (strcmp(facts->key, disk->key) != 0)
		return err_set(err, ERR_CONFLICT, "the list %s is of disk %s, not of %s",
			disk->change_argument, facts->key, disk->key);
	if (facts->size_bytes != size_bytes)
		return err_set(err, ERR_CONFLICT,
			"the list %s is of a disk of %" PRIu64 " bytes, and %s has %" PRIu64,
			disk->change_argument, facts->size_bytes, disk->name, size_bytes);
	if (disk->change_id && strcmp(disk->change_id, facts->to) != 0)
		return err_set(err, ERR_CONFLICT,
			"--change-id %s: the list %s leads to \"%s\", another state",
			disk->change_id, disk->change_argument, facts->to);
	return 0;
}

/* As given, or as the list says. */
static const char *change_id_of(const struct backup_disk *disk)
{
	return disk->changes ? changes_facts(disk->changes)->to : disk->change_id;
}

static int open_list(const struct backup *b, struct backup_disk *disk, struct err *err)
{
	disk->changes = changes_open(disk->change_argument, b->cli->cancel, err);
	if (!disk->changes || check_list(disk, err) < 0)
		return -1;
	disk->source = changes_apply(disk->changes, disk->opened, err);
	return disk->source ? 0 : -1;
}

/*
 * What shows later that the source is still in the state that is read now.  A change id names
 * a state, but whoever gave it may have been careless: a file must look the same, too, unless
 * --source-id vouches for it.  A machine is read at another moment each time.
 */
static void find_state(struct backup_disk *disk)
{
	const char *source_id = disk->source_id ? disk->source_id : "";
	const char *given_id = change_id_of(disk), *change_id = given_id ? given_id : "";
	char *AUTO_FREE file = NULL;
	struct stat st;
	if (is_machines(disk))
		return;
	bool is_file = disk->path && !disk->source_id && stat(disk->path, &st) == 0 &&
		       !S_ISBLK(st.st_mode);
	if (is_file)
		file = backup_state_of_file(disk->path, kind_of(disk->name) == LOCATOR_QCOW2);
	if ((is_file && !file) || (!is_file && !disk->source_id && !given_id))
		return;
	if (asprintf(&disk->state, "id %zu %s %zu %s %s", strlen(source_id), source_id,
		    strlen(change_id), change_id, file ? file : "") < 0)
		disk->state = NULL;
}

/* What the machine knows: which bitmap tells of its changes, and which one begins now. */
static int take_machine_facts(struct backup_disk *disk, struct err *err)
{
	if (disk->bitmap)
		return err_set(err, ERR_USAGE,
			"--bitmap %s: bitmaps of a machine in QEMU are named by themselves",
			disk->bitmap);
	disk->bitmap = disk->qemu->bitmap;
	if (disk->change != REPOSITORY_CHANGE_NONE || !disk->since)
		return 0;
	disk->change = REPOSITORY_CHANGE_BITMAP;
	disk->change_argument = disk->since;
	if (disk->qemu->unusable)
		snprintf(disk->unusable, sizeof disk->unusable, "%s", disk->qemu->unusable);
	return 0;
}

static void find_vmware_identity(const struct backup *b, struct backup_disk *disk)
{
	const struct repository_pair pairs[] = {
		{"vm-uuid", vmware_vm_uuid(b->vmware)},
		{"vcenter-uuid", vmware_vcenter_uuid(b->vmware)},
		{"disk-uuid", disk->vmware->uuid},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(pairs); i++)
		if (pairs[i].value[0])
			disk->identity[disk->nr_identity++] = pairs[i];
}

static void find_identity(const struct backup *b, struct backup_disk *disk)
{
	struct repository_pair *identity = disk->identity;
	disk->nr_identity = 0;
	if (disk->vmware) {
		find_vmware_identity(b, disk);
		return;
	}
	if (disk->qemu && qemu_source_uuid(b->qemu)[0])
		identity[disk->nr_identity++] =
			(struct repository_pair){"vm-uuid", qemu_source_uuid(b->qemu)};
	if (disk->qemu)
		identity[disk->nr_identity++] =
			(struct repository_pair){"device", disk->qemu->identity};
	else if (disk->path)
		identity[disk->nr_identity++] = (struct repository_pair){"path", disk->path};
	else
		identity[disk->nr_identity++] =
			(struct repository_pair){"uri", block_label(disk->opened)};
}

void backup_sources_identify(struct backup *b)
{
	for (size_t i = 0; i < b->nr_disks; i++)
		if (is_machines(&b->disks[i]))
			find_identity(b, &b->disks[i]);
}

/* For all we know. */
static bool may_change(const struct backup_disk *disk)
{
	return kind_of(disk->name) == LOCATOR_NBD && !disk->source_id && !disk->change_id &&
	       disk->change != REPOSITORY_CHANGE_EXTENTS;
}

/* It is open, and tells its changes, unless it was asked to be compared. */
static void take_vmware_disk(const struct backup *b, struct backup_disk *disk)
{
	disk->source = disk->opened = disk->vmware->block;
	disk->change_id = disk->vmware->change_id;
	find_identity(b, disk);
	/* For this run alone: the next one has another snapshot. */
	if (asprintf(&disk->state, "vmware %s", vmware_snapshot(b->vmware)) < 0)
		disk->state = NULL;
	if (disk->change == REPOSITORY_CHANGE_COMPARE)
		return;
	disk->change = REPOSITORY_CHANGE_EXTENTS;
	if (disk->vmware->unusable)
		snprintf(disk->unusable, sizeof disk->unusable, "%s", disk->vmware->unusable);
}

/* The change id that what tells of changes begins at. */
static const char *from_of(const struct backup_disk *disk)
{
	if (disk->vmware)
		return disk->vmware->since ? disk->vmware->since : "";
	return disk->changes ? changes_facts(disk->changes)->from : NULL;
}

static int open_disk(struct backup *b, struct backup_disk *disk, struct err *err)
{
	disk->unusable[0] = '\0';
	if (disk->vmware) {
		take_vmware_disk(b, disk);
		return 0;
	}
	if (disk->qemu && take_machine_facts(disk, err) < 0)
		return -1;
	bool has_bitmap = disk->change == REPOSITORY_CHANGE_BITMAP;
	struct source_options options = {
		.read_only = true,
		.bitmap = has_bitmap ? disk->change_argument : NULL,
		/* An export of a machine ends with its QEMU. */
		.no_reconnect = disk->qemu || may_change(disk),
		.allow_backing = &b->values->allow_backing,
		.tls = &b->values->tls,
		.cancel = b->cli->cancel,
	};
	disk->source = disk->opened =
		source_open(disk->qemu ? disk->qemu->uri : disk->name, &options, err);
	if (!disk->opened)
		return -1;
	if (block_info(disk->opened)->size_bytes == 0)
		return err_set(err, ERR_RANGE, "%s has no bytes", disk->name);
	if (has_bitmap && !disk->unusable[0] && !block_info(disk->opened)->has_changes)
		snprintf(disk->unusable, sizeof disk->unusable, "the export has no bitmap %s",
			disk->change_argument);
	if (disk->change == REPOSITORY_CHANGE_EXTENTS && open_list(b, disk, err) < 0)
		return -1;
	const char *path = locator_path(disk->name);
	disk->path = path ? realpath(path, NULL) : NULL;
	find_identity(b, disk);
	find_state(disk);
	return 0;
}

static struct repository_offer offer_of(const struct backup_disk *disk)
{
	bool has_bitmap = disk->change == REPOSITORY_CHANGE_BITMAP;
	return (struct repository_offer){
		.key = disk->key,
		.size_bytes = block_info(disk->source)->size_bytes,
		.change = disk->change,
		.from = from_of(disk),
		.bitmap = has_bitmap ? disk->change_argument : NULL,
		.unusable = disk->unusable[0] ? disk->unusable : NULL,
		.source =
			{
				.kind = kind_name(disk),
				.label = is_machines(disk) ? disk->name : block_label(disk->opened),
				.identity = disk->identity,
				.nr_identity = disk->nr_identity,
			},
	};
}

static int begin_machine(struct backup *b, struct err *err)
{
	for (size_t i = 0; i < b->nr_disks; i++) {
		const char *since = b->disks[i].since;
		if ((b->vmware && vmware_plan(b->vmware, i, since, err) < 0) ||
			(b->qemu && qemu_source_plan(b->qemu, i, since, err) < 0))
			return -1;
	}
	if (b->qemu)
		return qemu_source_begin(b->qemu, err);
	if (!b->vmware)
		return 0;
	progress_stage(b->progress, "snapshot");
	return vmware_begin(b->vmware, err);
}

int backup_sources_open(struct backup *b, struct err *err)
{
	if (begin_machine(b, err) < 0)
		return -1;
	for (size_t i = 0; i < b->nr_disks; i++) {
		struct backup_disk *disk = &b->disks[i];
		if (open_disk(b, disk, err) < 0)
			return err_context(err, "%s", disk->label);
		b->offers[i] = (struct store_backup_disk){
			.offer = offer_of(disk),
			.change_id = change_id_of(disk),
			.bitmap = disk->bitmap,
			.source_state = disk->state,
			/* Who has all compared does not believe it. */
			.tells_since = disk->vmware && disk->vmware->change_id &&
				       disk->change == REPOSITORY_CHANGE_EXTENTS,
		};
	}
	return 0;
}

bool backup_sources_may_change(const struct backup *b)
{
	for (size_t i = 0; i < b->nr_disks; i++)
		if (may_change(&b->disks[i]))
			return true;
	return false;
}

const char *backup_sources_consistency(const struct backup *b, const char **reason)
{
	*reason = b->vmware ? vmware_consistency_reason(b->vmware)
		  : b->qemu ? qemu_source_consistency_reason(b->qemu)
			    : NULL;
	return b->vmware ? vmware_consistency(b->vmware)
	       : b->qemu ? qemu_source_consistency(b->qemu)
			 : NULL;
}

int backup_sources_check(struct backup *b, int rc, struct err *err)
{
	struct err why = ERR_INIT;
	if (cancel_requested(b->cli->cancel) ||
		((!b->qemu || qemu_source_check(b->qemu, &why) == 0) &&
			(!b->vmware || vmware_check(b->vmware, &why) == 0)))
		return rc;
	return err_copy(err, &why);
}

void backup_sources_commit(const struct backup *b)
{
	if (b->qemu)
		qemu_source_commit(b->qemu);
	if (b->vmware)
		vmware_commit(b->vmware);
}

void backup_sources_close(struct backup *b)
{
	for (size_t i = 0; i < b->nr_disks; i++) {
		struct backup_disk *disk = &b->disks[i];
		if (disk->source != disk->opened)
			block_close(disk->source, NULL);
		if (!disk->vmware) /* the session's */
			block_close(disk->opened, NULL);
		changes_close(disk->changes);
		free(disk->path);
		free(disk->state);
		disk->source = disk->opened = NULL;
		disk->changes = NULL;
		disk->path = disk->state = NULL;
	}
	qemu_source_end(b->qemu);
	vmware_source_end(b->vmware);
	b->qemu = NULL;
	b->vmware = NULL;
}

/* --- deciding ---------------------------------------------------------------------- */

/*
 * What the disk can take at most in an image without compression: the extents that will be
 * read and may hold data, widened to clusters.  0 when that is not known, or too long to
 * find out.
 */
uint64_t backup_sources_estimate(void *context, size_t index,
	const struct repository_decision *decision, const struct repository_settings *settings)
{
	const struct backup *b = context;
	const struct backup_disk *disk = &b->disks[index];
	struct block_extent extents[64];
	uint64_t size_bytes = block_info(disk->source)->size_bytes, offset = 0, sum = 0, end = 0;
	bool is_full = decision->mode == REPOSITORY_FULL;
	uint64_t unit = is_full ? settings->cluster_bytes
				: max_u64(settings->cluster_bytes, DIGEST_CHUNK_BYTES);
	uint32_t nothing = BLOCK_ZERO | (is_full ? 0 : BLOCK_UNCHANGED);
	struct stat st;
	if (settings->compression != REPOSITORY_COMPRESS_NONE ||
		(is_full ? kind_of(disk->name) != LOCATOR_RAW || !disk->path ||
					stat(disk->path, &st) < 0 || !S_ISREG(st.st_mode)
			 : decision->change == REPOSITORY_CHANGE_COMPARE))
		return 0;
	for (unsigned calls = 0; offset < size_bytes; calls++) {
		size_t nr;
		if (calls == ESTIMATE_CALLS_MOST ||
			block_extents(disk->source, offset, size_bytes - offset, extents,
				ARRAY_LENGTH(extents), &nr, NULL) < 0)
			return 0;
		for (size_t i = 0; i < nr; offset += extents[i++].length) {
			if (extents[i].flags & nothing)
				continue;
			uint64_t start = max_u64(end, round_down(offset, unit));
			end = round_up(offset + extents[i].length, unit);
			sum += end > start ? end - start : 0;
		}
	}
	return sum;
}

int backup_sources_changed_since(
	void *context, size_t disk, const char *change_id, struct block **map, struct err *err)
{
	const struct backup *b = context;
	return vmware_changed_since(b->vmware, disk, change_id, map, err);
}

void backup_sources_warn(const struct backup *b)
{
	for (size_t i = 0; i < b->nr_disks; i++)
		if (b->decisions[i].fallback)
			log_warning("%s: a full backup in place of an incremental one: %s",
				b->disks[i].label, b->decisions[i].reason);
}
