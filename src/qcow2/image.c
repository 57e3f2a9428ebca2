/*
 * Opening and closing images and their chains.
 *
 * A chain is opened from the top down.  Each backing name is resolved in the
 * folder of the image that names it and must stay in the folders allowed; an
 * image that is in the chain already ends it with an error.  The images of a
 * chain share one metadata cache, so that its memory does not grow with them.
 */
#include "qcow2_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHAIN_MAX 1000u
#define CACHE_BYTES (16 * MIB)
#define CACHE_BYTES_MIN (1 * MIB)
#define ASSEMBLY_BYTES (16 * MIB)
/* Larger L1 tables of backing files, and what goes beyond all, are read through the cache. */
#define BACKING_L1_BYTES_MAX (64 * KIB)
#define BACKING_L1_BYTES_MAX_ALL (8 * MIB)
#define FLAT_BYTES (32 * MIB)
#define FLAT_IMAGES_MIN 3u

#undef qcow2_image_corrupt /* the analyzer's macro */
int qcow2_image_corrupt(const struct qcow2_image *image, struct err *err, const char *format, ...)
{
	char text[256];
	va_list ap;
	va_start(ap, format);
	vsnprintf(text, sizeof text, format, ap);
	va_end(ap);
	return err_set(err, ERR_CORRUPT, "%s is damaged: %s", image->path, text);
}

bool qcow2_image_fits(struct qcow2_image *image, uint64_t offset, uint64_t length)
{
	struct stat st;
	if (range_fits(offset, length, image->host_end))
		return true;
	if (!image->merged || fstat(image->fd, &st) < 0)
		return false;
	/* It may have grown; what was within it stays. */
	uint64_t end = round_up((uint64_t)st.st_size, image->h.cluster_bytes);
	image->host_end = max_u64(image->host_end, end);
	return range_fits(offset, length, image->host_end);
}

/* --- closing --------------------------------------------------------------------- */

static void free_writer(struct qcow2_writer *w)
{
	if (!w)
		return;
	qcow2_assembly_free(w->assembly);
	rangelock_destroy(&w->ranges);
	pthread_mutex_destroy(&w->marking);
	free(w->l1.dirty);
	free(w->refcounts.dirty);
	free(w->refcounts.entries);
	free(w->drops);
	free(w);
}

static int free_image(struct qcow2_image *image, struct err *err)
{
	int rc = 0;
	block_close(image->raw_backing, NULL);
	free_writer(image->writer);
	if (image->fd >= 0 && close(image->fd) < 0 && !image->block.info.read_only)
		rc = err_errno(err, errno, "cannot close %s", image->path);
	qcow2_header_free(&image->h);
	qcow2_flat_free(image->flat);
	free(image->l1);
	free(image->path);
	free(image->folder);
	block_fini(&image->block);
	free(image);
	return rc;
}

/* The whole chain, by a loop: it may be long. */
static int free_chain(struct qcow2_image *image, struct err *err)
{
	struct qcow2_shared *shared = image->shared;
	struct qcow2_image *backing = image->backing;
	int rc = free_image(image, err);
	while (backing) {
		image = backing;
		backing = image->backing;
		free_image(image, NULL);
	}
	qcow2_cache_destroy(&shared->cache);
	qcow2_codecs_destroy(&shared->codecs);
	free(shared);
	return rc;
}

static int flush(struct block *block, struct err *err)
{
	struct qcow2_image *image = qcow2_image_of(block);
	if (image->writer->assembly && qcow2_assembly_flush(image, false, err) < 0)
		return -1;
	return qcow2_commit(image, err);
}

static int close_image(struct block *block, struct err *err)
{
	struct qcow2_image *image = qcow2_image_of(block);
	int rc = 0;
	if (image->writer && image->writer->assembly)
		rc = qcow2_assembly_flush(image, true, err);
	if (image->writer && rc == 0)
		rc = qcow2_commit_close(image, err);
	int freed = free_chain(image, rc == 0 ? err : NULL);
	return rc < 0 ? rc : freed;
}

