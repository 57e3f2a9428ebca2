/* Unfinished sums: what was told up to a checkpoint is found again whatever a crash tore
 * since; nothing is found that was never told. */
#include "sums_internal.h"
#include "test_support.h"

#include <malloc.h>

#define UNTOLD 255
#define SAME 254
#define SEGMENT ((uint64_t)SUMS_SEGMENT_CHUNKS)
#define NR_SEGMENTS 40u
#define NR_CHUNKS (NR_SEGMENTS * SEGMENT + 17)

static struct sums_facts facts_of(uint64_t size_bytes, bool increment)
{
	return (struct sums_facts){.algorithm = DIGEST_XXH3_128,
		.size_bytes = size_bytes,
		.increment = increment,
		.key = "2000",
		.point = "20261121T200000Z-7f3a9c"};
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

static void tell(struct sums_writer *writer, uint64_t chunk, uint8_t age)
{
	struct err err = ERR_INIT;
	uint8_t leaf[32];
	make_leaf(chunk, age, leaf);
	SUPPORT_OK(sums_writer_chunks(writer, chunk, 1, leaf, age == 0, &err), err);
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

static struct sums_writer *reopen(
	const char *path, const struct sums_facts *facts, struct sums_reader *parent)
{
	struct err err = ERR_INIT;
	struct sums_writer *writer = sums_writer_reopen(AT_FDCWD, path, facts, parent, &err);
	if (!writer)
		fail_msg("%s", err.text);
	return writer;
}

static void checkpoint(struct sums_writer *writer)
{
	struct err err = ERR_INIT;
	SUPPORT_OK(sums_writer_checkpoint(writer, &err), err);
}

/* The age that the writer tells of a chunk, and for how many. */
static uint8_t look(struct sums_writer *writer, uint64_t chunk, uint64_t most, uint64_t *nr)
{
	struct err err = ERR_INIT;
	enum sums_kind kind;
	uint8_t leaf[32], expect[32];
	SUPPORT_OK(sums_writer_look(writer, chunk, most, &kind, nr, leaf, &err), err);
	assert_true(*nr >= 1 && *nr <= most);
	if (kind != SUMS_DATA)
		return kind == SUMS_ZERO ? 0 : kind == SUMS_SAME ? SAME : UNTOLD;
	assert_int_equal(*nr, 1);
	make_leaf(chunk, leaf[15], expect);
	assert_memory_equal(leaf, expect, 16);
	return leaf[15];
}

static void look_at_all(struct sums_writer *writer, uint8_t *ages, uint64_t nr_chunks)
{
	uint64_t nr;
	for (uint64_t i = 0; i < nr_chunks; i += nr) {
		uint8_t age = look(writer, i, nr_chunks - i, &nr);
		memset(ages + i, age, nr);
	}
}

static char *load(const char *path, size_t *length)
{
	char *bytes;
	struct err err = ERR_INIT;
	SUPPORT_OK(file_load(AT_FDCWD, path, 64 << 20, &bytes, length, &err), err);
	return bytes;
}

/* Zeros that were told are not what was never told, in memory, evicted and in the file. */
static void test_look(void **state)
{
	(void)state;
	const struct sums_facts facts = facts_of(NR_CHUNKS * 65536ull - 100, false);
	struct err err = ERR_INIT;
	uint64_t nr;
	struct sums_writer *writer = create("a.sums", &facts, NULL);
	assert_int_equal(look(writer, 0, NR_CHUNKS, &nr), UNTOLD);
	assert_int_equal(nr, NR_CHUNKS);
	assert_int_equal(look(writer, NR_CHUNKS - 1, 1, &nr), UNTOLD);
	SUPPORT_OK(sums_writer_zeros(writer, 100, 3 * SEGMENT, &err), err);
	tell(writer, 99, 7);
	for (unsigned i = 5; i < NR_SEGMENTS; i++) /* all others are evicted */
		tell(writer, i * SEGMENT + 5, 3);
	for (unsigned round = 0; round < 2; round++) {
		assert_int_equal(look(writer, 0, NR_CHUNKS, &nr), UNTOLD);
		assert_int_equal(nr, 99);
		assert_int_equal(look(writer, 99, 100, &nr), 7);
		assert_int_equal(look(writer, 100, 5, &nr), 0);
		assert_int_equal(nr, 5);
		uint64_t at = 100, end = 100 + 3 * SEGMENT;
		for (; at < end; at += nr) {
			assert_int_equal(look(writer, at, NR_CHUNKS, &nr), 0);
			assert_true(nr <= end - at);
		}
		assert_int_equal(look(writer, end, 9, &nr), UNTOLD);
		checkpoint(writer);
		sums_writer_free(writer);
		writer = reopen("a.sums", &facts, NULL);
	}
	SUPPORT_OK(sums_writer_forget(writer, 99, &err), err);
	SUPPORT_OK(sums_writer_forget(writer, SEGMENT + 4, &err), err);
	checkpoint(writer);
	sums_writer_free(writer);
	writer = reopen("a.sums", &facts, NULL);
	assert_int_equal(look(writer, 99, 9, &nr), UNTOLD);
	assert_int_equal(look(writer, SEGMENT + 3, 9, &nr), 0);
	assert_int_equal(nr, 1);
	assert_int_equal(look(writer, SEGMENT + 4, 9, &nr), UNTOLD);
	assert_int_equal(nr, 1);
	assert_int_equal(sums_writer_forget(writer, NR_CHUNKS, &err), -1);
	assert_int_equal(err.code, ERR_RANGE);
	sums_writer_free(writer);
}

/* Tells something of a random run, and the model with it; 0 in since: not since the checkpoint. */
static void tell_random(struct sums_writer *writer, uint8_t *ages, uint8_t *since)
{
	struct err err = ERR_INIT;
	uint64_t chunk = draw(NR_CHUNKS);
	uint64_t nr = 1 + draw(min_u64(draw(8) ? 300 : 3 * SEGMENT, NR_CHUNKS - chunk));
	unsigned what = (unsigned)draw(5);
	if (what == 0)
		SUPPORT_OK(sums_writer_zeros(writer, chunk, nr, &err), err);
	if (what == 4)
		SUPPORT_OK(sums_writer_same(writer, chunk, nr, &err), err);
	for (uint64_t i = chunk; i < chunk + nr; i++) {
		if (what == 4) {
			since[i] |= ages[i] == UNTOLD;
			ages[i] = ages[i] == UNTOLD ? SAME : ages[i];
			continue;
		}
		uint8_t age = what == 0 ? 0 : what == 1 ? UNTOLD : (uint8_t)(1 + draw(200));
		if (what == 1)
			SUPPORT_OK(sums_writer_forget(writer, i, &err), err);
		if (what > 1)
			tell(writer, i, age);
		ages[i] = age;
		since[i] = 1;
	}
}

/* Each block of the file as it was at the checkpoint, as it is now, or torn: what was told up
 * to the checkpoint and not again since is found all the same. */
static void test_power_cuts(void **state)
{
	(void)state;
	uint8_t *ages = malloc(NR_CHUNKS), *since = malloc(NR_CHUNKS), *found = malloc(NR_CHUNKS);
	for (unsigned round = 0; round < 16; round++) {
		const struct sums_facts facts =
			facts_of(NR_CHUNKS * 65536ull - 100, round % 2 == 1);
		struct sums_facts parent_facts = facts_of(65536, false);
		struct sums_totals totals;
		struct err err = ERR_INIT;
		size_t before_bytes, length;
		struct sums_writer *first = create("parent.sums", &parent_facts, NULL);
		SUPPORT_OK(sums_writer_finish(first, &totals, &err), err);
		sums_writer_free(first);
		struct sums_reader *parent = NULL;
		if (facts.increment)
			parent = sums_reader_open(AT_FDCWD, "parent.sums", NULL, NULL, &err);
		struct sums_writer *writer = create("a.sums", &facts, parent);
		memset(ages, UNTOLD, NR_CHUNKS);
		for (unsigned i = 0, nr = 1 + (unsigned)draw(6); i < nr; i++) {
			for (unsigned k = 0; k < 20; k++)
				tell_random(writer, ages, since);
			checkpoint(writer);
			if (draw(4) == 0) {
				sums_writer_free(writer);
				writer = reopen("a.sums", &facts, parent);
			}
		}
		memset(since, 0, NR_CHUNKS);
		char *was = load("a.sums", &before_bytes);
		for (unsigned k = 0, nr = (unsigned)draw(60); k < nr; k++)
			tell_random(writer, ages, since);
		sums_writer_free(writer);
		char *now = load("a.sums", &length);
		char *before = calloc(1, length); /* behind its end it reads as zeros */
		memcpy(before, was, before_bytes);
		for (size_t at = 0; at < length; at += 512) {
			size_t part = min_size(512, length - at);
			unsigned choice = (unsigned)draw(3);
			if (memcmp(before + at, now + at, part) == 0)
				continue;
			if (choice == 0)
				memcpy(now + at, before + at, part);
			else if (choice == 1)
				memset(now + at, (int)draw(256), part / 2);
		}
		support_write("a.sums", now,
			length - (length > before_bytes ? draw(length - before_bytes) : 0));
		writer = reopen("a.sums", &facts, parent);
		look_at_all(writer, found, NR_CHUNKS);
		for (uint64_t i = 0; i < NR_CHUNKS; i++)
			if (!since[i] && found[i] != ages[i])
				fail_msg("round %u: chunk %ju told %u, found %u", round,
					(uintmax_t)i, ages[i], found[i]);
		/* It goes on, and ends as any other. */
		for (unsigned k = 0; k < 10; k++)
			tell_random(writer, found, since);
		SUPPORT_OK(sums_writer_finish(writer, &totals, &err), err);
		sums_writer_free(writer);
		struct sums_reader *reader =
			sums_reader_open(AT_FDCWD, "a.sums", &facts, parent, &err);
		assert_non_null(reader);
		SUPPORT_OK(sums_reader_check(reader, NULL, &err), err);
		for (uint64_t i = 0; i < NR_CHUNKS; i += 1 + draw(5)) {
			enum sums_kind kind;
			uint64_t nr;
			uint8_t leaf[32], expect[32];
			SUPPORT_OK(sums_reader_run(reader, i, 1, &kind, &nr, leaf, &err), err);
			assert_int_equal(kind == SUMS_DATA, found[i] != 0 && found[i] < SAME);
			make_leaf(i, found[i], expect);
			if (kind == SUMS_DATA)
				assert_memory_equal(leaf, expect, 16);
		}
		sums_reader_free(reader);
		sums_reader_free(parent);
		free(was);
		free(before);
		free(now);
		unlink("a.sums");
		unlink("parent.sums");
	}
	free(ages);
	free(since);
	free(found);
}

/* What a damaged file tells, it was told once. */
static void expect_true(
	const struct sums_facts *facts, const uint8_t *ages, uint64_t nr_chunks, uint64_t *nr_found)
{
	struct err err = ERR_INIT;
	uint64_t nr;
	*nr_found = 0;
	struct sums_writer *writer = sums_writer_reopen(AT_FDCWD, "b.sums", facts, NULL, &err);
	if (!writer) {
		assert_int_equal(err.code, ERR_CORRUPT);
		return;
	}
	for (uint64_t i = 0; i < nr_chunks; i += nr) {
		uint8_t age = look(writer, i, nr_chunks - i, &nr);
		for (uint64_t k = i; k < i + nr && age != UNTOLD; k++, (*nr_found)++)
			assert_int_equal(ages[k], age);
	}
	sums_writer_free(writer);
}

static void test_damage(void **state)
{
	(void)state;
	const uint64_t nr_chunks = 6 * SEGMENT;
	const struct sums_facts facts = facts_of(nr_chunks * 65536, false);
	struct err err = ERR_INIT;
	struct sums_totals totals;
	uint8_t *ages = malloc(nr_chunks);
	uint64_t nr_told = 0, nr_found, least = UINT64_MAX;
	memset(ages, UNTOLD, nr_chunks);
	struct sums_writer *writer = create("a.sums", &facts, NULL);
	SUPPORT_OK(sums_writer_zeros(writer, 4 * SEGMENT, 4096, &err), err);
	memset(ages + 4 * SEGMENT, 0, 4096);
	for (uint64_t i = 0; i < 60; i++) {
		ages[i * 200] = (uint8_t)(1 + i % 9);
		tell(writer, i * 200, ages[i * 200]);
		if (i % 10 == 0)
			checkpoint(writer);
	}
	checkpoint(writer);
	for (uint64_t i = 0; i < nr_chunks; i++)
		nr_told += ages[i] != UNTOLD;
	size_t length;
	char *bytes = load("a.sums", &length);
	support_write("b.sums", bytes, length);
	expect_true(&facts, ages, nr_chunks, &nr_found);
	assert_int_equal(nr_found, nr_told);
	/* Cut at each class of bytes: around blocks, heads, seals, and between. */
	for (size_t cut = 0; cut < length; cut += cut % 512 < 40 ? 1 : 61) {
		support_write("b.sums", bytes, cut);
		expect_true(&facts, ages, nr_chunks, &nr_found);
	}
	for (size_t at = 0; at < length; at += 1 + (size_t)draw(25)) {
		char bit = (char)(1 << draw(8));
		bytes[at] ^= bit;
		support_write("b.sums", bytes, length);
		bytes[at] ^= bit;
		expect_true(&facts, ages, nr_chunks, &nr_found);
		if (at >= SUMS_BLOCK)
			least = min_u64(least, nr_found);
	}
	/* One bit costs one segment at most. */
	assert_true(least < nr_told && least + SEGMENT >= nr_told);
	free(bytes);

	/* One that was finished is unfinished again: its end is cut off. */
	SUPPORT_OK(sums_writer_finish(writer, &totals, &err), err);
	sums_writer_free(writer);
	writer = reopen("a.sums", &facts, NULL);
	tell(writer, 1, 77);
	sums_writer_free(writer);
	assert_null(sums_reader_open(AT_FDCWD, "a.sums", NULL, NULL, &err));
	assert_int_equal(err.code, ERR_CORRUPT);
	writer = reopen("a.sums", &facts, NULL);
	tell(writer, 1, 78);
	SUPPORT_OK(sums_writer_finish(writer, &totals, &err), err);
	sums_writer_free(writer);
	assert_int_equal(totals.nr_data, 61);

	struct sums_facts other = facts;
	memcpy(other.key, "2001", 5);
	assert_null(sums_writer_reopen(AT_FDCWD, "a.sums", &other, NULL, &err));
	support_expect(&err, ERR_CORRUPT, "does not begin as the sums of this disk");
	assert_null(sums_writer_reopen(AT_FDCWD, "none.sums", &facts, NULL, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	free(ages);
}

/* A copy from end to end with its checkpoints: what they leave behind is used again. */
static void test_space(void **state)
{
	(void)state;
	const uint64_t nr_chunks = 12 * SEGMENT;
	const struct sums_facts facts = facts_of(nr_chunks * 65536, false);
	struct sums_totals totals;
	struct err err = ERR_INIT;
	struct stat st;
	struct sums_writer *writer = create("a.sums", &facts, NULL);
	for (uint64_t i = 0; i < nr_chunks; i++) {
		tell(writer, i, (uint8_t)(1 + i % 7));
		if (i % 777 == 0)
			checkpoint(writer);
	}
	SUPPORT_OK(sums_writer_finish(writer, &totals, &err), err);
	sums_writer_free(writer);
	assert_int_equal(stat("a.sums", &st), 0);
	assert_true(st.st_size < (12 + 4) * 67072 + 16384);
	assert_int_equal(unlink("a.sums"), 0);

	/* 64 TiB of zeros: one line in the file, a few bytes a segment in memory. */
	const struct sums_facts large = facts_of(64 * TIB, false);
	struct mallinfo2 before = mallinfo2();
	writer = create("a.sums", &large, NULL);
	SUPPORT_OK(sums_writer_zeros(writer, 0, 64 * TIB / 65536, &err), err);
	checkpoint(writer);
	struct mallinfo2 after = mallinfo2();
	assert_true(after.uordblks + after.hblkhd - before.uordblks - before.hblkhd < 20 * MIB);
	assert_int_equal(stat("a.sums", &st), 0);
	assert_true(st.st_size <= 4096);
	sums_writer_free(writer);
	uint64_t nr;
	writer = reopen("a.sums", &large, NULL);
	assert_int_equal(look(writer, 5, UINT64_MAX, &nr), 0);
	assert_int_equal(nr, 64 * TIB / 65536 - 5);
	sums_writer_free(writer);
}

struct worker {
	struct sums_writer *writer;
	unsigned number;
	pthread_t thread;
};

static void *worker_main(void *arg)
{
	struct worker *worker = arg;
	struct err err = ERR_INIT;
	uint8_t leaf[32];
	uint64_t nr;
	enum sums_kind kind;
	for (uint64_t i = worker->number; i < NR_CHUNKS; i += 3) {
		make_leaf(i, 9, leaf);
		if (sums_writer_chunks(worker->writer, i, 1, leaf, 0, &err) < 0 ||
			sums_writer_look(worker->writer, i, 1, &kind, &nr, leaf, &err) < 0 ||
			kind != SUMS_DATA || leaf[15] != 9)
			return worker;
	}
	return NULL;
}

/* Checkpoints while others tell. */
static void test_threads(void **state)
{
	(void)state;
	const struct sums_facts facts = facts_of(NR_CHUNKS * 65536ull, false);
	struct worker workers[3];
	struct sums_writer *writer = create("a.sums", &facts, NULL);
	for (unsigned i = 0; i < 3; i++) {
		workers[i] = (struct worker){.writer = writer, .number = i};
		assert_int_equal(
			pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]), 0);
	}
	for (unsigned i = 0; i < 10; i++)
		checkpoint(writer);
	for (unsigned i = 0; i < 3; i++) {
		void *failed;
		pthread_join(workers[i].thread, &failed);
		assert_null(failed);
	}
	checkpoint(writer);
	sums_writer_free(writer);
	writer = reopen("a.sums", &facts, NULL);
	uint64_t nr;
	for (uint64_t i = 0; i < NR_CHUNKS; i++)
		assert_int_equal(look(writer, i, 1, &nr), 9);
	sums_writer_free(writer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_look),
		SUPPORT_TEST(test_power_cuts),
		SUPPORT_TEST(test_damage),
		SUPPORT_TEST(test_space),
		SUPPORT_TEST(test_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
