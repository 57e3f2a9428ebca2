/* The order of things; see replica.h and replica_internal.h. */
#include "replica_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/file.h>

int replica_folder(const char *given, char path[STATEDIR_BYTES], struct err *err)
{
	return statedir_find(given, "replica", path, err) < 0 ? -1 : statedir_make(path, err);
}

/* --- opening ---------------------------------------------------------------------------------- */

/* Held until the process ends or closes it. */
static int take_lock(struct replica *r, const char *folder, struct err *err)
{
	char name[REPOSITORY_FOLDER_BYTES + 32], pid[32] = "";
	snprintf(name, sizeof name, "%s.replica.lock", folder);
	r->lock_fd = openat(r->dir_fd, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (r->lock_fd < 0)
		return err_errno(err, errno, "cannot open %s", name);
	if (flock(r->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		ssize_t n = pread(r->lock_fd, pid, sizeof pid - 1, 0);
		return err_set(err, ERR_BUSY, "VM \"%s\" is being replicated by process %.*s",
			r->options.vm, (int)(n > 0 ? n : 0), pid);
	}
	int length = snprintf(pid, sizeof pid, "%" PRId64, (int64_t)getpid());
	if (ftruncate(r->lock_fd, 0) < 0)
		return err_errno(err, errno, "cannot write %s", name);
	return file_pwrite(r->lock_fd, pid, (size_t)length, 0, name, err);
}

static int open_folders(struct replica *r, struct err *err)
{
	char folder[REPOSITORY_FOLDER_BYTES];
	repository_name_folder(r->options.vm, folder);
	snprintf(r->record_name, sizeof r->record_name, "%s.replica.json", folder);
	snprintf(r->proof_name, sizeof r->proof_name, "%s.replica.proof", folder);
	snprintf(r->disks_name, sizeof r->disks_name, "%s.replica", folder);
	r->dir_fd = open(r->options.folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (r->dir_fd < 0)
		return err_errno(err, errno, "cannot open %s", r->options.folder);
	if (take_lock(r, folder, err) < 0 || file_make_dir(r->dir_fd, r->disks_name, 0700, err) < 0)
		return -1;
	r->disks_fd = openat(r->dir_fd, r->disks_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return r->disks_fd < 0 ? err_errno(err, errno, "cannot open %s", r->disks_name) : 0;
}

static int check_cut_over(const struct replica *r, struct err *err)
{
	if (!r->record.cut_over[0] || r->options.force)
		return 0;
	err_set(err, ERR_CONFLICT,
		"the replica of VM \"%s\" was cut over at %s: its targets are the machine's disks "
		"now, and are not written any more",
		r->options.vm, r->record.cut_over);
	return err_hint(err, "--force overwrites what was written to them since");
}

struct replica *replica_open(const struct replica_options *options, struct err *err)
{
	struct replica *r = calloc(1, sizeof *r);
	if (!r) {
		err_errno(err, ENOMEM, "cannot open the replica");
		return NULL;
	}
	r->options = *options;
	r->dir_fd = r->disks_fd = r->lock_fd = -1;
	if (repository_name_check_vm(options->vm, err) == 0 && open_folders(r, err) == 0 &&
		ledger_load(r->dir_fd, r->record_name, options->vm, &r->record, err) == 0 &&
		proof_recover(r, err) == 0 && check_cut_over(r, err) == 0) {
		digest_key_init(&r->key, DIGEST_XXH3_128, r->record.seed);
		return r;
	}
	replica_close(r);
	return NULL;
}

void replica_close(struct replica *r)
{
	if (!r)
		return;
	replica_end_reading(r);
	for (size_t i = 0; i < r->nr_disks; i++)
		leaves_close(&r->disks[i].leaves);
	free(r->disks);
	ledger_free(&r->record);
	const int fds[] = {r->dir_fd, r->disks_fd, r->lock_fd};
	for (size_t i = 0; i < ARRAY_LENGTH(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(r);
}

/* --- matching ------------------------------------------------------------------------------------
 */

static bool same_boot(const struct replica *r)
{
	char boot[PROC_BOOT_BYTES];
	proc_boot(boot);
	return boot[0] && strcmp(boot, r->record.boot) == 0;
}

/* The digests are what the record says; not while a run is at them. */
static int check_root(
	struct replica *r, struct one_disk *disk, const struct ledger_disk *record, struct err *err)
{
	uint8_t root[DIGEST_ROOT_BYTES];
	char hex[DIGEST_ROOT_HEX_BYTES];
	if (leaves_root(&disk->leaves, r->options.cancel, root, err) < 0)
		return -1;
	digest_hex(root, sizeof root, hex);
	return strcmp(hex, record->root_hex) == 0
		       ? 0
		       : err_set(err, ERR_CORRUPT, "the digests that are kept of it are damaged");
}

static int check_content(
	struct replica *r, struct one_disk *disk, const struct ledger_disk *record, struct err *err)
{
	bool running = r->record.running;
	bool whole = disk->moved || (!running && (r->options.read_back || r->record.cut_over[0]));
	if (!running && check_root(r, disk, record, err) < 0)
		return -1;
	/* Another disk shows itself soon. */
	if (disk->moved && match_target(r, disk, false, NULL, err) < 0)
		return -1;
	return match_target(r, disk, whole, NULL, err);
}

/* What others did to a target since it was written. */
static int match_content(struct replica *r, struct one_disk *disk, struct err *err)
{
	const struct ledger_disk *record = ledger_disk(&r->record, disk->given->key);
	struct err why = ERR_INIT;
	if (!record || disk->retake)
		return 0;
	if (leaves_open(&disk->leaves, r->disks_fd, record->key, record->size_bytes, false, err) <
			0 ||
		(r->record.running && leaves_open_marks(&disk->leaves, r->disks_fd, record->key,
					      r->record.generation + 1, false, err) < 0))
		return -1;
	/* Then all of it is read, or written, in any case. */
	if ((r->record.running && !same_boot(r)) || record->full || !record->root_hex[0])
		return 0;
	if (check_content(r, disk, record, &why) == 0) {
		if (disk->moved)
			log_warning("disk %s: its target was %s; %s holds all that it held, and "
				    "takes its place",
				record->key, record->target, disk->given->target);
		return 0;
	}
	if (why.code == ERR_CORRUPT && r->options.force) {
		disk->retake = true;
		snprintf(disk->reason, sizeof disk->reason, "--force: %.200s", why.text);
		return 0;
	}
	if (why.code != ERR_CORRUPT)
		return err_copy(err, &why);
	if (disk->moved) {
		err_set(err, ERR_CONFLICT,
			"disk %s: its target is %s, was %s in generation %" PRIu64
			", and does not hold the same: %.400s",
			record->key, disk->given->target, record->target, r->record.generation,
			why.text);
		return err_hint(err, "--force takes it, and writes all of the disk");
	}
	err_set(err, ERR_CONFLICT, "disk %s: %s is not as generation %" PRIu64 " left it: %.400s",
		record->key, disk->given->target, r->record.generation, why.text);
	return err_hint(err, "is it the right target? --force writes all of it");
}

int replica_match(struct replica *r, const struct replica_disk *disks, size_t nr, struct err *err)
{
	assert(!r->disks && nr > 0);
	r->disks = calloc(nr, sizeof *r->disks);
	if (!r->disks)
		return err_errno(err, ENOMEM, "cannot match disks and targets");
	r->nr_disks = nr;
	for (size_t i = 0; i < nr; i++) {
		r->disks[i].given = &disks[i];
		r->disks[i].leaves.fd = r->disks[i].leaves.marks_fd = -1;
	}
	if (match_record(r, err) < 0)
		return -1;
	for (size_t i = 0; i < nr; i++)
		if (match_content(r, &r->disks[i], err) < 0)
			return -1;
	return 0;
}

int replica_prove(struct replica *r, struct err *err)
{
	return proof_run(r, err);
}

/* After another boot no mark counts, and all is read. */
static int look_at_disk(struct replica *r, struct one_disk *disk, bool trusted, struct err *err)
{
	const struct ledger_disk *record = ledger_disk(&r->record, disk->given->key);
	disk->resumed = r->record.running && record && !disk->retake;
	if (!disk->resumed) {
		disk->full = disk->retake || !record || !record->root_hex[0];
		return 0;
	}
	disk->leaves.unknown = disk->full = record->full;
	return decide_look(r, disk, !trusted, err);
}

int replica_look(struct replica *r, struct err *err)
{
	bool trusted = same_boot(r);
	for (size_t i = 0; i < r->nr_disks; i++)
		if (look_at_disk(r, &r->disks[i], trusted, err) < 0)
			return -1;
	return 0;
}

void replica_since(const struct replica *r, size_t i, const char **change_id, const char **bitmap)
{
	const struct one_disk *disk = &r->disks[i];
	const struct ledger_disk *record = ledger_disk(&r->record, disk->given->key);
	bool counts = record && record->root_hex[0] && !disk->retake;
	*change_id = counts ? record->change_id : NULL;
	*bitmap = counts ? record->bitmap : NULL;
}

/* --- beginning
 * -------------------------------------------------------------------------------------- */

/* What the run is of, in the record. */
static int note_disk(struct replica *r, struct one_disk *disk, struct err *err)
{
	const struct replica_disk *given = disk->given;
	struct ledger_disk *record = ledger_disk(&r->record, given->key);
	if (!record) {
		record = &r->record.disks[r->record.nr_disks++];
		snprintf(record->key, sizeof record->key, "%s", given->key);
	}
	record->size_bytes = given->size_bytes;
	record->full = disk->full;
	if (disk->full) {
		record->root_hex[0] = '\0';
		if (ledger_text(&record->change_id, NULL, err) < 0 ||
			ledger_text(&record->bitmap, NULL, err) < 0)
			return -1;
	}
	return ledger_text(&record->source_id, given->source_id, err) < 0 ||
			       ledger_text(&record->target_id, given->target_id, err) < 0 ||
			       ledger_text(&record->target, given->target, err) < 0
		       ? -1
		       : 0;
}

static bool is_given(const struct replica *r, const char *key)
{
	for (size_t i = 0; i < r->nr_disks; i++)
		if (strcmp(r->disks[i].given->key, key) == 0)
			return true;
	return false;
}

static int note_left_out(struct replica *r, struct err *err)
{
	json_t *list = json_array();
	for (size_t i = 0; i < r->options.nr_left_out; i++) {
		const struct replica_left_out *disk = &r->options.left_out[i];
		json_array_append_new(
			list, json_pack("{s:s, s:s}", "key", disk->key, "why", disk->why));
	}
	if (json_array_size(list) != r->options.nr_left_out) {
		json_decref(list);
		return err_errno(err, ENOMEM, "cannot note the run");
	}
	json_decref(r->record.left_out);
	r->record.left_out = list;
	return 0;
}

static int note_run(struct replica *r, struct err *err)
{
	struct ledger *record = &r->record;
	size_t kept = 0;
	for (size_t i = 0; i < record->nr_disks; i++) {
		if (is_given(r, record->disks[i].key))
			record->disks[kept++] = record->disks[i];
		else
			ledger_disk_free(&record->disks[i]);
	}
	record->nr_disks = kept;
	struct ledger_disk *disks = reallocarray(record->disks, kept + r->nr_disks, sizeof *disks);
	if (!disks)
		return err_errno(err, ENOMEM, "cannot note the run");
	memset(disks + kept, 0, r->nr_disks * sizeof *disks);
	record->disks = disks;
	for (size_t i = 0; i < r->nr_disks; i++)
		if (note_disk(r, &r->disks[i], err) < 0)
			return -1;
	if (note_left_out(r, err) < 0)
		return -1;
	record->running = true;
	record->proven = r->proven;
	proc_boot(record->boot);
	return ledger_store(r->dir_fd, r->record_name, record, r->options.software, err);
}

static void begin_disk(const struct replica *r, struct one_disk *disk)
{
	const struct ledger_disk *record = ledger_disk(&r->record, disk->given->key);
	static const struct ledger_disk none;
	if (disk->resumed && disk->full)
		snprintf(disk->reason, sizeof disk->reason, "first run, gone on with");
	decide_disk(disk, record ? record : &none);
}

/* After it: what is of no use any more goes. */
static int begin_files(struct replica *r, struct one_disk *disk, struct err *err)
{
	const char *key = disk->given->key;
	uint64_t size_bytes = disk->given->size_bytes;
	disk->begun = true;
	leaves_drop_marks(r->disks_fd, key, r->record.generation); /* killed behind its commit */
	if (disk->resumed)
		return 0;
	if (disk->full) {
		leaves_close(&disk->leaves);
		if (leaves_open(&disk->leaves, r->disks_fd, key, size_bytes, true, err) < 0)
			return -1;
	}
	disk->leaves.unknown = disk->full;
	if (disk->leaves.marks_fd >= 0)
		close(disk->leaves.marks_fd);
	return leaves_open_marks(
		&disk->leaves, r->disks_fd, key, r->record.generation + 1, true, err);
}

static int check_source(const struct replica_disk *given, struct err *err)
{
	uint64_t now = block_info(given->source)->size_bytes;
	if (now == given->size_bytes)
		return 0;
	return err_set(err, ERR_BUSY,
		"disk %s: its size was changed just now, from %" PRIu64 " to %" PRIu64 " bytes",
		given->key, given->size_bytes, now);
}

int replica_begin(struct replica *r, struct err *err)
{
	for (size_t i = 0; i < r->nr_disks; i++)
		if (check_source(r->disks[i].given, err) < 0)
			return -1;
	for (size_t i = 0; i < r->nr_disks; i++)
		begin_disk(r, &r->disks[i]);
	if (note_run(r, err) < 0)
		return -1;
	for (size_t i = 0; i < r->nr_disks; i++)
		if (begin_files(r, &r->disks[i], err) < 0)
			return err_context(err, "disk %s", r->disks[i].given->key);
	return 0;
}

/* --- copying
 * ------------------------------------------------------------------------------------------ */

static int told_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *of,
	uint64_t zero_mask, struct err *err)
{
	return leaves_tell(context, first, nr, of, zero_mask, MARK_TOLD, err);
}

static int told_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	return leaves_tell_zeros(context, first, nr, MARK_TOLD, err);
}

static int same_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *of,
	uint64_t zero_mask, uint64_t *same, struct err *err)
{
	return leaves_same(context, first, nr, of, zero_mask, same, err);
}

static int same_zeros(
	void *context, uint64_t first, uint64_t nr, uint64_t *nr_alike, bool *same, struct err *err)
{
	return leaves_same_zeros(context, first, nr, nr_alike, same, err);
}

int replica_copy(struct replica *r, size_t i, struct copy_options *options, struct block **source,
	struct err *err)
{
	struct one_disk *disk = &r->disks[i];
	disk->sink = (struct copy_chunk_sink){&disk->leaves, told_chunks, told_zeros};
	disk->baseline = (struct copy_baseline){&disk->leaves, same_chunks, same_zeros};
	*source = disk->given->source;
	/* What the interrupted run wrote may be of a state that no list tells of. */
	if (disk->resumed && disk->changed_only) {
		disk->map = (struct leaves_map){&disk->leaves, false};
		disk->view = block_remap_open(disk->given->source, leaves_remap, &disk->map, err);
		if (!disk->view)
			return -1;
		*source = disk->view;
	}
	options->digest_key = &r->key;
	options->sink = &disk->sink;
	options->baseline = &disk->baseline;
	options->changed_only = disk->changed_only;
	return 0;
}

/* --- the end
 * --------------------------------------------------------------------------------------------- */

/* After damage no mark is worth anything: the next run reads all of the targets. */
static void distrust(struct replica *r)
{
	struct err err = ERR_INIT;
	r->record.boot[0] = '\0';
	if (ledger_store(r->dir_fd, r->record_name, &r->record, r->options.software, &err) < 0)
		log_error("%s", err.text);
}

int replica_verify(struct replica *r, size_t i, struct copy_progress *figures, struct err *err)
{
	struct one_disk *disk = &r->disks[i];
	struct err why = ERR_INIT;
	disk->read_back = r->options.read_back || r->options.cutover;
	if (match_target(r, disk, disk->read_back, figures, &why) == 0)
		return 0;
	if (why.code == ERR_CORRUPT) {
		distrust(r);
		err_context(&why, "disk %s: %s is not what was written", disk->given->key,
			disk->given->target);
	}
	return err_copy(err, &why);
}

void replica_end_reading(struct replica *r)
{
	for (size_t i = 0; r && i < r->nr_disks; i++) {
		block_close(r->disks[i].view, NULL);
		r->disks[i].view = NULL;
	}
}

static int commit_disk(struct replica *r, struct one_disk *disk, struct err *err)
{
	struct ledger_disk *record = ledger_disk(&r->record, disk->given->key);
	if (leaves_sync(&disk->leaves, err) < 0 ||
		leaves_root(&disk->leaves, r->options.cancel, disk->root, err) < 0)
		return -1;
	digest_hex(disk->root, sizeof disk->root, record->root_hex);
	record->full = false;
	return ledger_text(&record->change_id, disk->given->change_id, err) < 0 ||
			       ledger_text(&record->bitmap, disk->given->bitmap, err) < 0
		       ? -1
		       : 0;
}

int replica_commit(struct replica *r, struct err *err)
{
	for (size_t i = 0; i < r->nr_disks; i++)
		if (commit_disk(r, &r->disks[i], err) < 0)
			return err_context(err, "disk %s", r->disks[i].given->key);
	r->record.generation++;
	r->record.running = false;
	r->record.cut_over[0] = '\0';
	if (r->options.cutover)
		clock_utc_text(time(NULL), r->record.cut_over);
	if (file_sync_dir(r->dir_fd, r->disks_name, err) < 0 ||
		ledger_store(r->dir_fd, r->record_name, &r->record, r->options.software, err) < 0)
		return -1;
	for (size_t i = 0; i < r->nr_disks; i++)
		leaves_drop_marks(r->disks_fd, r->disks[i].given->key, r->record.generation);
	return 0;
}

void replica_outcome(const struct replica *r, size_t i, struct replica_outcome *outcome)
{
	const struct one_disk *disk = &r->disks[i];
	*outcome = (struct replica_outcome){
		.full = disk->full,
		.resumed = disk->resumed,
		.reason = disk->reason,
		.change = disk->change,
		.verified = disk->read_back ? "read-back" : "sample",
	};
	digest_hex(disk->root, sizeof disk->root, outcome->root_hex);
}

uint64_t replica_generation(const struct replica *r)
{
	return r->record.generation + (r->record.running ? 1 : 0);
}

const char *replica_aliasing(const struct replica *r)
{
	return r->record.proven ? "proven" : "not proven";
}
