/* The byte budget; see nbd_internal.h. */
#include "nbd_internal.h"

#include <assert.h>

#define MOST_PIECE_BYTES (256 * KIB)
#define LEAST_PIECE_BYTES (4 * KIB)

struct free_piece {
	struct free_piece *next;
};

void pool_init(struct pool *pool, size_t budget_bytes, unsigned max_connections)
{
	*pool = (struct pool){.piece_bytes = MOST_PIECE_BYTES};
	/* Half of the budget at most is kept for the connections' first pieces. */
	while (pool->piece_bytes > LEAST_PIECE_BYTES &&
		pool->piece_bytes > budget_bytes / 2 / max_connections)
		pool->piece_bytes /= 2;
	size_t nr_pieces = budget_bytes / pool->piece_bytes;
	pool->nr_shared = nr_pieces > max_connections ? (unsigned)(nr_pieces - max_connections) : 0;
	pool->most_shared_each = pool->nr_shared / 2;
	pthread_mutex_init(&pool->mutex, NULL);
	thread_cond_init(&pool->returned);
}

void pool_destroy(struct pool *pool)
{
	assert(pool->nr_shared_out == 0);
	while (pool->free) {
		struct free_piece *piece = pool->free;
		pool->free = piece->next;
		free(piece);
	}
	pthread_cond_destroy(&pool->returned);
	pthread_mutex_destroy(&pool->mutex);
}

static bool may_have_one(const struct pool *pool, const struct pool_share *share)
{
	if (share->nr_held == 0)
		return true;
	return share->nr_held - 1 < pool->most_shared_each && pool->nr_shared_out < pool->nr_shared;
}

void *pool_get(struct pool *pool, struct pool_share *share)
{
	pthread_mutex_lock(&pool->mutex);
	pool->nr_waiting++;
	/* Without a deadline: every holder has one for what it does. */
	while (!may_have_one(pool, share))
		pthread_cond_wait(&pool->returned, &pool->mutex);
	pool->nr_waiting--;
	if (share->nr_held > 0)
		pool->nr_shared_out++;
	share->nr_held++;
	struct free_piece *piece = pool->free;
	if (piece)
		pool->free = piece->next;
	pthread_mutex_unlock(&pool->mutex);
	if (piece)
		return piece;
	void *fresh = aligned_alloc(LEAST_PIECE_BYTES, pool->piece_bytes);
	if (!fresh)
		pool_put(pool, share, NULL);
	return fresh;
}

void pool_put(struct pool *pool, struct pool_share *share, void *buffer)
{
	struct free_piece *piece = buffer;
	pthread_mutex_lock(&pool->mutex);
	assert(share->nr_held > 0);
	share->nr_held--;
	if (share->nr_held > 0)
		pool->nr_shared_out--;
	if (piece) {
		/* The one used last is handed out first: it is in the cache. */
		piece->next = pool->free;
		pool->free = piece;
	}
	bool wake = pool->nr_waiting > 0;
	pthread_mutex_unlock(&pool->mutex);
	if (wake)
		pthread_cond_broadcast(&pool->returned);
}
