/*
 * Chains: from a point's disk down to the full that it stands on.
 *
 *   link   manifest says          header says         next link
 *   C      backing X              X.qcow2             X
 *   C      backing X              A.qcow2             A, if X is not listed any more (merging.json)
 *                                                     and stood on A: X became part of C
 *   X      (merging.json) A       A.qcow2             A
 *   A      null                   none                (end)
 *
 * First the links are found from the top down, then their sums opened from the bottom up,
 * as each borrows the one beneath.
 */
#include "chain.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define LINKS_MOST 1000u

struct link {
	char point[REPOSITORY_POINT_BYTES];
	char root_hex[DIGEST_ROOT_HEX_BYTES];
	char *sums_path, *image_path;
	bool has_backing, is_damaged;
	struct sums_reader *sums;
};

struct chain {
	struct link *links; /* the top first */
	unsigned nr, room;
	uint64_t stored_bytes;
};

void chain_free(struct chain *chain)
{
	if (!chain)
		return;
	for (unsigned i = 0; i < chain->nr; i++) {
		sums_reader_free(chain->links[i].sums);
		free(chain->links[i].sums_path);
		free(chain->links[i].image_path);
	}
	free(chain->links);
	free(chain);
}

struct sums_reader *chain_sums(const struct chain *chain)
{
	return chain->links[0].sums;
}

unsigned chain_length(const struct chain *chain)
{
	return chain->nr;
}

uint64_t chain_stored_bytes(const struct chain *chain)
{
	return chain->stored_bytes;
}

const char *chain_point(const struct chain *chain, unsigned index)
{
	return chain->links[index].point;
}

const char *chain_image(const struct chain *chain, unsigned index)
{
	return chain->links[index].image_path;
}

/* How many chunks from this one on the link tells, or tells nothing of. */
static uint64_t count_alike(
	const struct chain *chain, unsigned index, uint64_t chunk, uint64_t most, bool *told)
{
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	uint64_t sum = 0;
	while (sum < most) {
		enum sums_kind kind;
		uint64_t nr;
		if (sums_reader_own_run(chain->links[index].sums, chunk + sum, most - sum, &kind,
			    &nr, leaf, NULL) < 0)
			break;
		if (sum == 0)
			*told = kind != SUMS_INHERIT;
		else if (*told != (kind != SUMS_INHERIT))
			return sum;
		sum += nr;
	}
	if (sum > 0)
		return min_u64(sum, most);
	/* What cannot be read may tell all of it. */
	*told = true;
	return most;
}

unsigned chain_holder(const struct chain *chain, uint64_t chunk, uint64_t most, uint64_t *nr)
{
	bool told = false;
	*nr = most;
	for (unsigned i = 0; i + 1 < chain->nr; i++) {
		*nr = count_alike(chain, i, chunk, *nr, &told);
		if (told)
			return i;
	}
	return chain->nr - 1;
}

const char *chain_damaged(const struct chain *chain)
{
	for (unsigned i = 0; i < chain->nr; i++)
		if (chain->links[i].is_damaged)
			return chain->links[i].point;
	return NULL;
}

int chain_check_sums(const struct chain *chain, struct err *err)
{
	for (unsigned i = 0; i < chain->nr; i++)
		if (sums_reader_check(chain->links[i].sums, NULL, err) < 0)
			return -1;
	return 0;
}

/* --- finding the links ------------------------------------------------------------- */

static int add_link(struct chain *chain, struct repository *repo,
	const struct repository_point *point, const struct repository_disk_info *info,
	struct err *err)
{
	if (chain->nr == LINKS_MOST)
		return err_set(err, ERR_CORRUPT, "the chain of disk %s has more than %u images",
			info->key, LINKS_MOST);
	if (chain->nr == chain->room) {
		unsigned room = chain->room ? 2 * chain->room : 16;
		struct link *more = reallocarray(chain->links, room, sizeof *more);
		if (!more)
			return err_errno(
				err, ENOMEM, "cannot open the chain of disk %s", info->key);
		chain->links = more;
		chain->room = room;
	}
	struct link *link = &chain->links[chain->nr];
	*link = (struct link){.is_damaged = manifest_is_damaged(point, info->key)};
	chain->nr++;
	link->sums_path = strdup(info->sums);
	link->image_path = strdup(info->image);
	if (!link->sums_path || !link->image_path)
		return err_errno(err, ENOMEM, "cannot open the chain of disk %s", info->key);
	memcpy(link->point, point->id, sizeof link->point);
	memcpy(link->root_hex, info->root_hex, sizeof link->root_hex);
	struct stat st; /* where it is missing the header will tell */
	if (fstatat(repo->dir_fd, info->image, &st, AT_SYMLINK_NOFOLLOW) == 0)
		chain->stored_bytes += (uint64_t)st.st_blocks * 512;
	return 0;
}

