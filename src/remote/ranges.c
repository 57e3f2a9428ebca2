/* Digests that a hub holds; see ranges.h. */
#include "ranges.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define WINDOWS 4u
#define ANSWER_BYTES_MOST (1u << 20)
#define RECORD_BYTES 5u /* kind, be32 number */
#define SENT_FLAG 0x10u
/* How many chunks are asked for: all that an answer holds, or what one change may need. */
#define ASK_AHEAD (1u << 24)
#define ASK_HERE 2048u

struct run {
	uint64_t first, nr;
	enum ranges_kind kind;
	bool sent;
	const uint8_t *leaves; /* in the window's answer */
};

enum window_state { WINDOW_EMPTY, WINDOW_FETCHING, WINDOW_READY };

struct window {
	enum window_state state;
	uint64_t first, nr; /* while it is fetched: what was asked for */
	uint64_t used; /* the clock of uses */
	void *answer;
	struct run *runs;
	size_t nr_runs;
};

struct ranges {
	struct rest_client *client;
	char *path;
	size_t leaf_bytes;
	uint64_t nr_chunks;
	bool ahead;
	pthread_mutex_t mutex; /* over all that follows */
	pthread_cond_t changed;
	struct window windows[WINDOWS];
	uint64_t uses;
	uint64_t wanted; /* by the thread: from where on; nr_chunks: nothing */
	bool ends, has_thread;
	pthread_t thread;
};

/* --- an answer ------------------------------------------------------------------------ */

static void window_clear(struct window *window)
{
	free(window->answer);
	free(window->runs);
	*window = (struct window){.state = WINDOW_EMPTY};
}

static int bad_answer(const char *what, struct err *err)
{
	return err_set(err, ERR_PROTOCOL, "the hub's digests are not to be read: %s", what);
}

/* Counts, or with runs fills in; at most asked chunks. */
static int parse(const struct ranges *ranges, const uint8_t *bytes, size_t length, uint64_t first,
	uint64_t asked, struct run *runs, size_t *nr_runs, uint64_t *nr_chunks, struct err *err)
{
	*nr_runs = 0;
	*nr_chunks = 0;
	for (size_t at = 0; at < length;) {
		if (length - at < RECORD_BYTES)
			return bad_answer("a record is cut", err);
		unsigned kind = bytes[at] & ~SENT_FLAG;
		uint64_t nr = be32_get(bytes + at + 1);
		size_t leaves = kind == RANGES_DATA ? (size_t)nr * ranges->leaf_bytes : 0;
		bool sent = bytes[at] & SENT_FLAG;
		at += RECORD_BYTES;
		if (kind > RANGES_DATA || nr == 0 || nr > asked - *nr_chunks)
			return bad_answer("a record is wrong", err);
		if (leaves > length - at)
			return bad_answer("leaves are missing", err);
		if (runs)
			runs[*nr_runs] = (struct run){
				first + *nr_chunks, nr, (enum ranges_kind)kind, sent, bytes + at};
		++*nr_runs;
		*nr_chunks += nr;
		at += leaves;
	}
	return *nr_chunks > 0 ? 0 : bad_answer("it is empty", err);
}

/* Fills a window of its own. */
static int fetch(
	struct ranges *ranges, uint64_t first, uint64_t asked, struct window *out, struct err *err)
{
	char path[1024];
	size_t length = 0;
	snprintf(path, sizeof path, "%s?first=%" PRIu64 "&count=%" PRIu64, ranges->path, first,
		asked);
	*out = (struct window){.state = WINDOW_READY, .first = first};
	if (rest_call_octets(ranges->client, "GET", path, NULL, 0, &out->answer, &length,
		    ANSWER_BYTES_MOST, err) < 0)
		return -1;
	if (parse(ranges, out->answer, length, first, asked, NULL, &out->nr_runs, &out->nr, err) <
		0)
		goto bad;
	out->runs = calloc(out->nr_runs, sizeof *out->runs);
	if (!out->runs) {
		err_errno(err, ENOMEM, "cannot take the hub's digests");
		goto bad;
	}
	parse(ranges, out->answer, length, first, asked, out->runs, &out->nr_runs, &out->nr, NULL);
	return 0;
bad:
	window_clear(out);
	return -1;
}

/* --- windows ----------------------------------------------------------------------------- */

static struct window *find(struct ranges *ranges, uint64_t chunk)
{
	for (unsigned i = 0; i < WINDOWS; i++) {
		struct window *window = &ranges->windows[i];
		if (window->state != WINDOW_EMPTY && chunk >= window->first &&
			chunk - window->first < window->nr)
			return window;
	}
	return NULL;
}

/* The one used longest ago that nobody is fetching; NULL: all are being fetched. */
static struct window *make_room(struct ranges *ranges)
{
	struct window *oldest = NULL;
	for (unsigned i = 0; i < WINDOWS; i++) {
		struct window *window = &ranges->windows[i];
		if (window->state != WINDOW_FETCHING && (!oldest || window->used < oldest->used))
			oldest = window;
	}
	if (oldest)
		window_clear(oldest);
	return oldest;
}

