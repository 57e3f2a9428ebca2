/*
 * The connections of a server, and their limits.  Connections that say nothing must not keep
 * others out: when all places are taken, the one that has been silent the longest, for a
 * second at least, goes.  When nobody is that silent, the newcomer gets a place in a small
 * reserve and is told why it is refused.
 */
#include "rest_internal.h"

#include <stdio.h>

void rest_lines_init(struct rest_lines *lines, unsigned most, unsigned most_per_address)
{
	*lines = (struct rest_lines){.most = most, .most_per_address = most_per_address};
	pthread_mutex_init(&lines->mutex, NULL);
	thread_cond_init(&lines->quiet);
}

void rest_lines_clear(struct rest_lines *lines)
{
	while (lines->first) {
		struct rest_line *line = lines->first;
		lines->first = line->next;
		free(line);
	}
	pthread_cond_destroy(&lines->quiet);
	pthread_mutex_destroy(&lines->mutex);
}

struct census {
	unsigned all, counted, refused, same_address;
	struct rest_line *silent, *silent_same; /* the longest */
};

static bool is_longer_silent(const struct rest_line *line, const struct rest_line *than)
{
	return !than || line->idle_since_ns < than->idle_since_ns;
}

static struct census count(
	const struct rest_lines *lines, const struct rest_address *address, int64_t now_ns)
{
	struct census census = {0};
	for (struct rest_line *line = lines->first; line; line = line->next) {
		census.all++;
		if (line->evicted)
			continue;
		bool same = !memcmp(line->address.key, address->key, sizeof address->key);
		if (line->refused) {
			census.refused++;
		} else {
			census.counted++;
			census.same_address += same;
		}
		if (!line->started || line->busy ||
			now_ns - line->idle_since_ns < REST_LINES_IDLE_NS)
			continue;
		if (is_longer_silent(line, census.silent))
			census.silent = line;
		if (same && is_longer_silent(line, census.silent_same))
			census.silent_same = line;
	}
	return census;
}

static void evict(struct rest_line *line)
{
	line->evicted = true;
	shutdown(line->fd, SHUT_RDWR);
}

/* A descriptor can't be open twice: an entry that has it was never taken over. */
static void forget_descriptor(struct rest_lines *lines, int fd)
{
	for (struct rest_line **at = &lines->first; *at; at = &(*at)->next)
		if ((*at)->fd == fd) {
			struct rest_line *line = *at;
			*at = line->next;
			free(line);
			return;
		}
}

/* False: there is no place at all. */
static bool find_place(struct rest_lines *lines, struct rest_line *line, int64_t now_ns)
{
	struct census census = count(lines, &line->address, now_ns);
	if (census.all >= lines->most + REST_LINES_RESERVE + REST_LINES_EVICTED)
		return false;
	struct rest_line *victim = NULL;
	if (!line->address.loopback && census.same_address >= lines->most_per_address) {
		victim = census.silent_same;
		snprintf(line->refusal, sizeof line->refusal,
			"%u of %u connections from this address are in use", census.same_address,
			lines->most_per_address);
	} else if (census.counted >= lines->most) {
		victim = census.silent;
		snprintf(line->refusal, sizeof line->refusal, "%u of %u connections are in use",
			census.counted, lines->most);
	} else {
		return true;
	}
	if (victim)
		evict(victim);
	/* The place of a refused one is one in the reserve. */
	line->refused = !victim || victim->refused;
	return !line->refused || victim || census.refused < REST_LINES_RESERVE;
}

struct rest_line *rest_lines_add(
	struct rest_lines *lines, const struct rest_address *address, int fd, int64_t now_ns)
{
	struct rest_line *line = calloc(1, sizeof *line);
	if (!line)
		return NULL;
	line->address = *address;
	line->fd = fd;
	line->idle_since_ns = now_ns;
	WITH_LOCK(&lines->mutex);
	forget_descriptor(lines, fd);
	if (!find_place(lines, line, now_ns)) {
		free(line);
		return NULL;
	}
	line->next = lines->first;
	lines->first = line;
	return line;
}

struct rest_line *rest_lines_started(struct rest_lines *lines, int fd)
{
	WITH_LOCK(&lines->mutex);
	for (struct rest_line *line = lines->first; line; line = line->next)
		if (line->fd == fd) {
			line->started = true;
			return line;
		}
	return NULL;
}

void rest_lines_remove(struct rest_lines *lines, struct rest_line *line)
{
	WITH_LOCK(&lines->mutex);
	for (struct rest_line **at = &lines->first; *at; at = &(*at)->next)
		if (*at == line) {
			*at = line->next;
			free(line);
			return;
		}
}

void rest_lines_busy(struct rest_lines *lines, struct rest_line *line, bool busy)
{
	WITH_LOCK(&lines->mutex);
	line->busy = busy;
	line->idle_since_ns = clock_now_ns();
	if (!busy)
		pthread_cond_broadcast(&lines->quiet);
}

static bool is_any_busy(const struct rest_lines *lines)
{
	for (const struct rest_line *line = lines->first; line; line = line->next)
		if (line->busy)
			return true;
	return false;
}

void rest_lines_wait(struct rest_lines *lines, struct deadline until)
{
	WITH_LOCK(&lines->mutex);
	while (is_any_busy(lines))
		if (!thread_cond_wait(&lines->quiet, &lines->mutex, until))
			return;
}
