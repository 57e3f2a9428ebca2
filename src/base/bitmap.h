/* Bitmaps over plain memory: bit i is bit i%64 of word i/64. */
#ifndef SENDENSE_BITMAP_H
#define SENDENSE_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BITMAP_WORDS(nr_bits) (((nr_bits) + 63) / 64)

static inline bool bitmap_test(const uint64_t *words, size_t bit)
{
	return words[bit / 64] >> (bit % 64) & 1;
}

static inline void bitmap_set(uint64_t *words, size_t bit)
{
	words[bit / 64] |= (uint64_t)1 << (bit % 64);
}

static inline void bitmap_clear(uint64_t *words, size_t bit)
{
	words[bit / 64] &= ~((uint64_t)1 << (bit % 64));
}

#endif
