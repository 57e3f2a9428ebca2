/* The disk of the tests; see test_support.h. */
#include "test_support.h"

static struct gate *gate_of(struct block *block)
{
	return (struct gate *)block;
}

void gate_set(struct gate *gate, bool closed)
{
	WITH_LOCK(&gate->mutex);
	gate->closed = closed;
	pthread_cond_broadcast(&gate->changed);
}

void gate_wait_inside(struct gate *gate, unsigned nr)
{
	struct deadline until = deadline_after_ms(TEST_TIMEOUT_MS);
	WITH_LOCK(&gate->mutex);
	while (gate->nr_inside != nr)
		if (!thread_cond_wait(&gate->changed, &gate->mutex, until))
			fail_msg("%u requests inside, not %u", gate->nr_inside, nr);
}

static int pass(struct gate *gate, uint64_t offset, uint64_t length, struct err *err)
{
	WITH_LOCK(&gate->mutex);
	gate->nr_inside++;
	pthread_cond_broadcast(&gate->changed);
	while (gate->closed)
		pthread_cond_wait(&gate->changed, &gate->mutex);
	gate->nr_inside--;
	pthread_cond_broadcast(&gate->changed);
	if (gate->bad_code && gate->bad_offset >= offset && gate->bad_offset < offset + length)
		return err_set(err, gate->bad_code, "a bad byte");
	return 0;
}

static int gate_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	if (pass(gate_of(block), offset, length, err) < 0)
		return -1;
	memcpy(buffer, gate_of(block)->bytes + offset, length);
	return 0;
}

static int gate_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	(void)flags;
	if (pass(gate_of(block), offset, length, err) < 0)
		return -1;
	memcpy(gate_of(block)->bytes + offset, buffer, length);
	return 0;
}

static int gate_flush(struct block *block, struct err *err)
{
	(void)err;
	WITH_LOCK(&gate_of(block)->mutex);
	gate_of(block)->nr_flushes++;
	return 0;
}

/* Changed and unchanged by turns; asked only where a test sets info.has_extents. */
static int gate_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	uint64_t end = offset + length;
	(void)block, (void)err;
	for (*nr = 0; offset < end && *nr < max; ++*nr) {
		uint64_t next = min_u64(round_down(offset, 65536) + 65536, end);
		extents[*nr] = (struct block_extent){
			next - offset, offset / 65536 % 2 ? BLOCK_UNCHANGED : 0};
		offset = next;
	}
	return 0;
}

static int gate_close(struct block *block, struct err *err)
{
	(void)err;
	struct gate *gate = gate_of(block);
	pthread_cond_destroy(&gate->changed);
	pthread_mutex_destroy(&gate->mutex);
	block_fini(block);
	free(gate->bytes);
	free(gate);
	return 0;
}

static const struct block_driver gate_driver = {
	.name = "gate",
	.read = gate_read,
	.write = gate_write,
	.flush = gate_flush,
	.extents = gate_extents,
	.close = gate_close,
};

struct gate *gate_open(uint64_t size_bytes)
{
	struct gate *gate = calloc(1, sizeof *gate);
	assert_non_null(gate);
	gate->bytes = calloc(1, size_bytes);
	assert_non_null(gate->bytes);
	pthread_mutex_init(&gate->mutex, NULL);
	thread_cond_init(&gate->changed);
	block_init(&gate->block, &gate_driver, strdup("gate"));
	gate->block.info = (struct block_info){
		.size_bytes = size_bytes, .multi_lane = true, .granule_bytes = 4096};
	return gate;
}
