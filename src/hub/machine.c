/*
 * The machines; see machine.h.  Settings come from the state in the order of names, restore points
 * from the index in the same order: they are merged as they come.
 */
#include "machine.h"

#include "catalogue.h"
#include "policy.h"
#include "time_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct loading {
	struct machine_set *set;
	size_t room;
	int rc; /* -1: no memory */
};

static struct machine *add(struct loading *l, const char *name)
{
	struct machine_set *set = l->set;
	if (set->nr_machines == l->room) {
		size_t room = l->room ? l->room * 2 : 64;
		struct machine *grown = reallocarray(set->machines, room, sizeof *grown);
		if (!grown)
			goto failed;
		set->machines = grown;
		l->room = room;
	}
	struct machine *machine = &set->machines[set->nr_machines];
	memset(machine, 0, sizeof *machine);
	machine->name = strdup(name);
	if (!machine->name)
		goto failed;
	set->nr_machines++;
	return machine;
failed:
	l->rc = -1;
	return NULL;
}

static int64_t created_of(const json_t *settings)
{
	struct tm tm = {0};
	const char *text = time_text(settings, "created");
	if (!text || !strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm))
		return 0;
	return timegm(&tm);
}

static int take_settings(void *context, const struct state_object *object)
{
	struct machine *machine = add(context, object->id);
	if (!machine)
		return 1;
	machine->version = object->version;
	machine->settings = json_incref(object->value);
	machine->created = created_of(object->value);
	machine->paused = time_flag(object->value, "paused", false);
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct machine *)a)->name, ((const struct machine *)b)->name);
}

/* nr_sorted: those that are sorted by name; what the index alone knows comes behind them. */
static struct machine *find_in(struct machine_set *set, size_t nr_sorted, const char *name)
{
	struct machine key = {.name = (char *)name};
	struct machine *found = nr_sorted > 0 ? bsearch(&key, set->machines, nr_sorted,
							sizeof *set->machines, by_name)
					      : NULL;
	/* A machine's repositories come one behind the other. */
	if (!found && set->nr_machines > nr_sorted &&
		strcmp(set->machines[set->nr_machines - 1].name, name) == 0)
		found = &set->machines[set->nr_machines - 1];
	return found;
}

struct points {
	struct loading *loading;
	size_t nr_sorted;
};

static int take_points(void *context, const struct index_vm *vm)
{
	struct points *p = context;
	struct machine *machine = find_in(p->loading->set, p->nr_sorted, vm->vm);
	if (!machine && vm->nr_points == 0)
		return 0;
	if (!machine && !(machine = add(p->loading, vm->vm)))
		return 1;
	machine->nr_points += vm->nr_points;
	machine->nr_damaged += vm->nr_damaged;
	machine->stored_bytes += vm->stored_bytes;
	if (vm->oldest_time > 0 && (machine->created == 0 || vm->oldest_time < machine->created))
		machine->created = vm->oldest_time;
	if (vm->newest_usable && vm->newest_usable_time > machine->newest_time) {
		char *repository = strdup(vm->repository);
		if (!repository) {
			p->loading->rc = -1;
			return 1;
		}
		free(machine->newest_repository);
		machine->newest_repository = repository;
		machine->newest_time = vm->newest_usable_time;
		snprintf(machine->newest, sizeof machine->newest, "%s", vm->newest_usable);
	}
	return 0;
}

static int take_policy(void *context, const struct state_object *object)
{
	struct loading *l = context;
	if (json_object_set(l->set->policies, object->id, object->value) < 0)
		l->rc = -1;
	return l->rc < 0;
}

static void apply_policy(struct machine_set *set, struct machine *machine)
{
	machine->policy =
		policy_of(set->policies, machine->name, machine->settings, &machine->policy_id);
	machine->objective_s = time_number(
		machine->settings, "objective_s", time_number(machine->policy, "objective_s", 0));
	machine->repository = time_text(machine->settings, "repository");
	if (!machine->repository)
		machine->repository = time_text(machine->policy, "repository");
	if (!machine->repository)
		machine->repository = set->only_repository;
}

static int load(struct loading *l, struct state *state, struct index *index, struct err *err)
{
	struct machine_set *set = l->set;
	struct index_vms_filter all = {0};
	if (state_list(state, "policy", NULL, take_policy, l, err) < 0 ||
		state_list(state, "vm", NULL, take_settings, l, err) < 0)
		return -1;
	if (set->nr_machines > 0)
		qsort(set->machines, set->nr_machines, sizeof *set->machines, by_name);
	struct points points = {.loading = l, .nr_sorted = set->nr_machines};
	if (l->rc == 0 && index_vms(index, &all, take_points, &points, err) < 0)
		return -1;
	if (l->rc < 0)
		return err_errno(err, ENOMEM, "cannot look at the VMs");
	if (set->nr_machines > 0)
		qsort(set->machines, set->nr_machines, sizeof *set->machines, by_name);
	for (size_t i = 0; i < set->nr_machines; i++)
		apply_policy(set, &set->machines[i]);
	return 0;
}

struct machine_set *machine_load(
	struct state *state, struct index *index, const struct hub_config *config, struct err *err)
{
	struct loading l = {.set = calloc(1, sizeof *l.set)};
	if (!l.set || !(l.set->policies = json_object())) {
		err_errno(err, ENOMEM, "cannot look at the VMs");
		free(l.set);
		return NULL;
	}
	if (config->nr_repositories == 1)
		l.set->only_repository = strdup(config->repositories[0].name);
	if (load(&l, state, index, err) == 0)
		return l.set;
	machine_set_free(l.set);
	return NULL;
}

void machine_set_free(struct machine_set *set)
{
	if (!set)
		return;
	for (size_t i = 0; i < set->nr_machines; i++) {
		free(set->machines[i].name);
		free(set->machines[i].newest_repository);
		json_decref(set->machines[i].settings);
	}
	free(set->machines);
	json_decref(set->policies);
	free(set->only_repository);
	free(set);
}

const struct machine *machine_find(const struct machine_set *set, const char *name)
{
	struct machine key = {.name = (char *)name};
	return set->nr_machines > 0 ? bsearch(&key, set->machines, set->nr_machines,
					      sizeof *set->machines, by_name)
				    : NULL;
}

static int64_t is_good_until(const struct machine *machine)
{
	return (machine->newest_time > 0 ? machine->newest_time : machine->created) +
	       machine->objective_s;
}

int64_t machine_alarm_begins(const struct machine *machine)
{
	return machine->objective_s > 0 ? is_good_until(machine) + 1 : 0;
}

int64_t machine_alarm_since(const struct machine *machine, int64_t now)
{
	if (machine->objective_s == 0 || now <= is_good_until(machine))
		return 0;
	return is_good_until(machine);
}

const char *machine_node(const struct machine *machine)
{
	return machine ? time_text(machine->settings, "node") : NULL;
}

const json_t *machine_keep(const struct machine *machine)
{
	const json_t *keep = json_object_get(machine->policy, "keep");
	return json_is_object(keep) ? keep : NULL;
}
