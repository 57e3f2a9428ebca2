/*
 * chain: the links of one disk of a restore point, from the point down to a full.
 *
 * Internal to the room.  What lies beneath an image is taken from the image's header, and
 * held against the manifests, so that an image that was exchanged leads nowhere else.  While
 * a prune goes on the two may disagree for a moment, in the ways that
 * docs/repository-format.md tells of; an open that finds a link gone or half changed
 * fails, and the caller begins again with a fresh manifest.
 */
#ifndef SENDENSE_CHAIN_H
#define SENDENSE_CHAIN_H

#include "repository_internal.h"
#include "sums.h"

struct chain;

/*
 * Opens the sums of all links; images are looked at, not opened.  top and info (a disk of it)
 * are borrowed for the call.  ERR_CORRUPT, ERR_NOT_FOUND and the like name the link that is
 * damaged or missing.
 */
struct chain *chain_open(struct repository *repo, const struct repository_point *top,
	const struct repository_disk_info *info, struct err *err);

/* The topmost, which looks down the chain; lent until the chain is freed. */
struct sums_reader *chain_sums(const struct chain *chain);

/* How many images it has: 1 for a full. */
unsigned chain_length(const struct chain *chain);

/* What its images take on disk. */
uint64_t chain_stored_bytes(const struct chain *chain);

/* The points of its links, the top first; index < length. */
const char *chain_point(const struct chain *chain, unsigned index);

/* The link's image, relative to the repository. */
const char *chain_image(const struct chain *chain, unsigned index);

/* The link that tells what the chunk is, and for how many (1..most) from it on that holds. */
unsigned chain_holder(const struct chain *chain, uint64_t chunk, uint64_t most, uint64_t *nr);

/* The first link from the top that a verification found damaged, or NULL. */
const char *chain_damaged(const struct chain *chain);

/* Reads the checksums of all links and checks them; ERR_CORRUPT names the file. */
int chain_check_sums(const struct chain *chain, struct err *err);

/* ERR_CORRUPT when the image is smaller than its record says.  An image that a merge put in
 * place, and the record does not tell of yet, shows by its header that it must not be asked. */
int chain_check_size(
	struct repository *repo, const struct repository_disk_info *info, struct err *err);

/* NULL is harmless. */
void chain_free(struct chain *chain);

#endif
