/* The ring of events; see feed.h. */
#include "feed.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct feed {
	pthread_mutex_t mutex;
	pthread_cond_t put;
	bool over;
	uint64_t newest; /* the first has 1; event n is in its place modulo FEED_EVENTS */
	struct feed_event events[FEED_EVENTS];
};

struct feed *feed_new(struct err *err)
{
	struct feed *feed = calloc(1, sizeof *feed);
	if (!feed) {
		err_errno(err, ENOMEM, "cannot make the stream of events");
		return NULL;
	}
	pthread_mutex_init(&feed->mutex, NULL);
	thread_cond_init(&feed->put);
	return feed;
}

void feed_free(struct feed *feed)
{
	if (!feed)
		return;
	for (size_t i = 0; i < FEED_EVENTS; i++)
		json_decref(feed->events[i].data);
	pthread_cond_destroy(&feed->put);
	pthread_mutex_destroy(&feed->mutex);
	free(feed);
}

void feed_put(struct feed *feed, const char *name, const char *vm, json_t *data)
{
	if (!data)
		return;
	WITH_LOCK(&feed->mutex);
	uint64_t id = ++feed->newest;
	struct feed_event *event = &feed->events[id % FEED_EVENTS];
	json_decref(event->data);
	*event = (struct feed_event){.id = id, .name = name, .data = data};
	snprintf(event->vm, sizeof event->vm, "%s", vm ? vm : "");
	pthread_cond_broadcast(&feed->put);
}

void feed_end(struct feed *feed)
{
	WITH_LOCK(&feed->mutex);
	feed->over = true;
	pthread_cond_broadcast(&feed->put);
}

uint64_t feed_newest(struct feed *feed)
{
	WITH_LOCK(&feed->mutex);
	return feed->newest;
}

int feed_next(struct feed *feed, uint64_t after, struct deadline until, struct feed_event *event)
{
	WITH_LOCK(&feed->mutex);
	/* A number of another hub's life. */
	if (after > feed->newest)
		after = feed->newest;
	while (!feed->over && after == feed->newest)
		if (!thread_cond_wait(&feed->put, &feed->mutex, until))
			return 2;
	if (feed->over)
		return 0;
	uint64_t oldest = feed->newest > FEED_EVENTS ? feed->newest - FEED_EVENTS + 1 : 1;
	*event = feed->events[(after + 1 > oldest ? after + 1 : oldest) % FEED_EVENTS];
	/* Each reader has its own: reference counts are then one thread's alone. */
	event->data = json_deep_copy(event->data);
	return event->data ? 1 : 2;
}
