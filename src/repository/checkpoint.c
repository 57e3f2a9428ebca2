/*
 * Checkpoints: while a backup runs, what it stored is made durable bit by bit, so that an
 * interruption costs little.
 *
 *   told ─────────────►  bytes whose digests the copy told
 *   durable ──────►      of these, what a crash leaves: image flushed, then sums
 *
 *   told - durable   below BEGIN_BYTES   nothing happens
 *                    from there on       the thread flushes each disk that has news
 *                    at WAIT_BYTES       whoever tells more waits for the thread
 *
 * A chunk is told just before it is written, so what a flush misses is what was in flight;
 * sums that tell more than the image holds are found out by the digests.  The image comes
 * first all the same: that is what makes the loss small.
 *
 * The first error stops the backup: it is given to whoever tells more, and to the end.
 */
#include "backup_internal.h"

#include <errno.h>
#include <inttypes.h>

#define BEGIN_BYTES (24 * MIB)
#define WAIT_BYTES (32 * MIB)
#define LOOK_MS 200
#define SILENCE_MS 30000

void checkpoint_init(struct checkpoints *checkpoints)
{
	pthread_mutex_init(&checkpoints->mutex, NULL);
	thread_cond_init(&checkpoints->changed);
	checkpoints->err = ERR_INIT;
}

void checkpoint_destroy(struct checkpoints *checkpoints)
{
	pthread_cond_destroy(&checkpoints->changed);
	pthread_mutex_destroy(&checkpoints->mutex);
}

/* --- the thread -------------------------------------------------------------------- */

static int store_disk(struct backup_disk *disk, struct err *err)
{
	if (!atomic_exchange(&disk->has_news, false))
		return 0;
	if (block_flush(disk->image, err) < 0 || sums_writer_checkpoint(disk->sums, err) < 0)
		return err_context(err, "disk %s", disk->key);
	return 0;
}

int checkpoint_now(struct repository_backup *backup, struct err *err)
{
	for (size_t i = 0; i < backup->nr_disks; i++)
		if (backup->disks[i].image && store_disk(&backup->disks[i], err) < 0)
			return -1;
	return 0;
}

static void *checkpoint_main(void *arg)
{
	struct repository_backup *backup = arg;
	struct checkpoints *c = &backup->checkpoints;
	pthread_mutex_lock(&c->mutex);
	while (!c->stopping && c->err.code == ERR_NONE) {
		if (c->told - c->durable < BEGIN_BYTES) {
			thread_cond_wait(&c->changed, &c->mutex, deadline_after_ms(60000));
			continue;
		}
		uint64_t told = c->told;
		struct err err = ERR_INIT;
		pthread_mutex_unlock(&c->mutex);
		int rc = checkpoint_now(backup, &err);
		pthread_mutex_lock(&c->mutex);
		if (rc < 0)
			err_copy(&c->err, &err);
		else
			c->durable = told;
		pthread_cond_broadcast(&c->changed);
	}
	pthread_mutex_unlock(&c->mutex);
	return NULL;
}

int checkpoint_start(struct repository_backup *backup, struct err *err)
{
	struct checkpoints *c = &backup->checkpoints;
	if (c->running)
		return 0;
	/* Or a power cut leaves files that no folder knows. */
	if (backup_sync_folders(backup, err) < 0 ||
		thread_start(&c->thread, "checkpoints", checkpoint_main, backup, err) < 0)
		return -1;
	c->running = true;
	return 0;
}

int checkpoint_stop(struct repository_backup *backup, struct err *err)
{
	struct checkpoints *c = &backup->checkpoints;
	if (c->running) {
		pthread_mutex_lock(&c->mutex);
		c->stopping = true;
		pthread_cond_broadcast(&c->changed);
		pthread_mutex_unlock(&c->mutex);
		pthread_join(c->thread, NULL);
		c->running = c->stopping = false;
	}
	return c->err.code == ERR_NONE ? 0 : err_copy(err, &c->err);
}

/* --- those who tell ------------------------------------------------------------------ */

int checkpoint_told(struct backup_disk *disk, uint64_t bytes, struct err *err)
{
	struct repository_backup *backup = disk->backup;
	struct checkpoints *c = &backup->checkpoints;
	atomic_store(&disk->has_news, true);
	if (!c->running)
		return 0;
	WITH_LOCK(&c->mutex);
	uint64_t before = c->told - c->durable;
	c->told += bytes;
	if (before < BEGIN_BYTES && before + bytes >= BEGIN_BYTES)
		pthread_cond_broadcast(&c->changed);
	struct deadline silence = deadline_after_ms(SILENCE_MS);
	while (c->err.code == ERR_NONE && c->told - c->durable >= WAIT_BYTES) {
		thread_cond_wait(&c->changed, &c->mutex, deadline_after_ms(LOOK_MS));
		if (cancel_check(backup->cancel, err) < 0)
			return -1;
		if (deadline_passed(silence)) {
			log_warning(
				"job %s waits for what it wrote to be stored safely", backup->job);
			silence = deadline_after_ms(SILENCE_MS);
		}
	}
	return c->err.code == ERR_NONE ? 0 : err_copy(err, &c->err);
}
