/*
 * What the helper says to its parent.  Secrets are taken out of every text on the way.
 * Any thread.
 */
#ifndef SENDENSE_VDDK_SAY_H
#define SENDENSE_VDDK_SAY_H

#include "library.h"
#include "vddk_wire.h"

/* Borrows secret (not empty) for good; it is cut out of all texts from now on. */
void say_hide(const char *secret);

/* text: NULL or "": none.  A parent that is gone is found out elsewhere. */
void say_message(const struct vddk_message *message, const char *text);

/* Lines of the library's that the parent is too slow for are lost, and counted. */
void say_log_info(const char *format, va_list ap);
void say_log_warning(const char *format, va_list ap);
void say_log_panic(const char *format, va_list ap);

void say_warning(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
