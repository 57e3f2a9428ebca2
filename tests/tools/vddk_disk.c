/*
 * vddk_disk FILE: opens a disk with VMware's library as the integration tests want it.  FILE has
 * lines "name=value": the members of struct vddk_options, and what to do with the disk, in
 * this order: wait=yes (prints "open", reads a line), map=yes (prints the extents),
 * threads=N (so many read at random offsets, and close lanes with reads in flight; compared with
 * the file check=FILE), copy=FILE|null (with lanes=N), read=OFFSET:LENGTH (prints the bytes' sum).
 * probe=yes: loads the library alone.  The library's lines go to stderr as "log: …".  Exit status 1
 * with "CODE: text" as the last line on stderr; 3 when descriptors were left open.
 */
#include "copy.h"
#include "vddk.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char text[65536];

static const char *value(const char *name)
{
	size_t length = strlen(name);
	for (char *line = text; *line; line += strlen(line) + 1) {
		if (strncmp(line, name, length) == 0 && line[length] == '=')
			return line + length + 1;
	}
	return NULL;
}

static unsigned number(const char *name)
{
	return value(name) ? (unsigned)strtoul(value(name), NULL, 0) : 0;
}

static int failed(const struct err *err)
{
	fprintf(stderr, "%s: %s\n", err_code_name(err->code), err->text);
	return 1;
}

static void on_log(void *context, enum log_level level, const char *line)
{
	(void)context;
	fprintf(stderr, "log: %s: %s\n", log_level_name(level), line);
}

static int load(const char *path)
{
	FILE *file = fopen(path, "re");
	if (!file)
		return -1;
	size_t n = fread(text, 1, sizeof text - 2, file);
	fclose(file);
	for (size_t i = 0; i < n; i++)
		text[i] = text[i] == '\n' ? '\0' : text[i];
	return 0;
}

static int print_map(struct block *disk, struct err *err)
{
	uint64_t size = block_info(disk)->size_bytes, at = 0;
	while (at < size) {
		struct block_extent extents[4];
		size_t nr;
		if (block_extents(disk, at, size - at, extents, 4, &nr, err) < 0)
			return -1;
		for (size_t i = 0; i < nr; at += extents[i++].length)
			printf("%" PRIu64 " %" PRIu64 " %s\n", at, extents[i].length,
				extents[i].flags ? "hole" : "data");
	}
	return 0;
}

static int copy(struct block *disk, struct cancel *cancel, struct err *err)
{
	struct copy_progress progress = {0};
	const struct copy_options options = {
		.nr_lanes = number("lanes"), .progress = &progress, .cancel = cancel};
	uint64_t size = block_info(disk)->size_bytes;
	struct block *target = strcmp(value("copy"), "null") == 0
				       ? block_null_open(size, err)
				       : block_raw_create(value("copy"), size, true, err);
	if (!target)
		return -1;
	int rc = copy_run(disk, target, &options, err);
	struct err ignored = ERR_INIT;
	block_close(target, &ignored);
	printf("read %" PRIu64 "\n", (uint64_t)atomic_load(&progress.read));
	return rc;
}

static int read_some(struct block *disk, struct err *err)
{
	char *end;
	uint64_t offset = strtoull(value("read"), &end, 0), sum = 0;
	size_t length = strtoull(end + 1, NULL, 0);
	uint8_t *buffer = malloc(length);
	int rc = buffer ? block_read(disk, buffer, length, offset, err) : -1;
	for (size_t i = 0; rc == 0 && i < length; i++)
		sum += buffer[i];
	free(buffer);
	printf("sum %" PRIu64 "\n", sum);
	fflush(stdout);
	return rc;
}

struct reader {
	pthread_t thread;
	struct block *disk, *check;
	unsigned seed;
	struct err err;
};

static int compare_some(struct reader *r, uint8_t *a, uint8_t *b, size_t most)
{
	uint64_t size = block_info(r->disk)->size_bytes;
	uint64_t offset = (uint64_t)rand_r(&r->seed) * 8 % size;
	size_t length = (size_t)min_u64((size_t)rand_r(&r->seed) % most + 1, size - offset);
	if (block_read(r->disk, a, length, offset, &r->err) < 0 ||
		block_read(r->check, b, length, offset, &r->err) < 0)
		return -1;
	return memcmp(a, b, length) == 0
		       ? 0
		       : err_set(&r->err, ERR_CORRUPT, "other bytes at %" PRIu64, offset);
}

/* A lane that is closed with its requests in flight; its buffer is gone at once. */
static int abandon_some(struct reader *r, size_t most)
{
	struct block_io ios[4] = {0};
	struct block_extent extent;
	uint8_t *buffer = malloc(most);
	struct block_lane *lane = buffer ? block_lane_open(r->disk, NULL, &r->err) : NULL;
	for (int i = 0; lane && i < 4; i++) {
		ios[i] = (struct block_io){.op = BLOCK_OP_READ,
			.offset = (uint64_t)i * 512,
			.length = most,
			.buffer = buffer};
		if (i == 3)
			ios[i] = (struct block_io){.op = BLOCK_OP_EXTENTS,
				.length = most,
				.buffer = &extent,
				.nr_extents = 1};
		block_lane_submit(lane, &ios[i]);
	}
	block_lane_close(lane);
	free(buffer);
	return lane ? 0 : -1;
}

