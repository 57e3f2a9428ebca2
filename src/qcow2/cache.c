/*
 * The metadata cache; see qcow2_internal.h.
 *
 * A page is in the hash table from the first request for it on, and, once it is
 * loaded, in one of three lists: clean (by use, evicted from its end), dirty, or
 * writing (a batch holds a copy).  A page that changes while it is being written
 * is dirty again, and stays in the writing list until the batch is finished.
 * Dirty pages are never evicted; commit.c keeps their number down, so that
 * at least half of the cache is clean.
 */
#include "qcow2_internal.h"

#include <errno.h>
#include <stdlib.h>

int qcow2_cache_init(struct qcow2_cache *cache, size_t most_bytes, struct err *err)
{
	*cache = (struct qcow2_cache){.most_bytes = most_bytes, .nr_buckets = 1024};
	while (cache->nr_buckets * 2048 < most_bytes)
		cache->nr_buckets *= 2;
	cache->buckets = calloc(cache->nr_buckets, sizeof(struct qcow2_page *));
	if (!cache->buckets)
		return err_errno(err, ENOMEM, "cannot make a metadata cache");
	pthread_mutex_init(&cache->mutex, NULL);
	thread_cond_init(&cache->changed);
	return 0;
}

static struct qcow2_page **bucket_of(
	struct qcow2_cache *cache, const struct qcow2_image *image, uint64_t offset)
{
	uint64_t key = (offset >> 9) ^ ((uint64_t)(uintptr_t)image << 20);
	key *= 0x9e3779b97f4a7c15ull;
	return &cache->buckets[(key >> 32) & (cache->nr_buckets - 1)];
}

static void list_remove(struct qcow2_page_list *list, struct qcow2_page *page)
{
	if (page->previous)
		page->previous->next = page->next;
	else
		list->first = page->next;
	if (page->next)
		page->next->previous = page->previous;
	else
		list->last = page->previous;
	page->previous = page->next = NULL;
}

static void list_push(struct qcow2_page_list *list, struct qcow2_page *page)
{
	page->previous = NULL;
	page->next = list->first;
	if (list->first)
		list->first->previous = page;
	else
		list->last = page;
	list->first = page;
}

static struct qcow2_page_list *list_of(struct qcow2_cache *cache, const struct qcow2_page *page)
{
	if (page->writing)
		return &cache->writing;
	return page->dirty ? &cache->dirty : &cache->clean;
}

static void unhash_and_free(struct qcow2_cache *cache, struct qcow2_page *page)
{
	struct qcow2_page **at = bucket_of(cache, page->image, page->offset);
	while (*at != page)
		at = &(*at)->hash_next;
	*at = page->hash_next;
	cache->used_bytes -= sizeof *page + page->bytes;
	free(page);
}

static void drop_page(struct qcow2_cache *cache, struct qcow2_page *page)
{
	list_remove(list_of(cache, page), page);
	unhash_and_free(cache, page);
}

void qcow2_cache_destroy(struct qcow2_cache *cache)
{
	if (!cache->buckets)
		return;
	for (size_t i = 0; i < cache->nr_buckets; i++)
		while (cache->buckets[i])
			drop_page(cache, cache->buckets[i]);
	free(cache->buckets);
	pthread_cond_destroy(&cache->changed);
	pthread_mutex_destroy(&cache->mutex);
}

static struct qcow2_page *find(
	struct qcow2_cache *cache, const struct qcow2_image *image, uint64_t offset)
{
	struct qcow2_page *page = *bucket_of(cache, image, offset);
	while (page && (page->offset != offset || page->image != image))
		page = page->hash_next;
	return page;
}

/* A page in the hash table and in no list. */
static struct qcow2_page *add(
	struct qcow2_cache *cache, struct qcow2_image *image, uint64_t offset, struct err *err)
{
	size_t bytes = sizeof(struct qcow2_page) + image->page_bytes;
	while (cache->used_bytes + bytes > cache->most_bytes && cache->clean.last)
		drop_page(cache, cache->clean.last);
	struct qcow2_page *page = malloc(bytes);
	if (!page) {
		err_errno(err, ENOMEM, "cannot load tables of %s", image->path);
		return NULL;
	}
	*page = (struct qcow2_page){.image = image, .offset = offset, .bytes = image->page_bytes};
	struct qcow2_page **bucket = bucket_of(cache, image, offset);
	page->hash_next = *bucket;
	*bucket = page;
	cache->used_bytes += bytes;
	return page;
}

