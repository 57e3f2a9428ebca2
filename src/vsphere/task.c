/*
 * Tasks are asked about, not subscribed to: a filter of updates dies with its session, and a
 * question every two seconds costs a server nothing.
 */
#include "task.h"
#include "props.h"

#include <stdio.h>

#define PAUSE_FIRST_MS 50
#define PAUSE_MOST_MS 2000

struct task {
	struct vsphere *vsphere;
	const char *moref, *what;
	bool cancelable;
	char *result; /* VSPHERE_MOREF_BYTES */
	struct soap_fault *fault;
};

static void tell_progress(const struct task *task, const struct xml *object)
{
	const struct vsphere_options *options = &task->vsphere->options;
	int64_t percent = 0;
	if (xml_number(props_value(object, "info.progress"), "", 0, 100, &percent, NULL) < 0)
		percent = 0;
	if (options->progress)
		options->progress(options->progress_context, task->what, (unsigned)percent);
}

/* 1: it has ended well; 0: not yet; -1: it failed. */
static int take_state(struct task *task, const struct xml *object, struct err *err)
{
	const char *state = props_text(object, "info.state");
	const struct xml *result = props_value(object, "info.result");
	task->cancelable = props_is_true(object, "info.cancelable");
	if (!strcmp(state, "success")) {
		if (!task->result || !result || !*result->text)
			return 1;
		return vim_moref(result, "", task->result, err) ? -1 : 1;
	}
	if (!strcmp(state, "error")) {
		soap_fault_read(props_value(object, "info.error"), task->fault);
		return soap_fault_set(task->fault, err);
	}
	struct soap_fault why;
	if (!*state && props_fault(object, "info.state", &why))
		return soap_fault_set(&why, err);
	if (strcmp(state, "queued") != 0 && strcmp(state, "running") != 0)
		return err_set(err, ERR_PROTOCOL, "the task's state is \"%.40s\"", state);
	tell_progress(task, object);
	return 0;
}

static int look(struct task *task, struct deadline until, struct err *err)
{
	static const char *const paths[] = {"info.state", "info.progress", "info.result",
		"info.error", "info.cancelable", NULL};
	static const struct props_spec spec = {"Task", paths};
	struct vim_answer answer;
	const struct xml *object;
	int rc = props_get(task->vsphere, &spec, task->moref, until, &answer, &object, err);
	if (!rc)
		rc = take_state(task, object, err);
	vim_free(&answer);
	return rc;
}

/* Nobody waits for it any more. */
static void give_up(struct task *task)
{
	struct vsphere *vsphere = task->vsphere;
	const struct cancel *cancel = vsphere->cancel;
	struct vim_answer answer;
	struct err err = ERR_INIT;
	struct soap soap;
	if (!task->cancelable || task->fault->name[0])
		return;
	vsphere->cancel = NULL;
	soap_begin(&soap, "CancelTask", "Task", task->moref);
	if (vim_call(vsphere, &soap, VIM_SAFE, deadline_after_ms(VIM_LOGOUT_MS), &answer, &err))
		log_info("%s", err.text);
	vim_free(&answer);
	vsphere->cancel = cancel;
}

int task_wait(struct vsphere *vsphere, const char *moref, const char *what, struct deadline until,
	char result[VSPHERE_MOREF_BYTES], struct soap_fault *fault, struct err *err)
{
	struct task task = {
		.vsphere = vsphere, .moref = moref, .what = what, .result = result, .fault = fault};
	int64_t pause_ms = PAUSE_FIRST_MS;
	struct err why = ERR_INIT;
	int rc;
	*fault = (struct soap_fault){.name = ""};
	if (result)
		result[0] = 0;
	for (;;) {
		rc = look(&task, until, &why);
		if (rc > 0)
			return 0;
		if (!fault->name[0] && deadline_passed(until))
			rc = err_set(&why, ERR_TIMEOUT, "the server's task %s did not end in time",
				moref);
		if (!rc)
			rc = cancel_sleep(vsphere->cancel,
				deadline_min(until, deadline_after_ms(pause_ms)), &why);
		if (rc)
			break;
		pause_ms = pause_ms * 2 < PAUSE_MOST_MS ? pause_ms * 2 : PAUSE_MOST_MS;
	}
	if (why.code == ERR_TIMEOUT || why.code == ERR_CANCELLED)
		give_up(&task);
	err_copy(err, &why);
	return err_context(err, "%s", what);
}

int task_run(struct vsphere *vsphere, struct soap *soap, const char *what, struct deadline until,
	struct err *err)
{
	struct vim_answer answer;
	struct soap_fault fault;
	char task[VSPHERE_MOREF_BYTES];
	int rc = vim_call_for_moref(vsphere, soap, VIM_SAFE, until, task, &answer, err);
	vim_free(&answer);
	return rc ? rc : task_wait(vsphere, task, what, until, NULL, &fault, err);
}
