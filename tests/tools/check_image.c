/*
 * check_image [--repair] FILE: qcow2_check() for the integration tests.  Prints
 * its result as one JSON object, and the findings to stderr.  Exit status: 0 it
 * could be checked, 1 not (the reason is on stderr).
 */
#include "qcow2.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

static void print_finding(void *context, const char *text)
{
	(void)context;
	fprintf(stderr, "%s\n", text);
}

int main(int argc, char **argv)
{
	bool repair = argc > 1 && strcmp(argv[1], "--repair") == 0;
	if (argc != (repair ? 3 : 2)) {
		fprintf(stderr, "usage: check_image [--repair] FILE\n");
		return 2;
	}
	struct err err = ERR_INIT;
	struct qcow2_check_result r;
	if (qcow2_check(argv[argc - 1], repair, NULL, print_finding, NULL, &r, &err) < 0) {
		fprintf(stderr, "sendense: %s\n", err.text);
		return 1;
	}
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	printf("{\"errors\": %" PRIu64 ", \"leaks\": %" PRIu64 ", \"repaired\": %" PRIu64
	       ", \"used\": %" PRIu64 ", \"total\": %" PRIu64 ", \"compressed\": %" PRIu64
	       ", \"end\": %" PRIu64 ", \"peak_kib\": %ld}\n",
		r.errors, r.leaks, r.repaired, r.clusters_used, r.clusters_total, r.compressed,
		r.end_offset, usage.ru_maxrss);
	return 0;
}
