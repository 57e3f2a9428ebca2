/* Looks for what somebody should know; see alarm.h. */
#include "nodes.h"
#include "time_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LOOK_AGAIN_S 60

/* 90 min, 26 h, 3 d */
static void duration_text(int64_t seconds, char out[32])
{
	if (seconds % 86400 == 0)
		snprintf(out, 32, "%" PRId64 " d", seconds / 86400);
	else if (seconds % 3600 == 0)
		snprintf(out, 32, "%" PRId64 " h", seconds / 3600);
	else if (seconds % 60 == 0)
		snprintf(out, 32, "%" PRId64 " min", seconds / 60);
	else
		snprintf(out, 32, "%" PRId64 " s", seconds);
}

static void raise_alarm(struct hub_time *time, const struct alarm *alarm)
{
	struct err err = ERR_INIT;
	if (alarm_raise(time->alarms, alarm, &err) < 0)
		log_error("%s: %s: %s", alarm->object, alarm->text, err.text);
}

static void look_at_objective(struct hub_time *time, const struct machine *machine, int64_t since)
{
	char text[600], objective[32], last[CLOCK_UTC_BYTES];
	duration_text(machine->objective_s, objective);
	if (machine->newest_time > 0) {
		clock_utc_text(machine->newest_time, last);
		snprintf(text, sizeof text,
			"the newest good restore point is of %s; there should be one every %s",
			last, objective);
	} else {
		clock_utc_text(machine->created, last);
		snprintf(text, sizeof text,
			"there is no good restore point, and it is known since %s; there should "
			"be one every %s",
			last, objective);
	}
	raise_alarm(time, &(struct alarm){.kind = ALARM_OBJECTIVE,
				  .severe = true,
				  .object = machine->name,
				  .since = since,
				  .text = text});
}

static void look_at_damage(struct hub_time *time, const struct machine *machine, int64_t now)
{
	char text[200];
	if (machine->nr_damaged == 0)
		return;
	snprintf(text, sizeof text,
		"%u of %u restore points are damaged (\"sendense verify\" tells what of them can "
		"be restored)",
		machine->nr_damaged, machine->nr_points);
	raise_alarm(time, &(struct alarm){.kind = ALARM_DAMAGE,
				  .severe = true,
				  .object = machine->name,
				  .since = now,
				  .text = text});
}

struct sweep {
	struct hub_time *time;
	int64_t now;
};

static void look_at_repository(void *context, const struct capacity_report *report)
{
	struct sweep *s = context;
	struct alarm alarm = {.object = (char *)report->name,
		.since = s->now,
		.text = (char *)report->text,
		.severe = report->state != CAPACITY_LITTLE};
	switch (report->state) {
	case CAPACITY_UNKNOWN:
		/* What an earlier hub knew stays until there is an answer. */
		for (int i = 0; i < 2; i++) {
			const struct alarm *old = alarm_find(
				s->time->alarms, i ? ALARM_SPACE : ALARM_REPOSITORY, report->name);
			if (old)
				((struct alarm *)old)->seen = true;
		}
		return;
	case CAPACITY_GOOD:
		return;
	case CAPACITY_LITTLE:
	case CAPACITY_FULL:
		alarm.kind = ALARM_SPACE;
		break;
	case CAPACITY_GONE:
	case CAPACITY_SILENT:
		alarm.kind = ALARM_REPOSITORY;
		break;
	}
	raise_alarm(s->time, &alarm);
}

static void look_at_machines(struct hub_time *time, int64_t now, int64_t *wake)
{
	const struct machine_set *set = time->machines;
	for (size_t i = 0; i < set->nr_machines; i++) {
		const struct machine *machine = &set->machines[i];
		int64_t since = machine_alarm_since(machine, now);
		int64_t begins = machine_alarm_begins(machine);
		if (since > 0)
			look_at_objective(time, machine, since);
		else if (begins > now && begins < *wake)
			*wake = begins;
		look_at_damage(time, machine, now);
	}
}

static int look_at_node(void *context, const struct state_object *node)
{
	struct sweep *s = context;
	char text[200], last[CLOCK_UTC_BYTES];
	int64_t seen;
	/* As it stands in state.db, so that a hub that is killed tells nobody twice. */
	if (!json_object_get(node->value, "silent"))
		return 0;
	hub_nodes_is_silent(s->time->hub, node, &seen);
	clock_utc_text(seen, last);
	snprintf(text, sizeof text,
		"it has not been heard of since %s (does it run, and reach this hub?)", last);
	raise_alarm(s->time, &(struct alarm){.kind = ALARM_NODE,
				     .severe = true,
				     .object = (char *)node->id,
				     .since = s->now,
				     .text = text});
	return 0;
}

/* Nobody is told that one is well which was taken out. */
static void forget_nodes_taken_out(struct hub_time *time)
{
	size_t nr;
	const struct alarm *alarms = alarm_list(time->alarms, &nr);
	for (size_t i = nr; i-- > 0;) {
		struct state_object node = {0};
		struct err why = ERR_INIT;
		char name[NODE_NAME_BYTES];
		if (alarm_subject(&alarms[i]) != ALARM_OF_NODE || alarms[i].seen)
			continue;
		snprintf(name, sizeof name, "%s", alarms[i].object); /* it goes with the alarm */
		if (state_get(time->hub->state, "node", name, &node, &why) == 0)
			state_object_clear(&node);
		else if (why.code == ERR_NOT_FOUND)
			alarm_forget(time->alarms, ALARM_OF_NODE, name, NULL);
	}
}

static void look_at_nodes(struct hub_time *time, int64_t now)
{
	struct err err = ERR_INIT;
	struct sweep s = {time, now};
	if (state_list(time->hub->state, "node", NULL, look_at_node, &s, &err) < 0) {
		log_warning("nodes are not looked at: %s", err.text);
		alarm_sweep_keep(time->alarms, ALARM_OF_NODE);
	}
	forget_nodes_taken_out(time);
}

int64_t sweep_run(struct hub_time *time, int64_t now)
{
	struct err err = ERR_INIT;
	int64_t wake = now + LOOK_AGAIN_S;
	alarm_sweep_begin(time->alarms);
	/* After an import, or where the index was lost: nobody is told what is not known yet. */
	if (time->points_known)
		look_at_machines(time, now, &wake);
	else
		alarm_sweep_keep(time->alarms, ALARM_OF_MACHINE);
	capacity_look(time->capacity, look_at_repository, &(struct sweep){time, now});
	look_at_nodes(time, now);
	if (alarm_sweep_end(time->alarms, &err) < 0)
		log_error("an alarm that is over stays: %s", err.text);
	return wake;
}
