/* Stub. */
#include "copy.h"
