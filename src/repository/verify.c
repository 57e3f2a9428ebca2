/*
 * Verification: every byte of every restore point against its digests.
 *
 * The points that were verified longest ago come first, where time is short; else each
 * chain is gone through from its full upwards.  Of a point that stands on one that was
 * verified in the same run only what it stores itself is read: so each byte of a chain
 * is read once (verify_layer.c).  A disk is read in windows; when the time box ends, the place is
 * kept in state.json and the next run goes on there, so that any disk is finished in the end,
 * however short the boxes are.  What is wrong is gathered for a window and told as ranges.
 *
 * A copy of the engine (copy_scan) reads a window; when a read fails, the window
 * is read again chunk by chunk, so that all of its damage is told and not the
 * first alone.
 */
#include "check_internal.h"
#include "verify_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define WINDOW_BYTES (16 * GIB)
#define RANGES_MOST 64u /* told for each window */

struct entry {
	char vm[REPOSITORY_VM_BYTES];
	char id[REPOSITORY_POINT_BYTES];
	char verified_at[CLOCK_UTC_BYTES];
};

struct verify {
	struct check_run run;
	struct repository *repo;
	const struct repository_verify_options *options;
	struct repository_verify_result *result;
	struct deadline until;
	struct entry *entries;
	size_t nr_entries, room;
	struct verify_dones dones;
	struct err listing; /* how a listing inside a callback failed */
};

/* --- a window of a disk as a block of its own ------------------------------------------- */

struct window {
	struct block block;
	struct block *disk;
	uint64_t start;
};

static int window_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	const struct window *window = (struct window *)block;
	return block_read(window->disk, buffer, length, window->start + offset, err);
}

static int window_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr_extents, struct err *err)
{
	const struct window *window = (struct window *)block;
	return block_extents(
		window->disk, window->start + offset, length, extents, max, nr_extents, err);
}

static int window_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	return 0;
}

static const struct block_driver window_driver = {
	.name = "window", .read = window_read, .extents = window_extents, .close = window_close};

/* --- comparing a window -------------------------------------------------------------------- */

struct scan {
	struct verify *verify;
	const struct repository_point *point;
	struct repository_disk *disk;
	struct block *block; /* that is read: the disk, or its layer alone */
	bool layer_only;
	uint64_t start_chunk; /* of the window */
	pthread_mutex_t mutex;
	uint64_t nr_checked; /* chunks of the window */
	uint64_t *wrong; /* VERIFY_WRONG_MOST chunks of the disk */
	size_t nr_wrong;
	uint64_t nr_beyond; /* that did not fit */
	uint64_t *all_wrong; /* VERIFY_WRONG_MOST of all windows */
	size_t nr_all_wrong;
	bool damaged, too_many_wrong;
};

static void note_wrong(struct scan *scan, uint64_t chunk)
{
	WITH_LOCK(&scan->mutex);
	if (scan->nr_wrong < VERIFY_WRONG_MOST)
		scan->wrong[scan->nr_wrong++] = chunk;
	else
		scan->nr_beyond++;
}

static void note_checked(struct scan *scan, uint64_t nr)
{
	WITH_LOCK(&scan->mutex);
	scan->nr_checked += nr;
}

static int scan_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, struct err *err)
{
	struct scan *scan = context;
	for (unsigned i = 0; i < nr; i++) {
		bool matches;
		uint64_t chunk = scan->start_chunk + first + i;
		if (disk_match(scan->disk, chunk, zero_mask >> i & 1,
			    leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX, &matches, err) < 0)
			return -1;
		if (!matches)
			note_wrong(scan, chunk);
	}
	note_checked(scan, nr);
	return 0;
}

static int scan_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	struct scan *scan = context;
	uint64_t chunk = scan->start_chunk + first, end = chunk + nr, wrong;
	note_checked(scan, nr);
	while (chunk < end) {
		if (disk_match_zeros(scan->disk, chunk, end - chunk, &wrong, err) < 0)
			return -1;
		if (wrong == UINT64_MAX)
			return 0;
		note_wrong(scan, wrong);
		chunk = wrong + 1;
	}
	return 0;
}

