/*
 * sendense measure: what a backup of a disk would read and store.
 *
 *   1  the extents are streamed and added up: what is allocated
 *   2  they are streamed again; of the allocated space a part is read: all of it
 *      where that is little (or with --exact), else clusters evenly spread over
 *      it, at a random place of each stride.  Each cluster is looked at for zeros
 *      and compressed, and the sums are scaled up to what is allocated.
 *
 * Nothing is kept but counters, and the second pass ends with the time box.
 */
#include "commands.h"
#include "progress.h"
#include "source.h"

#include <errno.h>
#include <zstd.h>

#define CLUSTER_BYTES ((size_t)65536)
#define SAMPLES_MOST 4096u
#define TIME_BOX_DEFAULT_S 30
#define EXTENTS_AT_ONCE 256
#define READ_BYTES (16 * CLUSTER_BYTES)
/* Metadata of an image: eight bytes of L2 entry and two of refcount a cluster,
 * and checksums of 16 bytes. */
#define METADATA_PER_CLUSTER 26u

struct values {
	bool exact;
	struct option_number time_box;
	struct option_list allow_backing;
	struct tls_options tls;
};

static const struct option_spec option_table[] = {
	{.name = "exact",
		.kind = OPTION_FLAG,
		.offset = offsetof(struct values, exact),
		.help = "read all that is allocated, however long it takes"},
	{.name = "time-box",
		.kind = OPTION_DURATION,
		.offset = offsetof(struct values, time_box),
		.argument = "TIME",
		.minimum = 1,
		.maximum = 31536000,
		.help = "end sampling after that time (default: 30s)"},
	ALLOW_BACKING_ROW(struct values, allow_backing),
	TLS_OPTION_ROWS(struct values),
};

struct measure {
	struct block *disk;
	struct cancel *cancel;
	bool exact;
	struct deadline until;
	uint64_t stride_clusters; /* every how many allocated clusters one is looked at */
	uint64_t next_cluster; /* of the allocated ones, the next to look at */
	uint64_t seen_clusters; /* allocated ones passed by so far */
	uint64_t random;
	ZSTD_CCtx *zstd;
	uint8_t *buffer, *compressed;
	size_t compressed_bytes;

	uint64_t size_bytes, allocated_bytes, nr_extents;
	uint64_t sampled_bytes, sampled_data_bytes, sampled_zstd_bytes;
	bool whole; /* all that is allocated was looked at */
	struct copy_progress figures;
};

/* xorshift: where in a stride to look; not for secrets. */
static uint64_t next_random(struct measure *m)
{
	m->random ^= m->random << 13;
	m->random ^= m->random >> 7;
	m->random ^= m->random << 17;
	return m->random;
}

static bool is_data(const struct block_extent *extent)
{
	return !(extent->flags & BLOCK_ZERO);
}

/* Streams all extents; visit (may be NULL) gets those with data, and returns 1 to
 * stop. */
static int walk(struct measure *m,
	int (*visit)(struct measure *, uint64_t offset, uint64_t length, struct err *),
	struct err *err)
{
	struct block_extent extents[EXTENTS_AT_ONCE];
	uint64_t offset = 0;
	while (offset < m->size_bytes) {
		size_t nr;
		if (cancel_check(m->cancel, err) < 0 ||
			block_extents(m->disk, offset, m->size_bytes - offset, extents,
				EXTENTS_AT_ONCE, &nr, err) < 0)
			return -1;
		for (size_t i = 0; i < nr; offset += extents[i++].length) {
			if (!is_data(&extents[i]))
				continue;
			int rc = visit(m, offset, extents[i].length, err);
			if (rc != 0)
				return rc < 0 ? -1 : 0;
		}
	}
	return 0;
}

static int count(struct measure *m, uint64_t offset, uint64_t length, struct err *err)
{
	(void)offset, (void)err;
	m->allocated_bytes += length;
	m->nr_extents++;
	return 0;
}

static void look_at(struct measure *m, const uint8_t *cluster, size_t length)
{
	m->sampled_bytes += length;
	if (digest_is_zero(cluster, length))
		return;
	m->sampled_data_bytes += length;
	size_t n = ZSTD_compressCCtx(
		m->zstd, m->compressed, m->compressed_bytes, cluster, length, ZSTD_CLEVEL_DEFAULT);
	/* What does not shrink is stored as it is. */
	m->sampled_zstd_bytes += ZSTD_isError(n) || n >= length ? length : n;
}

/* Reads and looks at length bytes from offset on. */
static int look_at_range(struct measure *m, uint64_t offset, uint64_t length, struct err *err)
{
	while (length > 0) {
		size_t n = (size_t)min_u64(length, READ_BYTES);
		if (cancel_check(m->cancel, err) < 0 ||
			block_read(m->disk, m->buffer, n, offset, err) < 0)
			return -1;
		for (size_t at = 0; at < n; at += CLUSTER_BYTES)
			look_at(m, m->buffer + at, min_size(CLUSTER_BYTES, n - at));
		atomic_fetch_add(&m->figures.read, n);
		offset += n;
		length -= n;
	}
	return 0;
}

/* Looks at the part of an extent whose turn it is. */
static int sample(struct measure *m, uint64_t offset, uint64_t length, struct err *err)
{
	if (m->stride_clusters <= 1) {
		if (look_at_range(m, offset, length, err) < 0)
			return -1;
		atomic_fetch_add(&m->figures.logical, length);
	} else {
		uint64_t nr = div_round_up(length, CLUSTER_BYTES);
		while (m->next_cluster < m->seen_clusters + nr) {
			uint64_t at = (m->next_cluster - m->seen_clusters) * CLUSTER_BYTES;
			if (look_at_range(
				    m, offset + at, min_u64(CLUSTER_BYTES, length - at), err) < 0)
				return -1;
			uint64_t stride = m->next_cluster / m->stride_clusters + 1;
			m->next_cluster =
				stride * m->stride_clusters + next_random(m) % m->stride_clusters;
			if (!m->exact && deadline_passed(m->until))
				return 1;
		}
		m->seen_clusters += nr;
		atomic_fetch_add(&m->figures.logical, length);
	}
	return !m->exact && deadline_passed(m->until) ? 1 : 0;
}

