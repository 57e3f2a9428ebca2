/* memo: memory for what is given to the caller in one piece: taken bit by bit, freed at once. */
#ifndef SENDENSE_VSPHERE_MEMO_H
#define SENDENSE_VSPHERE_MEMO_H

#include "base.h"

struct memo_bit;

struct memo {
	struct memo_bit *bits;
	bool failed; /* some memory was not to be had */
};

/* Zeroed, aligned for anything; NULL (failed is set) when there is none. */
void *memo_take(struct memo *memo, size_t nr, size_t bytes_each);
/* A copy; "" when there is no memory. */
const char *memo_text(struct memo *memo, const char *text);
const char *memo_format(struct memo *memo, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
/* Takes memory from malloc() over; "" for NULL, which sets failed. */
const char *memo_adopt(struct memo *memo, char *text);
void memo_free(struct memo *memo);

#endif
