/*
 * Bytes as an extents file.  What is taken must be what a JSON library reads there: each
 * line that is an extent to us is one to it, and walking the list gives just what its end
 * line says.
 */
#include "changes_internal.h"

#include <assert.h>
#include <jansson.h>
#include <stdio.h>
#include <sys/mman.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t number(const json_t *object, const char *name)
{
	const json_t *value = json_object_get(object, name);
	assert(json_is_integer(value) && json_integer_value(value) >= 0);
	return (uint64_t)json_integer_value(value);
}

static void check_line(const char *line, size_t length)
{
	struct changes_extent extent;
	if (!changes_line_extent(line, length, &extent))
		return;
	json_t *object = json_loadb(line, length, JSON_REJECT_DUPLICATES, NULL);
	assert(object && json_object_size(object) == 2);
	assert(extent.offset == number(object, "offset"));
	assert(extent.length == number(object, "length"));
	json_decref(object);
}

static void check_lines(const char *text, size_t size)
{
	for (size_t at = 0, end; at < size; at = end + 1) {
		const char *stop = memchr(text + at, '\n', size - at);
		end = stop ? (size_t)(stop - text) : size;
		check_line(text + at, end - at);
	}
}

/* Extents that touch come one by one, as they stand in the file. */
static void walk(struct changes *changes)
{
	const struct changes_facts *facts = changes_facts(changes);
	uint64_t at = 0, start, end, count = 0, bytes = 0;
	struct err err = ERR_INIT;
	while (at < facts->size_bytes) {
		int rc = changes_next(changes, at, &start, &end, &err);
		assert(rc == 0 && start >= at && end >= start && end <= facts->size_bytes);
		count += end > start;
		bytes += end - start;
		at = end;
	}
	assert(count == facts->count && bytes == facts->bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct err err = ERR_INIT;
	char path[64];
	check_lines((const char *)data, size);
	int fd = memfd_create("list", MFD_CLOEXEC);
	assert(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	struct changes *changes = changes_open(path, NULL, &err);
	if (changes)
		walk(changes);
	else
		assert(err.code == ERR_FORMAT && err.text[0]);
	changes_close(changes);
	close(fd);
	return 0;
}
