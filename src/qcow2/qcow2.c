/* Stub. */
#include "qcow2.h"
