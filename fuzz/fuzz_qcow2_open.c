/*
 * Bytes as a QCOW2 file.  Beyond crashes it looks at what the checker promises:
 * a repair mends what it says and adds no error; an image without errors has none
 * after it was written to; what is told to be zero reads as zeros.
 */
#include "qcow2.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t total(const struct qcow2_check_result *r)
{
	return r->errors + r->leaks;
}

static void check_and_repair(const char *path)
{
	struct qcow2_check_result found, mended, left;
	struct err err = ERR_INIT;
	if (qcow2_check(path, false, NULL, NULL, NULL, &found, &err) < 0) {
		assert(err.code != ERR_NONE && err.text[0]);
		return;
	}
	int rc = qcow2_check(path, true, NULL, NULL, NULL, &mended, &err);
	assert(rc == 0);
	assert(mended.errors == found.errors && mended.leaks == found.leaks);
	rc = qcow2_check(path, false, NULL, NULL, NULL, &left, &err);
	assert(rc == 0);
	assert(left.errors <= found.errors);
	assert(mended.repaired <= total(&found));
	assert(total(&left) <= total(&found) - mended.repaired);
}

/* The first and last bytes, and some where the map says that something begins. */
static void read_image(const char *path)
{
	const struct qcow2_open_options options = {.read_only = true, .cache_bytes = MIB};
	static uint8_t buffer[256 * KIB];
	struct err err = ERR_INIT;
	struct block *image = qcow2_open(path, &options, &err);
	if (!image) {
		assert(err.code != ERR_NONE && err.text[0]);
		return;
	}
	uint64_t size = block_info(image)->size_bytes, offset = 0;
	struct block_extent extents[8];
	size_t nr = 0;
	for (unsigned round = 0; round < 64 && offset < size; round++) {
		if (block_extents(image, offset, size - offset, extents, 8, &nr, &err) < 0)
			break;
		for (size_t i = 0; i < nr; i++) {
			size_t n = (size_t)min_u64(extents[i].length, sizeof buffer);
			int rc = block_read(image, buffer, n, offset, &err);
			assert(rc == 0 || (err.code != ERR_NONE && err.text[0]));
			if (rc == 0 && (extents[i].flags & BLOCK_ZERO))
				assert(digest_is_zero(buffer, n));
			offset += extents[i].length;
		}
	}
	size_t n = (size_t)min_u64(size, 1000);
	if (block_read(image, buffer, n, size - n, &err) < 0)
		assert(err.code != ERR_NONE && err.text[0]);
	block_close(image, NULL);
}

/* Opening for writing repairs what was not closed; then the image must be sound. */
static void write_image(const char *path)
{
	const struct qcow2_open_options options = {.cache_bytes = MIB};
	struct qcow2_check_result before, after;
	struct err err = ERR_INIT;
	if (qcow2_check(path, false, NULL, NULL, NULL, &before, &err) < 0)
		return;
	struct block *image = qcow2_open(path, &options, &err);
	if (!image)
		return;
	uint64_t size = block_info(image)->size_bytes;
	size_t n = (size_t)min_u64(size, 3000);
	static const uint8_t bytes[3000] = {1, 2, 3};
	int rc = block_write(image, bytes, n, 0, 0, &err);
	if (rc == 0)
		rc = block_zero(image, size / 2, min_u64(size - size / 2, MIB), 0, &err);
	if (rc == 0)
		rc = block_write(image, bytes, n, size - n, 0, &err);
	if (block_close(image, &err) < 0 || rc < 0 || before.errors > 0)
		return;
	rc = qcow2_check(path, false, NULL, NULL, NULL, &after, &err);
	assert(rc == 0 && after.errors == 0);
}

static void put_file(int fd, const uint8_t *data, size_t size)
{
	int rc = ftruncate(fd, 0);
	assert(rc == 0);
	rc = file_pwrite(fd, data, size, 0, "the input", NULL);
	assert(rc == 0);
}

/* A backing file that is not there must not keep the rest from being looked at. */
static void forget_backing(int fd, size_t size)
{
	const uint8_t nowhere[8] = {0};
	if (size < 16)
		return;
	int rc = file_pwrite(fd, nowhere, sizeof nowhere, 8, "the input", NULL);
	assert(rc == 0);
}

/* A true file: an image is only opened where its folder can be told. */
static char path[256];

static void drop_file(void)
{
	unlink(path);
}

static int make_file(void)
{
	const char *folder = getenv("TMPDIR");
	snprintf(path, sizeof path, "%s/fuzz_qcow2.XXXXXX", folder ? folder : "/tmp");
	int fd = mkstemp(path);
	assert(fd >= 0);
	atexit(drop_file);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	if (fd < 0)
		fd = make_file();
	struct qcow2_facts facts;
	struct err err = ERR_INIT;
	put_file(fd, data, size);
	if (qcow2_facts(path, &facts, &err) < 0)
		assert(err.code != ERR_NONE && err.text[0]);
	read_image(path);
	forget_backing(fd, size);
	read_image(path);
	check_and_repair(path);
	put_file(fd, data, size);
	forget_backing(fd, size);
	write_image(path);
	return 0;
}