static uint64_t stored_bytes(struct block *block)
{
	struct stat st;
	return fstat(qcow2_image_of(block)->fd, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}

static const struct block_driver image_driver = {
	.name = "qcow2",
	.read = qcow2_read,
	.write = qcow2_write,
	.zero = qcow2_zero,
	.trim = qcow2_trim,
	.flush = flush,
	.extents = qcow2_extents,
	.stored_bytes = stored_bytes,
	.close = close_image,
};

/* --- one image ---------------------------------------------------------------------- */

static int refuse_loop(
	const struct qcow2_image *top, const char *path, dev_t device, ino_t inode, struct err *err)
{
	for (const struct qcow2_image *i = top; i; i = i->backing)
		if (i->device == device && i->inode == inode)
			return err_set(err, ERR_FORMAT,
				"the backing chain of %s refers to itself: it comes to %s again",
				top->path, path);
	return 0;
}

/* What is written into the top image itself nothing hides. */
static enum filelock_kind lock_of(
	const struct qcow2_open_options *options, bool read_only, bool is_top)
{
	if (!read_only)
		return options->merge ? FILELOCK_MERGE : FILELOCK_WRITE;
	return !is_top && options->read_only && options->merged ? FILELOCK_READ_MERGED
								: FILELOCK_READ;
}

/* top: of the chain that the image is opened for, NULL when it is the top itself. */
static int open_file(struct qcow2_image *image, const struct qcow2_image *top,
	const struct qcow2_open_options *options, struct err *err)
{
	struct stat st;
	bool read_only = top || options->read_only;
	/* O_NONBLOCK: a FIFO must not hang the open; it has no effect on files. */
	int flags = (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
	image->fd = open(image->path, flags);
	if (image->fd < 0 || fstat(image->fd, &st) < 0)
		return err_errno(err, errno, "cannot open qcow2:%s", image->path);
	if (guard_ask(image->fd, image->path, NULL, err) < 0)
		return -1;
	image->device = st.st_dev;
	image->inode = st.st_ino;
	if (refuse_loop(top, image->path, st.st_dev, st.st_ino, err) < 0 ||
		filelock_take(image->fd, image->path, lock_of(options, read_only, !top), err) < 0 ||
		qcow2_header_load(image->fd, image->path, &image->h, err) < 0)
		return -1;
	if (!read_only && !S_ISREG(st.st_mode))
		return err_set(err, ERR_UNSUPPORTED,
			"%s is a device: QCOW2 images on devices are only read", image->path);
	char *AUTO_FREE resolved = realpath(image->path, NULL);
	char *slash = resolved ? strrchr(resolved, '/') : NULL;
	if (!slash)
		return err_errno(err, errno, "cannot resolve the path of %s", image->path);
	slash[slash == resolved] = '\0';
	image->folder = strdup(resolved);
	image->merged = options->read_only && options->merged;
	return image->folder ? 0 : err_errno(err, ENOMEM, "cannot open %s", image->path);
}

static void derive(struct qcow2_image *image, bool read_only)
{
	struct qcow2_header *h = &image->h;
	image->entry_bytes = qcow2_l2_entry_bytes(h);
	image->l2_bits = (unsigned)__builtin_ctzll(qcow2_l2_entries(h));
	image->page_bytes =
		h->cluster_bytes < QCOW2_PAGE_BYTES ? h->cluster_bytes : QCOW2_PAGE_BYTES;
	image->host_end = round_up(h->file_bytes, h->cluster_bytes);
	image->block.info = (struct block_info){
		.size_bytes = h->size_bytes,
		.read_only = read_only,
		.has_extents = true,
		.multi_lane = true,
		.granule_bytes = h->cluster_bytes,
	};
}

static struct qcow2_image *new_image(const char *path, struct qcow2_shared *shared, struct err *err)
{
	struct qcow2_image *image = calloc(1, sizeof *image);
	char *label = NULL;
	if (!image || asprintf(&label, "qcow2:%s", path) < 0) {
		free(image);
		err_errno(err, ENOMEM, "cannot open %s", path);
		return NULL;
	}
	block_init(&image->block, &image_driver, label);
	image->block.info.read_only = true;
	image->fd = -1;
	image->shared = shared;
	image->path = strdup(path);
	if (!image->path) {
		err_errno(err, ENOMEM, "cannot open %s", path);
		free_image(image, NULL);
		return NULL;
	}
	return image;
}

/* --- the chain ------------------------------------------------------------------------ */

static bool is_below(const char *path, const char *folder)
{
	size_t n = strlen(folder);
	while (n > 1 && folder[n - 1] == '/')
		n--;
	if (n == 1 && folder[0] == '/')
		return true;
	return strncmp(path, folder, n) == 0 && path[n] == '/';
}

static bool is_allowed(
	const char *path, const struct qcow2_image *image, const struct qcow2_open_options *options)
{
	if (is_below(path, image->folder))
		return true;
	for (const char *const *f = options->allow_backing; f && *f; f++) {
		char *AUTO_FREE folder = realpath(*f, NULL);
		if (folder && is_below(path, folder))
			return true;
	}
	return false;
}

/* The path of the backing file, resolved; the caller frees.  NULL: err. */
static char *resolve_backing(
	const struct qcow2_image *image, const struct qcow2_open_options *options, struct err *err)
{
	const char *name = image->h.backing_file;
	const char *colon = strchr(name, ':'), *slash = strchr(name, '/');
	char *AUTO_FREE joined = NULL;
	if (colon && (!slash || colon < slash)) {
		err_set(err, ERR_DENIED,
			"%s has the backing file \"%s\": names with a protocol are not followed",
			image->path, name);
		return NULL;
	}
	int n = name[0] == '/' ? asprintf(&joined, "%s", name)
			       : asprintf(&joined, "%s/%s", image->folder, name);
	if (n < 0) {
		joined = NULL;
		err_errno(err, ENOMEM, "cannot open the backing file of %s", image->path);
		return NULL;
	}
	char *resolved = realpath(joined, NULL);
	if (!resolved) {
		err_errno(
			err, errno, "cannot find %s, the backing file of %s", joined, image->path);
		return NULL;
	}
	if (!is_allowed(resolved, image, options)) {
		err_set(err, ERR_DENIED,
			"%s has the backing file %s, which is outside of its folder and of those "
			"allowed",
			image->path, resolved);
		free(resolved);
		return NULL;
	}
	return resolved;
}

static int open_raw_backing(
	struct qcow2_image *top, struct qcow2_image *image, const char *path, struct err *err)
{
	struct stat st;
	if (stat(path, &st) < 0)
		return err_errno(err, errno, "cannot stat %s", path);
	if (refuse_loop(top, path, st.st_dev, st.st_ino, err) < 0)
		return -1;
	image->raw_backing = block_raw_open(path, true, err);
	if (!image->raw_backing)
		return err_context(err, "cannot open the backing file of %s", image->path);
	image->backing_bytes = block_info(image->raw_backing)->size_bytes;
	return 0;
}

static int load_backing_l1(struct qcow2_image *image, struct err *err)
{
	uint64_t bytes = (uint64_t)image->h.nr_l1_entries * 8;
	if (bytes > BACKING_L1_BYTES_MAX ||
		image->shared->l1_bytes + bytes > BACKING_L1_BYTES_MAX_ALL)
		return 0;
	image->shared->l1_bytes += bytes;
	return qcow2_header_load_l1(image->fd, image->path, &image->h, &image->l1, err);
}

/* The image below `image`, or its raw file; neither when it has none. */
static int open_next(struct qcow2_image *top, struct qcow2_image *image,
	const struct qcow2_open_options *options, struct err *err)
{
	if (image->h.backing_file[0] == '\0')
		return 0;
	bool raw = strcmp(image->h.backing_format, "raw") == 0;
	if (!raw && strcmp(image->h.backing_format, "qcow2") != 0)
		return err_set(err, ERR_UNSUPPORTED,
			"%s has the backing file \"%s\" with %s%s%s format: only stated qcow2 and "
			"raw "
			"are followed",
			image->path, image->h.backing_file, *image->h.backing_format ? "\"" : "no ",
			*image->h.backing_format ? image->h.backing_format : "stated",
			*image->h.backing_format ? "\" as its" : "");
	char *AUTO_FREE path = resolve_backing(image, options, err);
	if (!path || guard_ask(-1, path, image->path, err) < 0)
		return -1;
	if (raw)
		return open_raw_backing(top, image, path, err);
	if (image->shared->nr_images == CHAIN_MAX)
		return err_set(err, ERR_UNSUPPORTED,
			"the backing chain of %s has more than %u images", top->path, CHAIN_MAX);
	struct qcow2_image *next = new_image(path, image->shared, err);
	if (!next)
		return -1;
	if (open_file(next, top, options, err) < 0)
		goto fail;
	derive(next, true);
	/* Tables of a size that the file chooses, and of no use here. */
	qcow2_header_free(&next->h);
	if (load_backing_l1(next, err) < 0)
		goto fail;
	image->backing = next;
	image->backing_bytes = next->h.size_bytes;
	image->shared->nr_images++;
	return 0;
fail:
	free_image(next, NULL);
	return err_context(err, "cannot open the backing file of %s", image->path);
}

static bool can_be_flat(const struct qcow2_image *a, const struct qcow2_image *b)
{
	return !a->h.extended_l2 && !b->h.extended_l2 && a->h.cluster_bits == b->h.cluster_bits;
}

/* Lays the longest row of images flat that are alike. */
static int lay_flat(struct qcow2_image *top, struct err *err)
{
	struct qcow2_image *best = NULL, *next;
	unsigned most = FLAT_IMAGES_MIN - 1;
	for (struct qcow2_image *i = top->block.info.read_only ? top : top->backing; i; i = next) {
		unsigned nr = 1;
		for (next = i->backing; next && can_be_flat(i, next); next = next->backing)
			nr++;
		if (nr > most) {
			best = i;
			most = nr;
		}
	}
	if (!best)
		return 0;
	best->flat = qcow2_flat_new(best, most, FLAT_BYTES, err);
	return best->flat ? 0 : -1;
}

/* --- for writing ----------------------------------------------------------------------- */

/* What was not closed is checked first; afterwards the header is read again. */
static int recover(struct qcow2_image *image, struct err *err)
{
	struct qcow2_check_result result;
	if (image->h.incompatible & QCOW2_INCOMPATIBLE_CORRUPT)
		return err_set(err, ERR_CORRUPT,
			"%s is marked as corrupt and cannot be written to (it can be read)",
			image->path);
	if (!(image->h.incompatible & QCOW2_INCOMPATIBLE_DIRTY))
		return 0;
	log_warning("%s was not closed cleanly: checking it", image->path);
	if (qcow2_check_file(image->fd, image->path, true, NULL, NULL, NULL, &result, err) < 0 ||
		qcow2_check_file(image->fd, image->path, false, NULL, NULL, NULL, &result, err) < 0)
		return err_context(err, "%s was not closed cleanly", image->path);
	if (result.errors > 0)
		return err_set(err, ERR_CORRUPT,
			"%s was not closed cleanly and has %" PRIu64
			" errors that cannot be mended (it can be read)",
			image->path, result.errors);
	qcow2_header_free(&image->h);
	return qcow2_header_load(image->fd, image->path, &image->h, err);
}

static bool starts_zero(const struct qcow2_image *image)
{
	if (image->backing_bytes > 0)
		return false;
	for (uint32_t i = 0; i < image->h.nr_l1_entries; i++)
		if (image->l1[i] & QCOW2_OFFSET_MASK)
			return false;
	return true;
}

/* Readers may know where an L2 table is: none may move. */
static int refuse_shared_tables(const struct qcow2_image *image, struct err *err)
{
	for (uint32_t i = 0; i < image->h.nr_l1_entries; i++)
		if ((image->l1[i] & QCOW2_OFFSET_MASK) != 0 && !(image->l1[i] & QCOW2_COPIED))
			return err_set(err, ERR_UNSUPPORTED,
				"%s shares tables with its snapshots: nothing can be merged into "
				"it",
				image->path);
	return 0;
}

static int make_writer(
	struct qcow2_image *image, const struct qcow2_open_options *options, struct err *err)
{
	struct qcow2_writer *w = calloc(1, sizeof *w);
	if (!w)
		return err_errno(err, ENOMEM, "cannot open %s", image->path);
	image->writer = w;
	rangelock_init(&w->ranges);
	pthread_mutex_init(&w->marking, NULL);
	w->compress = options->compress;
	w->compress_level = options->compress_level;
	if (qcow2_table_init(&w->l1, image->l1, image->h.nr_l1_entries, err) < 0 ||
		qcow2_refcount_open(image, err) < 0)
		return -1;
	if (w->compress) {
		size_t bytes = options->assembly_bytes ? options->assembly_bytes : ASSEMBLY_BYTES;
		w->assembly = qcow2_assembly_new(image, bytes, err);
		if (!w->assembly)
			return -1;
	}
	image->merge = options->merge;
	if (image->merge && refuse_shared_tables(image, err) < 0)
		return -1;
	bool v3 = image->h.version >= 3, bare = image->backing_bytes == 0;
	image->block.info.can_trim = v3 || bare;
	image->block.info.can_zero = image->block.info.can_fast_zero = v3;
	image->block.info.starts_zero = starts_zero(image);
	return 0;
}

/* --- the room's front ------------------------------------------------------------------- */

static struct qcow2_shared *new_shared(const struct qcow2_open_options *options, struct err *err)
{
	struct qcow2_shared *shared = calloc(1, sizeof *shared);
	if (!shared) {
		err_errno(err, ENOMEM, "cannot open an image");
		return NULL;
	}
	size_t bytes = options->cache_bytes ? options->cache_bytes : CACHE_BYTES;
	if (qcow2_cache_init(
		    &shared->cache, bytes < CACHE_BYTES_MIN ? CACHE_BYTES_MIN : bytes, err) < 0) {
		free(shared);
		return NULL;
	}
	qcow2_codecs_init(&shared->codecs);
	shared->nr_images = 1;
	return shared;
}

static int present_size(struct qcow2_image *image, uint64_t size_bytes, struct err *err)
{
	uint64_t stored = image->h.size_bytes;
	if (size_bytes == 0)
		return 0;
	if (size_bytes > stored || stored - size_bytes > 511)
		return err_set(err, ERR_FORMAT,
			"%s holds a disk of %" PRIu64 " bytes, not one of %" PRIu64, image->path,
			stored, size_bytes);
	image->block.info.size_bytes = size_bytes;
	return 0;
}

static int open_top(
	struct qcow2_image *image, const struct qcow2_open_options *options, struct err *err)
{
	if (open_file(image, NULL, options, err) < 0)
		return -1;
	if (!options->read_only && recover(image, err) < 0)
		return -1;
	derive(image, options->read_only);
	if (present_size(image, options->size_bytes, err) < 0 ||
		qcow2_header_load_l1(image->fd, image->path, &image->h, &image->l1, err) < 0)
		return -1;
	for (struct qcow2_image *last = image; last; last = last->backing)
		if (open_next(image, last, options, err) < 0)
			return -1;
	if (lay_flat(image, err) < 0)
		return -1;
	image->own_layer = image->block.info.has_changes = options->read_only && options->own_layer;
	return options->read_only ? 0 : make_writer(image, options, err);
}

struct block *qcow2_open(
	const char *path, const struct qcow2_open_options *options, struct err *err)
{
	struct qcow2_shared *shared = new_shared(options, err);
	if (!shared)
		return NULL;
	struct qcow2_image *image = new_image(path, shared, err);
	if (!image) {
		qcow2_cache_destroy(&shared->cache);
		qcow2_codecs_destroy(&shared->codecs);
		free(shared);
		return NULL;
	}
	if (open_top(image, options, err) < 0) {
		free_chain(image, NULL);
		return NULL;
	}
	return &image->block;
}

unsigned qcow2_chain_length(struct block *image)
{
	const struct qcow2_image *i = qcow2_image_of(image);
	unsigned n = 1;
	for (; i->backing; i = i->backing)
		n++;
	return n + (i->raw_backing != NULL);
}
