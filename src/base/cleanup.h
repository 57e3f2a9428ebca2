/*
 * Clean-up by scope.  Constructors unwind with reverse-order labels; these
 * attributes are for temporaries and locks only.
 */
#ifndef SENDENSE_CLEANUP_H
#define SENDENSE_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *pp)
{
	free(*(void **)pp);
}

static inline void cleanup_close(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void cleanup_unlock(pthread_mutex_t **mutex)
{
	if (*mutex)
		pthread_mutex_unlock(*mutex);
}

/* char *AUTO_FREE p = NULL; */
#define AUTO_FREE __attribute__((cleanup(cleanup_free)))
/* int AUTO_CLOSE fd = -1; */
#define AUTO_CLOSE __attribute__((cleanup(cleanup_close)))

static inline pthread_mutex_t *cleanup_lock(pthread_mutex_t *mutex)
{
	pthread_mutex_lock(mutex);
	return mutex;
}

/* Holds the mutex until the end of the enclosing block. */
/* NOLINTBEGIN(bugprone-macro-parentheses): a declaration cannot stand in them */
#define WITH_LOCK(mutex)                                                               \
	__attribute__((cleanup(cleanup_unlock), unused)) pthread_mutex_t *with_lock_ = \
		cleanup_lock(mutex)
/* NOLINTEND(bugprone-macro-parentheses) */

#endif
