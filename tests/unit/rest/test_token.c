/* Tokens, who has which, keys in progress, wrong ones by address. */
#include "test_support.h"

#include <netinet/in.h>
#include <stdio.h>

static void test_tokens_differ_and_are_text(void **state)
{
	(void)state;
	char a[REST_TOKEN_BYTES], b[REST_TOKEN_BYTES], hash[REST_TOKEN_HASH_BYTES];
	assert_int_equal(rest_token_make(a, NULL), 0);
	assert_int_equal(rest_token_make(b, NULL), 0);
	assert_string_not_equal(a, b);
	assert_int_equal(strlen(a), REST_TOKEN_BYTES - 1);
	assert_int_equal(strncmp(a, "sdt_", 4), 0);
	assert_int_equal(strspn(a + 4, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				       "0123456789-_"),
		43);
	rest_token_hash("abc", hash);
	assert_string_equal(
		hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

static void test_scopes(void **state)
{
	(void)state;
	enum rest_scope scope;
	for (enum rest_scope each = REST_READ; each <= REST_ADMIN; each++) {
		assert_true(rest_scope_parse(rest_scope_name(each), &scope));
		assert_int_equal(scope, each);
	}
	assert_false(rest_scope_parse("none", &scope));
	assert_false(rest_scope_parse("root", &scope));
}

static void test_vms_of_a_backup_token(void **state)
{
	(void)state;
	struct rest_actor actor = {.scope = REST_BACKUP};
	assert_false(rest_actor_may(&actor, "web01"));
	actor.vms = json_pack("[s,s,s]", "web*", "db-?", "x*y*z");
	assert_true(rest_actor_may(&actor, "web01"));
	assert_true(rest_actor_may(&actor, "web"));
	assert_false(rest_actor_may(&actor, "aweb"));
	assert_true(rest_actor_may(&actor, "db-1"));
	assert_false(rest_actor_may(&actor, "db-"));
	assert_false(rest_actor_may(&actor, "db-12"));
	assert_true(rest_actor_may(&actor, "xyyzz"));
	assert_false(rest_actor_may(&actor, "xzy"));
	actor.scope = REST_READ;
	assert_true(rest_actor_may(&actor, "other"));
	rest_actor_clear(&actor);
	assert_false(rest_actor_may(&actor, "web01"));
}

static struct rest_address address_of(uint32_t host)
{
	struct rest_address address;
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)};
	rest_address_of((const struct sockaddr *)&in, &address);
	return address;
}

static void test_wrong_tokens_by_address(void **state)
{
	(void)state;
	static struct rest_wrong wrong;
	const int64_t second = 1000000000;
	struct rest_address a = address_of(0xc0000201), b = address_of(0xc0000202);
	rest_wrong_init(&wrong, 3);
	for (int i = 0; i < 3; i++)
		assert_int_equal(rest_wrong_count(&wrong, &a, 100 * second), 0);
	assert_int_equal(rest_wrong_count(&wrong, &a, 110 * second), 51);
	assert_int_equal(rest_wrong_count(&wrong, &b, 110 * second), 0);
	assert_int_equal(rest_wrong_count(&wrong, &a, 160 * second), 0);
	/* Many others push the one out whose minute began first, and no other. */
	for (uint32_t i = 0; i < REST_WRONG_ADDRESSES - 1; i++) {
		struct rest_address other = address_of(0x0a000000 + i);
		assert_int_equal(rest_wrong_count(&wrong, &other, (170 + i) * second), 0);
	}
	for (int i = 0; i < 2; i++)
		assert_int_equal(rest_wrong_count(&wrong, &a, 161 * second), 0);
	assert_int_equal(rest_wrong_count(&wrong, &a, 161 * second), 60);
	rest_wrong_clear(&wrong);
}

static void test_addresses(void **state)
{
	(void)state;
	struct rest_address address;
	struct sockaddr_in6 in = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	rest_address_of((const struct sockaddr *)&in, &address);
	assert_true(address.loopback);
	in.sin6_addr.s6_addr[0] = 0x20;
	rest_address_of((const struct sockaddr *)&in, &address);
	assert_false(address.loopback);
	struct rest_address before = address;
	in.sin6_addr.s6_addr[15] = 7; /* of the same network */
	rest_address_of((const struct sockaddr *)&in, &address);
	assert_memory_equal(before.key, address.key, sizeof address.key);
	assert_true(address_of(0x7f000203).loopback);
	assert_false(address_of(0x80000001).loopback);
}

struct second {
	struct rest_once *once;
	_Atomic(bool) entered;
};

static void *enter_second(void *context)
{
	struct second *second = context;
	assert_int_equal(
		rest_once_enter(second->once, "a", "k", deadline_after_ms(20000), NULL), 0);
	second->entered = true;
	rest_once_leave(second->once, "a", "k");
	return NULL;
}

static void test_one_key_one_call(void **state)
{
	(void)state;
	struct rest_once once;
	struct err err = ERR_INIT;
	pthread_t thread;
	rest_once_init(&once);
	assert_int_equal(rest_once_enter(&once, "a", "k", deadline_after_ms(0), &err), 0);
	assert_int_equal(rest_once_enter(&once, "b", "k", deadline_after_ms(0), &err), 0);
	assert_int_equal(rest_once_enter(&once, "a", "k", deadline_after_ms(0), &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	struct second second = {.once = &once};
	assert_int_equal(thread_start(&thread, "second", enter_second, &second, NULL), 0);
	assert_false(second.entered);
	rest_once_leave(&once, "a", "k");
	pthread_join(thread, NULL);
	assert_true(second.entered);
	rest_once_leave(&once, "b", "k");
	rest_once_clear(&once);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tokens_differ_and_are_text),
		cmocka_unit_test(test_scopes),
		cmocka_unit_test(test_vms_of_a_backup_token),
		cmocka_unit_test(test_wrong_tokens_by_address),
		cmocka_unit_test(test_addresses),
		cmocka_unit_test(test_one_key_one_call),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