/* Under the mutex, which is let go of meanwhile. */
static int fetch_into(struct ranges *ranges, struct window *window, uint64_t first, struct err *err)
{
	uint64_t asked = min_u64(ranges->ahead ? ASK_AHEAD : ASK_HERE, ranges->nr_chunks - first);
	struct window fresh;
	*window = (struct window){
		.state = WINDOW_FETCHING, .first = first, .nr = asked, .used = ++ranges->uses};
	pthread_mutex_unlock(&ranges->mutex);
	int rc = fetch(ranges, first, asked, &fresh, err);
	pthread_mutex_lock(&ranges->mutex);
	*window = rc == 0 ? fresh : (struct window){.state = WINDOW_EMPTY};
	window->used = ++ranges->uses;
	pthread_cond_broadcast(&ranges->changed);
	return rc;
}

static void *fetch_ahead(void *arg)
{
	struct ranges *ranges = arg;
	WITH_LOCK(&ranges->mutex);
	while (!ranges->ends) {
		uint64_t first = ranges->wanted;
		struct window *window = first < ranges->nr_chunks && !find(ranges, first)
						? make_room(ranges)
						: NULL;
		/* An error is told to whoever needs the window. */
		if (window)
			fetch_into(ranges, window, first, NULL);
		if (ranges->wanted == first)
			ranges->wanted = ranges->nr_chunks;
		while (!ranges->ends && ranges->wanted == ranges->nr_chunks)
			thread_cond_wait(
				&ranges->changed, &ranges->mutex, deadline_after_ms(60000));
	}
	return NULL;
}

/* The window that holds the chunk; under the mutex. */
static struct window *window_of(struct ranges *ranges, uint64_t chunk, struct err *err)
{
	for (;;) {
		struct window *window = find(ranges, chunk);
		if (window && window->state == WINDOW_READY) {
			window->used = ++ranges->uses;
			uint64_t next = window->first + window->nr;
			if (ranges->ahead && next < ranges->nr_chunks && !find(ranges, next) &&
				ranges->wanted != next) {
				ranges->wanted = next;
				pthread_cond_broadcast(&ranges->changed);
			}
			return window;
		}
		if (!window && (window = make_room(ranges))) {
			if (fetch_into(ranges, window, chunk, err) < 0)
				return NULL;
			continue;
		}
		thread_cond_wait(&ranges->changed, &ranges->mutex, deadline_after_ms(1000));
	}
}

static const struct run *run_of(const struct window *window, uint64_t chunk)
{
	size_t low = 0, high = window->nr_runs;
	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;
		if (window->runs[middle].first <= chunk)
			low = middle;
		else
			high = middle;
	}
	return &window->runs[low];
}

int ranges_look(struct ranges *ranges, uint64_t first, uint64_t most, enum ranges_kind *kind,
	bool *sent, uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err)
{
	WITH_LOCK(&ranges->mutex);
	const struct window *window = window_of(ranges, first, err);
	if (!window)
		return -1;
	const struct run *run = run_of(window, first);
	uint64_t skipped = first - run->first;
	*kind = run->kind;
	*sent = run->sent;
	*nr = run->kind == RANGES_DATA ? 1 : min_u64(most, run->nr - skipped);
	if (run->kind == RANGES_DATA)
		memcpy(leaf, run->leaves + skipped * ranges->leaf_bytes, ranges->leaf_bytes);
	return 0;
}

int ranges_each(struct ranges *ranges, ranges_run *run, void *context, struct err *err)
{
	for (uint64_t first = 0; first < ranges->nr_chunks;) {
		struct window window;
		int rc = fetch(
			ranges, first, min_u64(ASK_AHEAD, ranges->nr_chunks - first), &window, err);
		if (rc < 0)
			return -1;
		for (size_t i = 0; rc == 0 && i < window.nr_runs; i++)
			rc = run(context, window.runs[i].first, window.runs[i].nr,
				window.runs[i].kind, window.runs[i].sent, window.runs[i].leaves,
				err);
		first += window.nr;
		window_clear(&window);
		if (rc < 0)
			return -1;
	}
	return 0;
}

/* --- life ----------------------------------------------------------------------------------- */

struct ranges *ranges_new(struct rest_client *client, const char *path,
	enum digest_algorithm algorithm, uint64_t nr_chunks, bool ahead, struct err *err)
{
	struct ranges *ranges = calloc(1, sizeof *ranges);
	if (!ranges) {
		err_errno(err, ENOMEM, "cannot hold the hub's digests");
		return NULL;
	}
	ranges->client = client;
	ranges->leaf_bytes = digest_leaf_bytes(algorithm);
	ranges->nr_chunks = ranges->wanted = nr_chunks;
	ranges->ahead = ahead;
	pthread_mutex_init(&ranges->mutex, NULL);
	thread_cond_init(&ranges->changed);
	ranges->path = strdup(path);
	if (!ranges->path) {
		err_errno(err, ENOMEM, "cannot hold the hub's digests");
	} else if (!ahead) {
		return ranges;
	} else if (thread_start(&ranges->thread, "digests", fetch_ahead, ranges, err) == 0) {
		ranges->has_thread = true;
		return ranges;
	}
	ranges_free(ranges);
	return NULL;
}

void ranges_free(struct ranges *ranges)
{
	if (!ranges)
		return;
	pthread_mutex_lock(&ranges->mutex);
	ranges->ends = true;
	pthread_cond_broadcast(&ranges->changed);
	pthread_mutex_unlock(&ranges->mutex);
	if (ranges->has_thread)
		pthread_join(ranges->thread, NULL);
	for (unsigned i = 0; i < WINDOWS; i++)
		window_clear(&ranges->windows[i]);
	pthread_cond_destroy(&ranges->changed);
	pthread_mutex_destroy(&ranges->mutex);
	free(ranges->path);
	free(ranges);
}
