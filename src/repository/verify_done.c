/* What a verification has behind it. */
#include "verify_internal.h"

#include <stdio.h>
#include <string.h>

void verify_done_add(struct verify_dones *dones, const struct repository_point *point,
	const char *key, const uint64_t *wrong, size_t nr_wrong)
{
	if (dones->nr == dones->room) {
		size_t room = dones->room ? 2 * dones->room : 64;
		struct verify_done *more = reallocarray(dones->items, room, sizeof *more);
		if (!more)
			return;
		dones->items = more;
		dones->room = room;
	}
	struct verify_done *done = &dones->items[dones->nr];
	memset(done, 0, sizeof *done);
	if (nr_wrong > 0) {
		done->wrong = malloc(nr_wrong * sizeof *wrong);
		if (!done->wrong)
			return;
		memcpy(done->wrong, wrong, nr_wrong * sizeof *wrong);
		done->nr_wrong = nr_wrong;
	}
	memcpy(done->vm, point->vm, sizeof done->vm);
	memcpy(done->point, point->id, sizeof done->point);
	snprintf(done->key, sizeof done->key, "%s", key);
	dones->nr++;
}

/* It is one of the last, as a rule. */
const struct verify_done *verify_done_find(
	const struct verify_dones *dones, const char *vm, const char *point, const char *key)
{
	for (size_t i = dones->nr; i-- > 0;) {
		const struct verify_done *done = &dones->items[i];
		if (strcmp(done->point, point) == 0 && strcmp(done->key, key) == 0 &&
			strcmp(done->vm, vm) == 0)
			return done;
	}
	return NULL;
}

void verify_done_forget(struct verify_dones *dones)
{
	while (dones->nr > 0)
		free(dones->items[--dones->nr].wrong);
	free(dones->items);
	*dones = (struct verify_dones){.items = NULL};
}
