/* What the tests of job share. */
#ifndef SENDENSE_TESTS_JOB_SUPPORT_H
#define SENDENSE_TESTS_JOB_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
