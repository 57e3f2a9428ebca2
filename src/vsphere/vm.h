/* vm: what more than one file needs of a VM's facts. */
#ifndef SENDENSE_VSPHERE_VM_H
#define SENDENSE_VSPHERE_VM_H

#include "vim.h"

/* "poweredOn" and the like. */
enum vsphere_power vm_power(const char *text);

/*
 * A task that is queued or running on this VM and whose description has one of the words (NULL at
 * their end, capitals or not): 1 with what it is ("task-9 VirtualMachine.relocate, 42 %"), 0 when
 * there is none, out is "" then.
 */
#define VM_TASK_BYTES 256u
int vm_running_task(struct vsphere *vsphere, const char *moref, const char *const *words,
	struct deadline until, char out[VM_TASK_BYTES], struct err *err);

#endif
