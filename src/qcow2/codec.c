/*
 * Compressed clusters: zlib (raw deflate with a window of 4 KiB, as the format
 * wants it) and zstd frames.
 *
 * Contexts are costly to make, so they are kept and handed from thread to
 * thread.  A cluster of which only a part is read stays decompressed for a while,
 * because the next read is likely to want its next part.
 */
#include "qcow2_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#define ZLIB_WINDOW_BITS (-12)
#define ZLIB_MEMORY_LEVEL 9

struct qcow2_codec {
	struct qcow2_codec *next;
	ZSTD_CCtx *zstd_out;
	ZSTD_DCtx *zstd_in;
	z_stream zlib_out, zlib_in;
	bool has_zlib_out, has_zlib_in;
	int zlib_level;
	uint8_t *input, *output;
	size_t input_bytes, output_bytes;
};

void qcow2_codecs_init(struct qcow2_codecs *codecs)
{
	*codecs = (struct qcow2_codecs){0};
	pthread_mutex_init(&codecs->mutex, NULL);
}

static void codec_free(struct qcow2_codec *codec)
{
	ZSTD_freeCCtx(codec->zstd_out);
	ZSTD_freeDCtx(codec->zstd_in);
	if (codec->has_zlib_out)
		deflateEnd(&codec->zlib_out);
	if (codec->has_zlib_in)
		inflateEnd(&codec->zlib_in);
	free(codec->input);
	free(codec->output);
	free(codec);
}

void qcow2_codecs_destroy(struct qcow2_codecs *codecs)
{
	while (codecs->idle) {
		struct qcow2_codec *codec = codecs->idle;
		codecs->idle = codec->next;
		codec_free(codec);
	}
	for (size_t i = 0; i < QCOW2_UNPACKED_MAX; i++)
		free(codecs->unpacked[i].data);
	pthread_mutex_destroy(&codecs->mutex);
}

struct qcow2_codec *qcow2_codec_get(struct qcow2_codecs *codecs, struct err *err)
{
	pthread_mutex_lock(&codecs->mutex);
	struct qcow2_codec *codec = codecs->idle;
	if (codec)
		codecs->idle = codec->next;
	pthread_mutex_unlock(&codecs->mutex);
	if (codec)
		return codec;
	codec = calloc(1, sizeof *codec);
	if (!codec)
		err_errno(err, ENOMEM, "cannot compress or decompress");
	return codec;
}

void qcow2_codec_put(struct qcow2_codecs *codecs, struct qcow2_codec *codec)
{
	if (!codec)
		return;
	pthread_mutex_lock(&codecs->mutex);
	codec->next = codecs->idle;
	codecs->idle = codec;
	pthread_mutex_unlock(&codecs->mutex);
}

/* Grows a buffer without keeping its content. */
static uint8_t *buffer_of(uint8_t **buffer, size_t *room, size_t bytes)
{
	if (*room < bytes) {
		free(*buffer);
		*buffer = malloc(bytes);
		*room = *buffer ? bytes : 0;
	}
	return *buffer;
}

uint8_t *qcow2_codec_output(struct qcow2_codec *codec, size_t bytes)
{
	return buffer_of(&codec->output, &codec->output_bytes, bytes);
}

/* --- compressing ----------------------------------------------------------------- */

static size_t zstd_compress(struct qcow2_codec *codec, int level, const void *in, size_t in_bytes,
	void *out, size_t most_bytes)
{
	if (!codec->zstd_out)
		codec->zstd_out = ZSTD_createCCtx();
	if (!codec->zstd_out)
		return 0;
	size_t n = ZSTD_compressCCtx(codec->zstd_out, out, most_bytes, in, in_bytes,
		level ? level : ZSTD_CLEVEL_DEFAULT);
	return ZSTD_isError(n) ? 0 : n;
}

