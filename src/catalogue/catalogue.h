/*
 * catalogue: what the hub keeps in SQLite, each part in a header of its own.
 */
#ifndef SENDENSE_CATALOGUE_H
#define SENDENSE_CATALOGUE_H

#include "index.h"
#include "state.h"

#endif