/* Whether all of the chunk was verified with the point beneath. */
static bool is_beneath(const struct scan *scan, uint64_t offset, uint64_t length)
{
	struct block_extent extent;
	size_t nr;
	return scan->layer_only &&
	       block_extents(scan->block, offset, length, &extent, 1, &nr, NULL) == 0 &&
	       (extent.flags & BLOCK_UNCHANGED) && extent.length == length;
}

/* Chunk by chunk: what cannot be read is wrong. */
static int scan_slowly(struct scan *scan, uint64_t nr_chunks, struct err *err)
{
	struct block *block = scan->block;
	uint64_t size_bytes = block_info(block)->size_bytes;
	uint8_t *AUTO_FREE bytes = malloc(DIGEST_CHUNK_BYTES);
	if (!bytes)
		return err_errno(err, ENOMEM, "cannot verify");
	for (uint64_t i = 0; i < nr_chunks; i++) {
		uint64_t chunk = scan->start_chunk + i, offset = chunk * DIGEST_CHUNK_BYTES;
		size_t length = (size_t)min_u64(DIGEST_CHUNK_BYTES, size_bytes - offset);
		bool matches = false;
		if (cancel_check(scan->verify->options->cancel, err) < 0)
			return -1;
		if (is_beneath(scan, offset, length))
			continue;
		note_checked(scan, 1);
		if (block_read(block, bytes, length, offset, NULL) == 0 &&
			disk_match_bytes(scan->disk, chunk, bytes, length, &matches, err) < 0)
			return -1;
		if (!matches)
			note_wrong(scan, chunk);
	}
	return 0;
}

static int by_number(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
	return left < right ? -1 : left > right;
}

/* All of it lies in one image of the chain. */
static void tell_part(struct scan *scan, uint64_t first, uint64_t nr, unsigned link)
{
	const struct repository_disk_info *info = repository_disk_info(scan->disk);
	const struct chain *chain = disk_chain(scan->disk);
	uint64_t offset = first * DIGEST_CHUNK_BYTES;
	struct repository_finding finding = {.kind = REPOSITORY_FINDING_DAMAGE,
		.vm = scan->point->vm,
		.point = scan->point->id,
		.key = info->key,
		.file = chain_image(chain, link),
		.guest_offset = offset,
		.guest_length = min_u64(nr * DIGEST_CHUNK_BYTES, info->size_bytes - offset),
		.remedy = CHECK_REMEDY_DISK};
	check_report(&scan->verify->run, &finding,
		"%" PRIu64 " bytes of the disk from offset %" PRIu64
		" on are not what was backed up%s%s",
		finding.guest_length, finding.guest_offset,
		link > 0 ? "; they lie in the image of restore point " : "",
		link > 0 ? chain_point(chain, link) : "");
}

static void tell_range(struct scan *scan, uint64_t first, uint64_t nr)
{
	while (nr > 0) {
		uint64_t part;
		unsigned link = chain_holder(disk_chain(scan->disk), first, nr, &part);
		tell_part(scan, first, part, link);
		first += part;
		nr -= part;
	}
}

/* For what stands on this disk. */
static void keep_wrong(struct scan *scan)
{
	scan->too_many_wrong |=
		scan->nr_beyond > 0 || scan->nr_wrong > VERIFY_WRONG_MOST - scan->nr_all_wrong;
	if (scan->too_many_wrong)
		return;
	memcpy(scan->all_wrong + scan->nr_all_wrong, scan->wrong,
		scan->nr_wrong * sizeof *scan->wrong);
	scan->nr_all_wrong += scan->nr_wrong;
}

