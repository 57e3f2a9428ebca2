/*
 * Snapshots.  Creating one is the only call that must not be done twice: when its answer is
 * lost, what there is is looked at by the name, which is the caller's alone.
 */
#include "config.h"
#include "props.h"
#include "task.h"
#include "vm.h"

#include <stdio.h>

#define LOST_MS 15000 /* to be seen after an answer was lost, and no task is at work on it */
#define PAUSE_MS 500

/* --- the tree of snapshots ---------------------------------------------------------------------
 */

struct search {
	const char *name, *moref; /* one of them */
	const struct xml *found;
	unsigned nr;
};

static void search_tree(const struct xml *tree, struct search *search)
{
	for (; tree; tree = xml_again(tree)) {
		bool is_it = search->name ? !strcmp(xml_text(tree, "name"), search->name)
					  : !strcmp(xml_text(tree, "snapshot"), search->moref);
		if (is_it) {
			search->found = tree;
			search->nr++;
		}
		search_tree(xml_child(tree, "childSnapshotList"), search);
	}
}

/* What was found lives as long as answer. */
static int search_vm(struct vsphere *vsphere, const char *vm, struct search *search,
	struct deadline until, struct vim_answer *answer, const struct xml **object,
	struct err *err)
{
	static const char *const paths[] = {"snapshot", "runtime.consolidationNeeded", NULL};
	static const struct props_spec spec = {"VirtualMachine", paths};
	if (props_get(vsphere, &spec, vm, until, answer, object, err))
		return -1;
	search_tree(xml_at(props_value(*object, "snapshot"), "rootSnapshotList"), search);
	return 0;
}

static int find(struct vsphere *vsphere, const char *vm, const char *name, struct deadline until,
	char moref[VSPHERE_MOREF_BYTES], struct err *err)
{
	struct search search = {.name = name};
	struct vim_answer answer;
	const struct xml *object;
	int rc = search_vm(vsphere, vm, &search, until, &answer, &object, err);
	if (!rc && search.nr > 1)
		rc = err_set(err, ERR_REFUSED, "%u snapshots have the name %s", search.nr, name);
	if (!rc && search.found)
		rc = vim_moref(search.found, "snapshot", moref, err) ? -1 : 1;
	vim_free(&answer);
	return rc < 0 ? err_context(err, "looking for the snapshot %s", name) : rc;
}

int vsphere_snapshot_find(struct vsphere *vsphere, const char *vm, const char *name,
	char moref[VSPHERE_MOREF_BYTES], struct err *err)
{
	return find(vsphere, vm, name, vim_until(vsphere), moref, err);
}

/* 1: it is there; 0: it is not, and task says what may still make it. */
static int look_once(struct vsphere *vsphere, const char *vm, const char *name,
	struct deadline until, char moref[VSPHERE_MOREF_BYTES], char task[VM_TASK_BYTES],
	struct err *err)
{
	static const char *const words[] = {"createSnapshot", NULL};
	/* First the task: one that ends in between has made what is looked for then. */
	if (vm_running_task(vsphere, vm, words, until, task, err) < 0)
		return -1;
	return find(vsphere, vm, name, until, moref, err);
}

int vsphere_snapshot_settle(struct vsphere *vsphere, const char *vm, const char *name,
	struct deadline until, char moref[VSPHERE_MOREF_BYTES], struct err *err)
{
	char task[VM_TASK_BYTES];
	for (;;) {
		int rc = look_once(vsphere, vm, name, until, moref, task, err);
		if (rc > 0 || (!rc && !task[0]))
			return rc;
		if (!rc && deadline_passed(until))
			rc = err_set(err, ERR_TIMEOUT, "%s", task);
		if (!rc)
			rc = cancel_sleep(vsphere->cancel, deadline_after_ms(PAUSE_MS), err);
		if (rc)
			return err_context(err, "waiting for the snapshot %s", name);
	}
}

/* --- creating ----------------------------------------------------------------------------------
 */

struct creation {
	struct vsphere *vsphere;
	const char *vm, *name, *description;
	struct deadline until;
	struct vsphere_taken *taken;
	struct soap_fault fault; /* of the last try */
};

