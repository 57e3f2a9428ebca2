/* jobplan_vmware: plans of jobs with a machine of a configured vCenter; see job.h for their specs.
 */
#ifndef SENDENSE_JOB_JOBPLAN_VMWARE_H
#define SENDENSE_JOB_JOBPLAN_VMWARE_H

#include "job.h"

/* Whether it is one of these: of a kind that only they have, or with a vCenter. */
bool jobplan_vmware_is(const json_t *spec);
/* As jobplan_argv(). */
int jobplan_vmware_argv(
	const struct jobs_options *options, const json_t *spec, json_t *argv, struct err *err);

#endif
