/*
 * Long chains of QCOW2 images: makes one, and reads from one as `qemu-img bench` does.
 *
 *   chain make FOLDER DEPTH SIZE_MIB      0.qcow2 with data in a quarter of its clusters, and
 *                                         above it images with 12 random clusters of 64 KiB each
 *   chain read IMAGE COUNT STEP           COUNT reads of 4 KiB, each STEP bytes further on
 */
#include "qcow2.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define CLUSTER 65536u
#define CHANGES 12u

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dull;
}

static int write_some(struct block *disk, uint64_t nr, uint64_t *random, struct err *err)
{
	static uint64_t words[CLUSTER / 8];
	uint64_t clusters = block_info(disk)->size_bytes / CLUSTER;
	while (nr-- > 0) {
		for (size_t i = 0; i < ARRAY_LENGTH(words); i++)
			words[i] = next_random(random);
		uint64_t at = (next_random(random) >> 11) % clusters * CLUSTER;
		if (block_write(disk, words, CLUSTER, at, 0, err) < 0)
			return -1;
	}
	return 0;
}

static int make(const char *folder, unsigned depth, uint64_t size_bytes, struct err *err)
{
	uint64_t random = 88172645463325252ull;
	for (unsigned i = 0; i < depth; i++) {
		char path[4096], backing[32];
		snprintf(path, sizeof path, "%s/%u.qcow2", folder, i);
		snprintf(backing, sizeof backing, "%u.qcow2", i - 1);
		struct qcow2_create_options options = {
			.size_bytes = size_bytes,
			.backing_file = i > 0 ? backing : NULL,
			.backing_format = i > 0 ? "qcow2" : NULL,
		};
		if (qcow2_create(path, &options, err) < 0)
			return -1;
		struct block *disk = qcow2_open(path, &(struct qcow2_open_options){0}, err);
		if (!disk)
			return -1;
		int rc = write_some(disk, i > 0 ? CHANGES : size_bytes / CLUSTER / 4, &random, err);
		if (block_close(disk, rc < 0 ? NULL : err) < 0 || rc < 0)
			return -1;
	}
	return 0;
}

static int read_some(const char *path, uint64_t count, uint64_t step, struct err *err)
{
	struct qcow2_open_options options = {.read_only = true};
	struct block *disk = qcow2_open(path, &options, err);
	uint8_t buffer[4096];
	if (!disk)
		return -1;
	uint64_t size = block_info(disk)->size_bytes;
	int rc = 0;
	for (uint64_t i = 0, at = 0; rc == 0 && i < count; i++, at = (at + step) % size)
		rc = block_read(disk, buffer, sizeof buffer, at, err);
	block_close(disk, NULL);
	return rc;
}

int main(int argc, char **argv)
{
	struct err err = ERR_INIT;
	int rc = -1;
	if (argc == 5 && strcmp(argv[1], "make") == 0)
		rc = make(argv[2], (unsigned)strtoul(argv[3], NULL, 10),
			strtoull(argv[4], NULL, 10) * MIB, &err);
	else if (argc == 5 && strcmp(argv[1], "read") == 0)
		rc = read_some(
			argv[2], strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), &err);
	else
		err_set(&err, ERR_USAGE,
			"usage: chain make FOLDER DEPTH SIZE_MIB | "
			"chain read IMAGE COUNT STEP");
	if (rc < 0)
		fprintf(stderr, "%s\n", err.text);
	return rc < 0;
}
