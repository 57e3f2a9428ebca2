/* systemd: its notification protocol, where the daemon runs as a service of type notify. */
#ifndef SENDENSE_DAEMON_SYSTEMD_H
#define SENDENSE_DAEMON_SYSTEMD_H

#include "base.h"

/* Tells systemd ("READY=1"), where it listens for that (NOTIFY_SOCKET).  Never fails. */
void systemd_tell(const char *state);
/* How often WATCHDOG=1 is due; 0: never. */
int64_t systemd_watchdog_ms(void);

#endif
