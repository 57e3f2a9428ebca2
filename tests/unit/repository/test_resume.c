/* Interrupted backups that are gone on with: by whom, of what, and that the result is what
 * the source holds, whatever was stored before. */
#include "backup_internal.h"
#include "points.h"

#define SIZE (6 * MIB + 700)
#define NR_CHUNKS 97

/* What is known of a source, as of a tracked disk: in which state each chunk came to be as it is.
 */
struct tracked {
	struct memory_disk map;
	unsigned epoch, state;
	unsigned since[NR_CHUNKS];
	char change_id[32];
};

/* A source that ends its reader on the way. */
struct source {
	struct memory_disk disk;
	struct repository_backup *backup;
	uint64_t read_bytes; /* by all lanes */
	uint64_t checkpoint_at, stop_at; /* the same; 0: never */
	bool kills, failed;
};

static int source_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct source *source = (struct source *)block;
	memory_read(block, buffer, length, offset, err);
	uint64_t now = __atomic_add_fetch(&source->read_bytes, length, __ATOMIC_RELAXED);
	uint64_t before = now - length;
	if (source->checkpoint_at && before < source->checkpoint_at && now >= source->checkpoint_at)
		source->failed |= checkpoint_now(source->backup, NULL) < 0;
	if (source->stop_at == 0 || now < source->stop_at)
		return 0;
	if (source->kills)
		_exit(source->failed ? 9 : 0);
	return err_set(err, ERR_DISCONNECTED, "the source is gone");
}

static void source_init(struct source *source)
{
	static const struct block_driver driver = {.name = "source",
		.read = source_read,
		.extents = memory_extents,
		.close = memory_close};
	memset(source, 0, sizeof *source);
	memory_disk_init(&source->disk, SIZE);
	source->disk.block.driver = &driver;
}

static uint64_t random_state = 88172645463325252u;

static uint64_t draw(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % below;
}

/* --- what tells of changes since any earlier state ---------------------------------------- */

static void tracked_init(struct tracked *tracked)
{
	memset(tracked, 0, sizeof *tracked);
	assert_int_equal(div_round_up(SIZE, DIGEST_CHUNK_BYTES), NR_CHUNKS);
	memory_disk_init(&tracked->map, SIZE);
}

/* The source as it is now is a state of its own; before: as it was in the last one. */
static void tracked_freeze(struct tracked *tracked, const struct source *source, uint8_t *before)
{
	tracked->state++;
	for (uint64_t i = 0; i < NR_CHUNKS; i++) {
		uint64_t at = i * DIGEST_CHUNK_BYTES;
		if (memcmp(before + at, source->disk.bytes + at,
			    min_u64(DIGEST_CHUNK_BYTES, SIZE - at)) != 0)
			tracked->since[i] = tracked->state;
	}
	memcpy(before, source->disk.bytes, SIZE);
	snprintf(tracked->change_id, sizeof tracked->change_id, "%u/%u", tracked->epoch,
		tracked->state);
}

static struct tracked tracked;

static int tell_since(
	void *context, size_t disk, const char *change_id, struct block **map, struct err *err)
{
	unsigned epoch, state;
	(void)context, (void)disk, (void)err;
	assert_int_equal(sscanf(change_id, "%u/%u", &epoch, &state), 2);
	if (epoch != tracked.epoch)
		return 0;
	for (unsigned i = 0; i < NR_CHUNKS; i++)
		tracked.map.changed[i] = tracked.since[i] > state;
	*map = &tracked.map.block;
	return 1;
}

static void change_something(struct source *source)
{
	for (unsigned i = 0; i < 5; i++) {
		uint64_t length = 1 + draw(i == 0 ? 2 * MIB : 150000);
		memory_disk_fill(&source->disk, draw(SIZE - length), length,
			draw(3) ? (uint32_t)draw(1u << 30) + 1 : 0);
	}
}

