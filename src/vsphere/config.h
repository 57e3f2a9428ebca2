/* config: a VM's configuration out of the server's XML.  Public for its test. */
#ifndef SENDENSE_VSPHERE_CONFIG_H
#define SENDENSE_VSPHERE_CONFIG_H

#include "vsphere.h"
#include "xml.h"

/* xml: a VirtualMachineConfigInfo.  The caller frees; NULL (err): ERR_PROTOCOL for what cannot be
 * (a disk without a size, two devices with one key). */
struct vsphere_config *config_read(const struct xml *xml, struct err *err);

#endif
