/*
 * reindex: brings the index of the catalogue up to date with a repository.
 *
 * Looks at each restore point's folder (one stat() a point) and reads only the manifests that
 * changed since; so it can be called after every job, and at every start.
 *
 * Thread rule: any thread; one at a time for the same repository.
 */
#ifndef SENDENSE_JOB_REINDEX_H
#define SENDENSE_JOB_REINDEX_H

#include "catalogue.h"
#include "repository.h"

struct reindex_options {
	struct index *index;
	struct repository *repository; /* open, REPOSITORY_READ is enough */
	const char *name; /* of the repository in the index */
	const char *vm; /* this one alone; NULL: all, and those that are gone are forgotten */
	bool quick; /* pass over VMs whose points are the same: a verification, a protection that
		       this hub did not order is not seen (two stat() a VM) */
	bool all; /* trust nothing that the index holds: read every manifest */
	struct cancel *cancel; /* may be NULL */
	/* Each VM when it is done; may be NULL. */
	void (*progress)(void *context, const char *vm, unsigned nr_vms_done, unsigned nr_vms);
	void *context;
};

struct reindex_result {
	unsigned nr_vms, nr_points; /* that the repository has; quick: points of those VMs that
				       were looked at */
	unsigned nr_read; /* manifests that were read */
	unsigned nr_gone; /* restore points that the index forgot */
	unsigned nr_damaged; /* manifests that cannot be used; they stand in the index */
};

/* A VM (options->vm) that is not there any more is forgotten, and no error. */
int reindex_run(
	const struct reindex_options *options, struct reindex_result *result, struct err *err);

#endif
