/* What the files of the room share. */
#ifndef SENDENSE_LOCATOR_INTERNAL_H
#define SENDENSE_LOCATOR_INTERNAL_H

#include "locator.h"

#include <sys/stat.h>

/* The same file, or the same block device behind two nodes. */
bool locator_same_file(const struct stat *a, const struct stat *b);

#endif
