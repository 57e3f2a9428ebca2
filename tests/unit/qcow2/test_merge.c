/*
 * Readers of a chain  base <- x <- c <- top  while x is written to beneath c: they see
 * the same bytes at any moment, whatever they read of x before, and whenever the
 * writer is killed.
 *
 *   this process: readers that were opened before (one has read all, one nothing),
 *                 and one that is opened again and again
 *   driver:       one writer after the other, each a process of its own
 *
 * A cluster's content is told by a number: 0 zeros, else a pattern made from it, which
 * does not compress when it is odd.
 */
#include "test_support.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

#define CLUSTER 4096u /* an L2 table maps 2 MiB */
#define WORDS (CLUSTER / 8)
#define LAYERS 4
#define X 1
#define C 2
#define TOP 3
#define NR_READERS 3
#define ROUNDS 6
#define NOT_HELD UINT32_MAX

static const char *const names[LAYERS] = {"base", "x", "c", "top"};

/* Clusters lie in areas, far apart. */
struct world {
	unsigned nr_areas, per_area;
	uint64_t stride;
	uint32_t *layers[LAYERS]; /* of each cluster: its content, or NOT_HELD */
	uint32_t *shown;
	unsigned nr;
};

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dull;
}

static unsigned below(uint64_t *state, unsigned n)
{
	return (unsigned)((next_random(state) >> 32) % n);
}

static uint64_t place(const struct world *w, unsigned cluster)
{
	return cluster / w->per_area * w->stride + (uint64_t)(cluster % w->per_area) * CLUSTER;
}

static uint64_t size_of(const struct world *w)
{
	return w->nr_areas * w->stride;
}

static uint64_t word_of(uint32_t content, unsigned i)
{
	return content & 1 ? (content + (uint64_t)i * 0x10001) * 0x9e3779b97f4a7c15ull
			   : content * 0x0101010101010101ull;
}

static int put(struct block *disk, const struct world *w, unsigned cluster, uint32_t content,
	struct err *err)
{
	uint64_t words[WORDS];
	if (content == 0)
		return block_zero(disk, place(w, cluster), CLUSTER, 0, err);
	for (unsigned i = 0; i < WORDS; i++)
		words[i] = word_of(content, i);
	return block_write(disk, words, CLUSTER, place(w, cluster), 0, err);
}

/* Whether a cluster reads as that; tells when not. */
static bool shows(struct block *disk, const struct world *w, unsigned cluster, uint32_t content)
{
	struct err err = ERR_INIT;
	uint64_t words[WORDS];
	if (block_read(disk, words, CLUSTER, place(w, cluster), &err) < 0) {
		print_error("%s\n", err.text);
		return false;
	}
	for (unsigned i = 0; i < WORDS; i++)
		if (words[i] != word_of(content, i)) {
			print_error("cluster %u, word %u: %016llx, not %016llx\n", cluster, i,
				(unsigned long long)words[i],
				(unsigned long long)word_of(content, i));
			return false;
		}
	struct block_extent extent;
	size_t nr;
	if (block_extents(disk, place(w, cluster), CLUSTER, &extent, 1, &nr, &err) < 0) {
		print_error("%s\n", err.text);
		return false;
	}
	return content == 0 || !(extent.flags & BLOCK_ZERO);
}

/* --- the chain ------------------------------------------------------------------- */

static void choose(struct world *w, uint64_t *random)
{
	static const unsigned percent[LAYERS] = {70, 50, 40, 10};
	w->nr = w->nr_areas * w->per_area;
	w->shown = calloc(w->nr, sizeof *w->shown);
	for (unsigned k = 0; k < LAYERS; k++) {
		w->layers[k] = malloc(w->nr * sizeof(uint32_t));
		for (unsigned i = 0; i < w->nr; i++) {
			/* In every third area x has no table yet. */
			bool held = below(random, 100) < percent[k] &&
				    (k != X || i / w->per_area % 3 != 0);
			uint32_t content = below(random, 5) == 0 ? 0 : 1 + below(random, 1u << 30);
			w->layers[k][i] = held ? content : NOT_HELD;
			if (held)
				w->shown[i] = content;
		}
	}
}