static const struct repository_disk_info *find_disk(
	const struct repository_point *point, const char *key, struct err *err)
{
	const struct repository_disk_info *info = repository_point_disk(point, key);
	if (!info)
		err_set(err, ERR_CORRUPT, "point %s has no disk %s, on which others stand",
			point->id, key);
	return info;
}

static struct repository_point *load_beneath(struct repository *repo,
	const struct repository_point *above, const char *id, bool *listed, struct err *err)
{
	/* A parent is always older; nothing else could end a circle. */
	if (strcmp(id, above->id) >= 0) {
		err_set(err, ERR_CORRUPT, "the chain goes in a circle at point %s", id);
		return NULL;
	}
	struct repository_point *point = manifest_load_link(repo, above->vm, id, listed, err);
	if (!point)
		err_context(err, "point %s, on which %s stands", id, above->id);
	return point;
}

/* The point that the image's header says it stands on, "" for none. */
static int read_header(struct repository *repo, const struct repository_disk_info *info,
	char beneath[REPOSITORY_POINT_BYTES], struct err *err)
{
	struct qcow2_facts facts;
	char *AUTO_FREE path = NULL;
	if (asprintf(&path, "%s/%s", repo->info.path, info->image) < 0)
		return err_errno(err, ENOMEM, "cannot open %s", info->image);
	if (qcow2_facts(path, &facts, err) < 0)
		return -1;
	snprintf(beneath, REPOSITORY_POINT_BYTES, "%.*s", REPOSITORY_POINT_BYTES - 1,
		facts.backing_file);
	bool named = facts.backing_file[0] == '\0' ||
		     (repository_name_is_point(beneath) &&
			     strcmp(facts.backing_file + strlen(beneath), ".qcow2") == 0 &&
			     strcmp(facts.backing_format, "qcow2") == 0);
	if (named && facts.size_bytes == round_up(info->size_bytes, 512))
		return 0;
	char shown[128];
	name_printable(facts.backing_file, shown, sizeof shown);
	return err_set(err, ERR_CORRUPT,
		"%s is not the image that its manifest tells of: backing \"%s\" of %" PRIu64
		" bytes",
		info->image, shown, facts.size_bytes);
}

static int disagree(const struct repository_disk_info *info, const char *beneath, struct err *err)
{
	return err_set(err, ERR_CORRUPT,
		"%s is not the image that its manifest tells of: it stands on %s, not on %s",
		info->image, beneath[0] ? beneath : "nothing",
		info->backing ? info->backing : "nothing");
}

