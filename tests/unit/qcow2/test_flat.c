/* Long chains of images with clusters of one size, which are read as one. */
#include "qcow2_internal.h"
#include "test_support.h"

#include <sys/stat.h>

#define SIZE_MAX_BYTES (6 * MIB)
#define LONGEST 500

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dull;
}

static uint64_t below(uint64_t *state, uint64_t n)
{
	return (next_random(state) >> 20) % n;
}

static const char *image_name(unsigned number)
{
	static char names[2][16];
	static unsigned turn;
	turn = !turn;
	snprintf(names[turn], sizeof names[turn], "%u", number);
	return names[turn];
}

static int drop_chain(void **state)
{
	(void)state;
	for (unsigned i = 0; i <= LONGEST; i++)
		unlink(test_path(image_name(i)));
	return rmdir(test_folder);
}

static struct block *open_image(unsigned number, bool read_only, bool compress)
{
	struct err err = ERR_INIT;
	struct qcow2_open_options options = {.read_only = read_only, .compress = compress};
	struct block *disk = qcow2_open(test_path(image_name(number)), &options, &err);
	if (!disk)
		fail_msg("%s", err.text);
	return disk;
}

/* --- random chains, beside what was written ---------------------------------------- */

struct chain {
	uint32_t cluster_bytes;
	unsigned nr;
	bool raw; /* at the bottom */
	bool sizes_change;
	bool little_memory; /* slices go and come again */
	uint64_t size;
	uint8_t *content; /* of the top */
	uint64_t random;
};

static void resize(struct chain *c)
{
	uint64_t size = SIZE_MAX_BYTES / 2 + 512 * below(&c->random, SIZE_MAX_BYTES / 1024);
	if (!c->sizes_change && c->size > 0)
		return;
	if (size < c->size)
		memset(c->content + size, 0, c->size - size);
	c->size = size;
}

static void write_randomly(struct chain *c, struct block *disk, unsigned nr)
{
	struct err err = ERR_INIT;
	while (nr-- > 0) {
		uint64_t at = below(&c->random, c->size);
		uint64_t n = min_u64(1 + below(&c->random, 100000), c->size - at);
		if (below(&c->random, 4) == 0) {
			memset(c->content + at, 0, n);
			assert_ok(block_zero(disk, at, n, 0, &err));
			continue;
		}
		bool compressible = below(&c->random, 2);
		uint64_t value = next_random(&c->random);
		for (uint64_t i = 0; i < n; i++)
			c->content[at + i] =
				(uint8_t)(compressible ? value : next_random(&c->random) >> 32);
		assert_ok(block_write(disk, c->content + at, n, at, 0, &err));
	}
}

static void make_chain(struct chain *c)
{
	struct err err = ERR_INIT;
	c->content = calloc(1, SIZE_MAX_BYTES);
	for (unsigned i = 0; i < c->nr; i++) {
		bool raw = c->raw && i == 0;
		struct block *disk;
		resize(c);
		if (raw) {
			disk = block_raw_create(test_path("0"), c->size, false, &err);
			assert_non_null(disk);
		} else {
			struct qcow2_create_options options = {
				.size_bytes = c->size,
				.cluster_bytes = c->cluster_bytes,
				.backing_file = i > 0 ? image_name(i - 1) : NULL,
				.backing_format = i == 0             ? NULL
						  : i == 1 && c->raw ? "raw"
								     : "qcow2",
			};
			assert_ok(qcow2_create(test_path(image_name(i)), &options, &err));
			disk = open_image(i, false, i % 3 == 0);
		}
		write_randomly(c, disk, 8);
		assert_ok(block_close(disk, &err));
	}
}

struct reader {
	const struct chain *chain;
	struct block *disk;
	uint64_t random;
	bool good;
};

static bool reads_the_same(struct reader *r, uint64_t at, uint64_t n, uint8_t *buffer)
{
	const struct chain *c = r->chain;
	struct err err = ERR_INIT;
	if (block_read(r->disk, buffer, n, at, &err) < 0)
		print_error("%s\n", err.text);
	else if (memcmp(buffer, c->content + at, n) == 0)
		return true;
	print_error("%llu bytes at %llu differ\n", (unsigned long long)n, (unsigned long long)at);
	return false;
}

