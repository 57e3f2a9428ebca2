/* Disks that somebody else writes: in any order, of any length, by several at once; what is told
 * of them, and that the restore point holds just that. */
#include "backup_internal.h"
#include "points.h"

#define SIZE (5 * MIB + 1700)
#define NR_CHUNKS 81u
#define NR_WRITERS 4u

static _Thread_local uint64_t random_state = 88172645463325252u;

static uint64_t draw(uint64_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state % below;
}

static struct repository *make_repository(uint32_t cluster_bytes, unsigned chain_length_max)
{
	struct repository_settings settings;
	struct err err = ERR_INIT;
	repository_settings_default(&settings);
	settings.cluster_bytes = cluster_bytes;
	settings.chain_length_max = chain_length_max;
	SUPPORT_OK(repository_init("repo", &settings, &err), err);
	struct repository *repo = repository_open("repo", REPOSITORY_WRITE, &err);
	if (!repo)
		fail_msg("%s", err.text);
	return repo;
}

/* What a client that keeps count would know. */
struct model {
	struct memory_disk disk;
	bool sent[NR_CHUNKS];
};

static void model_init(struct model *model)
{
	memset(model, 0, sizeof *model);
	memory_disk_init(&model->disk, SIZE);
	assert_int_equal(NR_CHUNKS, div_round_up(SIZE, DIGEST_CHUNK_BYTES));
}

static void mark(struct model *model, uint64_t offset, uint64_t length, bool hint)
{
	for (uint64_t chunk = offset / DIGEST_CHUNK_BYTES;
		chunk <= (offset + length - 1) / DIGEST_CHUNK_BYTES; chunk++) {
		uint64_t start = chunk * DIGEST_CHUNK_BYTES;
		uint64_t end = min_u64(start + DIGEST_CHUNK_BYTES, SIZE);
		if (hint && (offset > start || offset + length < end))
			continue;
		model->sent[chunk] = true;
		if (hint)
			memset(model->disk.bytes + start, 0, end - start);
	}
}

/* One request within a range, done to both. */
static void do_one(struct model *model, struct block *block, uint64_t from, uint64_t to)
{
	struct err err = ERR_INIT;
	uint64_t length = 1 + draw(draw(3) ? 9000 : 300000), offset;
	length = min_u64(length, to - from);
	offset = from + draw(to - from - length + 1);
	if (draw(4) == 0) {
		offset = round_up(offset, DIGEST_CHUNK_BYTES);
		length = min_u64(DIGEST_CHUNK_BYTES * (1 + draw(3)), to - min_u64(offset, to));
		if (length == 0)
			return;
	}
	switch (draw(6)) {
	case 0:
		memset(model->disk.bytes + offset, 0, length);
		mark(model, offset, length, false);
		SUPPORT_OK(block_zero(block, offset, length, 0, &err), err);
		break;
	case 1:
		mark(model, offset, length, true);
		SUPPORT_OK(block_trim(block, offset, length, 0, &err), err);
		break;
	default:
		memory_disk_fill(&model->disk, offset, length, (uint32_t)draw(1u << 20));
		mark(model, offset, length, false);
		SUPPORT_OK(block_write(block, model->disk.bytes + offset, length, offset, 0, &err),
			err);
	}
}

static void expect_bytes(struct model *model, struct block *block)
{
	struct err err = ERR_INIT;
	uint8_t *bytes = malloc(SIZE);
	SUPPORT_OK(block_read(block, bytes, SIZE, 0, &err), err);
	assert_memory_equal(bytes, model->disk.bytes, SIZE);
	free(bytes);
}

/* --- what is told, computed from the model --------------------------------------- */

static size_t leaf_of(struct repository *repo, struct model *model, uint64_t chunk, uint8_t *leaf)
{
	uint64_t offset = chunk * DIGEST_CHUNK_BYTES;
	size_t length = (size_t)min_u64(DIGEST_CHUNK_BYTES, SIZE - offset);
	if (digest_is_zero(model->disk.bytes + offset, length))
		return 0;
	digest_leaf(&repo->key, model->disk.bytes + offset, length, leaf);
	return digest_leaf_bytes(repo->key.algorithm);
}

