/* What the tests of nbd share: cmocka, and a disk in memory that can be held
 * up and made to fail. */
#ifndef SENDENSE_TEST_NBD_SUPPORT_H
#define SENDENSE_TEST_NBD_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "block.h"

#define TEST_TIMEOUT_MS 20000

struct gate {
	struct block block;
	uint8_t *bytes;
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	bool closed; /* requests wait */
	unsigned nr_inside; /* requests that wait or run */
	unsigned nr_flushes;
	uint64_t bad_offset; /* a request that touches this byte fails */
	enum err_code bad_code;
};

/* Requests wait inside until the gate is opened. */
void gate_set(struct gate *gate, bool closed);
/* Waits until so many requests are inside; fails the test when they do not come. */
void gate_wait_inside(struct gate *gate, unsigned nr);
/* A disk of zeros, open. */
struct gate *gate_open(uint64_t size_bytes);

#endif
