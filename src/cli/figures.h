/* figures: the table of disks that copy, backup and restore end with. */
#ifndef SENDENSE_CLI_FIGURES_H
#define SENDENSE_CLI_FIGURES_H

#include "cli.h"

struct figures_row {
	const char *key; /* NULL: no column of keys */
	uint64_t size_bytes;
	const struct copy_progress *figures;
};

/* On stdout: a heading, a row a disk, and the sum when there are several. */
void figures_print(const struct figures_row *rows, size_t nr_rows);

#endif