static void expect_root(
	struct repository *repo, struct repository_backup *backup, struct model *model)
{
	struct err err = ERR_INIT;
	uint8_t root[DIGEST_ROOT_BYTES], expected[DIGEST_ROOT_BYTES];
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	struct digest_tree tree;
	digest_tree_init(&tree, repo->key.algorithm, SIZE);
	for (uint64_t i = 0; i < NR_CHUNKS; i++) {
		if (leaf_of(repo, model, i, leaf))
			digest_tree_leaf(&tree, leaf);
		else
			digest_tree_zeros(&tree, 1);
	}
	digest_tree_root(&tree, expected);
	SUPPORT_OK(repository_backup_root(backup, 0, root, &err), err);
	assert_memory_equal(root, expected, sizeof root);
}

static void expect_sent(
	struct repository *repo, struct repository_backup *backup, struct model *model)
{
	struct err err = ERR_INIT;
	uint8_t digest[DIGEST_ROOT_BYTES], expected[DIGEST_ROOT_BYTES];
	uint8_t entry[8 + DIGEST_ROOT_BYTES], *all = malloc(NR_CHUNKS * sizeof entry);
	size_t used = 0;
	for (uint64_t i = 0; i < NR_CHUNKS; i++) {
		if (!model->sent[i])
			continue;
		memset(entry, 0, sizeof entry);
		be64_put(entry, i);
		if (leaf_of(repo, model, i, entry + 8) == 0)
			memset(entry + 8, 0xff, DIGEST_ROOT_BYTES);
		memcpy(all + used, entry, sizeof entry);
		used += sizeof entry;
	}
	digest_sha256(all, used, expected);
	free(all);
	SUPPORT_OK(repository_backup_sent(backup, 0, digest, NULL, NULL, &err), err);
	assert_memory_equal(digest, expected, sizeof digest);
}

/* All records, read a few at a time. */
static void expect_records(struct repository *repo, struct repository_backup *backup,
	struct model *model, bool settled)
{
	struct err err = ERR_INIT;
	uint8_t bytes[256], leaf[DIGEST_LEAF_BYTES_MAX];
	size_t length, leaf_bytes = digest_leaf_bytes(repo->key.algorithm);
	uint64_t nr;
	for (uint64_t first = 0; first < NR_CHUNKS; first += nr) {
		SUPPORT_OK(repository_backup_digests(backup, 0, first, NR_CHUNKS, bytes,
				   sizeof bytes, &length, &nr, &err),
			err);
		assert_true(nr > 0 && length > 0);
		uint64_t chunk = first;
		for (size_t at = 0; at < length;) {
			uint8_t kind = bytes[at];
			uint32_t run = be32_get(bytes + at + 1);
			at += 5;
			for (uint32_t i = 0; i < run; i++, chunk++) {
				bool sent = kind & REPOSITORY_HOLDS_SENT;
				size_t data = leaf_of(repo, model, chunk, leaf);
				if (settled)
					assert_int_equal(sent, model->sent[chunk]);
				if ((kind & 0xf) == REPOSITORY_HOLDS_UNKNOWN) {
					assert_false(settled);
					continue;
				}
				assert_int_equal(kind & 0xf,
					data ? REPOSITORY_HOLDS_DATA : REPOSITORY_HOLDS_ZERO);
				if (!data)
					continue;
				assert_memory_equal(bytes + at, leaf, leaf_bytes);
				at += leaf_bytes;
			}
		}
		assert_int_equal(chunk, first + nr);
	}
	assert_int_equal(repository_backup_digests(
				 backup, 0, NR_CHUNKS, 1, bytes, sizeof bytes, &length, &nr, &err),
		-1);
	support_expect(&err, ERR_RANGE, "chunks");
}

/* --- writers --------------------------------------------------------------------- */

struct writer {
	pthread_t thread;
	struct model *model;
	struct block *block;
	uint64_t from, to, seed;
};

static void *write_some(void *arg)
{
	struct writer *writer = arg;
	random_state = writer->seed;
	for (unsigned i = 0; i < 25; i++)
		do_one(writer->model, writer->block, writer->from, writer->to);
	return NULL;
}

/* Each has bytes of its own; the chunks at their borders belong to two. */
static void write_all(struct model *model, struct block *block)
{
	struct writer writers[NR_WRITERS];
	for (unsigned i = 0; i < NR_WRITERS; i++) {
		uint64_t part = SIZE / NR_WRITERS;
		writers[i] = (struct writer){.model = model,
			.block = block,
			.from = i * part,
			.to = i + 1 == NR_WRITERS ? SIZE : (i + 1) * part,
			.seed = draw(UINT64_MAX - 1) + 1};
		/* A hint over a chunk of two would be half the other's. */
		writers[i].from = round_up(writers[i].from, 700);
		assert_int_equal(
			pthread_create(&writers[i].thread, NULL, write_some, &writers[i]), 0);
	}
	for (unsigned i = 0; i < NR_WRITERS; i++)
		pthread_join(writers[i].thread, NULL);
}

