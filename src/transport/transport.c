/* Stub. */
#include "transport.h"
