/* Writing XML: what fails is told at the end.  What XML cannot hold is written as '?'. */
#ifndef SENDENSE_REBUILD_MARKUP_H
#define SENDENSE_REBUILD_MARKUP_H

#include "err.h"

struct markup;

/* NULL: no memory. */
struct markup *markup_new(void);
void markup_free(struct markup *markup);

/* All accept NULL. */
void markup_open(struct markup *markup, const char *element);
void markup_attribute(struct markup *markup, const char *name, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void markup_text(struct markup *markup, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
void markup_close(struct markup *markup);
/* An element that holds a text alone. */
void markup_element(struct markup *markup, const char *element, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* The whole, for the caller to free. */
char *markup_finish(struct markup *markup, struct err *err);

#endif
