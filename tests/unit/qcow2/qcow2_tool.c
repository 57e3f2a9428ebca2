/*
 * Drives the qcow2 room from scripts; not installed.
 *
 *   qcow2_tool create IMAGE SIZE [cluster=N] [zstd] [backing=FILE:FORMAT]
 *   qcow2_tool read IMAGE RAW            all bytes, in pieces of changing length
 *   qcow2_tool map IMAGE                 "offset length flags" lines
 *   qcow2_tool held IMAGE                "offset length held" lines, opened for writing
 *   qcow2_tool write IMAGE RAW [piece=N] [shuffle]    the raw file into the image
 *   qcow2_tool stress IMAGE RAW [ops=N] [seed=N]      random requests; RAW holds what
 *                                        the image holds, before and after
 *   qcow2_tool crash IMAGE [seed=N]      writes until it is killed, telling flushes
 *   qcow2_tool survived IMAGE LOG [seed=N]            what crash flushed is there
 *   qcow2_tool hold IMAGE                opens it, says so, closes it when its input ends
 *
 * Options of all: threads=N compress level=N size=N cache=N assembly=N allow=DIR own
 *                 read-only merge merged
 */
#include "qcow2.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define THREADS_MAX 16

struct options {
	struct qcow2_open_options open;
	const char *allow[2];
	const char *backing;
	uint64_t cluster, piece, ops, seed;
	unsigned threads;
	bool shuffle, zstd;
};

static struct options options = {
	.piece = 256 * KIB,
	.ops = 1000,
	.threads = 1,
};

static int fail(const struct err *err)
{
	fprintf(stderr, "%s\n", err->text);
	return 1;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dull;
}

static uint64_t below(uint64_t *state, uint64_t n)
{
	return (next_random(state) >> 11) % n;
}

struct worker {
	struct block *disk;
	unsigned number;
	uint64_t size;
	int raw;
	uint8_t *shadow;
	atomic_uint_fast64_t *next;
	uint32_t *order;
	struct err err;
};

/* Runs main in all threads; 0 when none failed. */
static int run_workers(struct worker *workers, void *(*main)(void *), const struct worker *common)
{
	pthread_t threads[THREADS_MAX];
	struct err err = ERR_INIT;
	int rc = 0;
	for (unsigned t = 0; t < options.threads; t++) {
		workers[t] = *common;
		workers[t].number = t;
		if (thread_start(&threads[t], "worker", main, &workers[t], &err) < 0)
			return fail(&err);
	}
	for (unsigned t = 0; t < options.threads; t++) {
		pthread_join(threads[t], NULL);
		if (workers[t].err.code != ERR_NONE)
			rc = fail(&workers[t].err);
	}
	return rc;
}

/* --- read, map, write ---------------------------------------------------------- */

static void *read_worker(void *arg)
{
	struct worker *w = arg;
	uint64_t state = 88172645463325252ull + w->number;
	uint8_t *AUTO_FREE buffer = malloc(3 * MIB);
	for (;;) {
		uint64_t n = 1 + below(&state, 3 * MIB);
		uint64_t at = atomic_fetch_add(w->next, n);
		if (at >= w->size)
			return NULL;
		n = min_u64(n, w->size - at);
		if (block_read(w->disk, buffer, n, at, &w->err) < 0 ||
			file_pwrite(w->raw, buffer, n, at, "raw file", &w->err) < 0)
			return NULL;
	}
}

static int read_all(struct block *disk, const char *path)
{
	struct worker workers[THREADS_MAX];
	atomic_uint_fast64_t next = 0;
	int AUTO_CLOSE fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	struct worker common = {
		.disk = disk, .raw = fd, .next = &next, .size = block_info(disk)->size_bytes};
	if (fd < 0)
		return 1;
	return run_workers(workers, read_worker, &common);
}