static int measure(struct measure *m, struct progress *progress, struct err *err)
{
	progress_stage(progress, "extents");
	if (walk(m, count, err) < 0 ||
		progress_add_disk(progress, NULL, m->allocated_bytes, &m->figures, err) < 0)
		return -1;
	progress_stage(progress, "sample");
	/* The seed is fixed: the same disk gives the same answer again. */
	m->random = 88172645463325252u;
	uint64_t nr_clusters = div_round_up(m->allocated_bytes, CLUSTER_BYTES);
	m->stride_clusters = m->exact ? 1 : div_round_up(nr_clusters, SAMPLES_MOST);
	if (walk(m, sample, err) < 0)
		return -1;
	m->whole = m->sampled_bytes == m->allocated_bytes;
	return 0;
}

/* part of the sample, scaled up to all that is allocated. */
static uint64_t scale(const struct measure *m, uint64_t part)
{
	if (m->whole || m->sampled_bytes == 0)
		return part;
	return (uint64_t)((double)part * ((double)m->allocated_bytes / (double)m->sampled_bytes));
}

static int print_report(
	const struct cli *cli, const struct measure *m, int64_t took_ns, struct err *err)
{
	uint64_t data = scale(m, m->sampled_data_bytes);
	uint64_t metadata = div_round_up(data, CLUSTER_BYTES) * METADATA_PER_CLUSTER;
	uint64_t none = data + metadata, zstd = scale(m, m->sampled_zstd_bytes) + metadata;
	if (cli->common.json)
		return cli_print_json(
			json_pack("{s:s, s:I, s:I, s:I, s:I, s:{s:I, s:I}, s:b, s:I, s:f}",
				"source", block_label(m->disk), "size", (json_int_t)m->size_bytes,
				"allocated", (json_int_t)m->allocated_bytes, "extents",
				(json_int_t)m->nr_extents, "data", (json_int_t)data, "stored",
				"none", (json_int_t)none, "zstd", (json_int_t)zstd, "exact",
				m->whole, "sampled", (json_int_t)m->sampled_bytes, "seconds",
				(double)took_ns / 1e9),
			err);
	char text[SIZE_TEXT_BYTES];
	printf("%-34s %12s\n", "size", cli_size_text(m->size_bytes, text));
	printf("%-34s %12s\n", "allocated (a full backup reads it)",
		cli_size_text(m->allocated_bytes, text));
	printf("%-34s %12s\n", "data that is not zeros", cli_size_text(data, text));
	printf("%-34s %12s\n", "stored without compression", cli_size_text(none, text));
	printf("%-34s %12s\n", "stored with zstd", cli_size_text(zstd, text));
	if (!m->whole)
		printf("The last three are estimated from a sample of %s (--exact reads all).\n",
			cli_size_text(m->sampled_bytes, text));
	return cli_flush(err);
}

static int measure_init(struct measure *m, const struct values *v, struct err *err)
{
	m->exact = v->exact;
	m->until = deadline_after_ms(
		1000 * (int64_t)(v->time_box.given ? v->time_box.value : TIME_BOX_DEFAULT_S));
	m->size_bytes = block_info(m->disk)->size_bytes;
	m->compressed_bytes = ZSTD_compressBound(CLUSTER_BYTES);
	m->buffer = malloc(READ_BYTES);
	m->compressed = malloc(m->compressed_bytes);
	m->zstd = ZSTD_createCCtx();
	if (!m->buffer || !m->compressed || !m->zstd)
		return err_errno(err, ENOMEM, "cannot measure");
	return 0;
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct values *v = values;
	const char *name = cli->arguments.items[0];
	int64_t began_ns = clock_now_ns();
	if (v->exact && v->time_box.given)
		return err_set(err, ERR_USAGE, "--exact and --time-box: only one of them");
	struct measure m = {.cancel = cli->cancel};
	struct source_options open = {
		.read_only = true,
		.allow_backing = &v->allow_backing,
		.tls = &v->tls,
		.cancel = cli->cancel,
	};
	m.disk = source_open(name, &open, err);
	if (!m.disk)
		return err_context(err, "cannot measure %s", name);
	int rc = measure_init(&m, v, err);
	struct progress *progress = rc == 0 ? progress_start(&cli->common, err) : NULL;
	rc = progress ? measure(&m, progress, err) : -1;
	if (rc < 0)
		err_context(err, "cannot measure %s", name);
	progress_end(progress, err);
	if (rc == 0)
		rc = print_report(cli, &m, clock_now_ns() - began_ns, err);
	ZSTD_freeCCtx(m.zstd);
	free(m.compressed);
	free(m.buffer);
	block_close(m.disk, NULL);
	return rc;
}

const struct command command_measure = {
	.name = "measure",
	.arguments = "SOURCE",
	.summary = "Tell what a backup of a disk would read and store, without writing",
	.details =
		"Reads all that is allocated where that is at most 256 MiB, else a sample that is\n"
		"evenly spread over it.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON | COMMON_PROGRESS,
	.min_arguments = 1,
	.max_arguments = 1,
	.words = WORDS_DISK,
	.values_bytes = sizeof(struct values),
	.run = run,
};