static bool tells_zeros(struct reader *r, uint64_t at, uint64_t n)
{
	struct block_extent extents[5];
	struct err err = ERR_INIT;
	size_t nr;
	if (block_extents(r->disk, at, n, extents, ARRAY_LENGTH(extents), &nr, &err) < 0)
		return false;
	for (size_t i = 0; i < nr; i++) {
		if ((extents[i].flags & BLOCK_ZERO) &&
			!digest_is_zero(r->chain->content + at, extents[i].length))
			return false;
		at += extents[i].length;
	}
	return true;
}

static void *read_randomly(void *arg)
{
	struct reader *r = arg;
	uint64_t size = r->chain->size;
	uint8_t *AUTO_FREE buffer = malloc(size);
	r->good = reads_the_same(r, 0, size, buffer) && tells_zeros(r, 0, size);
	for (int i = 0; r->good && i < 200; i++) {
		uint64_t at = below(&r->random, size);
		uint64_t n = 1 + below(&r->random, min_u64(size - at, 200000));
		r->good = reads_the_same(r, at, n, buffer) && tells_zeros(r, at, n);
	}
	return NULL;
}

static void check_chain(struct chain c)
{
	struct err err = ERR_INIT;
	struct reader readers[3];
	pthread_t threads[3];
	make_chain(&c);
	struct block *disk = open_image(c.nr - 1, true, false);
	assert_non_null(qcow2_image_of(disk)->flat);
	assert_int_equal(qcow2_chain_length(disk), c.nr);
	if (c.little_memory) {
		struct qcow2_image *image = qcow2_image_of(disk);
		qcow2_flat_free(image->flat);
		image->flat = qcow2_flat_new(image, c.nr - c.raw, 20000, &err);
		assert_non_null(image->flat);
	}
	for (unsigned i = 0; i < 3; i++) {
		readers[i] = (struct reader){.chain = &c, .disk = disk, .random = i + 1};
		assert_ok(thread_start(&threads[i], "reader", read_randomly, &readers[i], &err));
	}
	for (unsigned i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	assert_ok(block_close(disk, &err));
	free(c.content);
	assert_true(readers[0].good && readers[1].good && readers[2].good);
}

static void random_chains(void **state)
{
	(void)state;
	const struct chain chains[] = {
		{.cluster_bytes = 512, .nr = 4, .random = 1, .little_memory = true},
		{.cluster_bytes = 4096, .nr = 12, .random = 2, .raw = true, .sizes_change = true},
		{.cluster_bytes = 4096,
			.nr = 12,
			.random = 3,
			.sizes_change = true,
			.little_memory = true},
		{.cluster_bytes = 65536, .nr = 20, .random = 4, .raw = true},
		{.cluster_bytes = 65536, .nr = 20, .random = 5, .sizes_change = true},
		{.cluster_bytes = 2 * MIB, .nr = 5, .random = 6, .sizes_change = true},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(chains); i++) {
		print_message("chain %zu\n", i);
		for (unsigned k = 0; k < chains[i].nr; k++)
			unlink(test_path(image_name(k)));
		check_chain(chains[i]);
	}
}

/* --- the rest ------------------------------------------------------------------------ */

/* A chain of images, each `every` with what a function writes to it, the others empty. */
static void make_layers(unsigned nr, uint64_t size, const uint32_t *cluster_bytes, unsigned every,
	void (*fill)(struct block *disk, unsigned number))
{
	struct err err = ERR_INIT;
	for (unsigned i = 0; i < nr; i++) {
		struct qcow2_create_options options = {
			.size_bytes = size,
			.cluster_bytes = cluster_bytes ? cluster_bytes[i] : 0,
			.backing_file = i > 0 ? image_name(i - 1) : NULL,
			.backing_format = i > 0 ? "qcow2" : NULL,
		};
		assert_ok(qcow2_create(test_path(image_name(i)), &options, &err));
		if (i % every != 0)
			continue;
		struct block *disk = open_image(i, false, false);
		fill(disk, i);
		assert_ok(block_close(disk, &err));
	}
}

static void write_number(struct block *disk, unsigned number)
{
	struct err err = ERR_INIT;
	uint8_t bytes[512];
	memset(bytes, (int)number, sizeof bytes);
	assert_ok(block_write(disk, bytes, sizeof bytes, (uint64_t)number * 65536, 0, &err));
}

static void assert_numbers(struct block *disk, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		struct err err = ERR_INIT;
		uint8_t byte = 0;
		assert_ok(block_read(disk, &byte, 1, (uint64_t)i * 65536 + 100, &err));
		assert_int_equal(byte, (uint8_t)i);
	}
}

