/* Settings of a repository: defaults, ranges, and their form in repository.json. */
#include "repository_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static const char *const compression_names[] = {
	[REPOSITORY_COMPRESS_NONE] = "none",
	[REPOSITORY_COMPRESS_ZLIB] = "zlib",
	[REPOSITORY_COMPRESS_ZSTD] = "zstd",
};

const char *repository_compression_name(enum repository_compression compression)
{
	return compression_names[compression];
}

bool repository_compression_parse(const char *name, enum repository_compression *compression)
{
	for (unsigned i = 0; i < ARRAY_LENGTH(compression_names); i++) {
		if (strcmp(name, compression_names[i]) == 0) {
			*compression = i;
			return true;
		}
	}
	return false;
}

void repository_settings_default(struct repository_settings *settings)
{
	*settings = (struct repository_settings){
		.compression = REPOSITORY_COMPRESS_ZSTD,
		.cluster_bytes = 65536,
		.digest = DIGEST_XXH3_128,
		.chain_length_max = 60,
		.keep_unfinished_s = 86400,
	};
}

int settings_check(const struct repository_settings *settings, struct err *err)
{
	static const int level_most[] = {0, 9, 19};
	if (settings->cluster_bytes < 4096 || settings->cluster_bytes > 2 * MIB ||
		(settings->cluster_bytes & (settings->cluster_bytes - 1)) != 0)
		return err_set(err, ERR_USAGE,
			"cluster size %u is refused: a power of two from 4096 to 2097152",
			settings->cluster_bytes);
	if (settings->compress_level < 0 ||
		settings->compress_level > level_most[settings->compression])
		return err_set(err, ERR_USAGE, "compression level %d is refused: 0 to %d for %s",
			settings->compress_level, level_most[settings->compression],
			repository_compression_name(settings->compression));
	if (settings->chain_length_max < 1 || settings->chain_length_max > 500)
		return err_set(err, ERR_USAGE, "longest chain %u is refused: 1 to 500",
			settings->chain_length_max);
	if (settings->keep_unfinished_s > 366u * 86400)
		return err_set(err, ERR_USAGE,
			"unfinished jobs cannot be kept for %u seconds: at most 366 days",
			settings->keep_unfinished_s);
	return 0;
}

json_t *settings_to_json(const struct repository_settings *settings)
{
	return json_pack("{s:s, s:i, s:I, s:s, s:I, s:I}", "compression",
		repository_compression_name(settings->compression), "compress_level",
		settings->compress_level, "cluster_bytes", (json_int_t)settings->cluster_bytes,
		"digest", digest_algorithm_name(settings->digest), "chain_length_max",
		(json_int_t)settings->chain_length_max, "keep_unfinished_seconds",
		(json_int_t)settings->keep_unfinished_s);
}

int settings_from_json(struct repository_settings *settings, const json_t *object, const char *name,
	struct err *err)
{
	uint64_t level, cluster_bytes, chain, keep;
	const char *compression = record_string(object, "compression", name, err);
	const char *digest = compression ? record_string(object, "digest", name, err) : NULL;
	if (!digest || record_u64(object, "compress_level", &level, name, err) < 0 ||
		record_u64(object, "cluster_bytes", &cluster_bytes, name, err) < 0 ||
		record_u64(object, "chain_length_max", &chain, name, err) < 0 ||
		record_u64(object, "keep_unfinished_seconds", &keep, name, err) < 0)
		return -1;
	if (!repository_compression_parse(compression, &settings->compression) ||
		!digest_algorithm_parse(digest, &settings->digest))
		return err_set(err, ERR_UNSUPPORTED,
			"%s: compression \"%s\" or digest \"%s\" is unknown to this program", name,
			compression, digest);
	settings->compress_level = (int)min_u64(level, 1000);
	settings->cluster_bytes = (uint32_t)min_u64(cluster_bytes, UINT32_MAX);
	settings->chain_length_max = (unsigned)min_u64(chain, UINT32_MAX);
	settings->keep_unfinished_s = (unsigned)min_u64(keep, UINT32_MAX);
	if (settings_check(settings, err) < 0)
		return err_context(err, "%s", name);
	return 0;
}