static void tell_wrong(struct scan *scan)
{
	if (scan->nr_wrong == 0)
		return;
	scan->damaged = true;
	qsort(scan->wrong, scan->nr_wrong, sizeof *scan->wrong, by_number);
	keep_wrong(scan);
	uint64_t first = scan->wrong[0], next = first + 1;
	unsigned nr_ranges = 0;
	for (size_t i = 1; i <= scan->nr_wrong; i++) {
		if (i < scan->nr_wrong && scan->wrong[i] <= next) {
			next = scan->wrong[i] + 1;
			continue;
		}
		if (nr_ranges++ < RANGES_MOST)
			tell_range(scan, first, next - first);
		if (i < scan->nr_wrong) {
			first = scan->wrong[i];
			next = first + 1;
		}
	}
	uint64_t more = nr_ranges > RANGES_MOST ? nr_ranges - RANGES_MOST : 0;
	if (more + scan->nr_beyond > 0)
		log_error("disk %s: at least %" PRIu64
			  " more damaged ranges within the next 16 GiB are not listed",
			repository_disk_info(scan->disk)->key, more + scan->nr_beyond);
	scan->nr_wrong = 0;
	scan->nr_beyond = 0;
}

static int scan_window(struct scan *scan, uint64_t start, uint64_t length, struct err *err)
{
	struct block *disk = scan->block;
	struct window window = {.disk = disk, .start = start};
	const struct copy_chunk_sink sink = {
		.context = scan, .chunks = scan_chunks, .zeros = scan_zeros};
	const struct copy_options copy = {
		.digest_key = repository_disk_digest_key(scan->disk),
		.sink = &sink,
		.changed_only = scan->layer_only,
		.progress = scan->verify->options->progress,
		.cancel = scan->verify->options->cancel,
	};
	struct err why = ERR_INIT;
	block_init(&window.block, &window_driver, strdup(block_label(disk)));
	window.block.info = *block_info(disk);
	window.block.info.size_bytes = length;
	scan->start_chunk = start / DIGEST_CHUNK_BYTES;
	scan->nr_checked = 0;
	int rc = copy_scan(&window.block, &copy, &why);
	block_close(&window.block, NULL);
	if (rc < 0 && why.code == ERR_CANCELLED)
		return err_copy(err, &why);
	if (rc < 0) {
		log_warning("%s: reading chunk by chunk", why.text);
		scan->nr_wrong = 0;
		scan->nr_beyond = 0;
		scan->nr_checked = 0;
		if (scan_slowly(scan, div_round_up(length, DIGEST_CHUNK_BYTES), err) < 0)
			return -1;
	}
	tell_wrong(scan);
	/* The disk's last chunk may be a short one. */
	scan->verify->result->bytes_checked +=
		min_u64(scan->nr_checked * DIGEST_CHUNK_BYTES, length);
	return 0;
}

/* --- one disk --------------------------------------------------------------------------------- */

/* How far an earlier run came with a point. */
struct place {
	char key[REPOSITORY_KEY_BYTES]; /* "": at the beginning */
	uint64_t offset;
	bool damaged; /* something was found before it */
	json_t *disks; /* keys of damaged ones; NULL: an earlier run found some it did not note */
};

static bool time_is_up(const struct verify *verify)
{
	return verify->options->time_box_ms > 0 && deadline_passed(verify->until);
}

/* 0: done; 1: the time is up, place says where. */
static int scan_disk(struct scan *scan, uint64_t from, struct place *place, struct err *err)
{
	const struct repository_disk_info *info = repository_disk_info(scan->disk);
	for (uint64_t at = from; at < info->size_bytes; at += WINDOW_BYTES) {
		/* Each run does one window at least, so that it gets anywhere. */
		if (at != from && time_is_up(scan->verify)) {
			snprintf(place->key, sizeof place->key, "%s", info->key);
			place->offset = at;
			return 1;
		}
		if (scan_window(scan, at, min_u64(WINDOW_BYTES, info->size_bytes - at), err) < 0)
			return -1;
	}
	return 0;
}

