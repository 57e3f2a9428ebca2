/* jobwords: the words of a command line, put together of a spec's fields. */
#ifndef SENDENSE_JOB_JOBWORDS_H
#define SENDENSE_JOB_JOBWORDS_H

#include "base.h"

#include <jansson.h>

/* A member's text; NULL: there is none. */
const char *jobwords_text(const json_t *object, const char *name);

void jobwords_add(json_t *argv, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* --OPTION=[KEY=]TEXT, where the disk has that member; likewise the next two. */
void jobwords_add_keyed(json_t *argv, const char *option, const json_t *disk, const char *member);
void jobwords_add_number(
	json_t *argv, const char *option, const json_t *object, const char *member);
void jobwords_add_flag(json_t *argv, const char *option, const json_t *object, const char *member);
/* A word that names a disk, which is looked at before it is used; use: "source", "target". */
void jobwords_add_disk(json_t *argv, const char *before, const json_t *disk, const char *use);

#endif
