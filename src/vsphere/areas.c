/*
 * Changed areas of a disk.  One answer covers `length` bytes from `startOffset`, which may be a
 * part of the disk only: whoever does not ask on loses data.
 *
 *     0        start             start+length                       capacity
 *     |--------|==##====#=========|...............................|
 *      told     this answer        the next question begins here
 */
#include "areas.h"
#include "vim.h"

#include <inttypes.h>
#include <stdio.h>

/* What changes are tracked in, at least: answers that cover less would have no end. */
#define GRANULE (64 * KIB)
#define CALLS_SPARE 16

static int missing(const char *what, struct err *err)
{
	return err_set(err, ERR_PROTOCOL, "the answer does not tell its %s", what);
}

static int read_area(const struct xml *area, uint64_t *from, uint64_t end, uint64_t capacity_bytes,
	vsphere_take_area *take, void *context, struct vsphere_changes *changes, struct err *err)
{
	int64_t start, length;
	int rc = xml_number(area, "start", 0, INT64_MAX, &start, err);
	if (rc > 0)
		rc = xml_number(area, "length", 0, INT64_MAX, &length, err);
	if (rc <= 0)
		return rc < 0 ? -1 : missing("areas", err);
	uint64_t offset = (uint64_t)start, bytes = (uint64_t)length;
	if (!bytes)
		return 0;
	if (offset < *from || !range_fits(offset, bytes, end))
		return err_set(err, ERR_PROTOCOL,
			"the area of %" PRIu64 " bytes at %" PRIu64
			" is outside of what the answer covers, or not behind the one before it",
			bytes, offset);
	*from = offset + bytes;
	if (offset >= capacity_bytes)
		return 0;
	bytes = min_u64(bytes, capacity_bytes - offset);
	changes->nr_areas++;
	changes->bytes += bytes;
	return take(context, offset, bytes, err) ? -1 : 0;
}

int areas_read(const struct xml *info, uint64_t start, uint64_t capacity_bytes,
	vsphere_take_area *take, void *context, struct vsphere_changes *changes, uint64_t *next,
	struct err *err)
{
	int64_t told, length;
	int rc = xml_number(info, "startOffset", 0, INT64_MAX, &told, err);
	if (rc > 0)
		rc = xml_number(info, "length", 0, INT64_MAX, &length, err);
	if (rc <= 0)
		return rc < 0 ? -1 : missing("startOffset and length", err);
	if ((uint64_t)told != start || !length || length > INT64_MAX - told)
		return err_set(err, ERR_PROTOCOL,
			"asked from %" PRIu64 " on, the answer covers %" PRId64
			" bytes from %" PRId64,
			start, length, told);
	uint64_t from = start, end = start + (uint64_t)length;
	for (const struct xml *area = xml_child(info, "changedArea"); area; area = xml_again(area))
		if (read_area(area, &from, end, capacity_bytes, take, context, changes, err))
			return -1;
	*next = min_u64(end, capacity_bytes);
	return 0;
}

/* --- asking ------------------------------------------------------------------------------------
 */

struct question {
	struct vsphere *vsphere;
	const char *vm, *snapshot, *change_id;
	int32_t disk_key;
	uint64_t capacity_bytes;
	vsphere_take_area *take;
	void *context;
	struct vsphere_changes *changes;
};

/* Faults that say that nothing can be told from this change id, so that only all is enough. */
static bool is_gone(const struct soap_fault *fault)
{
	static const char *const names[] = {
		"FileFault", "NotSupported", "MethodNotFound", "NotImplemented"};
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		if (!strcmp(fault->name, names[i]))
			return true;
	return !strcmp(fault->name, "InvalidArgument") &&
	       (!fault->property[0] || !strcmp(fault->property, "changeId") ||
		       !strcmp(fault->property, "startOffset"));
}

static int refused(const struct question *q, const struct soap_fault *fault, struct err *err)
{
	bool argument = !strcmp(fault->name, "InvalidArgument");
	if (argument && !strcmp(fault->property, "snapshot"))
		err->code = ERR_NOT_FOUND;
	if (argument && !strcmp(fault->property, "deviceKey")) {
		err->code = ERR_NOT_FOUND;
		err_context(err, "the snapshot %s has no disk %d", q->snapshot, (int)q->disk_key);
	}
	if (!is_gone(fault))
		return -1;
	q->changes->gone = true;
	err->code = ERR_REFUSED;
	return err_context(err, "nothing is known of what changed since %s", q->change_id);
}

static int ask(const struct question *q, uint64_t start, uint64_t *next, struct err *err)
{
	struct vim_answer answer;
	struct soap soap;
	struct err why = ERR_INIT;
	soap_begin(&soap, "QueryChangedDiskAreas", "VirtualMachine", q->vm);
	soap_ref(&soap, "snapshot", "VirtualMachineSnapshot", q->snapshot);
	soap_number(&soap, "deviceKey", q->disk_key);
	soap_number(&soap, "startOffset", (int64_t)start);
	soap_text(&soap, "changeId", q->change_id);
	int rc = vim_call(q->vsphere, &soap, VIM_SAFE, vim_until(q->vsphere), &answer, &why);
	q->changes->nr_calls++;
	if (!rc)
		rc = areas_read(xml_child(answer.xml, "returnval"), start, q->capacity_bytes,
			q->take, q->context, q->changes, next, &why);
	else if (answer.fault.name[0])
		rc = refused(q, &answer.fault, &why);
	vim_free(&answer);
	return rc ? err_copy(err, &why) : 0;
}

static void tell_progress(const struct question *q, uint64_t at)
{
	const struct vsphere_options *options = &q->vsphere->options;
	char what[64];
	snprintf(what, sizeof what, "asking for changes of disk %d", (int)q->disk_key);
	if (options->progress)
		options->progress(options->progress_context, what,
			(unsigned)((double)at / (double)q->capacity_bytes * 100));
}

int vsphere_changed_areas(struct vsphere *vsphere, const char *vm, const char *snapshot,
	int32_t disk_key, const char *change_id, uint64_t capacity_bytes, vsphere_take_area *take,
	void *context, struct vsphere_changes *changes, struct err *err)
{
	const struct question q = {
		vsphere, vm, snapshot, change_id, disk_key, capacity_bytes, take, context, changes};
	*changes = (struct vsphere_changes){.gone = false};
	if (!capacity_bytes || capacity_bytes > INT64_MAX || !*change_id)
		return err_set(err, ERR_USAGE,
			"asking for changes of disk %d: it needs a size and a change id",
			(int)disk_key);
	for (uint64_t at = 0; at < capacity_bytes;) {
		if (changes->nr_calls > capacity_bytes / GRANULE + CALLS_SPARE)
			return err_set(err, ERR_PROTOCOL,
				"asking for changes of disk %d: %u answers cover %" PRIu64
				" of its %" PRIu64 " bytes",
				(int)disk_key, changes->nr_calls, at, capacity_bytes);
		if (ask(&q, at, &at, err))
			return err_context(err, "asking for changes of disk %d", (int)disk_key);
		tell_progress(&q, at);
	}
	return 0;
}