static int map_all(struct block *disk)
{
	struct block_extent extents[7];
	uint64_t size = block_info(disk)->size_bytes, at = 0;
	struct err err = ERR_INIT;
	while (at < size) {
		size_t nr;
		if (block_extents(disk, at, size - at, extents, ARRAY_LENGTH(extents), &nr, &err) <
			0)
			return fail(&err);
		for (size_t i = 0; i < nr; i++) {
			printf("%" PRIu64 " %" PRIu64 " %u\n", at, extents[i].length,
				extents[i].flags);
			at += extents[i].length;
		}
	}
	return 0;
}

static int held_all(struct block *disk)
{
	uint64_t size = block_info(disk)->size_bytes, length;
	struct err err = ERR_INIT;
	bool held;
	for (uint64_t at = 0; at < size; at += length) {
		if (qcow2_own_run(disk, at, size - at, &length, &held, &err) < 0)
			return fail(&err);
		printf("%" PRIu64 " %" PRIu64 " %d\n", at, length, held);
	}
	return 0;
}

static int hold(void)
{
	char byte;
	puts("held");
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	return 0;
}

static void *write_worker(void *arg)
{
	struct worker *w = arg;
	uint8_t *AUTO_FREE buffer = malloc(options.piece);
	for (;;) {
		uint64_t i = atomic_fetch_add(w->next, 1);
		uint64_t at = i * options.piece;
		if (at >= w->size)
			return NULL;
		if (w->order)
			at = w->order[i] * options.piece;
		uint64_t n = min_u64(options.piece, w->size - at);
		if (file_pread(w->raw, buffer, n, at, "raw file", &w->err) < 0)
			return NULL;
		if (!digest_is_zero(buffer, n) &&
			block_write(w->disk, buffer, n, at, 0, &w->err) < 0)
			return NULL;
	}
}

static int write_all(struct block *disk, const char *path)
{
	struct worker workers[THREADS_MAX];
	atomic_uint_fast64_t next = 0;
	int AUTO_CLOSE fd = open(path, O_RDONLY);
	struct worker common = {
		.disk = disk, .raw = fd, .next = &next, .size = block_info(disk)->size_bytes};
	uint64_t nr = div_round_up(common.size, options.piece), state = options.seed + 1;
	uint32_t *AUTO_FREE order = NULL;
	if (fd < 0)
		return 1;
	if (options.shuffle) {
		order = malloc(nr * sizeof *order);
		for (uint32_t i = 0; i < nr; i++)
			order[i] = i;
		/* Out of order, but within reach of each other, as a client's requests are. */
		for (uint64_t i = 0; i < nr; i++) {
			uint64_t k = min_u64(i + below(&state, 64), nr - 1);
			uint32_t other = order[k];
			order[k] = order[i];
			order[i] = other;
		}
		common.order = order;
	}
	return run_workers(workers, write_worker, &common);
}

/* --- stress: random requests against a shadow ------------------------------------ */

/* The first half belongs to the threads in thin stripes, so that they meet in
 * clusters; of the second half each has a part, for long requests. */
#define STRIPE 5000u

static void pick_range(const struct worker *w, uint64_t *state, uint64_t *at, uint64_t *n)
{
	uint64_t half = w->size / 2;
	uint64_t stripes = half / STRIPE / options.threads;
	if (stripes > 0 && below(state, 2)) {
		uint64_t stripe = below(state, stripes) * options.threads + w->number;
		uint64_t in = below(state, STRIPE);
		*at = stripe * STRIPE + in;
		*n = 1 + below(state, STRIPE - in);
		return;
	}
	uint64_t part = (w->size - half) / options.threads;
	uint64_t start = half + w->number * part;
	uint64_t end = w->number + 1 == options.threads ? w->size : start + part;
	*at = start + below(state, end - start);
	*n = 1 + below(state, min_u64(end - *at, (uint64_t)1 << (9 + below(state, 13))));
	if (below(state, 2)) { /* aligned requests are the usual ones */
		*at = max_u64(round_down(*at, 4096), start);
		*n = min_u64(round_up(*n, 4096), end - *at);
	}
}

