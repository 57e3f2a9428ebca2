/* The helper's work: from OPEN to CLOSE. */
#ifndef SENDENSE_VDDK_SERVE_H
#define SENDENSE_VDDK_SERVE_H

/* Serves the parent on descriptor 0 until it says CLOSE or is gone; the exit status. */
int serve_parent(void);

#endif
