/*
 * map_changes DISK bitmap:NAME|extents:FILE: what the integration tests compare with
 * other people's maps.  Prints "changes yes|no", then for each extent "OFFSET LENGTH
 * STATE" (data, or of hole, zero, unchanged), then "end"; and all of it but the first
 * line again for each line on stdin.  Exit status 1 with the reason on stderr.
 */
#include "locator.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static int failed(const struct err *err)
{
	fprintf(stderr, "%s: %s\n", err_code_name(err->code), err->text);
	return 1;
}

static void print_extent(uint64_t offset, const struct block_extent *extent)
{
	printf("%" PRIu64 " %" PRIu64 "%s%s%s%s\n", offset, extent->length,
		extent->flags & (BLOCK_HOLE | BLOCK_ZERO) ? "" : " data",
		extent->flags & BLOCK_HOLE ? " hole" : "",
		extent->flags & BLOCK_ZERO ? " zero" : "",
		extent->flags & BLOCK_UNCHANGED ? " unchanged" : "");
}

static int print_map(struct block *disk, struct err *err)
{
	uint64_t size = block_info(disk)->size_bytes, at = 0;
	while (at < size) {
		struct block_extent extents[64];
		size_t nr;
		if (block_extents(disk, at, size - at, extents, ARRAY_LENGTH(extents), &nr, err) <
			0)
			return -1;
		for (size_t i = 0; i < nr; at += extents[i++].length)
			print_extent(at, &extents[i]);
	}
	printf("end\n");
	fflush(stdout);
	return 0;
}

static int map(struct block *disk)
{
	struct err err = ERR_INIT;
	char line[16];
	printf("changes %s\n", block_info(disk)->has_changes ? "yes" : "no");
	do {
		if (print_map(disk, &err) < 0)
			return failed(&err);
	} while (fgets(line, sizeof line, stdin));
	return 0;
}

int main(int argc, char **argv)
{
	static const char bitmap[] = "bitmap:";
	struct locator_options options = {.read_only = true};
	struct err err = ERR_INIT;
	if (argc != 3 || strncmp(argv[2], bitmap, sizeof bitmap - 1) != 0) {
		fprintf(stderr, "usage: map_changes DISK bitmap:NAME\n");
		return 2;
	}
	options.nbd.bitmap = argv[2] + sizeof bitmap - 1;
	options.nbd.reconnect_timeout_ms = 10000;
	struct block *disk = locator_open(argv[1], &options, &err);
	if (!disk)
		return failed(&err);
	int status = map(disk);
	block_close(disk, NULL);
	return status;
}