static int check_read(struct worker *w, uint8_t *buffer, uint64_t at, uint64_t n, bool may_be_zero)
{
	if (block_read(w->disk, buffer, n, at, &w->err) < 0)
		return -1;
	for (uint64_t i = 0; i < n; i++)
		if (buffer[i] != w->shadow[at + i] && !(may_be_zero && buffer[i] == 0))
			return err_set(&w->err, ERR_CORRUPT,
				"byte %" PRIu64 " is %02x and should be %02x (read of %" PRIu64
				" at %" PRIu64 ")",
				at + i, buffer[i], w->shadow[at + i], n, at);
	memcpy(w->shadow + at, buffer, n);
	return 0;
}

static int one_request(struct worker *w, uint64_t *state, uint8_t *buffer)
{
	uint64_t at, n;
	pick_range(w, state, &at, &n);
	switch (below(state, 12)) {
	case 0:
	case 1:
	case 2:
		return check_read(w, buffer, at, n, false);
	case 3:
		memset(w->shadow + at, 0, n);
		return block_zero(w->disk, at, n, 0, &w->err);
	case 4:
		memset(w->shadow + at, 0, n);
		return block_zero(w->disk, at, n, BLOCK_NO_HOLE, &w->err);
	case 5:
		if (block_trim(w->disk, at, n, 0, &w->err) < 0)
			return -1;
		return check_read(w, buffer, at, n, true);
	case 6:
		return below(state, 8) ? 0 : block_flush(w->disk, &w->err);
	default:
		break;
	}
	/* Half of it compresses. */
	uint8_t fill = (uint8_t)(1 + below(state, 255));
	bool noise = below(state, 2);
	for (uint64_t i = 0; i < n; i++)
		w->shadow[at + i] = noise ? (uint8_t)next_random(state) : fill;
	return block_write(w->disk, w->shadow + at, n, at, 0, &w->err);
}

static void *stress_worker(void *arg)
{
	struct worker *w = arg;
	uint64_t state = (options.seed + 1) * 1000003 + w->number;
	uint8_t *AUTO_FREE buffer = malloc(4 * MIB + 4096);
	for (uint64_t i = 0; i < options.ops; i++)
		if (one_request(w, &state, buffer) < 0)
			break;
	return NULL;
}

static int stress(struct block *disk, const char *path)
{
	struct worker workers[THREADS_MAX];
	struct err err = ERR_INIT;
	uint64_t size = block_info(disk)->size_bytes;
	int AUTO_CLOSE fd = open(path, O_RDWR);
	uint8_t *AUTO_FREE shadow = malloc(size);
	struct worker common = {.disk = disk, .size = size, .shadow = shadow};
	if (size < 64 * KIB || !shadow)
		err_set(&err, ERR_USAGE, "a disk of %" PRIu64 " bytes is nothing to stress", size);
	if (err.code != ERR_NONE || fd < 0 || file_pread(fd, shadow, size, 0, path, &err) < 0)
		return fail(&err);
	if (run_workers(workers, stress_worker, &common) != 0)
		return 1;
	return file_pwrite(fd, shadow, size, 0, path, &err) < 0 ? fail(&err) : 0;
}

/* --- crash ------------------------------------------------------------------------- */

/*
 * Thread t owns every T-th block of 4 KiB.  Its request number k writes its number
 * into all words of some of its blocks (or zeros them), chosen by the seed, so
 * that what should be there can be computed.
 */
#define BLOCK 4096u

struct request {
	uint64_t first, step, nr;
	bool zero;
};

static struct request make_request(uint64_t *state, uint64_t nr_blocks, unsigned thread)
{
	uint64_t mine = nr_blocks / options.threads;
	struct request r = {.step = options.threads, .nr = 1 + below(state, 24)};
	r.zero = below(state, 8) == 0;
	r.nr = min_u64(r.nr, mine);
	r.first = below(state, mine - r.nr + 1) * options.threads + thread;
	return r;
}

