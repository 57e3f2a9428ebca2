/*
 * Bytes: big- and little-endian integers, checked arithmetic, a bounded cursor.
 *
 * Untrusted bytes are read with a cursor: it never runs past its end, and one
 * test of cursor_ok() after a series of reads tells whether all of them fitted
 * (a read that does not fit returns zeros and makes the cursor bad for good).
 */
#ifndef SENDENSE_BYTES_H
#define SENDENSE_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)
#define TIB ((uint64_t)1 << 40)

#define ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))

/* Two hex digits, large or small: their value; -1 for anything else, the end of a string too. */
static inline int hex_pair(const char *text)
{
	int value = 0;
	for (int i = 0; i < 2; i++) {
		char c = text[i];
		int digit = c >= '0' && c <= '9'   ? c - '0'
			    : c >= 'a' && c <= 'f' ? c - 'a' + 10
			    : c >= 'A' && c <= 'F' ? c - 'A' + 10
						   : -1;
		if (digit < 0)
			return -1;
		value = value << 4 | digit;
	}
	return value;
}

static inline uint16_t be16_get(const void *p)
{
	uint16_t v;
	memcpy(&v, p, sizeof v);
	return be16toh(v);
}

static inline uint32_t be32_get(const void *p)
{
	uint32_t v;
	memcpy(&v, p, sizeof v);
	return be32toh(v);
}

static inline uint64_t be64_get(const void *p)
{
	uint64_t v;
	memcpy(&v, p, sizeof v);
	return be64toh(v);
}

static inline void be16_put(void *p, uint16_t v)
{
	v = htobe16(v);
	memcpy(p, &v, sizeof v);
}

static inline void be32_put(void *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, sizeof v);
}

static inline void be64_put(void *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, sizeof v);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* unit need not be a power of two; unit > 0. */
static inline uint64_t div_round_up(uint64_t value, uint64_t unit)
{
	return value / unit + (value % unit != 0);
}

static inline uint64_t round_down(uint64_t value, uint64_t unit)
{
	return value - value % unit;
}

/* The caller knows that the result fits (value <= UINT64_MAX - unit). */
static inline uint64_t round_up(uint64_t value, uint64_t unit)
{
	return div_round_up(value, unit) * unit;
}

/* True when offset..offset+length lies within size, without overflow. */
static inline bool range_fits(uint64_t offset, uint64_t length, uint64_t size)
{
	return offset <= size && length <= size - offset;
}

static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *sum)
{
	return !__builtin_add_overflow(a, b, sum);
}

static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *product)
{
	return !__builtin_mul_overflow(a, b, product);
}

/* A reader over bytes[0..length); borrows them. */
struct cursor {
	const uint8_t *bytes;
	size_t length;
	size_t at;
	bool bad;
};

static inline struct cursor cursor_over(const void *bytes, size_t length)
{
	return (struct cursor){.bytes = bytes, .length = length};
}

static inline bool cursor_ok(const struct cursor *c)
{
	return !c->bad;
}

static inline size_t cursor_left(const struct cursor *c)
{
	return c->bad ? 0 : c->length - c->at;
}

/* The next n bytes, or NULL when fewer are left. */
static inline const uint8_t *cursor_take(struct cursor *c, size_t n)
{
	if (c->bad || n > c->length - c->at) {
		c->bad = true;
		return NULL;
	}
	const uint8_t *p = c->bytes + c->at;
	c->at += n;
	return p;
}

static inline uint8_t cursor_u8(struct cursor *c)
{
	const uint8_t *p = cursor_take(c, 1);
	return p ? *p : 0;
}

static inline uint16_t cursor_be16(struct cursor *c)
{
	const uint8_t *p = cursor_take(c, 2);
	return p ? be16_get(p) : 0;
}

static inline uint32_t cursor_be32(struct cursor *c)
{
	const uint8_t *p = cursor_take(c, 4);
	return p ? be32_get(p) : 0;
}

static inline uint64_t cursor_be64(struct cursor *c)
{
	const uint8_t *p = cursor_take(c, 8);
	return p ? be64_get(p) : 0;
}

#endif
