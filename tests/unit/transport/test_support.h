#ifndef SENDENSE_TEST_TRANSPORT_SUPPORT_H
#define SENDENSE_TEST_TRANSPORT_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
