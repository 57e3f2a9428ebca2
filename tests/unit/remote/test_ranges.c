/* Digests fetched in windows from a server that answers out of a model, in answers as short as it
 * likes, or bad ones; held against the model. */
#include "test_support.h"

#include "base.h"
#include "ranges.h"

#include <stdio.h>
#include <string.h>

#define LEAF_BYTES 16u
#define NR_CHUNKS 20000u
#define ANSWER_MOST 60000u /* of the server; the contract says 1 MiB at most */

static uint8_t kinds[NR_CHUNKS]; /* with 0x10 */
static _Atomic unsigned nr_calls;
static _Atomic(const char *) bad; /* what it answers instead */
static struct rest_server *server;
static char url[64];

static void leaf_of(uint64_t chunk, uint8_t leaf[LEAF_BYTES])
{
	memset(leaf, 0x5a, LEAF_BYTES);
	be64_put(leaf, chunk);
}

static size_t answer_run(uint64_t first, uint64_t end, uint8_t *out, uint64_t *next)
{
	uint64_t stop = first;
	size_t used = 5;
	while (stop < end && kinds[stop] == kinds[first] && stop - first < 700) {
		if ((kinds[first] & 15) == RANGES_DATA) {
			leaf_of(stop, out + used);
			used += LEAF_BYTES;
		}
		stop++;
	}
	out[0] = kinds[first];
	be32_put(out + 1, (uint32_t)(stop - first));
	*next = stop;
	return used;
}

static int answer(void *context, struct rest_request *request, struct err *err)
{
	static _Thread_local uint8_t bytes[ANSWER_MOST + 20000];
	uint64_t first, count;
	size_t length = 0;
	const char *wrong = bad;
	(void)context;
	nr_calls++;
	if (wrong)
		return rest_reply_octets(request, "application/octet-stream", wrong,
			(size_t)(unsigned char)wrong[0], err);
	assert_int_equal(rest_query_number(request, "first", 0, NR_CHUNKS - 1, 0, &first, err), 0);
	assert_int_equal(rest_query_number(request, "count", 1, NR_CHUNKS, 1, &count, err), 0);
	assert_true(count <= NR_CHUNKS - first);
	for (uint64_t end = first + count; first < end && length < ANSWER_MOST;)
		length += answer_run(first, end, bytes + length, &first);
	return rest_reply_octets(request, "application/octet-stream", bytes, length, err);
}

static int authenticate(void *context, const char *hash, struct rest_actor *actor, struct err *err)
{
	(void)context;
	(void)hash;
	(void)actor;
	return err_set(err, ERR_DENIED, "nobody");
}

static const struct rest_route routes[] = {
	{"GET", "/d?first&count", "digests", REST_NONE, 0, answer, 0},
	{0},
};
static const struct rest_route *const tables[] = {routes, NULL};

static int set_up(void **state)
{
	(void)state;
	unsigned seed = 3;
	const struct rest_server_options options = {
		.address = "127.0.0.1", .tables = tables, .authenticate = authenticate};
	for (uint64_t i = 0; i < NR_CHUNKS;) {
		uint64_t end = min_u64(NR_CHUNKS, i + 1 + (uint64_t)rand_r(&seed) % 3000);
		uint8_t kind = (uint8_t)(rand_r(&seed) % 3);
		if (kind != RANGES_UNKNOWN && rand_r(&seed) % 2)
			kind |= 0x10;
		while (i < end)
			kinds[i++] = kind;
	}
	server = rest_server_start(&options, NULL);
	assert_non_null(server);
	snprintf(url, sizeof url, "http://127.0.0.1:%u", rest_server_port(server));
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rest_server_stop(server);
	return 0;
}

static struct rest_client *client_new(void)
{
	const struct rest_client_options options = {.url = url, .retry_ms = 1};
	struct rest_client *client = rest_client_new(&options, NULL);
	assert_non_null(client);
	return client;
}

static void expect_chunk(struct ranges *ranges, uint64_t chunk, uint64_t most)
{
	enum ranges_kind kind;
	bool sent;
	uint64_t nr;
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX], expect[LEAF_BYTES];
	struct err err = ERR_INIT;
	if (ranges_look(ranges, chunk, most, &kind, &sent, &nr, leaf, &err) < 0)
		fail_msg("%s", err.text);
	assert_true(nr >= 1 && nr <= most);
	assert_int_equal(kind, kinds[chunk] & 15);
	assert_int_equal(sent, (kinds[chunk] & 0x10) != 0);
	for (uint64_t i = 0; i < nr; i++)
		assert_int_equal(kinds[chunk + i], kinds[chunk]);
	leaf_of(chunk, expect);
	if (kind == RANGES_DATA) {
		assert_int_equal(nr, 1);
		assert_memory_equal(leaf, expect, LEAF_BYTES);
	}
}

