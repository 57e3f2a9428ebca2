/* The record: what was written is read again, and what is wrong with one is told. */
#include "scratch.h"

#include "replica_internal.h"

#define NAME "m.replica.json"

static void fill(struct ledger *record)
{
	assert_int_equal(ledger_load(AT_FDCWD, "none", "m", record, NULL), 0);
	record->generation = 7;
	record->running = record->proven = true;
	snprintf(record->boot, sizeof record->boot, "b");
	record->disks = calloc(2, sizeof *record->disks);
	assert_non_null(record->disks);
	record->nr_disks = 2;
	for (unsigned i = 0; i < 2; i++) {
		struct ledger_disk *disk = &record->disks[i];
		snprintf(disk->key, sizeof disk->key, "%u", 2000 + i);
		disk->size_bytes = 512 + i;
		disk->full = i == 1;
		assert_int_equal(ledger_text(&disk->source_id, "path=/a", NULL), 0);
		assert_int_equal(ledger_text(&disk->target_id, "file /b", NULL), 0);
		assert_int_equal(ledger_text(&disk->target, "raw:/b", NULL), 0);
	}
	assert_int_equal(ledger_text(&record->disks[0].change_id, "a/1", NULL), 0);
	memset(record->disks[0].root_hex, 'a', DIGEST_ROOT_HEX_BYTES - 1);
}

static void test_again(void **state)
{
	(void)state;
	struct ledger record, again;
	fill(&record);
	assert_int_equal(ledger_store(AT_FDCWD, NAME, &record, "sendense", NULL), 0);
	assert_int_equal(ledger_load(AT_FDCWD, NAME, "m", &again, NULL), 0);
	assert_memory_equal(record.seed, again.seed, sizeof record.seed);
	assert_int_equal(again.generation, 7);
	assert_true(again.running && again.proven);
	assert_string_equal(again.boot, "b");
	assert_int_equal(again.nr_disks, 2);
	assert_string_equal(ledger_disk(&again, "2000")->change_id, "a/1");
	assert_string_equal(ledger_disk(&again, "2000")->root_hex, record.disks[0].root_hex);
	assert_null(ledger_disk(&again, "2001")->bitmap);
	assert_true(ledger_disk(&again, "2001")->full);
	assert_null(ledger_disk(&again, "2002"));
	ledger_free(&record);
	ledger_free(&again);
}

/* Each byte of it changed or cut: an error or a record, and no crash. */
static void test_damage(void **state)
{
	(void)state;
	struct ledger record;
	char *bytes;
	size_t length;
	fill(&record);
	assert_int_equal(ledger_store(AT_FDCWD, NAME, &record, "sendense", NULL), 0);
	ledger_free(&record);
	assert_int_equal(file_load(AT_FDCWD, NAME, 1 << 20, &bytes, &length, NULL), 0);
	for (size_t i = 0; i < length; i++) {
		struct err err = ERR_INIT;
		char kept = bytes[i];
		bytes[i] = i % 3 == 0 ? '"' : i % 3 == 1 ? '9' : '\0';
		int fd = open("damaged", O_WRONLY | O_CREAT | O_TRUNC, 0600);
		size_t cut = i % 5 == 0 ? i : length;
		assert_true(fd >= 0 && write(fd, bytes, cut) == (ssize_t)cut);
		close(fd);
		if (ledger_load(AT_FDCWD, "damaged", "m", &record, &err) == 0)
			ledger_free(&record);
		else
			assert_int_equal(err.code, ERR_CORRUPT);
		bytes[i] = kept;
	}
	free(bytes);
	struct err err = ERR_INIT;
	assert_int_equal(ledger_load(AT_FDCWD, NAME, "other", &record, &err), -1);
	assert_int_equal(err.code, ERR_CORRUPT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_again),
		SUPPORT_TEST(test_damage),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