static void free_world(struct world *w)
{
	for (unsigned k = 0; k < LAYERS; k++)
		free(w->layers[k]);
	free(w->shown);
}

static void make_chain(const struct world *w)
{
	for (unsigned k = 0; k < LAYERS; k++) {
		struct err err = ERR_INIT;
		struct qcow2_create_options options = {.size_bytes = size_of(w),
			.cluster_bytes = CLUSTER,
			.backing_file = k > 0 ? names[k - 1] : NULL,
			.backing_format = k > 0 ? "qcow2" : NULL};
		assert_ok(qcow2_create(test_path(names[k]), &options, &err));
		struct block *disk = qcow2_open(
			test_path(names[k]), &(struct qcow2_open_options){.compress = true}, &err);
		assert_non_null(disk);
		for (unsigned i = 0; i < w->nr; i++)
			if (w->layers[k][i] != NOT_HELD)
				assert_ok(put(disk, w, i, w->layers[k][i], &err));
		assert_ok(block_close(disk, &err));
	}
}

/* Zeros over zeros are not stored: c does not hide what is beneath. */
static void find_hidden(struct world *w)
{
	struct err err = ERR_INIT;
	struct qcow2_open_options options = {.read_only = true};
	struct block *c = qcow2_open(test_path("c"), &options, &err);
	assert_non_null(c);
	for (unsigned i = 0; i < w->nr; i++) {
		uint64_t nr_alike;
		bool held;
		assert_ok(qcow2_own_run(c, place(w, i), CLUSTER, &nr_alike, &held, &err));
		assert_true(!held || w->layers[C][i] != NOT_HELD);
		if (!held)
			w->layers[C][i] = NOT_HELD;
	}
	assert_ok(block_close(c, &err));
}

static struct block *open_merged(const char *name, struct err *err)
{
	struct qcow2_open_options options = {.read_only = true, .merged = true};
	return qcow2_open(test_path(name), &options, err);
}

/* --- the writers ------------------------------------------------------------------ */

static void failed(const struct err *err)
{
	print_error("%s\n", err->text);
	_exit(1);
}

/* Writes to x what c hides; the last round what c holds, the others anything.  All but
 * some are killed on their way. */
static void write_beneath(const struct world *w, unsigned round, uint64_t random)
{
	struct err err = ERR_INIT;
	bool last = round == ROUNDS - 1;
	unsigned lives = round % 3 == 2 ? UINT32_MAX : below(&random, w->nr / 2);
	struct qcow2_open_options options = {.merge = true, .compress = round % 2 == 1};
	struct block *x = qcow2_open(test_path("x"), &options, &err);
	if (!x)
		failed(&err);
	unsigned start = below(&random, w->nr);
	for (unsigned n = 0; n < w->nr; n++) {
		unsigned i = (start + n * 7) % w->nr;
		uint32_t content = w->layers[C][i];
		if (content == NOT_HELD)
			continue;
		if (!last)
			content = below(&random, 4) == 0 ? 0 : 1 + below(&random, 1u << 30);
		if (put(x, w, i, content, &err) < 0)
			failed(&err);
		if (below(&random, 50) == 0 && block_flush(x, &err) < 0)
			failed(&err);
		if (lives-- == 0)
			raise(SIGKILL);
	}
	if (block_close(x, &err) < 0)
		failed(&err);
	_exit(0);
}

static void drive(const struct world *w, int start, uint64_t seed)
{
	char go;
	if (read(start, &go, 1) != 1)
		_exit(1);
	for (unsigned round = 0; round < ROUNDS; round++) {
		int status;
		pid_t pid = fork();
		if (pid == 0)
			write_beneath(w, round, seed * 1000 + round + 1);
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			_exit(1);
		bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
		if (!killed && status != 0)
			_exit(1);
	}
	_exit(0);
}

