/*
 * Bytes as a QCOW2 file.  Beyond crashes it looks at what the checker promises:
 * a repair mends what it says, adds no error, and changes nothing when repeated.
 */
#include "qcow2.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
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

static void put_file(int fd, const uint8_t *data, size_t size)
{
	int rc = ftruncate(fd, 0);
	assert(rc == 0);
	rc = file_pwrite(fd, data, size, 0, "the input", NULL);
	assert(rc == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	static char path[64];
	if (fd < 0) {
		fd = memfd_create("image", MFD_CLOEXEC);
		assert(fd >= 0);
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	}
	struct qcow2_facts facts;
	struct err err = ERR_INIT;
	put_file(fd, data, size);
	if (qcow2_facts(path, &facts, &err) < 0)
		assert(err.code != ERR_NONE && err.text[0]);
	check_and_repair(path);
	return 0;
}
