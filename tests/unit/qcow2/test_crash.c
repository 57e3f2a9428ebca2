/*
 * Power cuts.  All that the room does to the file goes through wrapped system
 * calls here and is recorded.  From the record, files are made as a machine that
 * lost its power may leave them: what a completed sync covers is there, of what
 * came later any sectors are and any are not.  Each must have no error in
 * the eyes of qcow2_check(), and hold what was flushed.
 */
#include "qcow2.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <cmocka.h>

#define DISK_BYTES (4 * MIB)
#define BLOCK 4096u
#define NR_BLOCKS (DISK_BYTES / BLOCK)
#define THREADS 2u
#define REQUESTS 240u
#define SECTOR 512u

/* --- the record ------------------------------------------------------------------- */

enum action { WRITE, TRUNCATE, PUNCH, SYNC };

struct entry {
	enum action action;
	uint64_t offset, length;
	uint8_t *bytes;
	size_t covers; /* SYNC: entries before this one are durable */
};

static struct {
	pthread_mutex_t mutex;
	bool on;
	struct entry *entries;
	size_t nr, room;
} record = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void add(struct entry entry, const void *bytes)
{
	if (bytes) {
		entry.bytes = malloc(entry.length);
		memcpy(entry.bytes, bytes, entry.length);
	}
	if (record.nr == record.room) {
		record.room = record.room ? 2 * record.room : 1024;
		record.entries = realloc(record.entries, record.room * sizeof entry);
	}
	record.entries[record.nr++] = entry;
}

static size_t position(void)
{
	WITH_LOCK(&record.mutex);
	return record.nr;
}

ssize_t __real_pwrite64(int fd, const void *bytes, size_t length, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t length, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int nr, off_t offset);
int __real_ftruncate64(int fd, off_t length);
int __wrap_ftruncate64(int fd, off_t length);
int __real_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length);
int __wrap_fdatasync(int fd);

ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t length, off_t offset)
{
	WITH_LOCK(&record.mutex);
	if (record.on)
		add((struct entry){WRITE, (uint64_t)offset, length, NULL, 0}, bytes);
	return __real_pwrite64(fd, bytes, length, offset);
}

ssize_t __wrap_pwritev64(int fd, const struct iovec *iov, int nr, off_t offset)
{
	ssize_t sum = 0;
	for (int i = 0; i < nr; i++)
		sum += __wrap_pwrite64(fd, iov[i].iov_base, iov[i].iov_len, offset + sum);
	return sum;
}

int __wrap_ftruncate64(int fd, off_t length)
{
	WITH_LOCK(&record.mutex);
	if (record.on)
		add((struct entry){TRUNCATE, 0, (uint64_t)length, NULL, 0}, NULL);
	return __real_ftruncate64(fd, length);
}

int __wrap_fallocate64(int fd, int mode, off_t offset, off_t length)
{
	WITH_LOCK(&record.mutex);
	if (record.on)
		add((struct entry){PUNCH, (uint64_t)offset, (uint64_t)length, NULL, 0}, NULL);
	return __real_fallocate64(fd, mode, offset, length);
}

int __wrap_fdatasync(int fd)
{
	(void)fd;
	size_t covers = position();
	sched_yield(); /* others may write meanwhile */
	WITH_LOCK(&record.mutex);
	if (record.on)
		add((struct entry){.action = SYNC, .covers = covers}, NULL);
	return 0;
}

/* --- requests, and what must be there ------------------------------------------------ */

struct worker {
	struct block *disk;
	unsigned number;
	size_t flushed[REQUESTS + 1]; /* position when a flush after request k returned; 0: none */
};

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dull >> 11;
}

/* Request k writes k into all words of one of the thread's blocks, or zeros it. */
static uint64_t pick(uint64_t *state, unsigned thread, bool *zero)
{
	*zero = next_random(state) % 5 == 0;
	return next_random(state) % (NR_BLOCKS / THREADS) * THREADS + thread;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	uint64_t state = 77 + w->number, words[BLOCK / 8];
	struct err err = ERR_INIT;
	for (unsigned k = 1; k <= REQUESTS; k++) {
		bool zero;
		uint64_t at = pick(&state, w->number, &zero) * BLOCK;
		for (size_t i = 0; i < ARRAY_LENGTH(words); i++)
			words[i] = k;
		int rc = zero ? block_zero(w->disk, at, BLOCK, 0, &err)
			      : block_write(w->disk, words, BLOCK, at, 0, &err);
		assert_int_equal(rc, 0);
		if (k % 16 == 0) {
			assert_int_equal(block_flush(w->disk, &err), 0);
			w->flushed[k] = position();
		}
	}
	return NULL;
}

