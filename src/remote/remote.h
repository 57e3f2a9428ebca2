/*
 * remote: restore points wherever they are, in a folder or behind a hub; what commands may see
 * of it.
 */
#ifndef SENDENSE_REMOTE_H
#define SENDENSE_REMOTE_H

#include "store.h"

#endif