/* Root and segments of the sums; the manifest's root decides. */
static int verify_root(struct verify *verify, const struct repository_point *point,
	struct repository_disk *disk, bool *good, struct err *err)
{
	const struct repository_disk_info *info = repository_disk_info(disk);
	struct repository_finding finding = {.kind = REPOSITORY_FINDING_DAMAGE,
		.vm = point->vm,
		.point = point->id,
		.key = info->key,
		.file = info->sums,
		.remedy = CHECK_REMEDY_SUMS};
	uint8_t root[DIGEST_ROOT_BYTES];
	char hex[DIGEST_ROOT_HEX_BYTES];
	struct err why = ERR_INIT;
	*good = false;
	if (sums_reader_root(disk_sums(disk), verify->options->cancel, root, &why) < 0) {
		if (why.code == ERR_CANCELLED)
			return err_copy(err, &why);
		check_report(&verify->run, &finding, "%s", why.text);
		return 0;
	}
	digest_hex(root, sizeof root, hex);
	*good = strcmp(hex, info->root_hex) == 0;
	if (!*good)
		check_report(&verify->run, &finding,
			"the root digest of its checksums is not the one in the manifest");
	return 0;
}

/* A disk that cannot be opened is a finding, unless it was cancelled. */
static int tell_unopened(struct verify *verify, const struct repository_point *point,
	const struct repository_disk_info *info, const struct err *why, struct err *err)
{
	if (why->code == ERR_CANCELLED)
		return err_copy(err, why);
	struct repository_finding finding = {.kind = why->code == ERR_NOT_FOUND
							     ? REPOSITORY_FINDING_MISSING
							     : REPOSITORY_FINDING_DAMAGE,
		.vm = point->vm,
		.point = point->id,
		.key = info->key,
		.remedy = CHECK_REMEDY_DISK};
	check_report(&verify->run, &finding, "%s", why->text);
	return 0;
}

/* 0: done; 1: the time is up. */
static int scan_all(struct scan *scan, const struct verify_done *beneath, uint64_t from,
	struct place *place, struct err *err)
{
	struct block *layer = NULL;
	scan->block = repository_disk_block(scan->disk);
	scan->layer_only = beneath != NULL;
	scan->wrong = malloc(VERIFY_WRONG_MOST * sizeof(uint64_t));
	scan->all_wrong = malloc(VERIFY_WRONG_MOST * sizeof(uint64_t));
	int rc = -1;
	if (!scan->wrong || !scan->all_wrong) {
		err_errno(err, ENOMEM, "cannot verify");
		goto out;
	}
	if (beneath) {
		layer = verify_layer_open(scan->disk, beneath, err);
		if (!layer)
			goto out;
		scan->block = layer;
	}
	pthread_mutex_init(&scan->mutex, NULL);
	rc = scan_disk(scan, from, place, err);
	pthread_mutex_destroy(&scan->mutex);
	place->damaged |= scan->damaged;
	block_close(layer, NULL);
	if (rc == 0 && from == 0 && !scan->too_many_wrong)
		verify_done_add(&scan->verify->dones, scan->point,
			repository_disk_info(scan->disk)->key, scan->all_wrong, scan->nr_all_wrong);
out:
	free(scan->wrong);
	free(scan->all_wrong);
	return rc;
}

/*
 * What lies beneath and was verified in this run need not be read again.  A run that
 * goes on with a disk half-way does not know that.  0: done; 1: the time is up.
 */
