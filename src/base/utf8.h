/*
 * UTF-8, which JSON and terminals take.  What peers and files say, and what was cut to fit, need
 * not be any.
 */
#ifndef SENDENSE_UTF8_H
#define SENDENSE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Length of the well-formed sequence at p, 1..4; 0 when it is none.  The text ends with a zero
 * byte, which stops a cut sequence. */
size_t utf8_step(const uint8_t *p);
/* Puts '?' in place of each byte that belongs to none. */
void utf8_mend(char *text);

#endif
