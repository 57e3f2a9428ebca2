/* Stub. */
#include "locator.h"
