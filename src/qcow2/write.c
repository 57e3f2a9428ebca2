/*
 * Writing.
 *
 * A request is done in pieces.  Each holds its range of guest clusters: shared
 * when all its clusters can be overwritten in place, else exclusive.  In the
 * exclusive case runs of clusters that need a new place get host clusters in a
 * row, are written with one call (what the request does not cover of the first
 * and the last cluster is filled from the chain), and only then enter the L2
 * table.  The lock is held for the look-up, the allocation and the entry, never
 * while data is written.
 */
#include "qcow2_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define PIECE_BYTES (8 * MIB)
#define PIECE_CLUSTERS 2048u
#define BATCH 64u /* entries looked at in one go */
#define GROUP_BYTES (1 * MIB) /* compressed in one go */

/* What the steps below share: a held range of the request. */
struct job {
	struct qcow2_image *image;
	const uint8_t *buffer; /* of byte `offset` */
	uint64_t offset, end;
	uint64_t first_cluster; /* of the entries below */
	struct qcow2_entry entries[BATCH];
	size_t nr;
};

void qcow2_write_hold(struct qcow2_image *image, struct rangelock_hold *hold, uint64_t offset,
	uint64_t length, bool exclusive)
{
	uint64_t start = round_down(offset, image->h.cluster_bytes);
	uint64_t end = round_up(offset + length, image->h.cluster_bytes);
	rangelock_acquire(&image->writer->ranges, hold, start, end - start, exclusive);
}

