/* What is told and not durable is bounded, and a checkpoint that fails ends the backup. */
#include "backup_internal.h"
#include "points.h"

#define SIZE (512 * MIB)

/* An image that counts its flushes, and may fail them. */
struct counting {
	struct block block;
	struct block *image;
	atomic_uint nr_flushes;
	atomic_bool fails;
};

static int counting_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	return block_read(((struct counting *)block)->image, buffer, length, offset, err);
}

static int counting_flush(struct block *block, struct err *err)
{
	struct counting *counting = (struct counting *)block;
	if (atomic_load(&counting->fails))
		return err_set(err, ERR_IO, "the disk is worn out");
	atomic_fetch_add(&counting->nr_flushes, 1);
	return block_flush(counting->image, err);
}

static int counting_close(struct block *block, struct err *err)
{
	struct counting *counting = (struct counting *)block;
	block_fini(block);
	return block_close(counting->image, err);
}

static const struct block_driver counting_driver = {.name = "counting",
	.read = counting_read,
	.flush = counting_flush,
	.close = counting_close};

static struct repository_backup *begin(
	struct repository *repo, struct counting *counting, struct copy_options *options)
{
	struct err err = ERR_INIT;
	struct block *null = block_null_open(SIZE, &err), *from, *to;
	const struct repository_disk_spec spec = {
		.key = "a", .size_bytes = SIZE, .source = {"null", "null", NULL, 0}};
	const struct repository_backup_options begin = {
		.vm = "web", .source = {"null", "web", NULL, 0}, .disks = &spec, .nr_disks = 1};
	struct repository_backup *backup = repository_backup_begin(repo, &begin, &err);
	if (!backup) {
		fail_msg("%s", err.text);
		return NULL;
	}
	memset(counting, 0, sizeof *counting);
	counting->image = backup->disks[0].image;
	block_init(&counting->block, &counting_driver, strdup("counting"));
	counting->block.info = *block_info(counting->image);
	backup->disks[0].image = &counting->block;
	SUPPORT_OK(repository_backup_copy(backup, 0, null, options, &from, &to, &err), err);
	SUPPORT_OK(block_close(null, &err), err);
	return backup;
}

static int tell(const struct copy_options *options, uint64_t chunk, struct err *err)
{
	static const uint8_t leaves[4 * DIGEST_LEAF_BYTES_MAX] = {1};
	return options->sink->chunks(options->sink->context, chunk, 4, leaves, 0, err);
}

static uint64_t not_durable(struct repository_backup *backup)
{
	struct checkpoints *c = &backup->checkpoints;
	WITH_LOCK(&c->mutex);
	return c->told - c->durable;
}

static void test_bounds(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct counting counting;
	struct copy_options options = {0};
	struct err err = ERR_INIT;
	struct repository_backup *backup = begin(repo, &counting, &options);
	uint64_t chunk = 0;
	for (; chunk < 23 * MIB / DIGEST_CHUNK_BYTES; chunk += 4)
		SUPPORT_OK(tell(&options, chunk, &err), err);
	assert_int_equal(atomic_load(&counting.nr_flushes), 0);
	for (; chunk < SIZE / DIGEST_CHUNK_BYTES; chunk += 4) {
		SUPPORT_OK(tell(&options, chunk, &err), err);
		assert_true(not_durable(backup) < 32 * MIB);
	}
	assert_in_range(
		atomic_load(&counting.nr_flushes), SIZE / (32 * MIB) - 1, SIZE / (24 * MIB));
	repository_backup_abort(backup);
	repository_close(repo);
}

/* Those who tell get the error, and so does the end. */
static void test_failure(void **state)
{
	(void)state;
	struct repository *repo = support_repository("r");
	struct counting counting;
	struct copy_options options = {0};
	struct err err = ERR_INIT;
	struct repository_backup *backup = begin(repo, &counting, &options);
	atomic_store(&counting.fails, true);
	uint64_t chunk = 0;
	while (tell(&options, chunk, &err) == 0)
		chunk += 4;
	support_expect(&err, ERR_IO, "disk a: the disk is worn out");
	assert_true(chunk < 32 * MIB / DIGEST_CHUNK_BYTES);
	atomic_store(&counting.fails, false);
	assert_int_equal(repository_backup_commit(backup, &err), -1);
	support_expect(&err, ERR_IO, "disk a: the disk is worn out");
	repository_backup_abort(backup);
	assert_int_equal(access("r/vms/web", F_OK), -1);
	repository_close(repo);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_bounds),
		SUPPORT_TEST(test_failure),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