static void push(struct repository *repo, struct model *model, char point[REPOSITORY_POINT_BYTES])
{
	struct err err = ERR_INIT;
	const struct point_disk one = {.key = "a", .source = &model->disk};
	struct block *block;
	struct repository_backup *backup = points_begin(repo, "web", &one, 1, &err);
	if (!backup)
		fail_msg("%s", err.text);
	memset(model->sent, 0, sizeof model->sent);
	snprintf(point, REPOSITORY_POINT_BYTES, "%s", repository_backup_point(backup));
	SUPPORT_OK(repository_backup_intake(backup, 0, &block, &err), err);
	for (unsigned i = 0; i < 10; i++)
		do_one(model, block, 0, SIZE);
	expect_records(repo, backup, model, false);
	write_all(model, block);
	expect_bytes(model, block);
	SUPPORT_OK(repository_backup_settle(backup, 0, &err), err);
	expect_sent(repo, backup, model);
	expect_root(repo, backup, model);
	expect_records(repo, backup, model, true);
	/* Once more, after it was settled. */
	do_one(model, block, 0, SIZE);
	SUPPORT_OK(repository_backup_settle(backup, 0, &err), err);
	expect_root(repo, backup, model);
	repository_backup_checked(backup, 0, "root");
	SUPPORT_OK(repository_backup_commit(backup, &err), err);
	points_compare(repo, "web", point, "a", model->disk.bytes, SIZE);
}

static void push_chain(uint32_t cluster_bytes, unsigned chain_length_max)
{
	char points[5][REPOSITORY_POINT_BYTES];
	uint8_t *then[5];
	struct model model;
	struct repository *repo = make_repository(cluster_bytes, chain_length_max);
	model_init(&model);
	for (unsigned i = 0; i < 5; i++) {
		push(repo, &model, points[i]);
		then[i] = malloc(SIZE);
		memcpy(then[i], model.disk.bytes, SIZE);
	}
	for (unsigned i = 0; i < 5; i++) {
		points_compare(repo, "web", points[i], "a", then[i], SIZE);
		free(then[i]);
	}
	memory_disk_free(&model.disk);
	repository_close(repo);
}

static void test_chunks_and_parts(void **state)
{
	(void)state;
	push_chain(65536, 60);
}

static void test_small_clusters(void **state)
{
	(void)state;
	push_chain(4096, 60);
}

static void test_clusters_of_many_chunks(void **state)
{
	(void)state;
	push_chain(1 << 20, 60);
}

static void test_fulls_of_their_chain(void **state)
{
	(void)state;
	push_chain(65536, 2);
}

static void test_fulls_of_their_chain_in_large_clusters(void **state)
{
	(void)state;
	push_chain(512 << 10, 2);
}

/* --- interrupted ----------------------------------------------------------------- */