int chain_check_size(
	struct repository *repo, const struct repository_disk_info *info, struct err *err)
{
	struct stat st;
	if (info->image_bytes == 0)
		return 0;
	if (fstatat(repo->dir_fd, info->image, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return err_errno(err, errno, "cannot stat %s", info->image);
	if ((uint64_t)st.st_size >= info->image_bytes)
		return 0;
	return err_set(err, ERR_CORRUPT,
		"%s has %" PRIu64 " bytes instead of %" PRIu64 ": it was cut", info->image,
		(uint64_t)st.st_size, info->image_bytes);
}

/*
 * The next link beneath point; *next NULL at the end.  Header and manifest agree, or the
 * manifest's point has just become part of this one.  listed: whether point is, then *next;
 * into one that is not a merge may be writing, and what it frees may make it smaller.
 */
static int step_down(struct repository *repo, const struct repository_point *point,
	const struct repository_disk_info *info, struct repository_point **next, bool *listed,
	struct err *err)
{
	char beneath[REPOSITORY_POINT_BYTES];
	*next = NULL;
	if (read_header(repo, info, beneath, err) < 0)
		return -1;
	bool as_told = strcmp(beneath, info->backing ? info->backing : "") == 0;
	if (as_told && *listed && chain_check_size(repo, info, err) < 0)
		return -1;
	if (!info->backing)
		return as_told ? 0 : disagree(info, beneath, err);
	struct repository_point *told = load_beneath(repo, point, info->backing, listed, err);
	if (!told)
		return -1;
	if (as_told) {
		*next = told;
		return 0;
	}
	const struct repository_disk_info *merged =
		*listed ? NULL : repository_point_disk(told, info->key);
	bool agree = merged && strcmp(beneath, merged->backing ? merged->backing : "") == 0;
	int rc = agree ? 0 : disagree(info, beneath, err);
	if (agree && beneath[0]) {
		*next = load_beneath(repo, told, beneath, listed, err);
		rc = *next ? 0 : -1;
	}
	repository_point_free(told);
	return rc;
}

static int find_links(struct chain *chain, struct repository *repo,
	const struct repository_point *top, const struct repository_disk_info *info,
	struct err *err)
{
	const struct repository_point *point = top;
	struct repository_point *owned = NULL;
	bool listed = true;
	int rc;
	for (;;) {
		struct repository_point *next = NULL;
		rc = add_link(chain, repo, point, info, err);
		if (rc == 0)
			rc = step_down(repo, point, info, &next, &listed, err);
		if (rc < 0 || !next)
			break;
		chain->links[chain->nr - 1].has_backing = true;
		uint64_t size_bytes = info->size_bytes;
		char key[REPOSITORY_KEY_BYTES];
		memcpy(key, info->key, sizeof key);
		repository_point_free(owned);
		point = owned = next;
		info = find_disk(point, key, err);
		if (!info || info->size_bytes != size_bytes) {
			rc = info ? err_set(err, ERR_CORRUPT,
					    "disk %s has another size at point %s than above it",
					    key, point->id)
				  : -1;
			break;
		}
	}
	repository_point_free(owned);
	return rc;
}

/* --- opening them ---------------------------------------------------------------------- */

static int open_link(struct chain *chain, unsigned i, struct repository *repo,
	const struct sums_facts *like, struct err *err)
{
	struct link *link = &chain->links[i];
	struct sums_facts facts = *like;
	char hex[DIGEST_ROOT_HEX_BYTES];
	facts.increment = link->has_backing;
	memcpy(facts.point, link->point, sizeof facts.point);
	link->sums = sums_reader_open(repo->dir_fd, link->sums_path, &facts,
		i + 1 < chain->nr ? chain->links[i + 1].sums : NULL, err);
	if (!link->sums)
		return -1;
	/* Sums of the same disk and point, but not those that the manifest was made with. */
	digest_hex(sums_reader_totals(link->sums)->root, DIGEST_ROOT_BYTES, hex);
	if (strcmp(hex, link->root_hex) == 0)
		return 0;
	return err_set(err, ERR_CORRUPT,
		"%s has another root digest than the manifest of its restore point",
		link->sums_path);
}

/* What still restores although a link is lost. */
static void tell_what_is_left(
	const struct chain *chain, unsigned broken, const char *key, struct err *err)
{
	err_hint(err, "restore points before %s and other disks than %s do not need it",
		chain->links[broken].point, key);
}

struct chain *chain_open(struct repository *repo, const struct repository_point *top,
	const struct repository_disk_info *info, struct err *err)
{
	struct chain *chain = calloc(1, sizeof *chain);
	if (!chain) {
		err_errno(err, ENOMEM, "cannot open the chain of disk %s", info->key);
		return NULL;
	}
	struct sums_facts facts = {
		.algorithm = repo->info.settings.digest, .size_bytes = info->size_bytes};
	memcpy(facts.key, info->key, sizeof facts.key);
	if (find_links(chain, repo, top, info, err) < 0) {
		if (chain->nr > 0)
			tell_what_is_left(chain, chain->nr - 1, info->key, err);
		goto fail;
	}
	for (unsigned i = chain->nr; i-- > 0;)
		if (open_link(chain, i, repo, &facts, err) < 0) {
			tell_what_is_left(chain, i, info->key, err);
			goto fail;
		}
	return chain;
fail:
	chain_free(chain);
	return NULL;
}
