#ifndef SENDENSE_REPOSITORY_H
#define SENDENSE_REPOSITORY_H

#include "block.h"
#include "copy.h"
#include "qcow2.h"

#endif
