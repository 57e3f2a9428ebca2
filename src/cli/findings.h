/* findings: how verify and repo check tell what they found. */
#ifndef SENDENSE_CLI_FINDINGS_H
#define SENDENSE_CLI_FINDINGS_H

#include "cli.h"
#include "repository.h"

struct findings {
	json_t *list; /* NULL: as text, on stdout, at once */
	bool quiet;
};

/* A repository_finding_callback; context is a struct findings. */
void findings_tell(void *context, const struct repository_finding *finding);

#endif
