/* The monitor's client; see qmp.h. */
#include "qmp.h"

#include <errno.h>
#include <string.h>

#define GREETING_MS 5000u
#define LOOK_AGAIN_MS 200

static int dead(struct qmp *qmp, struct err *err)
{
	return err_copy(err, &qmp->dead);
}

/* What ends a conversation for good; err is its reason. */
static void note_death(struct qmp *qmp, const struct err *err)
{
	if (qmp->dead.code == ERR_NONE && (qmp->wire.broken || err->code == ERR_TIMEOUT))
		err_copy(&qmp->dead, err);
}

static unsigned version_of(const json_t *greeting)
{
	const json_t *version = json_object_get(
		json_object_get(json_object_get(greeting, "QMP"), "version"), "qemu");
	return (unsigned)(json_integer_value(json_object_get(version, "major")) * 10000 +
			  json_integer_value(json_object_get(version, "minor")) * 100 +
			  json_integer_value(json_object_get(version, "micro")));
}

int qmp_open(struct qmp *qmp, const char *socket, unsigned timeout_ms, const struct cancel *cancel,
	struct err *err)
{
	struct err local = ERR_INIT;
	struct deadline until =
		deadline_after_ms(timeout_ms < GREETING_MS ? timeout_ms : GREETING_MS);
	*qmp = (struct qmp){.timeout_ms = timeout_ms, .cancel = cancel};
	if (wire_open(&qmp->wire, "QMP socket", socket, QMP_LINE_MOST, cancel, until, err) < 0)
		return -1;
	json_t *greeting = wire_receive(
		&qmp->wire, false, cancel, until, "waiting for QEMU's greeting", &local);
	bool good = json_is_object(json_object_get(greeting, "QMP"));
	qmp->version = version_of(greeting);
	json_decref(greeting);
	if (good && qmp_do(qmp, "qmp_capabilities", NULL, err) == 0)
		return 0;
	if (!greeting && local.code == ERR_TIMEOUT)
		err_set(err, ERR_BUSY,
			"%s sent no greeting: another program is connected to it, or QEMU hangs "
			"(QEMU serves one client on a QMP socket at a time: give it a second one)",
			qmp->wire.peer);
	else if (!greeting)
		err_copy(err, &local);
	else if (!good)
		err_set(err, ERR_PROTOCOL, "%s: what listens there does not speak QMP",
			qmp->wire.peer);
	wire_close(&qmp->wire);
	return -1;
}

void qmp_close(struct qmp *qmp)
{
	wire_close(&qmp->wire);
}

/* --- commands ------------------------------------------------------------------------ */

static int send_command(struct qmp *qmp, const char *command, json_t *arguments, unsigned id,
	int fd, struct deadline until, struct err *err)
{
	json_t *message = json_pack("{s:s, s:i}", "execute", command, "id", (int)id);
	if (message && arguments)
		json_object_set(message, "arguments", arguments);
	char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
	json_decref(message);
	if (!text)
		return err_errno(err, ENOMEM, "cannot run %s", command);
	int rc = wire_send(&qmp->wire, text, strlen(text), fd, qmp->cancel, until, command, err);
	if (rc == 0)
		rc = wire_send(&qmp->wire, "\n", 1, -1, qmp->cancel, until, command, err);
	free(text);
	return rc;
}

static json_t *take_answer(struct qmp *qmp, const char *command, json_t *answer, struct err *err)
{
	json_t *error = json_object_get(answer, "error");
	json_t *result = json_incref(json_object_get(answer, "return"));
	if (error) {
		const char *text = json_string_value(json_object_get(error, "desc"));
		const char *class = json_string_value(json_object_get(error, "class"));
		bool unknown = class && strcmp(class, "CommandNotFound") == 0;
		err_set(err, unknown ? ERR_UNSUPPORTED : ERR_REFUSED, "%s: QEMU refused %s: %s",
			qmp->wire.peer, command, text ? text : "without a reason");
	} else if (!result) {
		qmp->wire.broken = true;
		err_set(err, ERR_PROTOCOL, "%s: an answer to %s that is none", qmp->wire.peer,
			command);
	}
	json_decref(answer);
	return result;
}

static json_t *receive_answer(
	struct qmp *qmp, const char *command, unsigned id, struct deadline until, struct err *err)
{
	char what[96];
	snprintf(what, sizeof what, "waiting for QEMU's answer to %s", command);
	for (;;) {
		json_t *answer = wire_receive(&qmp->wire, false, qmp->cancel, until, what, err);
		if (!answer)
			return NULL;
		json_t *its = json_object_get(answer, "id");
		/* An error without an id is about what QEMU could not even read. */
		if ((its && json_integer_value(its) == (json_int_t)id) ||
			(!its && json_object_get(answer, "error")))
			return take_answer(qmp, command, answer, err);
		json_decref(answer);
	}
}

json_t *qmp_call(struct qmp *qmp, const char *command, json_t *arguments, int fd, struct err *err)
{
	struct err local = ERR_INIT;
	json_t *result = NULL;
	if (qmp->dead.code != ERR_NONE) {
		json_decref(arguments);
		dead(qmp, err);
		return NULL;
	}
	struct deadline until = deadline_after_ms(qmp->timeout_ms);
	unsigned id = ++qmp->next_id;
	if (cancel_check(qmp->cancel, &local) == 0 &&
		send_command(qmp, command, arguments, id, fd, until, &local) == 0)
		result = receive_answer(qmp, command, id, until, &local);
	json_decref(arguments);
	if (!result) {
		note_death(qmp, &local);
		err_copy(err, &local);
	}
	return result;
}

int qmp_do(struct qmp *qmp, const char *command, json_t *arguments, struct err *err)
{
	json_t *result = qmp_call(qmp, command, arguments, -1, err);
	json_decref(result);
	return result ? 0 : -1;
}

int qmp_wait_event(struct qmp *qmp, struct deadline until, const char *what, struct err *err)
{
	struct err local = ERR_INIT;
	if (qmp->dead.code != ERR_NONE)
		return dead(qmp, err);
	if (deadline_passed(until))
		return err_set(err, ERR_TIMEOUT, "%s: timed out while %s", qmp->wire.peer, what);
	struct deadline soon = deadline_min(until, deadline_after_ms(LOOK_AGAIN_MS));
	json_t *event = wire_receive(&qmp->wire, false, qmp->cancel, soon, what, &local);
	json_decref(event);
	if (event || local.code == ERR_TIMEOUT)
		return 0;
	note_death(qmp, &local);
	return err_copy(err, &local);
}