/* --- the readers -------------------------------------------------------------------- */

struct reader {
	const struct world *world;
	struct block *disk; /* NULL: opened anew for each round */
	atomic_bool *stop;
	uint64_t random;
	bool good;
};

static bool read_some(struct reader *r, struct block *disk)
{
	for (int n = 0; n < 200; n++) {
		unsigned i = below(&r->random, r->world->nr);
		if (!shows(disk, r->world, i, r->world->shown[i]))
			return false;
	}
	return true;
}

static void *read_on(void *arg)
{
	struct reader *r = arg;
	struct err err = ERR_INIT;
	r->good = true;
	do {
		struct block *disk = r->disk ? r->disk : open_merged("top", &err);
		if (!disk)
			print_error("%s\n", err.text);
		r->good = disk && read_some(r, disk);
		if (!r->disk)
			block_close(disk, NULL);
	} while (r->good && !atomic_load(r->stop));
	return NULL;
}

static bool run_readers(const struct world *w, struct block *warm, struct block *cold, int start,
	pid_t driver, uint64_t seed)
{
	struct block *disks[NR_READERS] = {warm, cold, NULL};
	struct reader readers[NR_READERS];
	pthread_t threads[NR_READERS];
	atomic_bool stop = false;
	struct err err = ERR_INIT;
	int status = -1;
	bool good = true;
	for (unsigned i = 0; i < NR_READERS; i++) {
		readers[i] = (struct reader){
			.world = w, .disk = disks[i], .stop = &stop, .random = seed * 77 + i + 1};
		assert_ok(thread_start(&threads[i], "reader", read_on, &readers[i], &err));
	}
	assert_int_equal(write(start, "g", 1), 1);
	assert_int_equal(waitpid(driver, &status, 0), driver);
	atomic_store(&stop, true);
	for (unsigned i = 0; i < NR_READERS; i++) {
		pthread_join(threads[i], NULL);
		good = good && readers[i].good;
	}
	assert_int_equal(status, 0);
	return good;
}

static void assert_shows_all(struct block *disk, const struct world *w)
{
	for (unsigned i = 0; i < w->nr; i++)
		assert_true(shows(disk, w, i, w->shown[i]));
}

/* x now holds what c does, and stands for it. */
static void assert_merged(const struct world *w)
{
	struct err err = ERR_INIT;
	struct qcow2_check_result result;
	assert_ok(qcow2_check(test_path("x"), false, NULL, NULL, NULL, &result, &err));
	assert_int_equal(result.errors + result.leaks, 0);
	assert_int_equal(rename(test_path("x"), test_path("c")), 0);
	struct block *disk = open_merged("top", &err);
	assert_non_null(disk);
	assert_int_equal(qcow2_chain_length(disk), LAYERS - 1);
	assert_shows_all(disk, w);
	assert_ok(block_close(disk, &err));
}

static void run_world(struct world *w, uint64_t seed)
{
	struct err err = ERR_INIT;
	uint64_t random = seed;
	int start[2];
	choose(w, &random);
	for (unsigned k = 0; k < LAYERS; k++)
		unlink(test_path(names[k]));
	make_chain(w);
	find_hidden(w);
	struct block *warm = open_merged("top", &err), *cold = open_merged("top", &err);
	assert_non_null(warm);
	assert_non_null(cold);
	assert_shows_all(warm, w);
	assert_int_equal(pipe(start), 0);
	pid_t driver = fork();
	if (driver == 0)
		drive(w, start[0], seed);
	bool good = run_readers(w, warm, cold, start[1], driver, seed);
	close(start[0]);
	close(start[1]);
	assert_true(good);
	assert_shows_all(warm, w);
	assert_shows_all(cold, w);
	assert_ok(block_close(warm, &err));
	assert_ok(block_close(cold, &err));
	assert_merged(w);
	free_world(w);
}

