/* base: what every room stands on.  Includes all public headers of the room. */
#ifndef SENDENSE_BASE_H
#define SENDENSE_BASE_H

#include "bitmap.h"
#include "bytes.h"
#include "cancel.h"
#include "cleanup.h"
#include "clock.h"
#include "digest.h"
#include "err.h"
#include "file.h"
#include "filelock.h"
#include "guard.h"
#include "jsontext.h"
#include "log.h"
#include "proc.h"
#include "rangelock.h"
#include "redact.h"
#include "statedir.h"
#include "thread.h"
#include "utf8.h"
#include "zone.h"

#endif