/* Nobody knows whether it was asked for: 0 when it is there. */
static int look_for_lost(struct creation *c, const struct err *why, struct err *err)
{
	struct deadline seen = deadline_min(c->until, deadline_after_ms(LOST_MS));
	char task[VM_TASK_BYTES];
	int rc;
	for (;;) {
		rc = look_once(c->vsphere, c->vm, c->name, c->until, c->taken->moref, task, err);
		if (rc > 0)
			return 0;
		if (!rc && deadline_passed(task[0] ? c->until : seen))
			rc = err_set(err, ERR_DISCONNECTED, "there is no snapshot %s%s%s", c->name,
				task[0] ? " yet: " : "", task);
		if (!rc)
			rc = cancel_sleep(c->vsphere->cancel, deadline_after_ms(PAUSE_MS), err);
		if (rc)
			return err_context(err, "the server's answer was lost (%s)", why->text);
	}
}

static int create(struct creation *c, bool quiesce, struct err *err)
{
	struct vim_answer answer;
	struct soap soap;
	struct err why = ERR_INIT;
	char task[VSPHERE_MOREF_BYTES];
	soap_begin(&soap, "CreateSnapshot_Task", "VirtualMachine", c->vm);
	soap_text(&soap, "name", c->name);
	soap_text(&soap, "description", c->description);
	soap_bool(&soap, "memory", false);
	soap_bool(&soap, "quiesce", quiesce);
	int rc = vim_call_for_moref(c->vsphere, &soap, VIM_ONCE, c->until, task, &answer, &why);
	bool lost = answer.lost;
	c->fault = answer.fault;
	vim_free(&answer);
	if (rc && lost && why.code != ERR_CANCELLED) {
		log_warning("%s (looking whether the snapshot was made)", why.text);
		return look_for_lost(c, &why, err);
	}
	if (rc)
		return err_copy(err, &why);
	rc = task_wait(c->vsphere, task, "creating the snapshot", c->until, c->taken->moref,
		&c->fault, &why);
	/* A server that was started again has forgotten its tasks. */
	bool forgotten = rc ? !c->fault.name[0] && why.code == ERR_NOT_FOUND : !c->taken->moref[0];
	if (forgotten) {
		if (!rc)
			err_set(&why, ERR_NOT_FOUND, "the task %s tells no snapshot", task);
		return look_for_lost(c, &why, err);
	}
	return rc ? err_copy(err, &why) : 0;
}

/* What is said when the guest, or its tools, did not do their part. */
static bool is_guests(const struct soap_fault *fault)
{
	return strcasestr(fault->name, "quiesce") || strcasestr(fault->text, "quiesc") ||
	       !strncmp(fault->name, "Tools", 5);
}

static void say_why_not(struct vsphere_taken *taken, const struct soap_fault *fault)
{
	struct err words = ERR_INIT;
	soap_fault_set(fault, &words);
	snprintf(taken->why_not, sizeof taken->why_not, "%.*s", (int)sizeof taken->why_not - 1,
		words.text);
}

/* A server may keep what it could not quiesce. */
static int remove_failed(struct creation *c, struct err *err)
{
	char moref[VSPHERE_MOREF_BYTES];
	int rc = find(c->vsphere, c->vm, c->name, c->until, moref, err);
	if (rc > 0)
		rc = vsphere_snapshot_remove(c->vsphere, c->vm, moref, c->until, NULL, err);
	return rc;
}

/* A server without tools to ask makes it all the same, and only its tree tells. */
static int look_at_taken(struct creation *c, struct err *err)
{
	struct search search = {.moref = c->taken->moref};
	struct vim_answer answer;
	const struct xml *object;
	int rc = search_vm(c->vsphere, c->vm, &search, c->until, &answer, &object, err);
	if (!rc && !search.found)
		rc = err_set(err, ERR_NOT_FOUND, "the snapshot that was just made is gone");
	if (!rc)
		c->taken->quiesced = xml_is_true(search.found, "quiesced");
	if (!rc && !c->taken->quiesced)
		snprintf(c->taken->why_not, sizeof c->taken->why_not,
			"the server made the snapshot without (do the guest's tools run?)");
	vim_free(&answer);
	return rc;
}

static int create_quiesced(struct creation *c, struct err *err)
{
	struct err why = ERR_INIT;
	if (!create(c, true, &why))
		return look_at_taken(c, err);
	if (!c->fault.name[0] || !is_guests(&c->fault))
		return err_copy(err, &why);
	say_why_not(c->taken, &c->fault);
	log_warning("%s (once more without quiescing)", why.text);
	return remove_failed(c, err) || create(c, false, err) ? -1 : 0;
}