/* One seed, or with SENDENSE_SOAK many. */
static void run_worlds(struct world w)
{
	uint64_t nr = getenv("SENDENSE_SOAK") ? 25 : 1;
	for (uint64_t seed = 4711; seed < 4711 + nr; seed++) {
		struct world one = w;
		print_message("seed %llu\n", (unsigned long long)seed);
		run_world(&one, seed);
	}
}

static void readers_see_nothing_of_a_merge(void **state)
{
	(void)state;
	run_worlds((struct world){.nr_areas = 24, .per_area = 64, .stride = 2 * MIB});
}

/* So large that L1 tables of backing files are read piece by piece. */
static void readers_of_large_disks_see_nothing_of_it(void **state)
{
	(void)state;
	run_worlds((struct world){.nr_areas = 320, .per_area = 4, .stride = 64 * MIB});
}

/* A reader that opened before meets a table that lies where its file had no end yet. */
static void a_table_beyond_the_end_that_was(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	uint32_t layers[LAYERS][2] = {
		{1, 2}, {NOT_HELD, NOT_HELD}, {3, NOT_HELD}, {NOT_HELD, NOT_HELD}};
	struct world w = {.nr_areas = 320, .per_area = 2, .stride = 64 * MIB, .nr = 2};
	for (unsigned k = 0; k < LAYERS; k++)
		w.layers[k] = layers[k];
	make_chain(&w);
	struct block *reader = open_merged("top", &err);
	struct block *x =
		qcow2_open(test_path("x"), &(struct qcow2_open_options){.merge = true}, &err);
	assert_non_null(reader);
	assert_non_null(x);
	assert_ok(put(x, &w, 0, 3, &err));
	assert_ok(block_flush(x, &err));
	assert_true(shows(reader, &w, 1, 2));
	assert_true(shows(reader, &w, 0, 3));
	assert_ok(block_close(x, &err));
	assert_true(shows(reader, &w, 1, 2));
	assert_ok(block_close(reader, &err));
}

/* Part of a cluster would move what is beside it. */
static void only_whole_clusters_are_merged(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct qcow2_create_options options = {.size_bytes = 3 * 65536 + 512};
	assert_ok(qcow2_create(test_path("x"), &options, &err));
	struct block *x =
		qcow2_open(test_path("x"), &(struct qcow2_open_options){.merge = true}, &err);
	static const uint8_t bytes[65536] = {1};
	assert_non_null(x);
	assert_fails(block_write(x, bytes, 512, 0, 0, &err), ERR_USAGE);
	assert_fails(block_write(x, bytes, 65536, 512, 0, &err), ERR_USAGE);
	assert_fails(block_zero(x, 0, 512, 0, &err), ERR_USAGE);
	assert_fails(block_zero(x, 65535, 65537, 0, &err), ERR_USAGE);
	assert_ok(block_write(x, bytes, 65536, 65536, 0, &err));
	assert_ok(block_write(x, bytes, 512, 3 * 65536, 0, &err));
	assert_ok(block_zero(x, 2 * 65536, 65536 + 512, 0, &err));
	assert_ok(block_close(x, &err));
}

static int drop_chain(void **state)
{
	(void)state;
	for (unsigned k = 0; k < LAYERS; k++)
		unlink(test_path(names[k]));
	return rmdir(test_folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			readers_see_nothing_of_a_merge, test_make_folder, drop_chain),
		cmocka_unit_test_setup_teardown(
			readers_of_large_disks_see_nothing_of_it, test_make_folder, drop_chain),
		cmocka_unit_test_setup_teardown(
			a_table_beyond_the_end_that_was, test_make_folder, drop_chain),
		cmocka_unit_test_setup_teardown(
			only_whole_clusters_are_merged, test_make_folder, drop_chain),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