static void *read_at_random(void *arg)
{
	struct reader *r = arg;
	const size_t most = (size_t)(3 * MIB);
	uint8_t *a = malloc(most), *b = malloc(most);
	for (int i = 0; a && b && i < 12; i++) {
		if (compare_some(r, a, b, most) < 0 || abandon_some(r, most) < 0)
			break;
	}
	free(a);
	free(b);
	return NULL;
}

static int read_in_threads(struct block *disk, struct err *err)
{
	static struct reader readers[64];
	unsigned nr = number("threads"), nr_started = 0;
	struct block *check = block_raw_open(value("check"), true, err);
	int rc = check && nr <= ARRAY_LENGTH(readers) ? 0 : -1;
	for (unsigned i = 0; rc == 0 && i < nr; i++) {
		readers[i] = (struct reader){.disk = disk, .check = check, .seed = i};
		rc = thread_start(&readers[i].thread, "reader", read_at_random, &readers[i], err);
		nr_started += rc == 0;
	}
	for (unsigned i = 0; i < nr_started; i++) {
		pthread_join(readers[i].thread, NULL);
		if (readers[i].err.code != ERR_NONE)
			rc = err_copy(err, &readers[i].err);
	}
	struct err ignored = ERR_INIT;
	block_close(check, &ignored);
	return rc;
}

static int use(struct block *disk, struct cancel *cancel, struct err *err)
{
	struct vddk_facts facts;
	char line[16];
	vddk_facts(disk, &facts);
	printf("size %" PRIu64 "\nmajor %u\ntransport %s\nasynchronous %d\nallocated %d\n",
		block_info(disk)->size_bytes, facts.major, facts.transport, facts.asynchronous,
		facts.allocated);
	if (value("wait")) {
		printf("open\n");
		fflush(stdout);
		if (!fgets(line, sizeof line, stdin))
			return err_set(err, ERR_CANCELLED, "nobody said go");
	}
	if (value("map") && print_map(disk, err) < 0)
		return -1;
	if (value("threads") && read_in_threads(disk, err) < 0)
		return -1;
	if (value("copy") && copy(disk, cancel, err) < 0)
		return -1;
	return value("read") ? read_some(disk, err) : 0;
}

static int probe(struct cancel *cancel)
{
	struct err err = ERR_INIT;
	struct vddk_facts facts;
	char loaded[VDDK_PATH_BYTES];
	if (vddk_probe(value("folder"), value("helper"), &facts, loaded, cancel, &err) < 0)
		return failed(&err);
	printf("major %u\nloaded %s\n", facts.major, loaded);
	return 0;
}

static unsigned nr_open_files(void)
{
	unsigned nr = 0;
	for (int fd = 0; fd < 256; fd++)
		nr += fcntl(fd, F_GETFD) >= 0;
	return nr;
}

static struct cancel *stop;

static void on_term(int signal_nr)
{
	(void)signal_nr;
	cancel_request(stop);
}

int main(int argc, char **argv)
{
	struct err err = ERR_INIT;
	stop = cancel_new(&err);
	if (argc != 2 || load(argv[1]) < 0 || !stop)
		return 2;
	signal(SIGTERM, on_term);
	const struct vddk_options options = {
		.helper = value("helper"),
		.folder = value("folder"),
		.server = value("server"),
		.port = (uint16_t)number("port"),
		.thumbprint = value("thumbprint"),
		.user = value("user"),
		.password = value("password"),
		.cookie = value("cookie"),
		.vm = value("vm"),
		.snapshot = value("snapshot"),
		.path = value("path"),
		.size_bytes = number("size_bytes"),
		.compression = value("compression"),
		.nr_reads = number("nr_reads"),
		.allocated = value("allocated") != NULL,
		.hold_access = value("hold_access") != NULL,
		.open_timeout_ms = number("open_timeout_ms"),
		.call_timeout_ms = number("call_timeout_ms"),
		.close_timeout_ms = number("close_timeout_ms"),
		.cancel = stop,
		.log = on_log,
	};
	unsigned nr_before = nr_open_files();
	int status;
	if (value("probe")) {
		status = probe(stop);
	} else {
		struct block *disk = vddk_open(&options, &err);
		int rc = disk ? use(disk, stop, &err) : -1;
		struct err ignored = ERR_INIT;
		block_close(disk, &ignored);
		status = rc < 0 ? failed(&err) : 0;
	}
	if (nr_open_files() != nr_before)
		status = 3;
	cancel_free(stop);
	return status;
}
