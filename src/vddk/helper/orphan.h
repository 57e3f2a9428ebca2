/*
 * The helper's end when its parent has died.  The main thread sees that at its next message and
 * ends in order, so that the access to the machine is given back; where the library does not
 * let it come to that, a timer of the kernel's ends the process.
 */
#ifndef SENDENSE_VDDK_ORPHAN_H
#define SENDENSE_VDDK_ORPHAN_H

/* From the first moment on: by a signal, because the library wants no threads before it is
 * initialised.  0, or -1 with errno. */
int orphan_prepare(void);

/* Then by a thread too: the library may take the signal for itself. */
void orphan_watch(void);

#endif
