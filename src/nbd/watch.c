/*
 * What the threads of a connection are busy with, so that a request that does
 * not end can be named.  Each thread writes its own slot; others only look.
 */
#include "nbd_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>

unsigned watch_enter(struct connection *connection)
{
	unsigned slot = atomic_fetch_add(&connection->nr_watched, 1);
	assert(slot < CONNECTION_THREADS);
	return slot;
}

void watch_begin(struct connection *connection, unsigned slot, const struct nbd_request *request)
{
	struct watch *watch = &connection->watches[slot];
	atomic_store_explicit(&watch->type, request->type, memory_order_relaxed);
	atomic_store_explicit(&watch->offset, request->offset, memory_order_relaxed);
	int64_t now_ns = clock_now_ns();
	atomic_store_explicit(&connection->active_ns, now_ns, memory_order_relaxed);
	atomic_store_explicit(&watch->since_ns, now_ns, memory_order_release);
}

void watch_end(struct connection *connection, unsigned slot)
{
	atomic_store_explicit(&connection->watches[slot].since_ns, 0, memory_order_release);
}

static bool is_due(struct watch *watch, int64_t since_ns, int64_t now_ns, int64_t each_ns)
{
	if (watch->told_since_ns != since_ns) {
		watch->told_since_ns = since_ns;
		watch->nr_told = 0;
	}
	if (now_ns - since_ns < each_ns * (watch->nr_told + 1))
		return false;
	watch->nr_told++;
	return true;
}

bool watch_tell(struct connection *connection, int64_t each_ns, char *text, size_t size)
{
	int64_t now_ns = clock_now_ns();
	for (unsigned i = 0; i < CONNECTION_THREADS; i++) {
		struct watch *watch = &connection->watches[i];
		char name[32];
		int64_t since_ns = atomic_load_explicit(&watch->since_ns, memory_order_acquire);
		if (since_ns == 0 || (each_ns > 0 && !is_due(watch, since_ns, now_ns, each_ns)))
			continue;
		snprintf(text, size,
			"client %s: %s at offset %" PRIuFAST64 " has taken %" PRId64
			" s: waiting for %s",
			connection->peer, nbd_wire_command_name(atomic_load(&watch->type), name),
			atomic_load(&watch->offset), (now_ns - since_ns) / 1000000000,
			atomic_load(&connection->nr_sending) > 0 ? "the client to take answers"
								 : "the disk");
		return true;
	}
	return false;
}
