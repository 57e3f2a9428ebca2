/* Keys of calls in progress: the second call with one waits for the first one's answer. */
#include "rest_internal.h"

#include <assert.h>

struct rest_once_key {
	struct rest_once_key *next;
	const char *actor, *key; /* lent: the call that entered lives longer */
};

void rest_once_init(struct rest_once *once)
{
	*once = (struct rest_once){0};
	pthread_mutex_init(&once->mutex, NULL);
	thread_cond_init(&once->changed);
}

void rest_once_clear(struct rest_once *once)
{
	pthread_cond_destroy(&once->changed);
	pthread_mutex_destroy(&once->mutex);
}

static struct rest_once_key **find(struct rest_once *once, const char *actor, const char *key)
{
	struct rest_once_key **at = &once->first;
	while (*at && (strcmp((*at)->actor, actor) != 0 || strcmp((*at)->key, key) != 0))
		at = &(*at)->next;
	return at;
}

int rest_once_enter(struct rest_once *once, const char *actor, const char *key,
	struct deadline until, struct err *err)
{
	struct rest_once_key *entry = calloc(1, sizeof *entry);
	if (!entry)
		return err_set(err, ERR_NO_MEMORY, "noting an idempotency key: no memory");
	entry->actor = actor;
	entry->key = key;
	WITH_LOCK(&once->mutex);
	while (*find(once, actor, key))
		if (!thread_cond_wait(&once->changed, &once->mutex, until)) {
			free(entry);
			return err_set(err, ERR_BUSY,
				"the first call with this Idempotency-Key has not ended yet");
		}
	entry->next = once->first;
	once->first = entry;
	return 0;
}

void rest_once_leave(struct rest_once *once, const char *actor, const char *key)
{
	WITH_LOCK(&once->mutex);
	struct rest_once_key **at = find(once, actor, key);
	struct rest_once_key *entry = *at;
	assert(entry); /* who leaves has entered */
	*at = entry->next;
	free(entry);
	pthread_cond_broadcast(&once->changed);
}