static int write_all(
	struct qcow2_image *image, struct iovec *iov, int nr_iov, uint64_t offset, struct err *err)
{
	while (nr_iov > 0) {
		ssize_t n = pwritev(image->fd, iov, nr_iov, (off_t)offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return err_errno(
				err, n < 0 ? errno : EIO, "cannot write to %s", image->path);
		offset += (uint64_t)n;
		while (nr_iov > 0 && (size_t)n >= iov->iov_len) {
			n -= (ssize_t)iov->iov_len;
			iov++;
			nr_iov--;
		}
		if (nr_iov > 0) {
			iov->iov_base = (uint8_t *)iov->iov_base + n;
			iov->iov_len -= (size_t)n;
		}
	}
	return 0;
}

/* --- kinds of clusters ------------------------------------------------------------ */

static bool is_in_place(const struct qcow2_image *image, struct qcow2_entry e)
{
	return (e.l2 & QCOW2_COPIED) && !(e.l2 & (QCOW2_COMPRESSED | QCOW2_ZERO)) &&
	       (e.l2 & QCOW2_OFFSET_MASK) != 0 &&
	       (image->entry_bytes == 8 || e.bitmap == QCOW2_BITMAP_ALL_DATA);
}

/* Its host cluster is its own, but what it holds is not (all of) the content. */
static bool has_own_place(struct qcow2_entry e)
{
	return (e.l2 & QCOW2_COPIED) && !(e.l2 & QCOW2_COMPRESSED) &&
	       (e.l2 & QCOW2_OFFSET_MASK) != 0;
}

static uint64_t host_of(struct qcow2_entry e)
{
	return e.l2 & QCOW2_OFFSET_MASK;
}

static struct qcow2_entry data_entry(const struct qcow2_image *image, uint64_t host)
{
	return (struct qcow2_entry){
		.l2 = host | QCOW2_COPIED,
		.bitmap = image->entry_bytes == 16 ? QCOW2_BITMAP_ALL_DATA : 0,
	};
}

/* Never lets guest data reach the tables that are known by heart, whatever a
 * hostile L2 table says.  Holding the lock. */
static int check_place(const struct qcow2_image *image, uint64_t host, struct err *err)
{
	const struct qcow2_header *h = &image->h;
	const struct {
		uint64_t offset, bytes;
	} tables[] = {
		{0, h->cluster_bytes},
		{h->l1_offset, (uint64_t)h->nr_l1_entries * 8},
		{h->refcount_table_offset, (uint64_t)h->refcount_table_clusters * h->cluster_bytes},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(tables); i++)
		if (host < tables[i].offset + tables[i].bytes &&
			tables[i].offset < host + h->cluster_bytes)
			return qcow2_image_corrupt(image, err,
				"guest data lies over its tables at offset %llu",
				(unsigned long long)tables[i].offset);
	return 0;
}

/* Loads the next entries of the job, checked, from its offset on. */
static int load_entries(struct job *job, struct err *err)
{
	struct qcow2_image *image = job->image;
	unsigned bits = image->h.cluster_bits;
	job->first_cluster = job->offset >> bits;
	uint64_t left = ((job->end - 1) >> bits) - job->first_cluster + 1;
	WITH_LOCK(qcow2_lock(image));
	if (qcow2_map_get(image, job->first_cluster, (size_t)min_u64(left, BATCH), job->entries,
		    &job->nr, err) < 0)
		return -1;
	for (size_t i = 0; i < job->nr; i++) {
		enum qcow2_kind kind;
		if (qcow2_map_check(image, job->first_cluster + i, job->entries[i], &kind, err) <
				0 ||
			(has_own_place(job->entries[i]) &&
				check_place(image, host_of(job->entries[i]), err) < 0))
			return -1;
	}
	return 0;
}

/* --- in place ---------------------------------------------------------------------- */

/* Entries i.. that can be overwritten in place and lie in a row. */
static int write_in_place(struct job *job, size_t *i, struct err *err)
{
	struct qcow2_image *image = job->image;
	uint32_t cluster_bytes = image->h.cluster_bytes;
	size_t n = 1;
	while (*i + n < job->nr && is_in_place(image, job->entries[*i + n]) &&
		host_of(job->entries[*i + n]) == host_of(job->entries[*i]) + n * cluster_bytes)
		n++;
	uint64_t start = (job->first_cluster + *i) << image->h.cluster_bits;
	uint64_t end = min_u64(start + n * cluster_bytes, job->end);
	uint64_t host = host_of(job->entries[*i]) + (job->offset - start);
	uint64_t length = end - job->offset;
	if (file_pwrite(image->fd, job->buffer, length, host, image->path, err) < 0)
		return -1;
	job->buffer += length;
	job->offset = end;
	*i += n;
	return 0;
}

/* --- to a new place ------------------------------------------------------------------ */

/* The old content of a range within one cluster, allocated; *fill is NULL when
 * it need not be written. */
static int load_fill(struct qcow2_image *image, uint64_t offset, uint64_t length, bool fresh,
	uint8_t **fill, struct err *err)
{
	bool zero;
	*fill = NULL;
	if (length == 0)
		return 0;
	if (fresh) {
		if (qcow2_read_is_zero(image, offset, length, &zero, err) < 0)
			return -1;
		if (zero)
			return 0;
	}
	*fill = malloc(length);
	if (!*fill)
		return err_errno(err, ENOMEM, "cannot write to %s", image->path);
	return qcow2_read_padded(image, *fill, length, offset, err);
}

/* Writes guest bytes job->offset..end, with the rest of their clusters, to host. */
static int write_filled(struct job *job, uint64_t end, uint64_t host, bool fresh, struct err *err)
{
	struct qcow2_image *image = job->image;
	uint8_t *AUTO_FREE head = NULL;
	uint8_t *AUTO_FREE tail = NULL;
	uint64_t head_bytes = job->offset % image->h.cluster_bytes;
	uint64_t tail_bytes = round_up(end, image->h.cluster_bytes) - end;
	if (load_fill(image, job->offset - head_bytes, head_bytes, fresh, &head, err) < 0 ||
		load_fill(image, end, tail_bytes, fresh, &tail, err) < 0)
		return -1;
	struct iovec iov[3];
	int n = 0;
	if (head)
		iov[n++] = (struct iovec){head, head_bytes};
	else
		host += head_bytes;
	/* pwritev does not write there. */
	iov[n++] = (struct iovec){(void *)(uintptr_t)job->buffer, end - job->offset};
	if (tail)
		iov[n++] = (struct iovec){tail, tail_bytes};
	return write_all(image, iov, n, host, err);
}

/* Enters n clusters that lie in a row at host, in place of entries i..; own: they
 * were theirs before, else they are given back when that fails. */
static int enter(struct job *job, size_t i, size_t n, uint64_t host, bool own, struct err *err)
{
	struct qcow2_image *image = job->image;
	struct qcow2_entry fresh[BATCH];
	for (size_t k = 0; k < n; k++)
		fresh[k] = data_entry(image, host + k * image->h.cluster_bytes);
	WITH_LOCK(qcow2_lock(image));
	if (qcow2_map_set(image, job->first_cluster + i, n, fresh, err) < 0) {
		if (!own)
			qcow2_refcount_undo(image, host >> image->h.cluster_bits, n);
		return -1;
	}
	for (size_t k = 0; k < n; k++) {
		struct qcow2_entry old = job->entries[i + k];
		if (!(old.l2 & QCOW2_COMPRESSED) && host_of(old) == host_of(fresh[k]))
			continue;
		if (qcow2_refcount_drop(image, old, err) < 0)
			return -1;
	}
	return 0;
}

static void undo_alloc(struct qcow2_image *image, uint64_t cluster, uint64_t nr)
{
	WITH_LOCK(qcow2_lock(image));
	qcow2_refcount_undo(image, cluster, nr);
}

/* At most `most` entries from i on, to a new place or their own. */
static int write_new(struct job *job, size_t *i, size_t most, struct err *err)
{
	struct qcow2_image *image = job->image;
	uint64_t cluster, nr = 1;
	bool fresh = false, own = has_own_place(job->entries[*i]);
	if (own) {
		cluster = host_of(job->entries[*i]) >> image->h.cluster_bits;
	} else {
		size_t n = 1;
		while (n < most && !has_own_place(job->entries[*i + n]))
			n++;
		WITH_LOCK(qcow2_lock(image));
		if (qcow2_refcount_alloc(image, n, &cluster, &nr, &fresh, err) < 0)
			return -1;
	}
	uint64_t host = cluster << image->h.cluster_bits;
	uint64_t end = (job->first_cluster + *i + nr) << image->h.cluster_bits;
	end = min_u64(end, job->end);
	if (write_filled(job, end, host, fresh, err) < 0) {
		if (!own)
			undo_alloc(image, cluster, nr);
		return -1;
	}
	if (enter(job, *i, (size_t)nr, host, own, err) < 0)
		return -1;
	job->buffer += end - job->offset;
	job->offset = end;
	*i += (size_t)nr;
	return 0;
}

/* --- compressed ----------------------------------------------------------------------- */

struct packed {
	size_t bytes; /* 0: does not get smaller */
	uint64_t host; /* 0: no place yet */
};

/* The place of one cluster that was not entered.  Holding the lock. */
static void give_back(struct qcow2_image *image, const struct packed *packed)
{
	if (packed->bytes == 0 || packed->host == 0)
		return;
	uint64_t first = packed->host >> image->h.cluster_bits;
	uint64_t last = (packed->host + packed->bytes - 1) >> image->h.cluster_bits;
	qcow2_refcount_undo(image, first, last - first + 1);
}

static void unplace(struct qcow2_image *image, const struct packed *packed, size_t n)
{
	WITH_LOCK(qcow2_lock(image));
	for (size_t k = 0; k < n; k++)
		give_back(image, &packed[k]);
}

/* Compresses whole clusters from entry i on into out, one behind the other. */
static void compress_group(
	struct job *job, struct qcow2_codec *codec, uint8_t *out, struct packed *packed, size_t n)
{
	struct qcow2_image *image = job->image;
	uint32_t cluster_bytes = image->h.cluster_bytes;
	uint8_t *AUTO_FREE padded = NULL;
	for (size_t k = 0; k < n; k++) {
		const uint8_t *in = job->buffer + k * cluster_bytes;
		uint64_t left = job->end - job->offset - k * cluster_bytes;
		if (left < cluster_bytes) { /* the disk ends in this cluster */
			padded = calloc(1, cluster_bytes);
			if (!padded) {
				packed[k].bytes = 0;
				return;
			}
			memcpy(padded, in, left);
			in = padded;
		}
		/* What does not save a sector is not worth decompressing. */
		packed[k].bytes = qcow2_codec_compress(codec, image->h.compression,
			image->writer->compress_level, in, cluster_bytes, out, cluster_bytes - 512);
		out += packed[k].bytes;
	}
}

/* Finds places, writes what lies in a row with one call. */
static int place_group(struct qcow2_image *image, const uint8_t *out, struct packed *packed,
	size_t n, struct err *err)
{
	uint64_t start = 0, length = 0;
	{
		WITH_LOCK(qcow2_lock(image));
		for (size_t k = 0; k < n; k++)
			if (packed[k].bytes > 0 && qcow2_refcount_pack(image, packed[k].bytes,
							   &packed[k].host, err) < 0)
				return -1;
	}
	for (size_t k = 0; k < n; k++) {
		if (packed[k].bytes == 0)
			continue;
		if (length > 0 && packed[k].host != start + length) {
			if (file_pwrite(image->fd, out, length, start, image->path, err) < 0)
				return -1;
			out += length;
			length = 0;
		}
		if (length == 0)
			start = packed[k].host;
		length += packed[k].bytes;
	}
	return length > 0 ? file_pwrite(image->fd, out, length, start, image->path, err) : 0;
}

static int enter_compressed(struct job *job, size_t i, const struct packed *packed, struct err *err)
{
	struct qcow2_image *image = job->image;
	unsigned x = 62 - (image->h.cluster_bits - 8);
	uint64_t first = packed->host / 512, last = (packed->host + packed->bytes - 1) / 512;
	struct qcow2_entry entry = {.l2 = QCOW2_COMPRESSED | (last - first) << x | packed->host};
	WITH_LOCK(qcow2_lock(image));
	if (qcow2_map_set(image, job->first_cluster + i, 1, &entry, err) < 0) {
		give_back(image, packed);
		return -1;
	}
	return qcow2_refcount_drop(image, job->entries[i], err);
}

/* n whole clusters from entry i on. */
static int write_group(
	struct job *job, size_t *i, size_t n, struct qcow2_codec *codec, struct err *err)
{
	struct qcow2_image *image = job->image;
	struct packed packed[BATCH] = {0};
	uint8_t *out = qcow2_codec_output(codec, n * image->h.cluster_bytes);
	if (!out)
		return err_errno(err, ENOMEM, "cannot compress for %s", image->path);
	compress_group(job, codec, out, packed, n);
	if (place_group(image, out, packed, n, err) < 0) {
		unplace(image, packed, n);
		return -1;
	}
	for (size_t k = 0; k < n;) {
		if (packed[k].bytes > 0) {
			if (enter_compressed(job, *i, &packed[k], err) < 0) {
				unplace(image, packed + k + 1, n - k - 1);
				return -1;
			}
			uint64_t step = min_u64(image->h.cluster_bytes, job->end - job->offset);
			job->buffer += step;
			job->offset += step;
			(*i)++;
			k++;
			continue;
		}
		size_t plain = 1;
		while (k + plain < n && packed[k + plain].bytes == 0)
			plain++;
		size_t before = *i;
		/* It ends the plain stretch and not the request. */
		uint64_t end = job->end;
		uint64_t stretch = (job->first_cluster + *i + plain) << image->h.cluster_bits;
		job->end = min_u64(end, stretch);
		int rc = write_new(job, i, plain, err);
		job->end = end;
		if (rc < 0) {
			unplace(image, packed + k, n - k);
			return -1;
		}
		k += *i - before;
	}
	return 0;
}

/* How many of `most` entries from i on are written whole. */
static size_t nr_whole(const struct job *job, size_t i, size_t most)
{
	const struct qcow2_image *image = job->image;
	uint64_t start = (job->first_cluster + i) << image->h.cluster_bits;
	if (job->offset != start)
		return 0;
	uint64_t n = (job->end - start) >> image->h.cluster_bits;
	if (job->end == image->block.info.size_bytes && job->end % image->h.cluster_bytes != 0)
		n++;
	n = min_u64(n, max_u64(GROUP_BYTES >> image->h.cluster_bits, 1));
	return (size_t)min_u64(n, most);
}

static int write_compressed(struct job *job, size_t *i, size_t n, struct err *err)
{
	struct qcow2_codecs *codecs = &job->image->shared->codecs;
	struct qcow2_codec *codec = qcow2_codec_get(codecs, err);
	if (!codec)
		return -1;
	int rc = write_group(job, i, n, codec, err);
	qcow2_codec_put(codecs, codec);
	return rc;
}

/* --- the request ------------------------------------------------------------------------ */

int qcow2_write_held(struct qcow2_image *image, const uint8_t *buffer, size_t length,
	uint64_t offset, bool exclusive, bool compress, struct err *err)
{
	struct job job = {
		.image = image, .buffer = buffer, .offset = offset, .end = offset + length};
	bool any_new = false;
	while (job.offset < job.end) {
		if (load_entries(&job, err) < 0)
			return -1;
		for (size_t i = 0; i < job.nr;) {
			if (is_in_place(image, job.entries[i])) {
				if (write_in_place(&job, &i, err) < 0)
					return -1;
				continue;
			}
			if (!exclusive)
				return 1;
			size_t n = 1;
			while (i + n < job.nr && !is_in_place(image, job.entries[i + n]))
				n++;
			any_new = true;
			size_t whole = compress ? nr_whole(&job, i, n) : 0;
			if (compress && whole == 0)
				n = 1;
			int rc = whole > 0 ? write_compressed(&job, &i, whole, err)
					   : write_new(&job, &i, n, err);
			if (rc < 0)
				return -1;
		}
	}
	if (exclusive && !any_new)
		atomic_store_explicit(&image->writer->expects_new, false, memory_order_relaxed);
	return 0;
}

bool qcow2_write_covers(const struct qcow2_image *image, uint64_t offset, uint64_t length,
	uint64_t *first, uint64_t *end)
{
	*first = div_round_up(offset, image->h.cluster_bytes);
	*end = (offset + length) >> image->h.cluster_bits;
	if (offset + length == image->block.info.size_bytes)
		*end = div_round_up(offset + length, image->h.cluster_bytes);
	return *end > *first;
}

int qcow2_write_refuse_part(
	const struct qcow2_image *image, uint64_t offset, uint64_t length, struct err *err)
{
	uint64_t first, end;
	if (!image->merge)
		return 0;
	bool covers = qcow2_write_covers(image, offset, length, &first, &end);
	if (covers && first << image->h.cluster_bits == offset &&
		end == div_round_up(offset + length, image->h.cluster_bytes))
		return 0;
	return err_set(err, ERR_USAGE,
		"cannot merge %llu bytes at offset %llu into %s: readers may see the rest of their "
		"clusters",
		(unsigned long long)length, (unsigned long long)offset, image->path);
}

static int write_piece(struct qcow2_image *image, const uint8_t *buffer, size_t length,
	uint64_t offset, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	if (qcow2_commit_make_room(image, err) < 0)
		return -1;
	bool exclusive = atomic_load_explicit(&w->expects_new, memory_order_relaxed);
	for (;;) {
		struct rangelock_hold hold;
		uint64_t first, end;
		qcow2_write_hold(image, &hold, offset, length, exclusive);
		/* What is assembled of clusters that are covered is outdated. */
		bool outdates = w->assembly &&
				qcow2_write_covers(image, offset, length, &first, &end) &&
				qcow2_assembly_next(image, first, end) < end;
		int rc = 1;
		if (exclusive || !outdates)
			rc = qcow2_write_held(
				image, buffer, length, offset, exclusive, w->compress, err);
		if (rc == 0 && outdates)
			qcow2_assembly_discard(image, first, end - first);
		rangelock_release(&w->ranges, &hold);
		if (rc <= 0)
			return rc;
		exclusive = true;
		atomic_store_explicit(&w->expects_new, true, memory_order_relaxed);
	}
}

int qcow2_write_through(struct qcow2_image *image, const void *buffer, size_t length,
	uint64_t offset, struct err *err)
{
	const uint8_t *at = buffer;
	uint64_t most = min_u64(PIECE_BYTES, (uint64_t)PIECE_CLUSTERS << image->h.cluster_bits);
	while (length > 0) {
		/* Pieces end at cluster boundaries, so that no cluster is filled twice. */
		uint64_t n = most - offset % image->h.cluster_bytes;
		n = min_u64(n, length);
		if (write_piece(image, at, (size_t)n, offset, err) < 0)
			return -1;
		at += n;
		offset += n;
		length -= (size_t)n;
	}
	return 0;
}

/* Compressing: what does not cover a cluster waits for the rest of it. */
static int write_assembling(struct qcow2_image *image, const uint8_t *at, size_t length,
	uint64_t offset, struct err *err)
{
	uint32_t cluster_bytes = image->h.cluster_bytes;
	uint64_t size = image->block.info.size_bytes;
	while (length > 0) {
		uint64_t in_cluster = offset % cluster_bytes;
		uint64_t n = min_u64(length, cluster_bytes - in_cluster);
		bool whole = in_cluster == 0 && (n == cluster_bytes || offset + n == size);
		int rc;
		if (whole) {
			n = round_down(length, cluster_bytes);
			if (offset + length == size)
				n = length;
			rc = qcow2_write_through(image, at, (size_t)n, offset, err);
		} else {
			rc = qcow2_assembly_write(image, at, (size_t)n, offset, err);
		}
		if (rc < 0)
			return -1;
		at += n;
		offset += n;
		length -= (size_t)n;
	}
	return 0;
}

int qcow2_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	(void)flags;
	struct qcow2_image *image = qcow2_image_of(block);
	if (qcow2_write_refuse_part(image, offset, length, err) < 0)
		return -1;
	if (image->writer->assembly)
		return write_assembling(image, buffer, length, offset, err);
	return qcow2_write_through(image, buffer, length, offset, err);
}
