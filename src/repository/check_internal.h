/* check: what structure check and verification share. */
#ifndef SENDENSE_CHECK_INTERNAL_H
#define SENDENSE_CHECK_INTERNAL_H

#include "disk_internal.h"

#include <errno.h>

#define CHECK_NR_KINDS (REPOSITORY_FINDING_REPAIRED + 1)

#define CHECK_REMEDY_DISK                                                                  \
	"other disks of this point, and restore points that are not named here, restore; " \
	"sendense serve still reads what is good of this disk. Make a new full backup "    \
	"(sendense backup --mode full), or bring the file back from a copy of the repository"
#define CHECK_REMEDY_LOST                                                                         \
	"restore points that stand on this disk of it are lost with it; what is not named here "  \
	"restores. Bring the file back from a copy of the repository, or make a new full backup " \
	"(sendense backup --mode full)"
#define CHECK_REMEDY_SUMS                                                                          \
	"without it this disk cannot be verified or restored by sendense; qemu-img convert still " \
	"reads the image. Bring the file back from a copy of the repository, or make a new full "  \
	"backup (sendense backup --mode full)"
#define CHECK_REMEDY_MANIFEST                                                                    \
	"its images can still be read with qemu-img; restore points that are not named here "    \
	"restore. Bring the file back from a copy of the repository, or make a new full backup " \
	"(sendense backup --mode full)"

struct check_line;

/* points.log of one VM, sorted by point. */
struct check_log {
	char vm[REPOSITORY_VM_BYTES];
	struct check_line *lines;
	size_t nr;
};

struct check_run {
	struct repository *repo;
	bool repair;
	struct cancel *cancel;
	repository_finding_callback *finding;
	void *context;
	unsigned points, images;
	unsigned nr[CHECK_NR_KINDS];
	struct check_log log; /* the last one that was read */
};

struct check_vm {
	struct check_run *run;
	const char *name;
	struct err *err;
	bool failed;
};

/* Fills in the text (and an empty remedy), counts, and tells. */
void check_report(struct check_run *run, struct repository_finding *finding, const char *format,
	...) __attribute__((format(printf, 3, 4)));

/* points.log: lines that cannot be read, and committed points that are gone. */
void check_log(struct check_run *run, const char *vm);
/* One point (not damaged) against the log: whether its commit is there, with these facts. */
bool check_logged(struct check_run *run, const struct repository_point *point);
void check_log_forget(struct check_run *run);

/* The configuration files of a point (not damaged); false when one is wrong. */
bool check_config(struct check_run *run, const struct repository_point *point);
bool check_config_knows(const struct repository_point *point, const char *name);

/* A folder below vms whose VM's name cannot be told: true, and reported, when it holds
 * restore points. */
bool check_nameless(struct check_run *run, const char *folder);

bool check_has_manifest(struct repository *repo, const char *vm, const char *point);
/* Whether an open plan lists this file or folder. */
bool check_is_planned(struct repository *repo, const char *path);

/* Whether the image is there, and whole by its size; else that is told. */
bool check_has_image(struct check_run *run, const struct repository_point *point,
	const struct repository_disk_info *disk);

/* One image's tables; findings are told, good says whether there was an error.
 * -1 when it was cancelled. */
int check_image(struct check_run *run, const struct repository_point *point,
	const struct repository_disk_info *disk, bool *good, struct err *err);

#endif