static int verify_disk(struct verify *verify, const struct repository_point *point,
	const struct repository_disk_info *info, uint64_t from, struct place *place,
	struct err *err)
{
	struct err why = ERR_INIT;
	bool good = true;
	const struct verify_done *beneath = NULL;
	if (from == 0 && info->backing)
		beneath = verify_done_find(&verify->dones, point->vm, info->backing, info->key);
	if (!check_has_image(&verify->run, point, info)) {
		place->damaged = true;
		return 0;
	}
	if (from == 0 && check_image(&verify->run, point, info, &good, err) < 0)
		return -1;
	place->damaged |= !good;
	struct repository_disk *disk =
		beneath ? disk_open_layer(verify->repo, point->vm, point->id, info->key, &why)
			: repository_disk_open(
				  verify->repo, point->vm, point->id, info->key, NULL, &why);
	if (!disk) {
		place->damaged = true;
		return tell_unopened(verify, point, info, &why, err);
	}
	int rc = verify_root(verify, point, disk, &good, err);
	place->damaged |= !good;
	/* Leaves that are not the manifest's tell nothing about the data. */
	if (rc == 0 && good) {
		struct scan scan = {.verify = verify, .point = point, .disk = disk};
		rc = scan_all(&scan, beneath, from, place, err);
	}
	repository_disk_close(disk);
	return rc;
}

/* --- one point -------------------------------------------------------------------------------- */

static bool is_place(const struct repository_point *point, const struct place *place)
{
	for (size_t i = 0; i < point->nr_disks; i++)
		if (strcmp(point->disks[i].key, place->key) == 0)
			return place->offset < point->disks[i].size_bytes;
	return false;
}

/* A place that is none is the beginning: nothing is called good that was not read. */
static void load_place(
	struct repository *repo, const struct repository_point *point, struct place *place)
{
	char name[NAME_PATH_BYTES];
	uint64_t offset = 0;
	memset(place, 0, sizeof *place);
	path_point(point->vm, point->id, "state.json", name);
	json_t *state = record_load(repo->dir_fd, name, NULL);
	const json_t *verifying = json_object_get(state, "verifying");
	if (json_is_object(verifying) &&
		record_text_into(verifying, "key", place->key, sizeof place->key, name, NULL) ==
			0 &&
		record_u64(verifying, "offset", &offset, name, NULL) == 0) {
		place->offset = round_down(offset, DIGEST_CHUNK_BYTES);
		place->damaged = json_is_true(json_object_get(verifying, "damaged"));
	}
	json_decref(state);
	if (!is_place(point, place))
		memset(place, 0, sizeof *place);
}

static void store_result(struct verify *verify, const struct repository_point *point,
	const struct place *place, bool finished)
{
	char now[CLOCK_UTC_BYTES];
	uint64_t nr_chunks = 0;
	json_t *change;
	struct err err = ERR_INIT;
	if (verify->repo->read_only)
		return;
	name_now(now);
	for (size_t i = 0; i < point->nr_disks; i++)
		nr_chunks += div_round_up(point->disks[i].size_bytes, DIGEST_CHUNK_BYTES);
	if (finished)
		change = json_pack("{s:n, s:{s:s, s:s, s:I}}", "verifying", "verified", "at", now,
			"result", place->damaged ? "damaged" : "good", "chunks",
			(json_int_t)nr_chunks);
	else
		change = json_pack("{s:{s:s, s:s, s:I, s:b}}", "verifying", "since", now, "key",
			place->key, "offset", (json_int_t)place->offset, "damaged", place->damaged);
	if (finished && place->damaged && place->disks)
		json_object_set(json_object_get(change, "verified"), "disks", place->disks);
	if (manifest_update_state(verify->repo, point->vm, point->id, change, &err) < 0)
		log_warning("the result of the verification is not recorded: %s", err.text);
}

/* 0: done; 1: the time is up. */
static int verify_disks(struct verify *verify, const struct repository_point *point,
	struct place *place, struct err *err)
{
	for (size_t i = 0; i < point->nr_disks; i++) {
		const struct repository_disk_info *info = &point->disks[i];
		int order = strcmp(info->key, place->key);
		uint64_t from = 0;
		if (place->key[0] && order < 0)
			continue;
		if (place->key[0] && order == 0)
			from = place->offset;
		bool before = place->damaged;
		place->damaged = false;
		int rc = verify_disk(verify, point, info, from, place, err);
		if (place->damaged && place->disks)
			json_array_append_new(place->disks, json_string(info->key));
		place->damaged |= before;
		if (rc != 0)
			return rc;
		if (i + 1 < point->nr_disks && time_is_up(verify)) {
			snprintf(place->key, sizeof place->key, "%s", point->disks[i + 1].key);
			place->offset = 0;
			return 1;
		}
	}
	return 0;
}