static void *crash_worker(void *arg)
{
	struct worker *w = arg;
	uint64_t state = (options.seed + 1) * 7919 + w->number;
	uint64_t words[BLOCK / 8];
	for (uint64_t k = 1;; k++) {
		struct request r = make_request(&state, w->size / BLOCK, w->number);
		for (size_t i = 0; i < ARRAY_LENGTH(words); i++)
			words[i] = k;
		for (uint64_t b = 0; b < r.nr; b++) {
			uint64_t at = (r.first + b * r.step) * BLOCK;
			int rc = r.zero ? block_zero(w->disk, at, BLOCK, 0, &w->err)
					: block_write(w->disk, words, BLOCK, at, 0, &w->err);
			if (rc < 0)
				return NULL;
		}
		if (k % 40 != 0)
			continue;
		if (block_flush(w->disk, &w->err) < 0)
			return NULL;
		printf("%u %" PRIu64 "\n", w->number, k);
		fflush(stdout);
	}
}

static int crash(struct block *disk)
{
	struct worker workers[THREADS_MAX];
	struct worker common = {.disk = disk, .size = block_info(disk)->size_bytes};
	return run_workers(workers, crash_worker, &common);
}

struct expected {
	uint64_t least; /* request number that was flushed last */
	bool may_be_zero;
};

static void expect(struct expected *blocks, uint64_t nr_blocks, unsigned thread, uint64_t flushed)
{
	uint64_t state = (options.seed + 1) * 7919 + thread;
	for (uint64_t k = 1; k <= flushed + 41; k++) {
		struct request r = make_request(&state, nr_blocks, thread);
		for (uint64_t b = 0; b < r.nr; b++) {
			struct expected *e = &blocks[r.first + b * r.step];
			if (k <= flushed) {
				e->least = k;
				e->may_be_zero = r.zero;
			} else if (r.zero) {
				e->may_be_zero = true;
			}
		}
	}
}

static int check_blocks(struct block *disk, const struct expected *blocks, uint64_t nr_blocks)
{
	struct err err = ERR_INIT;
	uint64_t words[BLOCK / 8];
	for (uint64_t b = 0; b < nr_blocks; b++) {
		if (block_read(disk, words, BLOCK, b * BLOCK, &err) < 0)
			return fail(&err);
		for (size_t i = 0; i < ARRAY_LENGTH(words); i++) {
			bool good = words[i] == 0 ? blocks[b].may_be_zero || blocks[b].least == 0
						  : words[i] >= blocks[b].least;
			if (good)
				continue;
			fprintf(stderr,
				"block %" PRIu64 " holds %" PRIu64 ", flushed was %" PRIu64 "\n", b,
				words[i], blocks[b].least);
			return 1;
		}
	}
	return 0;
}

static int survived(struct block *disk, const char *log)
{
	uint64_t nr_blocks = block_info(disk)->size_bytes / BLOCK, flushed[THREADS_MAX] = {0};
	struct expected *AUTO_FREE blocks = calloc(nr_blocks, sizeof *blocks);
	FILE *file = fopen(log, "r");
	unsigned thread;
	uint64_t k;
	while (file && fscanf(file, "%u %" SCNu64, &thread, &k) == 2)
		if (thread < THREADS_MAX)
			flushed[thread] = k;
	if (file)
		fclose(file);
	for (unsigned t = 0; t < options.threads; t++)
		expect(blocks, nr_blocks, t, flushed[t]);
	return check_blocks(disk, blocks, nr_blocks);
}

/* --- the command line ---------------------------------------------------------------- */

static bool number_option(const char *arg, const char *name, uint64_t *value)
{
	size_t n = strlen(name);
	if (strncmp(arg, name, n) != 0 || arg[n] != '=')
		return false;
	*value = strtoull(arg + n + 1, NULL, 0);
	return true;
}

