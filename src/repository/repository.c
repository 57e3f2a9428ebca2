/* Stub. */
#include "repository.h"
