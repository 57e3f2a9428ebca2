/* Whether a file is as it was; see backup.h. */
#include "backup.h"

#include "qcow2.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* As many as qcow2_open() follows. */
#define CHAIN_MOST 1000u
#define FACTS_BYTES 128
/* Times of files move with the clock's tick (10 ms at most), on some file systems with
 * the second: a file that was changed within the last one may change again unseen. */
#define TICK_NS 20000000
#define SECOND_NS 1000000000

static int64_t time_ns(struct timespec t)
{
	return (int64_t)t.tv_sec * SECOND_NS + t.tv_nsec;
}

static bool is_settled(const struct stat *st)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	int64_t margin_ns = st->st_ctim.tv_nsec == 0 ? 2 * (int64_t)SECOND_NS : TICK_NS;
	return time_ns(st->st_ctim) + margin_ns < time_ns(now);
}

static bool file_facts(const char *path, char *out, size_t out_bytes)
{
	struct stat st;
	if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || !is_settled(&st))
		return false;
	snprintf(out, out_bytes, "%" PRIu64 " %" PRIu64 " %" PRId64 " %" PRId64 " %" PRId64,
		(uint64_t)st.st_dev, (uint64_t)st.st_ino, (int64_t)st.st_size, time_ns(st.st_mtim),
		time_ns(st.st_ctim));
	return true;
}

/* What the image at path stands on, its own path resolved (PATH_MAX bytes). */
static bool backing_path(const char *path, const char *backing, char *out)
{
	char joined[PATH_MAX];
	const char *slash = backing[0] == '/' ? NULL : strrchr(path, '/');
	int n = snprintf(joined, sizeof joined, "%.*s%s", slash ? (int)(slash + 1 - path) : 0, path,
		backing);
	return n > 0 && (size_t)n < sizeof joined && realpath(joined, out);
}

/* The digest over the facts of all files of the chain: each one's is taken together with what
 * the ones above it came to.  top is resolved. */
static bool chain_facts(const char *top, char *out, size_t out_bytes)
{
	struct {
		uint8_t above[DIGEST_ROOT_BYTES];
		char facts[FACTS_BYTES];
	} link = {0};
	char path[PATH_MAX], next[PATH_MAX];
	struct qcow2_facts image = {.backing_format = "qcow2"};
	snprintf(path, sizeof path, "%s", top);
	for (unsigned i = 0; i < CHAIN_MOST; i++) {
		/* A raw file is the end, whatever a guest wrote to its start. */
		bool is_last = strcmp(image.backing_format, "qcow2") != 0;
		memset(link.facts, 0, sizeof link.facts);
		if (!file_facts(path, link.facts, sizeof link.facts) ||
			(!is_last && qcow2_facts(path, &image, NULL) < 0))
			return false;
		digest_sha256(&link, sizeof link, link.above);
		if (is_last || !image.backing_file[0]) {
			char hex[DIGEST_ROOT_HEX_BYTES];
			digest_hex(link.above, sizeof link.above, hex);
			snprintf(out, out_bytes, "%s", hex);
			return true;
		}
		if (!backing_path(path, image.backing_file, next))
			return false;
		memcpy(path, next, sizeof path);
	}
	return false;
}

char *backup_state_of_file(const char *path, bool is_qcow2)
{
	char facts[FACTS_BYTES], *text = NULL;
	bool known = is_qcow2 ? chain_facts(path, facts, sizeof facts)
			      : file_facts(path, facts, sizeof facts);
	if (known && asprintf(&text, "%s %s", is_qcow2 ? "chain" : "file", facts) < 0)
		return NULL;
	return text;
}
