/* Stub. */
#include "nbd.h"
