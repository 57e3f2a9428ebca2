/* Who asks, and what they may do. */
#include "rest_internal.h"

static const char *const names[] = {
	[REST_NONE] = "none",
	[REST_READ] = "read",
	[REST_BACKUP] = "backup",
	[REST_NODE] = "node",
	[REST_OPERATE] = "operate",
	[REST_ADMIN] = "admin",
};

const char *rest_scope_name(enum rest_scope scope)
{
	return (size_t)scope < ARRAY_LENGTH(names) ? names[scope] : "none";
}

bool rest_scope_parse(const char *name, enum rest_scope *scope)
{
	/* Not "none": a token without any right is no token. */
	for (size_t i = REST_READ; i < ARRAY_LENGTH(names); i++)
		if (!strcmp(name, names[i])) {
			*scope = (enum rest_scope)i;
			return true;
		}
	return false;
}

/* With * and ?; time is bounded by the product of the lengths. */
static bool matches(const char *pattern, const char *text)
{
	const char *star = NULL, *from = NULL;
	while (*text) {
		if (*pattern == '*') {
			star = pattern++;
			from = text;
		} else if (*pattern == '?' || *pattern == *text) {
			pattern++;
			text++;
		} else if (star) {
			pattern = star + 1;
			text = ++from;
		} else {
			return false;
		}
	}
	while (*pattern == '*')
		pattern++;
	return !*pattern;
}

bool rest_actor_is_held(const struct rest_actor *actor)
{
	return actor->scope == REST_BACKUP || actor->scope == REST_NODE;
}

bool rest_actor_may(const struct rest_actor *actor, const char *vm)
{
	size_t i;
	json_t *item;
	if (!rest_actor_is_held(actor))
		return actor->scope > REST_NONE;
	json_array_foreach(actor->vms, i, item)
	{
		const char *name = json_string_value(item);
		if (name && (actor->scope == REST_NODE ? strcmp(name, vm) == 0 : matches(name, vm)))
			return true;
	}
	return false;
}

void rest_actor_clear(struct rest_actor *actor)
{
	json_decref(actor->vms);
	*actor = (struct rest_actor){0};
}
