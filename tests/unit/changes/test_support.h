/* What the tests of changes share: lists written to a file of the test's own. */
#ifndef SENDENSE_TEST_CHANGES_SUPPORT_H
#define SENDENSE_TEST_CHANGES_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "changes_internal.h"

#include <stdio.h>
#include <stdlib.h>

struct list {
	char path[32];
};

static inline void list_write(struct list *list, const char *text, size_t length)
{
	snprintf(list->path, sizeof list->path, "/tmp/test_changes.XXXXXX");
	int fd = mkstemp(list->path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, length), (ssize_t)length);
	close(fd);
}

static inline FILE *list_begin(struct list *list, uint64_t size)
{
	list_write(list, "", 0);
	FILE *file = fopen(list->path, "w");
	assert_non_null(file);
	fprintf(file,
		"{\"sendense-extents\":1,\"key\":\"2000\",\"size\":%llu,\"from\":\"a\",\"to\":"
		"\"b\"}\n",
		(unsigned long long)size);
	return file;
}

static inline void list_end(FILE *file, uint64_t count, uint64_t bytes)
{
	fprintf(file, "{\"end\":true,\"count\":%llu,\"bytes\":%llu}\n", (unsigned long long)count,
		(unsigned long long)bytes);
	assert_int_equal(fclose(file), 0);
}

#endif