static bool parse_option(const char *arg)
{
	struct options *o = &options;
	uint64_t value;
	if (number_option(arg, "cluster", &o->cluster) || number_option(arg, "piece", &o->piece) ||
		number_option(arg, "ops", &o->ops) || number_option(arg, "seed", &o->seed) ||
		number_option(arg, "size", &o->open.size_bytes))
		return true;
	if (number_option(arg, "threads", &value))
		o->threads = (unsigned)min_u64(value, THREADS_MAX);
	else if (number_option(arg, "level", &value))
		o->open.compress_level = (int)value;
	else if (number_option(arg, "cache", &value))
		o->open.cache_bytes = value;
	else if (number_option(arg, "assembly", &value))
		o->open.assembly_bytes = value;
	else if (strncmp(arg, "backing=", 8) == 0)
		o->backing = arg + 8;
	else if (strncmp(arg, "allow=", 6) == 0)
		o->allow[0] = arg + 6;
	else if (strcmp(arg, "compress") == 0)
		o->open.compress = true;
	else if (strcmp(arg, "own") == 0)
		o->open.own_layer = true;
	else if (strcmp(arg, "read-only") == 0)
		o->open.read_only = true;
	else if (strcmp(arg, "merge") == 0)
		o->open.merge = true;
	else if (strcmp(arg, "merged") == 0)
		o->open.merged = true;
	else if (strcmp(arg, "shuffle") == 0)
		o->shuffle = true;
	else if (strcmp(arg, "zstd") == 0)
		o->zstd = true;
	else
		return false;
	return true;
}

static int create(const char *path, const char *size)
{
	struct err err = ERR_INIT;
	char *AUTO_FREE backing = options.backing ? strdup(options.backing) : NULL;
	char *format = backing ? strrchr(backing, ':') : NULL;
	if (format)
		*format++ = '\0';
	struct qcow2_create_options o = {
		.size_bytes = strtoull(size, NULL, 0),
		.cluster_bytes = (uint32_t)options.cluster,
		.compression = options.zstd ? QCOW2_ZSTD : QCOW2_ZLIB,
		.backing_file = backing,
		.backing_format = format,
	};
	return qcow2_create(path, &o, &err) < 0 ? fail(&err) : 0;
}

static int run(const char *verb, struct block *disk, const char *file)
{
	if (strcmp(verb, "read") == 0)
		return read_all(disk, file);
	if (strcmp(verb, "map") == 0)
		return map_all(disk);
	if (strcmp(verb, "held") == 0)
		return held_all(disk);
	if (strcmp(verb, "hold") == 0)
		return hold();
	if (strcmp(verb, "write") == 0)
		return write_all(disk, file);
	if (strcmp(verb, "stress") == 0)
		return stress(disk, file);
	if (strcmp(verb, "crash") == 0)
		return crash(disk);
	return survived(disk, file);
}

static void log_to_stderr(void *context, enum log_level level, const char *text)
{
	(void)context;
	(void)level;
	fprintf(stderr, "%s\n", text);
}

int main(int argc, char **argv)
{
	struct err err = ERR_INIT;
	int at = 3;
	if (argc < 3)
		return 2;
	const char *verb = argv[1], *file = "";
	bool no_file = strcmp(verb, "map") == 0 || strcmp(verb, "held") == 0 ||
		       strcmp(verb, "hold") == 0 || strcmp(verb, "crash") == 0;
	if (!no_file && at < argc)
		file = argv[at++];
	for (; at < argc; at++)
		if (!parse_option(argv[at]))
			return 2;
	log_set_sink(log_to_stderr, NULL, LOG_LEVEL_INFO);
	if (strcmp(verb, "create") == 0)
		return create(argv[2], file);
	options.open.allow_backing = options.allow;
	if (strcmp(verb, "read") == 0 || strcmp(verb, "map") == 0)
		options.open.read_only = true;
	struct block *disk = qcow2_open(argv[2], &options.open, &err);
	if (!disk)
		return fail(&err);
	int rc = run(verb, disk, file);
	if (block_close(disk, &err) < 0)
		rc = fail(&err);
	return rc;
}