/* So that no prune takes a file away that is missed then.  NULL when there is none to have. */
static struct lock *take_lease(const struct verify *verify, const struct entry *entry)
{
	char job[REPOSITORY_JOB_BYTES];
	struct err why = ERR_INIT;
	struct lock *lease = NULL;
	if (name_make_job(time(NULL), job, &why) == 0)
		lease = lock_take(
			verify->repo, LOCK_KIND_READ, entry->vm, entry->id, job, NULL, &why);
	if (why.code != ERR_NONE)
		log_debug("%s", why.text);
	return lease;
}

/* 0: done; 1: the time is up. */
static int verify_point(
	struct verify *verify, const struct entry *entry, unsigned nr_left, struct err *err)
{
	struct err why = ERR_INIT;
	struct lock *lease = take_lease(verify, entry);
	struct repository_point *point = manifest_load(verify->repo, entry->vm, entry->id, &why);
	if (!point) {
		lock_release(lease);
		return err_copy(err, &why);
	}
	int rc = 0;
	struct place place;
	if (why.code == ERR_NOT_FOUND) /* pruned meanwhile */
		goto out;
	if (point->damage) {
		char path[NAME_PATH_BYTES];
		path_point(point->vm, point->id, "manifest.json", path);
		struct repository_finding finding = {.kind = REPOSITORY_FINDING_DAMAGE,
			.vm = point->vm,
			.point = point->id,
			.file = path,
			.remedy = CHECK_REMEDY_MANIFEST};
		check_report(&verify->run, &finding, "%s", point->damage);
		verify->result->points_damaged++;
		goto out;
	}
	if (verify->options->begins)
		verify->options->begins(verify->options->context, point, nr_left);
	memset(&place, 0, sizeof place);
	/* Who gives it all the time it needs wants all of it read now. */
	if (verify->options->time_box_ms > 0)
		load_place(verify->repo, point, &place);
	if (!place.damaged)
		place.disks = json_array();
	place.damaged |= !check_logged(&verify->run, point);
	place.damaged |= !check_config(&verify->run, point);
	rc = verify_disks(verify, point, &place, err);
	if (rc >= 0)
		store_result(verify, point, &place, rc == 0);
	if (rc == 0 && place.damaged)
		verify->result->points_damaged++;
	else if (rc == 0)
		verify->result->points_good++;
	json_decref(place.disks);
out:
	repository_point_free(point);
	lock_release(lease);
	return rc;
}

/* --- which points, in which order ----------------------------------------------------------------
 */

static int add_entry(void *context, const struct repository_point *point)
{
	struct verify *verify = context;
	const char *only = verify->options->point;
	if (only && only[0] && strcmp(only, point->id) != 0)
		return 0;
	if (verify->nr_entries == verify->room) {
		size_t room = verify->room ? 2 * verify->room : 64;
		struct entry *more = reallocarray(verify->entries, room, sizeof *more);
		if (!more)
			return err_errno(&verify->listing, ENOMEM, "cannot list restore points");
		verify->entries = more;
		verify->room = room;
	}
	struct entry *entry = &verify->entries[verify->nr_entries++];
	memcpy(entry->vm, point->vm, sizeof entry->vm);
	memcpy(entry->id, point->id, sizeof entry->id);
	memcpy(entry->verified_at, point->verified_at, sizeof entry->verified_at);
	/* A wrong clock must not put it off for ever. */
	char now[CLOCK_UTC_BYTES];
	name_now(now);
	if (strcmp(entry->verified_at, now) > 0)
		entry->verified_at[0] = '\0';
	return 0;
}

