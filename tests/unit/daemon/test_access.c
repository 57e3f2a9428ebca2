/* Whose a token is, and the audit log, in a state.db of the test's own. */
#include "../scratch.h"

#include "access.h"

static struct state *open_state(void)
{
	struct err err = ERR_INIT;
	struct state *db = state_open("state.db", &err);
	if (!db)
		fail_msg("%s", err.text);
	return db;
}

static int ask(struct state *db, const char *token, struct rest_actor *actor, struct err *err)
{
	char hash[REST_TOKEN_HASH_BYTES];
	*actor = (struct rest_actor){.id = ""};
	err_clear(err);
	rest_token_hash(token, hash);
	return access_authenticate(db, hash, actor, err);
}

static void test_tokens(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	struct rest_actor actor;
	struct state *db = open_state();
	char night[REST_TOKEN_BYTES], old[REST_TOKEN_BYTES];
	char told[ACCESS_ACTOR_BYTES];
	json_t *vms = json_pack("[s]", "web*"), *made;
	SUPPORT_OK(access_token_make(db, "night", REST_BACKUP, vms, 0, night, &made, &err), err);
	SUPPORT_OK(access_token_make(db, "old", REST_ADMIN, NULL, 1, old, NULL, &err), err);

	SUPPORT_OK(ask(db, night, &actor, &err), err);
	assert_int_equal(actor.scope, REST_BACKUP);
	assert_true(rest_actor_may(&actor, "web01"));
	assert_false(rest_actor_may(&actor, "db01"));
	assert_string_equal(actor.id, json_string_value(json_object_get(made, "id")));
	assert_string_equal(access_actor_text(&actor, told), "token night");
	rest_actor_clear(&actor);
	assert_string_equal(access_actor_text(NULL, told), "nobody");

	assert_int_equal(ask(db, old, &actor, &err), -1);
	support_expect(&err, ERR_DENIED, "the token expired at 1970-01-01T00:00:01Z");
	assert_int_equal(ask(db, "sdt_none", &actor, &err), -1);
	support_expect(&err, ERR_DENIED, "there is no such token");
	json_decref(made);
	json_decref(vms);
	state_close(db);

	/* Only the hash is kept. */
	char *AUTO_FREE bytes = NULL;
	size_t length;
	SUPPORT_OK(file_load(AT_FDCWD, "state.db", 1u << 24, &bytes, &length, &err), err);
	assert_null(memmem(bytes, length, night, strlen(night)));
}

static int take_event(void *context, const struct state_event *event)
{
	char *told = context;
	snprintf(told, 256, "%s|%s|%s", event->actor, event->action, event->object);
	return 0;
}

static void test_event(void **context)
{
	(void)context;
	struct err err = ERR_INIT;
	char told[256] = "";
	struct state *db = open_state();
	struct state_event event = access_event(db, "node", "start", "now", NULL);
	assert_true(event.id > 0);
	assert_string_equal(event.action, "start");
	struct state_event_filter filter = {.actor = "node"};
	SUPPORT_OK(state_events(db, &filter, take_event, told, &err), err);
	assert_string_equal(told, "node|start|now");
	state_close(db);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SUPPORT_TEST(test_tokens),
		SUPPORT_TEST(test_event),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