static void the_longest_row_of_equal_clusters_is_used(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	const uint32_t cluster_bytes[] = {
		65536, 65536, 65536, 4096, 4096, 4096, 4096, 65536, 512, 512};
	make_layers(10, MIB, cluster_bytes, 1, write_number);
	struct block *disk = open_image(9, true, false);
	const struct qcow2_image *image = qcow2_image_of(disk);
	for (unsigned i = 9; i > 0; i--, image = image->backing)
		assert_int_equal(image->flat != NULL, i == 6);
	assert_numbers(disk, 10);
	assert_ok(block_close(disk, &err));
}

/* What is damaged fails when it is asked for, and nothing else does. */
static void damage_is_told_where_it_is(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct qcow2_header h;
	uint8_t byte, entry[8];
	make_layers(5, MIB, NULL, 1, write_number);
	int AUTO_CLOSE fd = open(test_path("2"), O_RDWR);
	assert_ok(qcow2_header_load(fd, "2", &h, &err));
	qcow2_header_free(&h);
	be64_put(entry, (uint64_t)1 << 40 | QCOW2_COPIED);
	assert_int_equal(pwrite(fd, entry, 8, (off_t)h.l1_offset), 8);
	struct block *disk = open_image(4, true, false);
	for (int i = 0; i < 2; i++) {
		assert_ok(block_read(disk, &byte, 1, 4 * 65536, &err));
		assert_ok(block_read(disk, &byte, 1, 3 * 65536, &err));
		assert_fails(block_read(disk, &byte, 1, 2 * 65536, &err), ERR_CORRUPT);
		assert_fails(block_read(disk, &byte, 1, 65536, &err), ERR_CORRUPT);
	}
	assert_ok(block_close(disk, &err));
}

static void write_little(struct block *disk, unsigned number)
{
	struct err err = ERR_INIT;
	uint32_t value = number;
	assert_ok(block_write(disk, &value, 4, number * (128 * GIB), 0, &err));
}

/* A disk of 64 TiB, and a long chain: little memory, and quick where nothing is. */
static void large_and_long(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block_extent extent;
	size_t nr;
	make_layers(LONGEST, 64 * TIB, NULL, 50, write_little);
	struct block *disk = open_image(LONGEST - 1, true, false);
	assert_true(qcow2_image_of(disk)->shared->l1_bytes < 16 * MIB);
	for (uint32_t i = 0; i < LONGEST; i += 50) {
		uint32_t value = 0;
		uint64_t at = i * (128 * GIB);
		assert_ok(block_read(disk, &value, 4, at, &err));
		assert_int_equal(value, i);
		assert_ok(block_extents(disk, at + 65536, 64 * GIB, &extent, 1, &nr, &err));
		assert_int_equal(extent.length, 64 * GIB);
		assert_int_equal(extent.flags, BLOCK_HOLE | BLOCK_ZERO);
	}
	assert_ok(block_close(disk, &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(random_chains, test_make_folder, drop_chain),
		cmocka_unit_test_setup_teardown(
			the_longest_row_of_equal_clusters_is_used, test_make_folder, drop_chain),
		cmocka_unit_test_setup_teardown(
			damage_is_told_where_it_is, test_make_folder, drop_chain),
		cmocka_unit_test_setup_teardown(large_and_long, test_make_folder, drop_chain),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