struct expected {
	uint64_t least[NR_BLOCKS];
	bool may_be_zero[NR_BLOCKS];
};

static void expect(const struct worker *w, size_t cut, struct expected *e)
{
	unsigned last = 0;
	for (unsigned k = 1; k <= REQUESTS; k++)
		if (w->flushed[k] != 0 && w->flushed[k] <= cut)
			last = k;
	uint64_t state = 77 + w->number;
	for (unsigned k = 1; k <= REQUESTS; k++) {
		bool zero;
		uint64_t b = pick(&state, w->number, &zero);
		if (k <= last) {
			e->least[b] = k;
			e->may_be_zero[b] = zero;
		} else if (zero) {
			e->may_be_zero[b] = true;
		}
	}
}

/* --- a file after a power cut ----------------------------------------------------------- */

static void apply(int fd, const struct entry *e, bool torn, uint64_t *state)
{
	if (e->action == TRUNCATE && !(torn && next_random(state) % 2)) {
		/* A file that came out longer stays so; shorter only at close. */
		assert_int_equal(__real_ftruncate64(fd, (off_t)e->length), 0);
		return;
	}
	if (e->action == PUNCH && !(torn && next_random(state) % 2)) {
		__real_fallocate64(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)e->offset,
			(off_t)e->length);
		return;
	}
	for (uint64_t at = 0; e->action == WRITE && at < e->length;) {
		uint64_t n = min_u64(SECTOR - (e->offset + at) % SECTOR, e->length - at);
		if (!torn || next_random(state) % 2)
			assert_int_equal(
				__real_pwrite64(fd, e->bytes + at, n, (off_t)(e->offset + at)),
				(ssize_t)n);
		at += n;
	}
}

static void make_file(const char *from, const char *path, size_t cut, uint64_t *state)
{
	char *bytes;
	size_t length, covered = 0;
	struct err err = ERR_INIT;
	assert_int_equal(file_load(AT_FDCWD, from, 64 * MIB, &bytes, &length, &err), 0);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(__real_pwrite64(fd, bytes, length, 0), (ssize_t)length);
	free(bytes);
	for (size_t i = 0; i < cut; i++)
		if (record.entries[i].action == SYNC)
			covered = record.entries[i].covers;
	for (size_t i = 0; i < cut; i++)
		apply(fd, &record.entries[i], i >= covered, state);
	close(fd);
}

/* What was opened is filled, so that its file grows: nothing that the cut left is a leak then.
 * Version 2 has no mark that makes opening look for them. */
static void fill_up(const char *path, struct block *disk, size_t cut)
{
	static const uint8_t bytes[DISK_BYTES] = {1};
	struct qcow2_check_result result;
	struct qcow2_facts facts;
	struct err err = ERR_INIT;
	assert_int_equal(block_write(disk, bytes, sizeof bytes, 0, 0, &err), 0);
	assert_int_equal(block_close(disk, &err), 0);
	assert_int_equal(qcow2_facts(path, &facts, &err), 0);
	assert_int_equal(qcow2_check(path, false, NULL, NULL, NULL, &result, &err), 0);
	if (result.errors != 0 || (facts.version > 2 && result.leaks != 0))
		fail_msg("cut at %zu of %zu, filled: %lu errors, %lu leaks", cut, record.nr,
			result.errors, result.leaks);
}

static void check_file(const char *path, const struct expected *e, size_t cut)
{
	struct qcow2_check_result result;
	struct err err = ERR_INIT;
	uint64_t words[BLOCK / 8];
	assert_int_equal(qcow2_check(path, false, NULL, NULL, NULL, &result, &err), 0);
	if (result.errors != 0)
		fail_msg("cut at %zu of %zu: %lu errors", cut, record.nr, result.errors);
	/* Opening for writing mends the leaks of version 3. */
	struct block *disk = qcow2_open(path, &(struct qcow2_open_options){0}, &err);
	if (!disk)
		fail_msg("cut at %zu: %s", cut, err.text);
	for (uint64_t b = 0; b < NR_BLOCKS; b++) {
		assert_int_equal(block_read(disk, words, BLOCK, b * BLOCK, &err), 0);
		for (size_t i = 0; i < ARRAY_LENGTH(words); i++) {
			uint64_t word = words[i];
			if (word == 0 ? !e->may_be_zero[b] && e->least[b] != 0
				      : word < e->least[b] || word > REQUESTS)
				fail_msg("cut at %zu: block %lu holds %lu, flushed was %lu", cut, b,
					word, e->least[b]);
		}
	}
	fill_up(path, disk, cut);
}