static void test_in_order(void **state)
{
	(void)state;
	struct rest_client *client = client_new();
	struct ranges *ranges = ranges_new(client, "/d", DIGEST_XXH3_128, NR_CHUNKS, true, NULL);
	assert_non_null(ranges);
	nr_calls = 0;
	for (uint64_t i = 0; i < NR_CHUNKS; i++)
		expect_chunk(ranges, i, NR_CHUNKS - i);
	/* Each window once, however many looks. */
	assert_in_range(nr_calls, 2, 40);
	ranges_free(ranges);
	rest_client_free(client);
}

static void test_anywhere(void **state)
{
	(void)state;
	unsigned seed = 5;
	struct rest_client *client = client_new();
	struct ranges *ranges = ranges_new(client, "/d", DIGEST_XXH3_128, NR_CHUNKS, false, NULL);
	assert_non_null(ranges);
	for (unsigned i = 0; i < 300; i++) {
		uint64_t chunk = (uint64_t)rand_r(&seed) % NR_CHUNKS;
		expect_chunk(ranges, chunk, 1 + (uint64_t)rand_r(&seed) % (NR_CHUNKS - chunk));
	}
	ranges_free(ranges);
	rest_client_free(client);
}

static void *look_about(void *arg)
{
	unsigned seed = 11;
	for (unsigned i = 0; i < 200; i++)
		expect_chunk(arg, (uint64_t)rand_r(&seed) * (i % 2 + 1) % NR_CHUNKS, 1);
	return NULL;
}

/* More threads than windows. */
static void test_threads(void **state)
{
	(void)state;
	struct rest_client *client = client_new();
	struct ranges *ranges = ranges_new(client, "/d", DIGEST_XXH3_128, NR_CHUNKS, true, NULL);
	pthread_t threads[6];
	for (unsigned i = 0; i < ARRAY_LENGTH(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, look_about, ranges), 0);
	for (unsigned i = 0; i < ARRAY_LENGTH(threads); i++)
		pthread_join(threads[i], NULL);
	ranges_free(ranges);
	rest_client_free(client);
}

struct counted {
	uint64_t next;
};

static int count_run(void *context, uint64_t first, uint64_t nr, enum ranges_kind kind, bool sent,
	const uint8_t *leaves, struct err *err)
{
	struct counted *counted = context;
	uint8_t expect[LEAF_BYTES];
	(void)err;
	assert_int_equal(first, counted->next);
	for (uint64_t i = 0; i < nr; i++) {
		assert_int_equal(kinds[first + i], kind | (sent ? 0x10u : 0));
		leaf_of(first + i, expect);
		if (kind == RANGES_DATA)
			assert_memory_equal(leaves + i * LEAF_BYTES, expect, LEAF_BYTES);
	}
	counted->next += nr;
	return 0;
}

static void test_each(void **state)
{
	(void)state;
	struct counted counted = {0};
	struct rest_client *client = client_new();
	struct ranges *ranges = ranges_new(client, "/d", DIGEST_XXH3_128, NR_CHUNKS, true, NULL);
	assert_int_equal(ranges_each(ranges, count_run, &counted, NULL), 0);
	assert_int_equal(counted.next, NR_CHUNKS);
	ranges_free(ranges);
	rest_client_free(client);
}

/* Each begins with its length. */
static void test_bad_answers(void **state)
{
	(void)state;
	static const char *const answers[] = {
		"\x01", /* a record is cut */
		"\x05\0\0\0\0", /* of no chunks (and the kind 5) */
		"\x05\x00\x00\x00\x00",
		"\x0a\x7f\xff\xff\xff\x00\x00\x00\x00\x00", /* more than was asked for */
	};
	struct rest_client *client = client_new();
	for (unsigned i = 0; i < ARRAY_LENGTH(answers); i++) {
		struct ranges *ranges =
			ranges_new(client, "/d", DIGEST_XXH3_128, NR_CHUNKS, false, NULL);
		enum ranges_kind kind;
		bool sent;
		uint64_t nr;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		struct err err = ERR_INIT;
		bad = answers[i];
		assert_int_equal(ranges_look(ranges, 0, 1, &kind, &sent, &nr, leaf, &err), -1);
		assert_int_equal(err.code, ERR_PROTOCOL);
		bad = NULL;
		/* And it is asked again. */
		expect_chunk(ranges, 0, 1);
		ranges_free(ranges);
	}
	rest_client_free(client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_in_order),
		cmocka_unit_test(test_anywhere),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_each),
		cmocka_unit_test(test_bad_answers),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