/* Left, or killed; the next one learns what is there, and what it must send. */
static void interrupt(struct repository *repo, struct model *model, bool kill)
{
	struct err err = ERR_INIT;
	const struct point_disk one = {.key = "a", .source = &model->disk};
	struct block *block;
	uint64_t seed = draw(UINT64_MAX - 1) + 1;
#ifdef __SANITIZE_THREAD__
	kill = false; /* no threads behind a fork there */
#endif
	pid_t pid = kill ? fork() : 0;
	assert_true(pid >= 0);
	if (pid == 0) {
		random_state = seed;
		struct repository *own =
			kill ? repository_open("repo", REPOSITORY_WRITE, &err) : repo;
		struct repository_backup *backup =
			own ? points_begin(own, "web", &one, 1, &err) : NULL;
		if (!backup || repository_backup_intake(backup, 0, &block, &err) < 0)
			_exit(9);
		for (unsigned i = 0; i < 20; i++) {
			do_one(model, block, 0, SIZE);
			if (i == 12 && kill && checkpoint_now(backup, &err) < 0)
				_exit(8);
		}
		if (kill)
			_exit(0);
		repository_backup_leave(backup);
		return;
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* What a client does that goes on: what is told and as it is stays, all else it sends. */
static void go_on(struct repository *repo, struct model *model, struct block *block,
	struct repository_backup *backup, const uint8_t *parent, unsigned *nr_kept)
{
	struct err err = ERR_INIT;
	uint8_t bytes[16384], leaf[DIGEST_LEAF_BYTES_MAX];
	size_t length, leaf_bytes = digest_leaf_bytes(repo->key.algorithm), at = 0;
	uint64_t nr, chunk = 0;
	SUPPORT_OK(repository_backup_digests(
			   backup, 0, 0, NR_CHUNKS, bytes, sizeof bytes, &length, &nr, &err),
		err);
	assert_int_equal(nr, NR_CHUNKS);
	memset(model->sent, 0, sizeof model->sent);
	while (at < length) {
		uint8_t kind = bytes[at];
		uint32_t run = be32_get(bytes + at + 1);
		at += 5;
		for (uint32_t i = 0; i < run; i++, chunk++) {
			uint64_t offset = chunk * DIGEST_CHUNK_BYTES;
			size_t part = (size_t)min_u64(DIGEST_CHUNK_BYTES, SIZE - offset);
			size_t data = leaf_of(repo, model, chunk, leaf);
			bool same = false;
			if ((kind & 0xf) == REPOSITORY_HOLDS_ZERO)
				same = data == 0;
			if ((kind & 0xf) == REPOSITORY_HOLDS_DATA) {
				same = data && memcmp(bytes + at, leaf, leaf_bytes) == 0;
				at += leaf_bytes;
			}
			model->sent[chunk] = kind & REPOSITORY_HOLDS_SENT;
			*nr_kept += same && model->sent[chunk];
			if (same)
				continue;
			/* What differs from the parent was told, or must be. */
			assert_true((kind & 0xf) == REPOSITORY_HOLDS_UNKNOWN ||
				    model->sent[chunk] || !parent ||
				    memcmp(parent + offset, model->disk.bytes + offset, part) != 0);
			model->sent[chunk] = true;
			SUPPORT_OK(block_write(block, model->disk.bytes + offset, part, offset, 0,
					   &err),
				err);
		}
	}
}

static void resume_chain(uint32_t cluster_bytes, unsigned chain_length_max, bool kill)
{
	struct err err = ERR_INIT;
	struct model model;
	struct repository *repo = make_repository(cluster_bytes, chain_length_max);
	char point[REPOSITORY_POINT_BYTES];
	uint8_t *parent = malloc(SIZE);
	unsigned nr_kept = 0;
	model_init(&model);
	for (unsigned round = 0; round < 4; round++) {
		const struct point_disk one = {
			.key = "a", .source = &model.disk, .source_state = "state"};
		struct block *block;
		if (round == 0)
			memory_disk_fill(&model.disk, 100000, 3 * MIB, 7);
		else
			memcpy(parent, model.disk.bytes, SIZE);
		interrupt(repo, &model, kill);
		/* A killed one took what it did along. */
		memory_disk_fill(&model.disk, draw(SIZE - 200000), 200000, (uint32_t)draw(99) + 1);
		struct repository_backup *backup = points_begin(repo, "web", &one, 1, &err);
		if (!backup)
			fail_msg("%s", err.text);
		assert_int_not_equal(repository_backup_resumed(backup, 0, NULL), REPOSITORY_FRESH);
		SUPPORT_OK(repository_backup_intake(backup, 0, &block, &err), err);
		go_on(repo, &model, block, backup, round ? parent : NULL, &nr_kept);
		snprintf(point, sizeof point, "%s", repository_backup_point(backup));
		SUPPORT_OK(repository_backup_settle(backup, 0, &err), err);
		expect_bytes(&model, block);
		expect_root(repo, backup, &model);
		if (cluster_bytes <= DIGEST_CHUNK_BYTES)
			expect_sent(repo, backup, &model);
		repository_backup_checked(backup, 0, "sent");
		SUPPORT_OK(repository_backup_commit(backup, &err), err);
		points_compare(repo, "web", point, "a", model.disk.bytes, SIZE);
	}
	assert_true(nr_kept > 0);
	free(parent);
	memory_disk_free(&model.disk);
	repository_close(repo);
}

static void test_left_and_gone_on_with(void **state)
{
	(void)state;
	resume_chain(65536, 60, false);
}

static void test_killed_and_gone_on_with(void **state)
{
	(void)state;
	resume_chain(65536, 60, true);
}

static void test_killed_in_large_clusters(void **state)
{
	(void)state;
	resume_chain(256 << 10, 60, true);
}

static void test_killed_full_of_its_chain(void **state)
{
	(void)state;
	resume_chain(65536, 1, true);
}

/* --- what is kept of it ---------------------------------------------------------- */

static void test_records(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct model model;
	struct repository *repo = make_repository(65536, 60);
	char point[REPOSITORY_POINT_BYTES];
	const uint64_t offsets[] = {65536, 131072};
	struct block *block;
	model_init(&model);
	push(repo, &model, point);
	struct repository_point *made = repository_point_load(repo, "web", point, &err);
	assert_string_equal(made->disks[0].checked, "root");
	assert_null(made->client);
	repository_point_free(made);

	const struct repository_disk_spec spec = {.key = "a",
		.size_bytes = SIZE,
		.mode = REPOSITORY_INCREMENTAL,
		.parent = point,
		.change = REPOSITORY_CHANGE_EXTENTS,
		.source = {"raw", "raw:x", NULL, 0}};
	const struct repository_backup_options options = {.vm = "web",
		.source = {"raw", "web", NULL, 0},
		.disks = &spec,
		.nr_disks = 1,
		.client = "sendense 9 (git 123)"};
	struct repository_backup *backup = repository_backup_begin(repo, &options, &err);
	if (!backup)
		fail_msg("%s", err.text);
	SUPPORT_OK(repository_backup_intake(backup, 0, &block, &err), err);
	SUPPORT_OK(repository_backup_distrust(backup, 0, offsets, 2, &err), err);
	SUPPORT_OK(repository_backup_settle(backup, 0, &err), err);
	repository_backup_checked(backup, 0, "absent");
	repository_backup_audited(backup, 0, 131072);
	char next[REPOSITORY_POINT_BYTES];
	snprintf(next, sizeof next, "%s", repository_backup_point(backup));
	SUPPORT_OK(repository_backup_commit(backup, &err), err);
	made = repository_point_load(repo, "web", next, &err);
	assert_string_equal(made->disks[0].checked, "absent");
	assert_int_equal(made->disks[0].audited_bytes, 131072);
	assert_string_equal(made->client, "sendense 9 (git 123)");
	repository_point_free(made);
	made = repository_point_load(repo, "web", point, &err);
	assert_non_null(strstr(manifest_distrusted(made, "a"), "65536, 131072"));
	repository_point_free(made);
	memory_disk_free(&model.disk);
	repository_close(repo);
}

/* A huge disk: what it costs is what is written. */
static void test_huge(void **state)
{
	(void)state;
	const uint64_t size = UINT64_C(64) << 40;
	struct err err = ERR_INIT;
	struct repository *repo = make_repository(65536, 60);
	const struct repository_disk_spec spec = {.key = "a",
		.size_bytes = size,
		.mode = REPOSITORY_FULL,
		.source = {"raw", "raw:x", NULL, 0}};
	const struct repository_backup_options options = {
		.vm = "web", .source = {"raw", "web", NULL, 0}, .disks = &spec, .nr_disks = 1};
	struct repository_backup *backup = repository_backup_begin(repo, &options, &err);
	struct block *block;
	uint8_t root[DIGEST_ROOT_BYTES], bytes[512];
	size_t length;
	uint64_t nr;
	if (!backup)
		fail_msg("%s", err.text);
	SUPPORT_OK(repository_backup_intake(backup, 0, &block, &err), err);
	for (uint64_t at = 0; at < size; at += UINT64_C(1) << 38)
		SUPPORT_OK(block_write(block, "some", 4, at + 12345, 0, &err), err);
	SUPPORT_OK(block_zero(block, 1 << 20, UINT64_C(20) << 40, 0, &err), err);
	SUPPORT_OK(repository_backup_settle(backup, 0, &err), err);
	SUPPORT_OK(repository_backup_root(backup, 0, root, &err), err);
	SUPPORT_OK(repository_backup_digests(
			   backup, 0, 0, UINT64_MAX, bytes, sizeof bytes, &length, &nr, &err),
		err);
	assert_true(nr > 1u << 20);
	repository_backup_checked(backup, 0, "absent");
	SUPPORT_OK(repository_backup_commit(backup, &err), err);
	repository_close(repo);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_chunks_and_parts),
		SUPPORT_TEST(test_small_clusters),
		SUPPORT_TEST(test_clusters_of_many_chunks),
		SUPPORT_TEST(test_fulls_of_their_chain),
		SUPPORT_TEST(test_fulls_of_their_chain_in_large_clusters),
		SUPPORT_TEST(test_left_and_gone_on_with),
		SUPPORT_TEST(test_killed_and_gone_on_with),
		SUPPORT_TEST(test_killed_in_large_clusters),
		SUPPORT_TEST(test_killed_full_of_its_chain),
		SUPPORT_TEST(test_records),
		SUPPORT_TEST(test_huge),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