struct qcow2_page *qcow2_cache_get(
	struct qcow2_cache *cache, struct qcow2_image *image, uint64_t offset, struct err *err)
{
	struct qcow2_page *page = find(cache, image, offset);
	while (page && page->loading) {
		pthread_cond_wait(&cache->changed, &cache->mutex);
		page = find(cache, image, offset);
	}
	if (page) {
		if (!page->dirty && !page->writing && cache->clean.first != page) {
			list_remove(&cache->clean, page);
			list_push(&cache->clean, page);
		}
		return page;
	}
	page = add(cache, image, offset, err);
	if (!page)
		return NULL;
	page->loading = true;
	pthread_mutex_unlock(&cache->mutex);
	int rc = qcow2_header_pread(image->fd, page->data, page->bytes, offset, image->path, err);
	pthread_mutex_lock(&cache->mutex);
	page->loading = false;
	pthread_cond_broadcast(&cache->changed);
	if (rc < 0) {
		unhash_and_free(cache, page);
		return NULL;
	}
	list_push(&cache->clean, page);
	return page;
}

struct qcow2_page *qcow2_cache_new(
	struct qcow2_cache *cache, struct qcow2_image *image, uint64_t offset, struct err *err)
{
	struct qcow2_page *page = find(cache, image, offset);
	while (page && page->loading) {
		pthread_cond_wait(&cache->changed, &cache->mutex);
		page = find(cache, image, offset);
	}
	if (!page) {
		page = add(cache, image, offset, err);
		if (!page)
			return NULL;
		list_push(&cache->clean, page);
	}
	memset(page->data, 0, page->bytes);
	return page;
}

void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_page *page, bool is_refcount)
{
	page->is_refcount = is_refcount;
	if (page->dirty)
		return;
	if (page->writing) {
		page->dirty = true;
		return;
	}
	list_remove(&cache->clean, page);
	page->dirty = true;
	list_push(&cache->dirty, page);
	cache->dirty_bytes += page->bytes;
}

void qcow2_cache_forget(
	struct qcow2_cache *cache, struct qcow2_image *image, uint64_t offset, uint64_t length)
{
	for (uint64_t at = offset; at < offset + length; at += image->page_bytes) {
		struct qcow2_page *page = find(cache, image, at);
		while (page && (page->loading || page->writing)) {
			pthread_cond_wait(&cache->changed, &cache->mutex);
			page = find(cache, image, at);
		}
		if (!page)
			continue;
		if (page->dirty)
			cache->dirty_bytes -= page->bytes;
		drop_page(cache, page);
	}
}

static int compare_pages(const void *a, const void *b)
{
	uint64_t x = (*(struct qcow2_page *const *)a)->offset;
	uint64_t y = (*(struct qcow2_page *const *)b)->offset;
	return x < y ? -1 : x > y;
}

int qcow2_cache_take(struct qcow2_cache *cache, bool is_refcount, uint32_t page_bytes,
	struct qcow2_batch *batch, struct err *err)
{
	size_t n = 0;
	*batch = (struct qcow2_batch){.page_bytes = page_bytes};
	for (struct qcow2_page *p = cache->dirty.first; p; p = p->next)
		n += p->is_refcount == is_refcount;
	if (n == 0)
		return 0;
	batch->pages = malloc(n * sizeof(struct qcow2_page *));
	batch->bytes = malloc(n * page_bytes);
	if (!batch->pages || !batch->bytes) {
		free(batch->pages);
		free(batch->bytes);
		*batch = (struct qcow2_batch){0};
		return err_errno(err, ENOMEM, "cannot write tables");
	}
	for (struct qcow2_page *p = cache->dirty.first, *next; p; p = next) {
		next = p->next;
		if (p->is_refcount != is_refcount)
			continue;
		list_remove(&cache->dirty, p);
		p->dirty = false;
		p->writing = true;
		list_push(&cache->writing, p);
		batch->pages[batch->nr_pages++] = p;
	}
	qsort(batch->pages, n, sizeof(struct qcow2_page *), compare_pages);
	for (size_t i = 0; i < n; i++)
		memcpy(batch->bytes + i * page_bytes, batch->pages[i]->data, page_bytes);
	return 0;
}

void qcow2_cache_finish(struct qcow2_cache *cache, struct qcow2_batch *batch, bool written)
{
	for (size_t i = 0; i < batch->nr_pages; i++) {
		struct qcow2_page *page = batch->pages[i];
		list_remove(&cache->writing, page);
		page->writing = false;
		if (!written)
			page->dirty = true;
		if (!page->dirty)
			cache->dirty_bytes -= page->bytes;
		list_push(page->dirty ? &cache->dirty : &cache->clean, page);
	}
	pthread_cond_broadcast(&cache->changed);
	free(batch->pages);
	free(batch->bytes);
	*batch = (struct qcow2_batch){0};
}

int qcow2_cache_write(const struct qcow2_batch *batch, struct qcow2_image *image, struct err *err)
{
	for (size_t i = 0, n; i < batch->nr_pages; i += n) {
		uint64_t offset = batch->pages[i]->offset;
		n = 1;
		while (i + n < batch->nr_pages &&
			batch->pages[i + n]->offset == offset + n * batch->page_bytes)
			n++;
		if (file_pwrite(image->fd, batch->bytes + i * batch->page_bytes,
			    n * batch->page_bytes, offset, image->path, err) < 0)
			return -1;
	}
	return 0;
}