static int may_snapshot(const struct vsphere_vm *vm, struct err *err)
{
	if (vm->config->template)
		return err_set(err, ERR_REFUSED,
			"%s is a template: it has no snapshots (make a VM of it)", vm->path);
	if (*vm->migration)
		return err_set(err, ERR_BUSY, "%s is being moved: %s (wait until it has arrived)",
			vm->path, vm->migration);
	return 0;
}

int vsphere_snapshot_create(struct vsphere *vsphere, const char *vm, const char *name,
	const char *description, bool quiesce, struct deadline until, struct vsphere_taken *taken,
	struct err *err)
{
	struct creation c = {.vsphere = vsphere,
		.vm = vm,
		.name = name,
		.description = description,
		.until = until,
		.taken = taken};
	*taken = (struct vsphere_taken){.quiesced = false};
	struct vsphere_vm *facts = vsphere_vm(vsphere, vm, err);
	if (!facts)
		return -1;
	int rc = may_snapshot(facts, err);
	bool is_on = facts->power == VSPHERE_POWER_ON;
	if (!rc && quiesce && is_on)
		rc = create_quiesced(&c, err);
	else if (!rc)
		rc = create(&c, false, err);
	if (!rc && quiesce && !is_on)
		snprintf(taken->why_not, sizeof taken->why_not, "the VM does not run (%s)",
			vsphere_power_name(facts->power));
	if (rc)
		err_context(err, "taking the snapshot %s of %s", name, facts->path);
	vsphere_vm_free(facts);
	return rc;
}

/* --- looking -----------------------------------------------------------------------------------
 */

struct vsphere_config *vsphere_snapshot_config(
	struct vsphere *vsphere, const char *snapshot, struct err *err)
{
	static const char *const paths[] = {"config", NULL};
	static const struct props_spec spec = {"VirtualMachineSnapshot", paths};
	struct vsphere_config *config = NULL;
	struct vim_answer answer;
	const struct xml *object, *value;
	if (!props_get(vsphere, &spec, snapshot, vim_until(vsphere), &answer, &object, err)) {
		value = props_value(object, "config");
		if (value && value->first)
			config = config_read(value, err);
		else
			err_set(err, ERR_REFUSED, "the server does not tell it");
	}
	vim_free(&answer);
	if (!config)
		err_context(err, "asking for the configuration in the snapshot %s", snapshot);
	return config;
}

/* --- removing ----------------------------------------------------------------------------------
 */

static int remove_once(
	struct vsphere *vsphere, const char *snapshot, struct deadline until, struct err *err)
{
	struct soap soap;
	soap_begin(&soap, "RemoveSnapshot_Task", "VirtualMachineSnapshot", snapshot);
	soap_bool(&soap, "removeChildren", false);
	soap_bool(&soap, "consolidate", true);
	/* Done twice, the second one finds it gone or being removed. */
	return task_run(vsphere, &soap, "removing the snapshot", until, err);
}

/* Whether it is gone from the tree, and what that left. */
static int look_at_rest(struct vsphere *vsphere, const char *vm, const char *snapshot,
	struct deadline until, bool *consolidation_needed, struct err *err)
{
	struct search search = {.moref = snapshot};
	struct vim_answer answer;
	const struct xml *object;
	int rc = search_vm(vsphere, vm, &search, until, &answer, &object, err);
	if (!rc && search.found)
		rc = err_set(err, ERR_REFUSED,
			"the server said that it removed the snapshot, but it is still there");
	if (!rc && consolidation_needed)
		*consolidation_needed = props_is_true(object, "runtime.consolidationNeeded");
	vim_free(&answer);
	return rc;
}

int vsphere_snapshot_remove(struct vsphere *vsphere, const char *vm, const char *snapshot,
	struct deadline until, bool *consolidation_needed, struct err *err)
{
	int rc;
	for (;;) {
		struct err why = ERR_INIT;
		rc = remove_once(vsphere, snapshot, until, &why);
		if (rc && why.code == ERR_NOT_FOUND)
			rc = 0;
		if (rc)
			err_copy(err, &why);
		/* Another task on this VM: when it has ended, ours can begin. */
		struct deadline next = deadline_after_ms(PAUSE_MS);
		if (!rc || why.code != ERR_BUSY || next.at_ns > until.at_ns ||
			cancel_sleep(vsphere->cancel, next, err))
			break;
	}
	if (!rc)
		rc = look_at_rest(vsphere, vm, snapshot, until, consolidation_needed, err);
	return rc ? err_context(err, "removing the snapshot %s of %s", snapshot, vm) : 0;
}
