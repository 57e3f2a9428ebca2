/* Inside of index. */
#ifndef SENDENSE_CATALOGUE_INDEX_INTERNAL_H
#define SENDENSE_CATALOGUE_INDEX_INTERNAL_H

#include "db.h"
#include "index.h"

struct index {
	struct db db;
};

#endif
