/* What schedules and policies share: read, made, replaced, forgotten by id. */
#include "time_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ID_BYTES 300

static json_t *shown(
	const struct api_objects *objects, struct hub *hub, const char *id, const json_t *stored)
{
	json_t *value = json_deep_copy(stored);
	if (!value)
		return NULL;
	json_object_set_new(value, "id", json_string(id));
	if (objects->show)
		objects->show(hub->time, id, value);
	return value;
}

struct listing {
	json_t *items; /* {"id", "value"} until they are shown */
	unsigned limit;
	bool more;
};

static int take(void *context, const struct state_object *object)
{
	struct listing *l = context;
	l->more = json_array_size(l->items) == l->limit;
	if (!l->more)
		json_array_append_new(l->items, json_pack("{s:s, s:o}", "id", object->id, "value",
							json_deep_copy(object->value)));
	return l->more;
}

int api_objects_list(const struct api_objects *objects, struct hub *hub,
	struct rest_request *request, struct err *err)
{
	struct listing l = {0};
	const char *after, *last = NULL;
	if (rest_page(request, &l.limit, &after, err) < 0)
		return -1;
	l.items = json_array();
	json_t *items = json_array();
	int rc = !l.items || !items ? err_errno(err, ENOMEM, "cannot list")
				    : state_list(hub->state, objects->kind, after, take, &l, err);
	/* Shown behind the state's call: that takes other locks. */
	for (size_t i = 0; rc == 0 && i < json_array_size(l.items); i++) {
		const json_t *item = json_array_get(l.items, i);
		last = time_text(item, "id");
		json_array_append_new(
			items, shown(objects, hub, last, json_object_get(item, "value")));
	}
	if (rc == 0)
		rc = rest_reply_page(request, items, l.more ? last : NULL, err);
	else
		json_decref(items);
	json_decref(l.items);
	return rc;
}

int api_objects_get(const struct api_objects *objects, struct hub *hub,
	struct rest_request *request, struct err *err)
{
	const char *id = rest_param(request, "id");
	struct state_object object;
	if (state_get(hub->state, objects->kind, id, &object, err) < 0)
		return -1;
	json_t *value = shown(objects, hub, id, object.value);
	rest_set_etag(request, object.version);
	state_object_clear(&object);
	return rest_reply(request, 200, value, err);
}

json_t *api_objects_stored(const json_t *body, const json_t *old)
{
	json_t *value = body ? json_deep_copy(body) : json_object();
	json_t *created = json_object_get(old, "created");
	if (!value)
		return NULL;
	json_object_del(value, "id");
	json_object_del(value, "name");
	json_object_del(value, "status");
	if (created)
		json_object_set(value, "created", created);
	else
		json_object_set_new(value, "created", time_moment(time_now()));
	return value;
}

static int answer(const struct api_objects *objects, struct hub *hub, struct rest_request *request,
	const char *id, const json_t *stored, uint64_t version, bool made, struct err *err)
{
	char location[ID_BYTES];
	time_changed(hub->time, true, true);
	rest_set_etag(request, version);
	json_t *value = shown(objects, hub, id, stored);
	snprintf(location, sizeof location, "%s/%s", objects->path, id);
	return made ? rest_reply_made(request, 201, location, value, err)
		    : rest_reply(request, 200, value, err);
}

int api_objects_is_there(struct hub *hub, const char *kind, const char *id, struct err *err)
{
	struct state_object object;
	struct err why = ERR_INIT;
	if (state_get(hub->state, kind, id, &object, &why) == 0) {
		state_object_clear(&object);
		return 0;
	}
	return why.code == ERR_NOT_FOUND
		       ? err_set(err, ERR_USAGE, "there is no %s \"%s\" (make it first)", kind, id)
		       : err_copy(err, &why);
}

struct naming {
	const char *member, *id;
	char who[ID_BYTES];
};

static int find_naming(void *context, const struct state_object *object)
{
	struct naming *n = context;
	const json_t *value = json_object_get(object->value, n->member), *item;
	const char *one = json_string_value(value);
	bool names = one && strcmp(one, n->id) == 0;
	size_t i;
	json_array_foreach(value, i, item)
	{
		const char *text = json_string_value(item);
		names = names || (text && strcmp(text, n->id) == 0);
	}
	if (names)
		snprintf(n->who, sizeof n->who, "%s", object->id);
	return names;
}

int api_objects_is_unnamed(struct hub *hub, const char *kind, const char *id, const char *by_kind,
	const char *member, struct err *err)
{
	struct naming n = {.member = member, .id = id};
	if (state_list(hub->state, by_kind, NULL, find_naming, &n, err) < 0)
		return -1;
	return n.who[0] ? err_set(err, ERR_REFUSED,
				  "the %s \"%s\" names %s \"%s\" (change that first)", by_kind,
				  n.who, kind, id)
			: 0;
}

int api_objects_create(const struct api_objects *objects, struct hub *hub,
	struct rest_request *request, struct err *err)
{
	const json_t *body = rest_body(request);
	const json_t *own_id = json_object_get(body, "id");
	char made_id[80];
	const char *id = json_string_value(own_id);
	uint64_t version;
	uint8_t tail[4];
	if (own_id && !id)
		return err_set(err, ERR_USAGE, "id: a text is wanted");
	if (!id) {
		char hex[9];
		if (file_random(tail, sizeof tail, err) < 0)
			return -1;
		digest_hex(tail, sizeof tail, hex);
		snprintf(made_id, sizeof made_id, "%s-%s", objects->kind, hex);
		id = made_id;
	}
	if (objects->check(hub, id, body, err) < 0)
		return -1;
	json_t *value = api_objects_stored(body, NULL);
	int rc = value ? state_put(hub->state, objects->kind, id, value, 0, &version, err)
		       : err_errno(err, ENOMEM, "cannot keep it");
	if (rc == 0)
		rc = answer(objects, hub, request, id, value, version, true, err);
	json_decref(value);
	return rc;
}

int api_objects_replace(const struct api_objects *objects, struct hub *hub,
	struct rest_request *request, struct err *err)
{
	const char *id = rest_param(request, "id");
	const json_t *body = rest_body(request);
	const char *own_id = time_text(body, "id");
	struct state_object old = {0};
	struct err why = ERR_INIT;
	uint64_t version;
	if (objects->check(hub, id, body, err) < 0)
		return -1;
	if (own_id && strcmp(own_id, id) != 0)
		return err_set(err, ERR_USAGE, "id: it is \"%s\" in the path", id);
	if (state_get(hub->state, objects->kind, id, &old, &why) < 0 && why.code != ERR_NOT_FOUND)
		return err_copy(err, &why);
	json_t *value = NULL;
	int rc = rest_check_match(request, old.version, err);
	if (rc == 0 && !(value = api_objects_stored(body, old.value)))
		rc = err_errno(err, ENOMEM, "cannot keep it");
	if (rc == 0)
		rc = state_put(hub->state, objects->kind, id, value, old.version, &version, err);
	if (rc == 0)
		rc = answer(objects, hub, request, id, value, version, !old.value, err);
	json_decref(value);
	state_object_clear(&old);
	return rc;
}

int api_objects_delete(const struct api_objects *objects, struct hub *hub,
	struct rest_request *request, struct err *err)
{
	const char *id = rest_param(request, "id");
	struct state_object old;
	if (state_get(hub->state, objects->kind, id, &old, err) < 0)
		return -1;
	uint64_t version = old.version;
	state_object_clear(&old);
	return rest_check_match(request, version, err) < 0
		       ? -1
		       : state_delete(hub->state, objects->kind, id, version, err);
}
