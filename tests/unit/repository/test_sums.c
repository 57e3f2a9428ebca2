/* Sums: any order, any thread, any size; chains; and files that were damaged. */
#include "sums.h"
#include "test_support.h"

#include <malloc.h>

#define POINT "20261121T200000Z-7f3a9c"

static struct sums_facts facts_of(uint64_t size_bytes, bool increment)
{
	return (struct sums_facts){.algorithm = DIGEST_XXH3_128,
		.size_bytes = size_bytes,
		.increment = increment,
		.key = "2000",
		.point = POINT};
}

static uint64_t random_state = 1;

static uint64_t draw(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % below;
}

/* The leaf of a chunk in these tests: its number and an age. */
static void make_leaf(uint64_t chunk, uint8_t age, uint8_t leaf[32])
{
	memset(leaf, 0, 32);
	be64_put(leaf, chunk + 1);
	leaf[15] = age;
}

static int tell(struct sums_writer *writer, uint64_t chunk, uint8_t age, struct err *err)
{
	uint8_t leaf[32];
	make_leaf(chunk, age, leaf);
	return sums_writer_chunks(writer, chunk, 1, leaf, age == 0, err);
}

static void check_chunk(struct sums_reader *reader, uint64_t chunk, uint8_t age)
{
	enum sums_kind kind;
	uint64_t nr;
	uint8_t leaf[32], expect[32];
	struct err err = ERR_INIT;
	SUPPORT_OK(sums_reader_run(reader, chunk, 1, &kind, &nr, leaf, &err), err);
	assert_int_equal(kind, age ? SUMS_DATA : SUMS_ZERO);
	assert_int_equal(nr, 1);
	make_leaf(chunk, age, expect);
	if (age)
		assert_memory_equal(leaf, expect, 16);
}

static struct sums_reader *open_sums(const char *path, struct sums_reader *parent)
{
	struct err err = ERR_INIT;
	struct sums_reader *reader = sums_reader_open(AT_FDCWD, path, NULL, parent, &err);
	if (!reader)
		fail_msg("%s", err.text);
	return reader;
}

static struct sums_writer *create(
	const char *path, const struct sums_facts *facts, struct sums_reader *parent)
{
	struct err err = ERR_INIT;
	struct sums_writer *writer = sums_writer_create(AT_FDCWD, path, facts, parent, &err);
	if (!writer)
		fail_msg("%s", err.text);
	return writer;
}

static void expect_root(const uint8_t *ages, uint64_t nr_chunks, uint64_t size_bytes,
	const uint8_t root[DIGEST_ROOT_BYTES])
{
	struct digest_tree tree;
	uint8_t expect[DIGEST_ROOT_BYTES], leaf[32];
	digest_tree_init(&tree, DIGEST_XXH3_128, size_bytes);
	for (uint64_t i = 0; i < nr_chunks; i++) {
		make_leaf(i, ages[i], leaf);
		if (ages[i])
			digest_tree_leaf(&tree, leaf);
		else
			digest_tree_zeros(&tree, 1);
	}
	digest_tree_root(&tree, expect);
	assert_memory_equal(root, expect, sizeof expect);
}

#define NR_CHUNKS (40 * SUMS_SEGMENT_CHUNKS + 17)

/* More segments than are kept open, told in any order, again and again. */
static void test_random_order(void **state)
{
	(void)state;
	const struct sums_facts facts = facts_of(NR_CHUNKS * 65536ull - 100, false);
	struct err err = ERR_INIT;
	struct sums_totals totals;
	uint8_t *ages = calloc(NR_CHUNKS, 1), root[DIGEST_ROOT_BYTES];
	struct sums_writer *writer = create("a.sums", &facts, NULL);
	for (unsigned round = 0; round < 4000; round++) {
		uint64_t chunk = draw(NR_CHUNKS);
		uint64_t nr = 1 + draw(min_u64(300, NR_CHUNKS - chunk));
		uint8_t age = (uint8_t)draw(3);
		if (age == 0)
			SUPPORT_OK(sums_writer_zeros(writer, chunk, nr, &err), err);
		for (uint64_t i = chunk; i < chunk + nr; i++) {
			if (age)
				SUPPORT_OK(tell(writer, i, age, &err), err);
			ages[i] = age;
		}
	}
	assert_int_equal(sums_writer_zeros(writer, NR_CHUNKS, 1, &err), -1);
	assert_int_equal(err.code, ERR_RANGE);
	SUPPORT_OK(sums_writer_finish(writer, &totals, &err), err);
	sums_writer_free(writer);
	expect_root(ages, NR_CHUNKS, facts.size_bytes, totals.root);

	struct sums_reader *reader = sums_reader_open(AT_FDCWD, "a.sums", &facts, NULL, &err);
	assert_non_null(reader);
	SUPPORT_OK(sums_reader_root(reader, NULL, root, &err), err);
	assert_memory_equal(root, totals.root, sizeof root);
	SUPPORT_OK(sums_reader_check(reader, NULL, &err), err);
	for (unsigned i = 0; i < 20000; i++) {
		uint64_t chunk = draw(NR_CHUNKS);
		check_chunk(reader, chunk, ages[chunk]);
	}
	sums_reader_free(reader);
	/* An unlucky order costs space once more for a segment, not for each round. */
	struct stat st;
	assert_int_equal(stat("a.sums", &st), 0);
	assert_true(st.st_size < 41 * 67072 * 2 + 8192);
	free(ages);
}