static void forget_record(void)
{
	for (size_t i = 0; i < record.nr; i++)
		free(record.entries[i].bytes);
	free(record.entries);
	record.entries = NULL;
	record.nr = record.room = 0;
}

static char folder[] = "/tmp/qcow2-crash-XXXXXX";

static const char *in_folder(char *path, const char *name)
{
	snprintf(path, 64, "%s/%s", folder, name);
	return path;
}

static int make_folder(void **unused)
{
	(void)unused;
	strcpy(strrchr(folder, '-'), "-XXXXXX");
	return mkdtemp(folder) ? 0 : -1;
}

static int drop_folder(void **unused)
{
	(void)unused;
	const char *const names[] = {"image", "start", "cut"};
	char path[64];
	record.on = false;
	forget_record();
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		unlink(in_folder(path, names[i]));
	return rmdir(folder);
}

static void cut_power(uint32_t cluster_bytes, bool compress, bool version_2)
{
	char path[64], start[64], cut_path[64];
	struct worker workers[THREADS] = {0};
	pthread_t threads[THREADS];
	struct err err = ERR_INIT;
	uint64_t state = 4711;
	in_folder(path, "image");
	in_folder(start, "start");
	in_folder(cut_path, "cut");
	struct qcow2_create_options create = {
		.size_bytes = DISK_BYTES, .cluster_bytes = cluster_bytes, .replace = true};
	assert_int_equal(qcow2_create(path, &create, &err), 0);
	assert_int_equal(qcow2_create(start, &create, &err), 0);
	for (int i = 0; version_2 && i < 2; i++) { /* 16-bit refcounts are the same in both */
		int fd = open(i ? start : path, O_RDWR);
		const uint8_t two[4] = {0, 0, 0, 2};
		assert_int_equal(__real_pwrite64(fd, two, sizeof two, 4), 4);
		const uint8_t end[8] = {0};
		assert_int_equal(__real_pwrite64(fd, end, sizeof end, 72), 8);
		close(fd);
	}
	struct qcow2_open_options open_options = {.compress = compress, .assembly_bytes = 64 * KIB};
	struct block *disk = qcow2_open(path, &open_options, &err);
	assert_non_null(disk);
	record.on = true;
	for (unsigned t = 0; t < THREADS; t++) {
		workers[t].disk = disk;
		workers[t].number = t;
		assert_int_equal(thread_start(&threads[t], "worker", work, &workers[t], &err), 0);
	}
	for (unsigned t = 0; t < THREADS; t++)
		pthread_join(threads[t], NULL);
	assert_int_equal(block_close(disk, &err), 0);
	record.on = false;
	assert_true(record.nr > 100);
	for (int i = 0; i < 60; i++) {
		struct expected *e = calloc(1, sizeof *e);
		size_t cut = i == 0 ? record.nr : next_random(&state) % record.nr;
		/* Just before a sync most is open. */
		while (i % 2 == 1 && cut < record.nr && record.entries[cut].action != SYNC)
			cut++;
		make_file(start, cut_path, cut, &state);
		for (unsigned t = 0; t < THREADS; t++)
			expect(&workers[t], cut, e);
		check_file(cut_path, e, cut);
		free(e);
	}
	forget_record();
}

static void plain(void **unused)
{
	(void)unused;
	cut_power(4096, false, false);
	cut_power(65536, false, false);
}

static void small_clusters(void **unused)
{
	(void)unused;
	cut_power(512, false, false);
}

static void compressed(void **unused)
{
	(void)unused;
	cut_power(4096, true, false);
	cut_power(16384, true, false);
}

static void version_2(void **unused)
{
	(void)unused;
	cut_power(4096, false, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(plain, make_folder, drop_folder),
		cmocka_unit_test_setup_teardown(small_clusters, make_folder, drop_folder),
		cmocka_unit_test_setup_teardown(compressed, make_folder, drop_folder),
		cmocka_unit_test_setup_teardown(version_2, make_folder, drop_folder),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
