/*
 * daemon: what every daemon of ours stands on, whatever it does: its file of settings, its folders
 * and their locks, who may call it and who did, its log lines, systemd, those who listen to what
 * happens.
 *
 *   settings   a file of settings by a table         folder    folders that are one daemon's alone
 *   access     tokens, the audit log, in state.db    logging   where log lines go
 *   feed       the last events, for listeners        systemd   ready, stopping, the watchdog
 *   life       started in order, signals, stopped in reverse
 *   setup      what "init" makes                    inspect   what "check-config" looks at
 *   prometheus the text that it reads
 */
#ifndef SENDENSE_DAEMON_H
#define SENDENSE_DAEMON_H

#include "access.h"
#include "feed.h"
#include "folder.h"
#include "inspect.h"
#include "life.h"
#include "logging.h"
#include "prometheus.h"
#include "settings.h"
#include "setup.h"
#include "systemd.h"

#endif
