/* pay: a debt is paid by removing its snapshot. */
#ifndef SENDENSE_VMWARE_PAY_H
#define SENDENSE_VMWARE_PAY_H

#include "debts.h"

#define PAY_MOST_MS (30u * 60 * 1000) /* where nobody says how long a removal may take */

/* Whether it is owed at that server. */
bool pay_is_at(const struct vmware_debt *debt, const struct debts_place *place);

/* Removes the snapshot of this name, if it is there or comes to be, and drops the debt.  The caller
 * has the machine (debts_lock()). */
int pay_snapshot(struct vsphere *vsphere, const struct debts_place *place, const char *snapshot,
	struct deadline until, struct err *err);
/* What to say when that failed: -1. */
int pay_hint(const struct debts_place *place, const char *snapshot, struct err *err);

#endif
