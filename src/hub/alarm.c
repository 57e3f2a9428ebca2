/* Alarms; see alarm.h. */
#include "alarm.h"

#include "time_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ID_BYTES 64

struct alarms {
	struct alarms_options options;
	struct alarm *alarms; /* by kind and object */
	size_t nr_alarms, room;
};

static const char *const kind_names[] = {
	[ALARM_OBJECTIVE] = "objective",
	[ALARM_DAMAGE] = "damage",
	[ALARM_FAILED] = "failed",
	[ALARM_VERIFICATION] = "verification",
	[ALARM_SPACE] = "space",
	[ALARM_REPOSITORY] = "repository",
	[ALARM_NODE] = "node",
};

const char *alarm_kind_name(enum alarm_kind kind)
{
	return kind_names[kind];
}

enum alarm_subject alarm_subject(const struct alarm *alarm)
{
	if (alarm->kind == ALARM_NODE)
		return ALARM_OF_NODE;
	return alarm->kind == ALARM_OBJECTIVE || alarm->kind == ALARM_DAMAGE ||
			       alarm->kind == ALARM_FAILED
		       ? ALARM_OF_MACHINE
		       : ALARM_OF_REPOSITORY;
}

const char *alarm_subject_name(const struct alarm *alarm)
{
	static const char *const names[] = {[ALARM_OF_MACHINE] = "VM",
		[ALARM_OF_REPOSITORY] = "repository",
		[ALARM_OF_NODE] = "node"};
	return names[alarm_subject(alarm)];
}

static void make_id(enum alarm_kind kind, const char *object, char id[ID_BYTES])
{
	uint8_t hash[DIGEST_ROOT_BYTES];
	char hex[33];
	digest_sha256(object, strlen(object), hash);
	digest_hex(hash, 16, hex);
	snprintf(id, ID_BYTES, "%s/%s", kind_names[kind], hex);
}

static size_t place_of(
	const struct alarms *alarms, enum alarm_kind kind, const char *object, bool *found)
{
	size_t place = 0;
	*found = false;
	for (; place < alarms->nr_alarms; place++) {
		const struct alarm *alarm = &alarms->alarms[place];
		int order = alarm->kind != kind ? (alarm->kind < kind ? -1 : 1)
						: strcmp(alarm->object, object);
		*found = order == 0;
		if (order >= 0)
			break;
	}
	return place;
}

static void clear(struct alarm *alarm)
{
	free(alarm->object);
	free(alarm->text);
	free(alarm->job);
}

/* A blank one in its place. */
static struct alarm *insert(
	struct alarms *alarms, size_t place, const struct alarm *what, struct err *err)
{
	if (alarms->nr_alarms == alarms->room) {
		size_t room = alarms->room ? alarms->room * 2 : 16;
		struct alarm *grown = reallocarray(alarms->alarms, room, sizeof *grown);
		if (!grown)
			goto failed;
		alarms->alarms = grown;
		alarms->room = room;
	}
	struct alarm fresh = {.kind = what->kind,
		.severe = what->severe,
		.object = strdup(what->object),
		.since = what->since,
		.text = strdup(what->text),
		.job = strdup(what->job ? what->job : "")};
	if (!fresh.object || !fresh.text || !fresh.job) {
		clear(&fresh);
		goto failed;
	}
	struct alarm *alarm = &alarms->alarms[place];
	memmove(alarm + 1, alarm, (alarms->nr_alarms - place) * sizeof *alarm);
	alarms->nr_alarms++;
	*alarm = fresh;
	return alarm;
failed:
	err_errno(err, ENOMEM, "cannot raise an alarm");
	return NULL;
}

static int store(struct alarms *alarms, const struct alarm *alarm, struct err *err)
{
	char id[ID_BYTES];
	json_t *value = json_pack("{s:s, s:b, s:s, s:I, s:s, s:s}", "kind", kind_names[alarm->kind],
		"severe", alarm->severe, "object", alarm->object, "since", (json_int_t)alarm->since,
		"text", alarm->text, "job", alarm->job);
	if (!value)
		return err_errno(err, ENOMEM, "cannot note an alarm");
	make_id(alarm->kind, alarm->object, id);
	int rc = state_put(alarms->options.state, "alarm", id, value, STATE_ANY, NULL, err);
	json_decref(value);
	return rc;
}

/* --- what an earlier hub left -------------------------------------------------------------- */

struct opening {
	struct alarms *alarms;
	int rc;
	struct err *err;
};

static int take(void *context, const struct state_object *object)
{
	struct opening *o = context;
	const char *kind = time_text(object->value, "kind");
	struct alarm alarm = {.severe = time_flag(object->value, "severe", true),
		.object = (char *)time_text(object->value, "object"),
		.since = time_number(object->value, "since", 0),
		.text = (char *)time_text(object->value, "text"),
		.job = (char *)time_text(object->value, "job")};
	bool known = false, found;
	for (size_t i = 0; kind && i < ARRAY_LENGTH(kind_names); i++) {
		if (strcmp(kind, kind_names[i]) != 0)
			continue;
		alarm.kind = (enum alarm_kind)i;
		known = true;
	}
	if (!known || !alarm.object || !alarm.text)
		return 0;
	size_t place = place_of(o->alarms, alarm.kind, alarm.object, &found);
	if (!found && !insert(o->alarms, place, &alarm, o->err))
		o->rc = -1;
	return o->rc < 0;
}

