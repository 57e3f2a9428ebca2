/* areas: one answer about changed areas, checked.  Public for its test. */
#ifndef SENDENSE_VSPHERE_AREAS_H
#define SENDENSE_VSPHERE_AREAS_H

#include "vsphere.h"
#include "xml.h"

/*
 * info: a DiskChangeInfo that was asked for with start.  Tells its areas to take, cut at the disk's
 * end, and gives where the next question begins.  ERR_PROTOCOL when it does not begin at start,
 * covers nothing, or its areas are not sorted, disjoint and inside of what it covers.
 */
int areas_read(const struct xml *info, uint64_t start, uint64_t capacity_bytes,
	vsphere_take_area *take, void *context, struct vsphere_changes *changes, uint64_t *next,
	struct err *err);

#endif