struct worker {
	struct sums_writer *writer;
	unsigned number;
	pthread_t thread;
	int rc;
};

static void *worker_main(void *arg)
{
	struct worker *worker = arg;
	for (uint64_t i = worker->number; i < NR_CHUNKS && worker->rc == 0; i += 4)
		worker->rc = tell(worker->writer, i, (uint8_t)(1 + i % 7), NULL);
	return NULL;
}

static void test_threads(void **state)
{
	(void)state;
	const struct sums_facts facts = facts_of(NR_CHUNKS * 65536ull, false);
	struct err err = ERR_INIT;
	struct sums_totals totals;
	struct worker workers[4];
	struct sums_writer *writer = create("a.sums", &facts, NULL);
	for (unsigned i = 0; i < 4; i++) {
		workers[i] = (struct worker){.writer = writer, .number = i};
		assert_int_equal(
			pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(workers[i].thread, NULL);
		assert_int_equal(workers[i].rc, 0);
	}
	SUPPORT_OK(sums_writer_finish(writer, &totals, &err), err);
	sums_writer_free(writer);
	assert_int_equal(totals.nr_data, NR_CHUNKS);
	struct sums_reader *reader = open_sums("a.sums", NULL);
	for (uint64_t i = 0; i < NR_CHUNKS; i += 11)
		check_chunk(reader, i, (uint8_t)(1 + i % 7));
	sums_reader_free(reader);
}

/* What lies beneath shows through what was not told, over growing disks. */
static void test_chain(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct sums_totals totals;
	struct sums_reader *readers[6] = {NULL};
	uint64_t nr_chunks = 0, most = 3 * SUMS_SEGMENT_CHUNKS + 6 * 1000;
	uint8_t *ages = calloc(most, 1), root[DIGEST_ROOT_BYTES];
	for (unsigned depth = 0; depth < 6; depth++) {
		char path[32];
		struct sums_reader *parent = depth ? readers[depth - 1] : NULL;
		nr_chunks = 3 * SUMS_SEGMENT_CHUNKS + depth * 1000;
		struct sums_facts facts = facts_of(nr_chunks * 65536, depth > 0);
		snprintf(path, sizeof path, "%u.sums", depth);
		struct sums_writer *writer = create(path, &facts, parent);
		for (unsigned i = 0; i < 2000; i++) {
			uint64_t chunk = draw(nr_chunks);
			ages[chunk] = (uint8_t)draw(4);
			SUPPORT_OK(tell(writer, chunk, ages[chunk], &err), err);
		}
		if (depth == 3) { /* a whole segment of zeros, and a part of one */
			SUPPORT_OK(sums_writer_zeros(writer, 4096, 4096 + 50, &err), err);
			memset(ages + 4096, 0, 4096 + 50);
		}
		SUPPORT_OK(sums_writer_finish(writer, &totals, &err), err);
		sums_writer_free(writer);
		expect_root(ages, nr_chunks, facts.size_bytes, totals.root);
		readers[depth] = open_sums(path, parent);
		SUPPORT_OK(sums_reader_root(readers[depth], NULL, root, &err), err);
		assert_memory_equal(root, totals.root, sizeof root);
	}
	for (uint64_t i = 0; i < nr_chunks; i++)
		check_chunk(readers[5], i, ages[i]);
	assert_null(sums_reader_open(AT_FDCWD, "5.sums", NULL, NULL, &err));
	support_expect(&err, ERR_CORRUPT, "nothing lies beneath it");
	for (unsigned depth = 0; depth < 6; depth++)
		sums_reader_free(readers[depth]);
	free(ages);
}

/* A long chain, and one file of it alone; its memory does not grow with what is read. */
static void test_deep_chain(void **state)
{
	(void)state;
	enum { DEPTH = 60 };
	const uint64_t nr_chunks = 24 * SUMS_SEGMENT_CHUNKS + 5;
	struct sums_reader *readers[DEPTH] = {NULL};
	struct err err = ERR_INIT;
	uint8_t *ages = calloc(nr_chunks, 1), root[DIGEST_ROOT_BYTES];
	struct sums_totals totals;
	uint64_t last_told = 0;
	for (unsigned depth = 0; depth < DEPTH; depth++) {
		char path[32];
		struct sums_facts facts = facts_of(nr_chunks * 65536, depth > 0);
		snprintf(path, sizeof path, "%u.sums", depth);
		struct sums_reader *parent = depth ? readers[depth - 1] : NULL;
		struct sums_writer *writer = create(path, &facts, parent);
		for (unsigned i = 0; i < (depth ? 20 : 20000); i++) {
			/* A third of the disk stays empty. */
			last_told = draw(nr_chunks * 2 / 3);
			ages[last_told] = (uint8_t)draw(200);
			SUPPORT_OK(tell(writer, last_told, ages[last_told], &err), err);
		}
		SUPPORT_OK(sums_writer_finish(writer, &totals, &err), err);
		sums_writer_free(writer);
		readers[depth] = open_sums(path, parent);
	}
	struct sums_reader *top = readers[DEPTH - 1];
	struct mallinfo2 before = mallinfo2();
	for (uint64_t i = 0; i < nr_chunks; i++)
		check_chunk(top, i, ages[i]);
	for (unsigned i = 0; i < 20000; i++) {
		uint64_t chunk = draw(nr_chunks);
		check_chunk(top, chunk, ages[chunk]);
	}
	SUPPORT_OK(sums_reader_root(top, NULL, root, &err), err);
	struct mallinfo2 after = mallinfo2();
	size_t used = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
	assert_true(used < 10 * MIB); /* 0 under the sanitizer */
	assert_memory_equal(root, totals.root, sizeof root);
	expect_root(ages, nr_chunks, nr_chunks * 65536, root);
	/* The file at the top tells of 20 chunks at most. */
	uint64_t nr_told = 0, nr;
	for (uint64_t i = 0; i < nr_chunks; i += nr) {
		enum sums_kind kind;
		uint8_t leaf[32];
		SUPPORT_OK(sums_reader_own_run(top, i, nr_chunks - i, &kind, &nr, leaf, &err), err);
		nr_told += kind == SUMS_INHERIT ? 0 : nr;
		if (i <= last_told && last_told < i + nr)
			assert_int_equal(kind, ages[last_told] ? SUMS_DATA : SUMS_ZERO);
	}
	assert_int_equal(
		nr_told, sums_reader_totals(top)->nr_data + sums_reader_totals(top)->nr_zero);
	for (unsigned depth = 0; depth < DEPTH; depth++)
		sums_reader_free(readers[depth]);
	free(ages);
}

static void test_sizes(void **state)
{
	(void)state;
	static const uint64_t sizes[] = {
		1, 512, 65536, 65537, 2 * TIB + 512, 8 * TIB, 64 * TIB, (uint64_t)1 << 61};
	for (unsigned i = 0; i < ARRAY_LENGTH(sizes); i++) {
		struct sums_facts facts = facts_of(sizes[i], false);
		struct sums_totals totals;
		struct err err = ERR_INIT;
		struct stat st;
		uint64_t nr_chunks = div_round_up(sizes[i], 65536);
		struct sums_writer *writer = create("a.sums", &facts, NULL);
		if (sizes[i] <= 64 * TIB)
			SUPPORT_OK(sums_writer_zeros(writer, 0, nr_chunks, &err), err);
		bool has_data = sizes[i] < 8 * TIB;
		if (has_data)
			SUPPORT_OK(tell(writer, nr_chunks - 1, 5, &err), err);
		if (sizes[i] <= 64 * TIB) {
			SUPPORT_OK(sums_writer_finish(writer, &totals, &err), err);
			struct sums_reader *reader = open_sums("a.sums", NULL);
			check_chunk(reader, nr_chunks - 1, has_data ? 5 : 0);
			sums_reader_free(reader);
			assert_int_equal(stat("a.sums", &st), 0);
			assert_true(st.st_size <= 8192);
			assert_int_equal(totals.nr_data, has_data);
		}
		sums_writer_free(writer);
		assert_int_equal(unlink("a.sums"), 0);
	}
}

/* 64 TiB with something in every page of the table: the memory for it. */
static void test_memory(void **state)
{
	(void)state;
	const struct sums_facts facts = facts_of(64 * TIB, false);
	struct err err = ERR_INIT;
	struct mallinfo2 before = mallinfo2();
	struct sums_writer *writer = create("a.sums", &facts, NULL);
	for (uint64_t chunk = 0; chunk < 64 * TIB / 65536; chunk += 64 * SUMS_SEGMENT_CHUNKS)
		SUPPORT_OK(tell(writer, chunk + 1, 3, &err), err);
	struct mallinfo2 after = mallinfo2();
	size_t used = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
	/* The sanitizer's allocator tells nothing here: then used is 0. */
	assert_true(used < 20 * MIB);
	sums_writer_free(writer);
}

static char *load(const char *path, size_t *length)
{
	char *bytes;
	struct err err = ERR_INIT;
	SUPPORT_OK(file_load(AT_FDCWD, path, 16 << 20, &bytes, length, &err), err);
	return bytes;
}

/* Opens and reads everything: fails with an error or gives the same root. */
static bool reads_well(const char *path, const uint8_t root[DIGEST_ROOT_BYTES])
{
	struct err err = ERR_INIT;
	uint8_t now[DIGEST_ROOT_BYTES];
	struct sums_reader *reader = sums_reader_open(AT_FDCWD, path, NULL, NULL, &err);
	bool good = reader && sums_reader_check(reader, NULL, &err) == 0 &&
		    sums_reader_root(reader, NULL, now, &err) == 0;
	if (good)
		assert_memory_equal(now, root, sizeof now);
	else
		assert_true(err.code == ERR_CORRUPT || err.code == ERR_UNSUPPORTED);
	sums_reader_free(reader);
	return good;
}

static void test_damage(void **state)
{
	(void)state;
	const struct sums_facts facts = facts_of(2 * SUMS_SEGMENT_CHUNKS * 65536ull, false);
	struct err err = ERR_INIT;
	struct sums_totals totals;
	size_t length;
	struct sums_writer *writer = create("a.sums", &facts, NULL);
	for (uint64_t i = 0; i < 40; i++)
		SUPPORT_OK(tell(writer, i * 200, 9, &err), err);
	SUPPORT_OK(sums_writer_finish(writer, &totals, &err), err);
	sums_writer_free(writer);
	char *bytes = load("a.sums", &length);
	assert_true(reads_well("a.sums", totals.root));
	/* Cut anywhere: always recognised. */
	for (size_t cut = 0; cut < length; cut += 1 + length / 200) {
		support_write("b.sums", bytes, cut);
		assert_false(reads_well("b.sums", totals.root));
	}
	/* One byte flipped anywhere: recognised, or in a gap that nobody reads. */
	unsigned recognised = 0, nr = 0;
	for (size_t at = 0; at < length; at += 13, nr++) {
		bytes[at] ^= 0x10;
		support_write("b.sums", bytes, length);
		recognised += !reads_well("b.sums", totals.root);
		bytes[at] ^= 0x10;
	}
	assert_true(recognised > nr / 2);
	free(bytes);

	struct sums_facts other = facts;
	memcpy(other.key, "2001", 5);
	assert_null(sums_reader_open(AT_FDCWD, "a.sums", &other, NULL, &err));
	support_expect(&err, ERR_CORRUPT, "belongs to another disk or restore point: disk 2000");
	struct sums_writer *twice = sums_writer_create(AT_FDCWD, "a.sums", &facts, NULL, &err);
	assert_null(twice);
	assert_int_equal(err.code, ERR_EXISTS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_random_order),
		SUPPORT_TEST(test_threads),
		SUPPORT_TEST(test_chain),
		SUPPORT_TEST(test_deep_chain),
		SUPPORT_TEST(test_sizes),
		SUPPORT_TEST(test_memory),
		SUPPORT_TEST(test_damage),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