struct alarms *alarm_open(const struct alarms_options *options, struct err *err)
{
	struct alarms *alarms = calloc(1, sizeof *alarms);
	struct opening opening = {.alarms = alarms, .err = err};
	if (!alarms) {
		err_errno(err, ENOMEM, "cannot read the alarms");
		return NULL;
	}
	alarms->options = *options;
	if (state_list(options->state, "alarm", NULL, take, &opening, err) == 0 && opening.rc == 0)
		return alarms;
	alarm_close(alarms);
	return NULL;
}

void alarm_close(struct alarms *alarms)
{
	if (!alarms)
		return;
	for (size_t i = 0; i < alarms->nr_alarms; i++)
		clear(&alarms->alarms[i]);
	free(alarms->alarms);
	free(alarms);
}

/* --- changes -----------------------------------------------------------------------------------
 */

/* It stands already: its text may have changed. */
static int renew(
	struct alarms *alarms, struct alarm *alarm, const struct alarm *what, struct err *err)
{
	bool worse = what->severe && !alarm->severe;
	alarm->seen = true;
	if (what->severe == alarm->severe && strcmp(what->text, alarm->text) == 0)
		return 0;
	char *text = strdup(what->text), *job = strdup(what->job ? what->job : "");
	if (!text || !job) {
		free(text);
		free(job);
		return err_errno(err, ENOMEM, "cannot raise an alarm");
	}
	free(alarm->text);
	free(alarm->job);
	alarm->text = text;
	alarm->job = job;
	alarm->severe = what->severe;
	if (store(alarms, alarm, err) < 0)
		return -1;
	if (worse)
		alarms->options.changed(alarms->options.context, alarm, false);
	return 0;
}

int alarm_raise(struct alarms *alarms, const struct alarm *what, struct err *err)
{
	bool found;
	size_t place = place_of(alarms, what->kind, what->object, &found);
	if (found)
		return renew(alarms, &alarms->alarms[place], what, err);
	struct alarm *alarm = insert(alarms, place, what, err);
	if (!alarm)
		return -1;
	alarm->seen = true;
	if (store(alarms, alarm, err) < 0) {
		/* Not noted: raised again, and told, the next time. */
		clear(alarm);
		memmove(alarm, alarm + 1, (--alarms->nr_alarms - place) * sizeof *alarm);
		return -1;
	}
	alarms->options.changed(alarms->options.context, alarm, false);
	return 0;
}

static int end(struct alarms *alarms, size_t place, bool told, struct err *err)
{
	char id[ID_BYTES];
	struct alarm gone = alarms->alarms[place];
	make_id(gone.kind, gone.object, id);
	if (state_delete(alarms->options.state, "alarm", id, STATE_ANY, err) < 0)
		return -1;
	memmove(&alarms->alarms[place], &alarms->alarms[place + 1],
		(--alarms->nr_alarms - place) * sizeof gone);
	if (told)
		alarms->options.changed(alarms->options.context, &gone, true);
	clear(&gone);
	return 0;
}

int alarm_clear(struct alarms *alarms, enum alarm_kind kind, const char *object, struct err *err)
{
	bool found;
	size_t place = place_of(alarms, kind, object, &found);
	return found ? end(alarms, place, true, err) : 0;
}

int alarm_forget(
	struct alarms *alarms, enum alarm_subject subject, const char *object, struct err *err)
{
	for (size_t i = alarms->nr_alarms; i-- > 0;) {
		const struct alarm *alarm = &alarms->alarms[i];
		if (alarm_subject(alarm) == subject && strcmp(alarm->object, object) == 0 &&
			end(alarms, i, false, err) < 0)
			return -1;
	}
	return 0;
}

/* Raised and cleared when something happens, not by looking around. */
static bool is_event(enum alarm_kind kind)
{
	return kind == ALARM_FAILED || kind == ALARM_VERIFICATION;
}

void alarm_sweep_begin(struct alarms *alarms)
{
	for (size_t i = 0; i < alarms->nr_alarms; i++)
		alarms->alarms[i].seen = false;
}

void alarm_sweep_keep(struct alarms *alarms, enum alarm_subject subject)
{
	for (size_t i = 0; i < alarms->nr_alarms; i++)
		alarms->alarms[i].seen |= alarm_subject(&alarms->alarms[i]) == subject;
}

int alarm_sweep_end(struct alarms *alarms, struct err *err)
{
	for (size_t i = alarms->nr_alarms; i-- > 0;)
		if (!alarms->alarms[i].seen && !is_event(alarms->alarms[i].kind) &&
			end(alarms, i, true, err) < 0)
			return -1;
	return 0;
}

const struct alarm *alarm_list(const struct alarms *alarms, size_t *nr)
{
	*nr = alarms->nr_alarms;
	return alarms->alarms;
}

const struct alarm *alarm_find(
	const struct alarms *alarms, enum alarm_kind kind, const char *object)
{
	bool found;
	size_t place = place_of(alarms, kind, object, &found);
	return found ? &alarms->alarms[place] : NULL;
}