static int add_vm(void *context, const char *vm)
{
	struct verify *verify = context;
	if (!verify->options->point || !verify->options->point[0])
		check_log(&verify->run, vm);
	struct err why = ERR_INIT;
	if (repository_list_points(verify->repo, vm, add_entry, verify, &why) < 0) {
		if (verify->listing.code == ERR_NONE)
			err_copy(&verify->listing, &why);
		return 1;
	}
	return 0;
}

/* Longest ago first; never is longest of all; of equals the oldest point first, as others stand
 * on it. */
static int by_age(const void *a, const void *b)
{
	const struct entry *left = a, *right = b;
	int order = strcmp(left->verified_at, right->verified_at);
	if (order == 0)
		order = strcmp(left->vm, right->vm);
	return order ? order : strcmp(left->id, right->id);
}

/* Each chain from its full upwards. */
static int by_chain(const void *a, const void *b)
{
	const struct entry *left = a, *right = b;
	int order = strcmp(left->vm, right->vm);
	return order ? order : strcmp(left->id, right->id);
}

/* Restore points that no listing shows: all that is known of them is that they are damaged. */
static int find_nameless(struct verify *verify, struct err *err)
{
	struct path_names folders;
	if (path_names(verify->repo->dir_fd, "vms", &folders, err) < 0)
		return -1;
	for (size_t i = 0; i < folders.nr; i++) {
		char vm[REPOSITORY_VM_BYTES];
		if (!list_vm_of_folder(verify->repo, folders.name[i], vm))
			check_nameless(&verify->run, folders.name[i]);
	}
	path_names_free(&folders);
	return 0;
}

static int find_points(struct verify *verify, struct err *err)
{
	const struct repository_verify_options *options = verify->options;
	if (options->vm) {
		if (repository_name_check_vm(options->vm, err) < 0)
			return -1;
		add_vm(verify, options->vm);
	} else if (repository_list_vms(verify->repo, add_vm, verify, err) < 0 ||
		   find_nameless(verify, err) < 0) {
		return -1;
	}
	if (verify->listing.code != ERR_NONE)
		return err_copy(err, &verify->listing);
	if (options->point && options->point[0] && verify->nr_entries == 0)
		return err_set(err, ERR_NOT_FOUND, "VM \"%s\" has no restore point %s", options->vm,
			options->point);
	if (verify->nr_entries)
		qsort(verify->entries, verify->nr_entries, sizeof *verify->entries,
			options->time_box_ms > 0 ? by_age : by_chain);
	return 0;
}

int repository_verify(struct repository *repo, const struct repository_verify_options *options,
	struct repository_verify_result *result, struct err *err)
{
	struct verify verify = {
		.run = {.repo = repo,
			.cancel = options->cancel,
			.finding = options->finding,
			.context = options->context},
		.repo = repo,
		.options = options,
		.result = result,
		.until = deadline_after_ms(options->time_box_ms),
	};
	assert(options->vm || !options->point || !options->point[0]);
	memset(result, 0, sizeof *result);
	int rc = find_points(&verify, err);
	size_t done = 0;
	while (rc == 0 && done < verify.nr_entries) {
		/* Without a time box one machine comes after the other. */
		if (done > 0 && options->time_box_ms == 0 &&
			strcmp(verify.entries[done].vm, verify.entries[done - 1].vm) != 0)
			verify_done_forget(&verify.dones);
		if (done > 0 && time_is_up(&verify))
			break;
		rc = verify_point(
			&verify, &verify.entries[done], (unsigned)(verify.nr_entries - done), err);
		done += rc == 0;
	}
	result->points_left = (unsigned)(verify.nr_entries - done);
	for (unsigned kind = 0; kind < CHECK_NR_KINDS; kind++)
		if (repository_finding_is_damage(kind))
			result->damages += verify.run.nr[kind];
	check_log_forget(&verify.run);
	verify_done_forget(&verify.dones);
	free(verify.entries);
	return rc < 0 ? -1 : 0;
}
