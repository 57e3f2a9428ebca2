/* Where a hub may send its clients: to no disk that is not its own. */
#include "test_support.h"

#include "remote_internal.h"

#include <stdio.h>

static enum err_code check(const char *hub, const char *uri, bool has_key)
{
	struct store store = {.name = (char *)(uintptr_t)hub};
	struct err err = ERR_INIT;
	return hub_export_check(&store, uri, has_key, &err) == 0 ? ERR_NONE : err.code;
}

static void test_exports(void **state)
{
	(void)state;
	static const struct {
		const char *hub, *uri;
		bool has_key;
		enum err_code code;
	} cases[] = {
		{"https://hub.example/main", "nbds://hub.example:10809/x", true, ERR_NONE},
		{"https://hub.example", "nbds://10.0.0.1/x", true, ERR_NONE},
		{"https://127.0.0.1:8443", "nbds://127.0.0.1:10809/x", true, ERR_NONE},
		{"http://127.0.0.1:8080/main", "nbd://127.0.0.1:10809/x", false, ERR_NONE},
		{"http://localhost:8080", "nbd://127.0.0.1:10809/x", false, ERR_NONE},
		{"https://[::1]:8443/main", "nbd://[::1]:10809/x", false, ERR_NONE},
		/* In the clear. */
		{"https://hub.example", "nbd://hub.example:10809/x", false, ERR_REFUSED},
		{"http://127.0.0.1", "nbd://hub.example/x", false, ERR_REFUSED},
		{"http://127.0.0.1", "nbd://127.evil.example/x", false, ERR_REFUSED},
		/* A server of this machine, which a hub elsewhere has no business with. */
		{"https://hub.example", "nbd://127.0.0.1:10809/x", false, ERR_REFUSED},
		{"https://hub.example", "nbd://127.0.0.1:10809/x", true, ERR_REFUSED},
		{"https://hub.example", "nbd://localhost/x", false, ERR_REFUSED},
		{"https://127.evil.example", "nbd://127.0.0.1/x", false, ERR_REFUSED},
		{"https://hub.example/127.0.0.1", "nbd://127.0.0.1/x", false, ERR_REFUSED},
		{"http://127.0.0.1", "nbd+unix:///x?socket=/run/nbd.sock", false, ERR_REFUSED},
		{"http://127.0.0.1", "nbds+unix:///x?socket=/run/nbd.sock", true, ERR_REFUSED},
		{"https://hub.example", "nbds://hub.example/x", false, ERR_REFUSED},
		{"https://hub.example", "raw:/etc/passwd", true, ERR_REFUSED},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		enum err_code code = check(cases[i].hub, cases[i].uri, cases[i].has_key);
		if (code != cases[i].code)
			fail_msg("%s, %s: %s", cases[i].hub, cases[i].uri, err_code_name(code));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_exports),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