static size_t zlib_compress(struct qcow2_codec *codec, int level, const void *in, size_t in_bytes,
	void *out, size_t most_bytes)
{
	z_stream *z = &codec->zlib_out;
	if (codec->has_zlib_out && codec->zlib_level != level) {
		deflateEnd(z);
		codec->has_zlib_out = false;
	}
	if (codec->has_zlib_out) {
		deflateReset(z);
	} else {
		*z = (z_stream){0};
		if (deflateInit2(z, level ? level : Z_DEFAULT_COMPRESSION, Z_DEFLATED,
			    ZLIB_WINDOW_BITS, ZLIB_MEMORY_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK)
			return 0;
		codec->has_zlib_out = true;
		codec->zlib_level = level;
	}
	z->next_in = (Bytef *)(uintptr_t)in; /* zlib does not write there */
	z->avail_in = (uInt)in_bytes;
	z->next_out = out;
	z->avail_out = (uInt)most_bytes;
	return deflate(z, Z_FINISH) == Z_STREAM_END ? most_bytes - z->avail_out : 0;
}

size_t qcow2_codec_compress(struct qcow2_codec *codec, enum qcow2_compression type, int level,
	const void *in, size_t in_bytes, void *out, size_t most_bytes)
{
	if (type == QCOW2_ZSTD)
		return zstd_compress(codec, level, in, in_bytes, out, most_bytes);
	return zlib_compress(codec, level, in, in_bytes, out, most_bytes);
}

/* --- decompressing --------------------------------------------------------------- */

/* The input ends somewhere before in_bytes: it is done when the output is full. */
static bool zstd_decompress(
	struct qcow2_codec *codec, const void *in, size_t in_bytes, void *out, size_t out_bytes)
{
	if (!codec->zstd_in)
		codec->zstd_in = ZSTD_createDCtx();
	if (!codec->zstd_in)
		return false;
	ZSTD_DCtx_reset(codec->zstd_in, ZSTD_reset_session_only);
	ZSTD_inBuffer input = {in, in_bytes, 0};
	ZSTD_outBuffer output = {out, out_bytes, 0};
	while (output.pos < output.size) {
		size_t in_before = input.pos, out_before = output.pos;
		size_t left = ZSTD_decompressStream(codec->zstd_in, &output, &input);
		if (ZSTD_isError(left) || (input.pos == in_before && output.pos == out_before))
			return false;
	}
	return true;
}

static bool zlib_decompress(
	struct qcow2_codec *codec, const void *in, size_t in_bytes, void *out, size_t out_bytes)
{
	z_stream *z = &codec->zlib_in;
	if (codec->has_zlib_in) {
		inflateReset(z);
	} else {
		*z = (z_stream){0};
		if (inflateInit2(z, ZLIB_WINDOW_BITS) != Z_OK)
			return false;
		codec->has_zlib_in = true;
	}
	z->next_in = (Bytef *)(uintptr_t)in; /* zlib does not write there */
	z->avail_in = (uInt)in_bytes;
	z->next_out = out;
	z->avail_out = (uInt)out_bytes;
	int rc = inflate(z, Z_FINISH);
	/* The end mark may be missing from what was read: the output counts. */
	return (rc == Z_STREAM_END || rc == Z_BUF_ERROR || rc == Z_OK) && z->avail_out == 0;
}

static int load_input(struct qcow2_image *image, struct qcow2_codec *codec, uint64_t offset,
	size_t length, struct err *err)
{
	if (!buffer_of(&codec->input, &codec->input_bytes, length))
		return err_errno(err, ENOMEM, "cannot decompress a cluster of %s", image->path);
	return qcow2_header_pread(image->fd, codec->input, length, offset, image->path, err);
}

static int unpack(struct qcow2_image *image, uint64_t entry, void *out, struct err *err)
{
	uint64_t offset, length;
	qcow2_compressed_range(&image->h, entry, &offset, &length);
	struct qcow2_codec *codec = qcow2_codec_get(&image->shared->codecs, err);
	if (!codec)
		return -1;
	int rc = load_input(image, codec, offset, (size_t)length, err);
	if (rc == 0) {
		size_t out_bytes = image->h.cluster_bytes;
		bool good = image->h.compression == QCOW2_ZSTD
				    ? zstd_decompress(codec, codec->input, length, out, out_bytes)
				    : zlib_decompress(codec, codec->input, length, out, out_bytes);
		if (!good)
			rc = qcow2_image_corrupt(image, err,
				"the compressed cluster at offset %" PRIu64
				" cannot be decompressed",
				offset);
	}
	qcow2_codec_put(&image->shared->codecs, codec);
	return rc;
}

/* --- clusters that stay decompressed --------------------------------------------- */

static struct qcow2_unpacked *find_unpacked(
	struct qcow2_codecs *codecs, const struct qcow2_image *image, uint64_t entry)
{
	for (size_t i = 0; i < QCOW2_UNPACKED_MAX; i++) {
		struct qcow2_unpacked *u = &codecs->unpacked[i];
		if (u->image == image && u->entry == entry)
			return u;
	}
	return NULL;
}

/* The slot for a new cluster: of large clusters fewer are kept (8 MiB in all). */
static struct qcow2_unpacked *oldest_unpacked(struct qcow2_codecs *codecs, uint32_t bytes)
{
	size_t n = (size_t)min_u64(QCOW2_UNPACKED_MAX, max_u64(8 * MIB / bytes, 1));
	struct qcow2_unpacked *oldest = NULL;
	for (size_t i = 0; i < n; i++) {
		struct qcow2_unpacked *u = &codecs->unpacked[i];
		if (u->users == 0 && (!oldest || u->used_at < oldest->used_at))
			oldest = u;
	}
	return oldest;
}

/* Keeps data (allocated, taken) unless all slots are in use. */
static void keep_unpacked(struct qcow2_image *image, uint64_t entry, uint8_t *data)
{
	struct qcow2_codecs *codecs = &image->shared->codecs;
	WITH_LOCK(&codecs->mutex);
	struct qcow2_unpacked *u = oldest_unpacked(codecs, image->h.cluster_bytes);
	if (!u || find_unpacked(codecs, image, entry)) {
		free(data);
		return;
	}
	free(u->data);
	*u = (struct qcow2_unpacked){
		.image = image,
		.entry = entry,
		.data = data,
		.bytes = image->h.cluster_bytes,
		.used_at = ++codecs->clock,
	};
}

static bool copy_unpacked(
	struct qcow2_image *image, uint64_t entry, void *buffer, size_t length, size_t at)
{
	struct qcow2_codecs *codecs = &image->shared->codecs;
	pthread_mutex_lock(&codecs->mutex);
	struct qcow2_unpacked *u = find_unpacked(codecs, image, entry);
	if (u) {
		u->users++;
		u->used_at = ++codecs->clock;
	}
	pthread_mutex_unlock(&codecs->mutex);
	if (!u)
		return false;
	memcpy(buffer, u->data + at, length);
	pthread_mutex_lock(&codecs->mutex);
	u->users--;
	pthread_mutex_unlock(&codecs->mutex);
	return true;
}

void qcow2_codec_forget(struct qcow2_image *image, uint64_t entry)
{
	struct qcow2_codecs *codecs = &image->shared->codecs;
	WITH_LOCK(&codecs->mutex);
	struct qcow2_unpacked *u = find_unpacked(codecs, image, entry);
	if (u)
		u->image = NULL; /* the data goes when the slot is used again */
}

int qcow2_codec_read(struct qcow2_image *image, uint64_t entry, void *buffer, size_t length,
	size_t at, struct err *err)
{
	if (copy_unpacked(image, entry, buffer, length, at))
		return 0;
	if (length == image->h.cluster_bytes)
		return unpack(image, entry, buffer, err);
	uint8_t *data = malloc(image->h.cluster_bytes);
	if (!data)
		return err_errno(err, ENOMEM, "cannot decompress a cluster of %s", image->path);
	if (unpack(image, entry, data, err) < 0) {
		free(data);
		return -1;
	}
	memcpy(buffer, data + at, length);
	keep_unpacked(image, entry, data);
	return 0;
}