static struct repository *open_repository(const char *path)
{
	struct err err = ERR_INIT;
	struct repository *repo = repository_open(path, REPOSITORY_WRITE, &err);
	if (!repo)
		fail_msg("%s", err.text);
	return repo;
}

/* One lane: what is read is in order, and the hook is not called twice at once. */
static int copy(struct repository_backup *backup, struct source *source, struct err *err)
{
	struct copy_options options = {.nr_lanes = 1, .piece_bytes = 256 * KIB};
	struct block *from, *to;
	source->backup = backup;
	source->disk.read_bytes = 0;
	source->read_bytes = 0;
	if (repository_backup_copy(backup, 0, &source->disk.block, &options, &from, &to, err) < 0)
		return -1;
	return copy_run(from, to, &options, err);
}

/* In a process of its own, which is killed on the way. */
static void kill_on_the_way(const char *path, struct point_disk *one, struct source *source)
{
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct err err = ERR_INIT;
		source->kills = true;
		struct repository *repo = repository_open(path, REPOSITORY_WRITE, &err);
		struct repository_backup *backup =
			repo ? points_begin(repo, "web", one, 1, &err) : NULL;
		if (!backup || copy(backup, source, &err) < 0) {
			fprintf(stderr, "%s\n", err.text);
			_exit(8);
		}
		_exit(0); /* nothing of it was left to read */
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void leave_on_the_way(const char *path, struct point_disk *one, struct source *source)
{
	struct err err = ERR_INIT;
	struct repository *repo = open_repository(path);
	struct repository_backup *backup = points_begin(repo, "web", one, 1, &err);
	if (!backup)
		fail_msg("%s", err.text);
	copy(backup, source, &err);
	repository_backup_leave(backup);
	repository_close(repo);
}

static bool find_part(const char *path, const char *suffix, char found[NAME_PATH_BYTES])
{
	char folder[NAME_PATH_BYTES];
	struct path_names names;
	snprintf(folder, sizeof folder, "%s/vms/web/disks/a", path);
	if (path_names(AT_FDCWD, folder, &names, NULL) < 0)
		return false;
	bool is_there = false;
	for (size_t i = 0; i < names.nr && !is_there; i++) {
		is_there = path_has_suffix(names.name[i], suffix);
		snprintf(found, NAME_PATH_BYTES, "%.200s/%.200s", folder, names.name[i]);
	}
	path_names_free(&names);
	return is_there;
}

/* A bit that turned, or an end that was lost. */
static void damage(const char *path, const char *suffix, bool cut)
{
	char part[NAME_PATH_BYTES];
	struct stat st;
	uint8_t byte;
	if (!find_part(path, suffix, part))
		return;
	int fd = open(part, O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	off_t at = (off_t)draw((uint64_t)st.st_size);
	if (cut) {
		assert_int_equal(ftruncate(fd, at), 0);
	} else {
		assert_int_equal(pread(fd, &byte, 1, at), 1);
		byte ^= (uint8_t)(1 << draw(8));
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	}
	close(fd);
}

static void expect_sound(const char *path)
{
	char image[NAME_PATH_BYTES];
	struct qcow2_check_result result;
	struct err err = ERR_INIT;
	assert_true(find_part(path, ".qcow2", image));
	SUPPORT_OK(qcow2_check(image, false, NULL, NULL, NULL, &result, &err), err);
	assert_int_equal(result.errors, 0);
	assert_false(find_part(path, ".part", image));
}

static void tell_finding(void *context, const struct repository_finding *finding)
{
	(void)context;
	print_message("%s\n", finding->text);
}

/* All points of a chain, each by what it stores itself. */
static void expect_verified(const char *path, unsigned nr_points)
{
	const struct repository_verify_options options = {.finding = tell_finding};
	struct repository_verify_result result;
	struct err err = ERR_INIT;
	struct repository *repo = open_repository(path);
	SUPPORT_OK(repository_verify(repo, &options, &result, &err), err);
	assert_int_equal(result.damages, 0);
	assert_int_equal(result.points_good, nr_points);
	repository_close(repo);
}

static void make_repository(const char *path)
{
	static const uint32_t cluster_bytes[] = {4096, 65536, MIB, 2 * MIB};
	struct repository_settings settings;
	struct err err = ERR_INIT;
	repository_settings_default(&settings);
	settings.cluster_bytes = cluster_bytes[draw(4)];
	settings.compression = draw(2) ? REPOSITORY_COMPRESS_ZSTD : REPOSITORY_COMPRESS_NONE;
	settings.digest = draw(2) ? DIGEST_XXH3_128 : DIGEST_SHA256;
	settings.chain_length_max = 3;
	SUPPORT_OK(repository_init(path, &settings, &err), err);
}

/* Points of a chain, each interrupted some times, by a kill or in good order, with sources that
 * change meanwhile or do not, and damage to what was stored. */
static void test_any_interruption(void **state)
{
	(void)state;
	const unsigned nr_rounds = getenv("SENDENSE_SOAK") ? 400 : 8;
	const struct repository_pair identity = {"disk-uuid", "1"};
	unsigned nr_resumed = 0, nr_updated = 0, nr_compared = 0, nr_fresh = 0;
	uint8_t *before = malloc(SIZE);
	assert_non_null(before);
	if (getenv("SENDENSE_SEED"))
		random_state = strtoull(getenv("SENDENSE_SEED"), NULL, 10);
	for (unsigned round = 0; round < nr_rounds; round++) {
		char path[16], source_state[32], point[REPOSITORY_POINT_BYTES];
		struct source source;
		struct err err = ERR_INIT;
		unsigned age = 0;
		snprintf(path, sizeof path, "r%u", round);
		make_repository(path);
		source_init(&source);
		bool is_tracked = round % 2;
		tracked_init(&tracked);
		memset(before, 0, SIZE);
		struct point_disk one = {.key = "a",
			.source = &source.disk,
			.source_state = is_tracked ? NULL : source_state,
			.change_id = tracked.change_id,
			.identity = &identity};
		for (unsigned i = 0; i < 5; i++) {
			bool pure = draw(3) == 0; /* not damaged, its source is not changed */
			change_something(&source);
			one.change =
				draw(2) ? REPOSITORY_CHANGE_EXTENTS : REPOSITORY_CHANGE_COMPARE;
			for (unsigned k = (unsigned)draw(4); k > 0; k--) {
				snprintf(source_state, sizeof source_state, "state %u", age);
				tracked_freeze(&tracked, &source, before);
				one.changed_since = is_tracked && draw(8) ? tell_since : NULL;
				source.stop_at = 1 + draw(6 * MIB);
				source.checkpoint_at = draw(2) ? 1 + draw(source.stop_at) : 0;
				if (draw(2))
					kill_on_the_way(path, &one, &source);
				else
					leave_on_the_way(path, &one, &source);
				if (!pure && draw(2)) {
					change_something(&source);
					age++;
				}
				tracked.epoch += is_tracked && draw(8) == 0;
				if (!pure && draw(4) == 0)
					damage(path, draw(3) ? ".qcow2.part" : ".sums.part",
						draw(4) == 0);
			}
			snprintf(source_state, sizeof source_state, "state %u", age);
			tracked_freeze(&tracked, &source, before);
			one.changed_since = is_tracked ? tell_since : NULL;
			source.stop_at = source.checkpoint_at = 0;
			struct repository *repo = open_repository(path);
			struct repository_backup *backup = points_begin(repo, "web", &one, 1, &err);
			if (!backup)
				fail_msg("round %u: %s", round, err.text);
			switch (repository_backup_resumed(backup, 0, NULL)) {
			case REPOSITORY_FRESH:
				nr_fresh++;
				break;
			case REPOSITORY_RESUMED:
				nr_resumed++;
				break;
			case REPOSITORY_UPDATED:
				nr_updated++;
				break;
			case REPOSITORY_COMPARED:
				nr_compared++;
				break;
			}
			memcpy(point, repository_backup_point(backup), sizeof point);
			SUPPORT_OK(copy(backup, &source, &err), err);
			SUPPORT_OK(repository_backup_commit(backup, &err), err);
			memory_disk_forget_changes(&source.disk);
			age++;
			points_compare(repo, "web", point, "a", source.disk.bytes, SIZE);
			repository_close(repo);
			expect_sound(path);
		}
		expect_verified(path, 5);
		memory_disk_free(&source.disk);
		memory_disk_free(&tracked.map);
	}
	free(before);
	assert_true(nr_updated > nr_rounds / 8);
	assert_true(nr_resumed > nr_rounds / 8 && nr_compared > nr_rounds / 8 && nr_fresh > 0);
}

static struct repository_backup *begin(struct repository *repo, struct point_disk *one)
{
	struct err err = ERR_INIT;
	struct repository_backup *backup = points_begin(repo, "web", one, 1, &err);
	if (!backup)
		fail_msg("%s", err.text);
	return backup;
}

/* Begins, expects to go on in that way, and makes the point. */
static void finish(struct point_disk *one, struct source *source, enum repository_resumed expect)
{
	struct err err = ERR_INIT;
	source->stop_at = source->checkpoint_at = 0;
	struct repository *repo = open_repository("r");
	struct repository_backup *backup = begin(repo, one);
	assert_int_equal(repository_backup_resumed(backup, 0, NULL), expect);
	SUPPORT_OK(copy(backup, source, &err), err);
	SUPPORT_OK(repository_backup_commit(backup, &err), err);
	points_compare(repo, "web", NULL, "a", source->disk.bytes, SIZE);
	repository_close(repo);
}

static void begin_and_leave(struct point_disk *one, struct source *source, uint64_t stop_at)
{
	source->stop_at = stop_at;
	leave_on_the_way("r", one, source);
}

/* What is stored is of the first state and of the second: neither proves anything any more. */
static void test_mixed_states(void **state)
{
	(void)state;
	struct source source;
	repository_close(support_repository("r"));
	source_init(&source);
	memory_disk_fill(&source.disk, 0, SIZE, 1);
	struct point_disk one = {.key = "a", .source = &source.disk, .source_state = "first"};
	begin_and_leave(&one, &source, 5 * MIB);
	memory_disk_fill(&source.disk, 3 * MIB, 100000, 2);
	one.source_state = "second";
	begin_and_leave(&one, &source, MIB);
	finish(&one, &source, REPOSITORY_COMPARED);
	memory_disk_free(&source.disk);
}

/* Two interruptions, and changes between: the first state stays the one that all is counted from.
 */
static void go_on_twice(struct point_disk *one, struct source *source, bool other_epoch,
	void (*meanwhile)(struct point_disk *one), enum repository_resumed expect)
{
	uint8_t *before = calloc(1, SIZE);
	assert_non_null(before);
	repository_close(support_repository("r"));
	source_init(source);
	tracked_init(&tracked);
	memory_disk_fill(&source->disk, 0, SIZE, 1);
	tracked_freeze(&tracked, source, before);
	begin_and_leave(one, source, 4 * MIB);
	memory_disk_fill(&source->disk, MIB, 2 * DIGEST_CHUNK_BYTES, 2);
	memory_disk_fill(&source->disk, 5 * MIB, 1, 3);
	tracked_freeze(&tracked, source, before);
	begin_and_leave(one, source, 1);
	memory_disk_fill(&source->disk, 2 * MIB, 1, 4);
	tracked.epoch += other_epoch;
	tracked_freeze(&tracked, source, before);
	if (meanwhile)
		meanwhile(one);
	finish(one, source, expect);
	memory_disk_free(&source->disk);
	memory_disk_free(&tracked.map);
	free(before);
}

static const struct repository_pair this_disk = {"disk-uuid", "1"};

#define TRACKED_DISK(source)                                                          \
	{                                                                             \
		.key = "a", .source = &(source).disk, .change_id = tracked.change_id, \
		.identity = &this_disk, .changed_since = tell_since                   \
	}

static void test_what_changed_since(void **state)
{
	(void)state;
	struct source source;
	struct point_disk one = TRACKED_DISK(source);
	go_on_twice(&one, &source, false, NULL, REPOSITORY_UPDATED);
	/* What was in flight when it was left counts as not stored. */
	assert_true(source.disk.read_bytes <= SIZE - 4 * MIB + 512 * KIB + 3 * DIGEST_CHUNK_BYTES);
}

static void test_another_epoch(void **state)
{
	(void)state;
	struct source source;
	struct point_disk one = TRACKED_DISK(source);
	go_on_twice(&one, &source, true, NULL, REPOSITORY_COMPARED);
	assert_int_equal(source.disk.read_bytes, SIZE);
}

static void becomes_another(struct point_disk *one)
{
	static const struct repository_pair other_disk = {"disk-uuid", "2"};
	one->identity = &other_disk;
}

static void test_another_disk(void **state)
{
	(void)state;
	struct source source;
	struct point_disk one = TRACKED_DISK(source);
	go_on_twice(&one, &source, false, becomes_another, REPOSITORY_COMPARED);
	assert_int_equal(source.disk.read_bytes, SIZE);
}

static void is_not_believed(struct point_disk *one)
{
	one->changed_since = NULL;
}

static void test_nobody_tells_what_changed(void **state)
{
	(void)state;
	struct source source;
	struct point_disk one = TRACKED_DISK(source);
	go_on_twice(&one, &source, false, is_not_believed, REPOSITORY_COMPARED);
	assert_int_equal(source.disk.read_bytes, SIZE);
}

/* Once it was compared with another state, nothing says how old what is stored is. */
static void compares_and_is_left(struct point_disk *one)
{
	one->changed_since = NULL;
	begin_and_leave(one, (struct source *)one->source, MIB);
	one->changed_since = tell_since;
}

static void test_compared_in_between(void **state)
{
	(void)state;
	struct source source;
	struct point_disk one = TRACKED_DISK(source);
	go_on_twice(&one, &source, false, compares_and_is_left, REPOSITORY_COMPARED);
}

/* What an interrupted increment stored, and what is as in the parent again. */
static void test_reverted(void **state)
{
	(void)state;
	struct source source;
	repository_close(support_repository("r"));
	source_init(&source);
	memory_disk_fill(&source.disk, 0, SIZE, 1);
	struct point_disk one = {.key = "a", .source = &source.disk, .source_state = "first"};
	finish(&one, &source, REPOSITORY_FRESH);
	uint8_t *parent = malloc(SIZE);
	memcpy(parent, source.disk.bytes, SIZE);
	memory_disk_forget_changes(&source.disk);
	memory_disk_fill(&source.disk, MIB, 2 * MIB, 2);
	one.source_state = "second";
	begin_and_leave(&one, &source, 3 * MIB);
	memcpy(source.disk.bytes, parent, SIZE);
	memory_disk_forget_changes(&source.disk);
	memory_disk_fill(&source.disk, 5 * MIB, 5, 3);
	one.source_state = "third";
	finish(&one, &source, REPOSITORY_COMPARED);
	free(parent);
	memory_disk_free(&source.disk);
}

/* Nothing that was stored is read again, and all of it is found. */
static void test_what_is_kept(void **state)
{
	(void)state;
	struct source source;
	struct err err = ERR_INIT;
	uint64_t kept_bytes, first_bytes;
	repository_close(support_repository("r"));
	source_init(&source);
	memory_disk_fill(&source.disk, 0, 6 * MIB, 1);
	struct point_disk one = {.key = "a", .source = &source.disk, .source_state = "one"};
	begin_and_leave(&one, &source, 4 * MIB);
	first_bytes = source.disk.read_bytes;
	/* A commit that was interrupted had given them their names already. */
	char part[NAME_PATH_BYTES], path[NAME_PATH_BYTES];
	for (unsigned i = 0; i < 2; i++) {
		assert_true(find_part("r", i ? ".sums.part" : ".qcow2.part", part));
		snprintf(path, sizeof path, "%.*s", (int)(strlen(part) - 5), part);
		assert_int_equal(rename(part, path), 0);
	}
	source.stop_at = 0;
	struct repository *repo = open_repository("r");
	struct repository_backup *backup = begin(repo, &one);
	assert_int_equal(repository_backup_resumed(backup, 0, &kept_bytes), REPOSITORY_RESUMED);
	assert_true(kept_bytes > 2 * MIB && kept_bytes <= first_bytes);
	SUPPORT_OK(repository_backup_config(backup, "vm.xml", "<x/>", 4, &err), err);
	SUPPORT_OK(copy(backup, &source, &err), err);
	assert_int_equal(source.disk.read_bytes, 6 * MIB - kept_bytes);
	repository_backup_leave(backup);
	/* Once more: all but the end is there, and its configuration is given anew. */
	backup = begin(repo, &one);
	assert_int_equal(repository_backup_resumed(backup, 0, &kept_bytes), REPOSITORY_RESUMED);
	assert_int_equal(kept_bytes, 6 * MIB);
	SUPPORT_OK(repository_backup_config(backup, "vm.xml", "<y/>", 4, &err), err);
	SUPPORT_OK(copy(backup, &source, &err), err);
	assert_int_equal(source.disk.read_bytes, 0);
	SUPPORT_OK(repository_backup_commit(backup, &err), err);
	points_compare(repo, "web", NULL, "a", source.disk.bytes, SIZE);
	repository_close(repo);
	expect_sound("r");
	memory_disk_free(&source.disk);
}

static unsigned nr_jobs(struct repository *repo)
{
	struct path_names names;
	assert_int_equal(path_names(repo->dir_fd, ".incoming", &names, NULL), 0);
	unsigned nr = (unsigned)names.nr;
	path_names_free(&names);
	return nr;
}

static struct repository_backup *begin_with(struct repository *repo, uint64_t size_bytes,
	enum repository_resume resume, struct err *err)
{
	const struct repository_disk_spec spec = {
		.key = "a", .size_bytes = size_bytes, .source = {"raw", "raw:/test", NULL, 0}};
	const struct repository_backup_options options = {.vm = "web",
		.source = {"raw", "web", NULL, 0},
		.disks = &spec,
		.nr_disks = 1,
		.resume = resume};
	return repository_backup_begin(repo, &options, err);
}

/* Only a job of the same disks, whose owner is surely dead or let go of it. */
static void test_which_job(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	char job[REPOSITORY_JOB_BYTES];
	assert_null(begin_with(repo, SIZE, REPOSITORY_RESUME_MUST, &err));
	support_expect(&err, ERR_NOT_FOUND, "no interrupted backup of these disks");
	struct repository_backup *backup = begin_with(repo, SIZE, REPOSITORY_RESUME_AUTO, &err);
	memcpy(job, repository_backup_job(backup), sizeof job);
	repository_backup_leave(backup);

	backup = begin_with(repo, SIZE, REPOSITORY_RESUME_MUST, &err);
	assert_non_null(backup);
	assert_string_equal(repository_backup_job(backup), job);
	assert_int_equal(repository_backup_resumed(backup, 0, NULL), REPOSITORY_COMPARED);
	repository_backup_leave(backup);

	assert_null(begin_with(repo, SIZE + 512, REPOSITORY_RESUME_MUST, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(nr_jobs(repo), 1); /* what cannot be gone on with is not lost by asking */

	backup = begin_with(repo, SIZE, REPOSITORY_RESUME_NEVER, &err);
	assert_string_not_equal(repository_backup_job(backup), job);
	assert_int_equal(nr_jobs(repo), 1);
	memcpy(job, repository_backup_job(backup), sizeof job);
	repository_backup_leave(backup);

	backup = begin_with(repo, SIZE + 512, REPOSITORY_RESUME_AUTO, &err);
	assert_string_not_equal(repository_backup_job(backup), job);
	assert_int_equal(nr_jobs(repo), 1);
	memcpy(job, repository_backup_job(backup), sizeof job);
	repository_backup_leave(backup);

	/* Of somebody who lives, and was only thought to be dead. */
	SUPPORT_OK(plan_write_stage(repo, job, REPOSITORY_STAGE_COPY, 9, &err), err);
	backup = begin_with(repo, SIZE + 512, REPOSITORY_RESUME_AUTO, &err);
	assert_string_not_equal(repository_backup_job(backup), job);
	assert_int_equal(repository_backup_resumed(backup, 0, NULL), REPOSITORY_FRESH);
	repository_backup_abort(backup);
	assert_int_equal(nr_jobs(repo), 0);
	assert_int_equal(access("r/vms/web", F_OK), -1);
	repository_close(repo);
}

/* One that could not be removed when a later point was made: going on with it would make a point
 * that is not the latest. */
static void test_a_job_of_long_ago(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	struct source source;
	char job[REPOSITORY_JOB_BYTES], path[NAME_PATH_BYTES], point[REPOSITORY_POINT_BYTES];
	source_init(&source);
	memory_disk_fill(&source.disk, 0, SIZE, 1);
	struct repository_backup *backup = begin_with(repo, SIZE, REPOSITORY_RESUME_AUTO, &err);
	memcpy(job, repository_backup_job(backup), sizeof job);
	repository_backup_leave(backup);
	snprintf(path, sizeof path, "r/.incoming/%s", job);
	assert_int_equal(rename(path, "away"), 0);
	struct point_disk one = {.key = "a", .source = &source.disk};
	points_make(repo, "web", &one, 1, point);
	assert_int_equal(rename("away", path), 0);

	backup = begin_with(repo, SIZE, REPOSITORY_RESUME_AUTO, &err);
	assert_non_null(backup);
	assert_true(strcmp(repository_backup_point(backup), point) > 0);
	assert_int_equal(repository_backup_resumed(backup, 0, NULL), REPOSITORY_FRESH);
	repository_backup_abort(backup);
	repository_close(repo);
	memory_disk_free(&source.disk);
}

/* A job that was gone on with is removed whole, folders included. */
static void test_abort_after_going_on(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct err err = ERR_INIT;
	repository_backup_leave(begin_with(repo, SIZE, REPOSITORY_RESUME_AUTO, &err));
	repository_backup_abort(begin_with(repo, SIZE, REPOSITORY_RESUME_MUST, &err));
	assert_int_equal(nr_jobs(repo), 0);
	assert_int_equal(access("r/vms/web", F_OK), -1);
	repository_close(repo);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_mixed_states),
		SUPPORT_TEST(test_reverted),
		SUPPORT_TEST(test_what_changed_since),
		SUPPORT_TEST(test_another_epoch),
		SUPPORT_TEST(test_another_disk),
		SUPPORT_TEST(test_nobody_tells_what_changed),
		SUPPORT_TEST(test_compared_in_between),
		SUPPORT_TEST(test_what_is_kept),
		SUPPORT_TEST(test_which_job),
		SUPPORT_TEST(test_a_job_of_long_ago),
		SUPPORT_TEST(test_abort_after_going_on),
		SUPPORT_TEST(test_any_interruption),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
