/* The guest agent; see agent.h.  Source: QEMU's qga/qapi-schema.json. */
#include "agent.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define LINE_MOST ((size_t)1 << 20)
#define SYNC_MS 3000u
#define THAW_MS 15000u /* the guest may be slow to wake, and there is nothing better to do */
#define GUARD_EXTRA_MS 5000
/* The byte 0xff ends whatever half a message stands in the agent's parser.  The agent answers
 * it with an error, so that only those send it who pass over answers. */
#define MARK "\xff"

static bool fail(struct agent *agent, const char *what, const struct err *err)
{
	struct err whole = ERR_INIT;
	if (err)
		err_copy(&whole, err);
	if (err)
		err_context(&whole, "%s", what);
	else
		err_set(&whole, ERR_REFUSED, "%s", what);
	snprintf(agent->reason, sizeof agent->reason, "%s", whole.text);
	return false;
}

/* --- the guard ----------------------------------------------------------------------- */

/* Until the thaw is answered: a connection that closes may take the question with it.  An agent
 * that does not give ids back is waited for until the deadline. */
static void guard_wait(void)
{
	char text[4096];
	size_t used = 0;
	struct pollfd pfd = {.fd = 1, .events = POLLIN};
	while (poll(&pfd, 1, (int)THAW_MS) > 0) {
		ssize_t n = read(1, text + used, sizeof text - used);
		if (n <= 0 && errno == EAGAIN)
			continue;
		if (n <= 0 || memmem(text, used + (size_t)n, "\"sendense\"", 10))
			return;
		used = used + (size_t)n < sizeof text ? used + (size_t)n : 0;
	}
}

/* Only calls that are safe after fork() in a process with threads. */
static void __attribute__((noreturn)) guard_main(int watch, int agent, int timeout_ms)
{
	setsid();
	/* Every other descriptor goes: locks and connections must end with the parent. */
	int spare = dup(agent);
	if (spare < 0 || dup2(watch, 0) < 0 || dup2(spare, 1) < 0)
		_exit(1);
	close_range(2, ~0u, 0);
	struct pollfd pfd = {.fd = 0, .events = POLLIN};
	int ready;
	do {
		ready = poll(&pfd, 1, timeout_ms);
	} while (ready < 0 && errno == EINTR);
	char byte;
	if (ready > 0 && read(0, &byte, 1) == 1)
		_exit(0); /* the parent has thawed */
	static const char message[] =
		MARK "{\"execute\":\"guest-fsfreeze-thaw\",\"id\":\"sendense\"}\n";
	if (send(1, message, sizeof message - 1, MSG_NOSIGNAL) < 0)
		_exit(1);
	guard_wait();
	_exit(0);
}

static int start_guard(struct agent *agent, unsigned timeout_ms, struct err *err)
{
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return err_errno(err, errno, "cannot make a socket pair");
	sigset_t all, before;
	sigfillset(&all);
	/* The guard has them blocked for good: Ctrl-C and service stops are not for it. */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	agent->guard = fork();
	int errnum = errno;
	if (agent->guard == 0)
		guard_main(pair[1], agent->wire.fd, (int)timeout_ms + GUARD_EXTRA_MS);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	close(pair[1]);
	agent->guard_fd = pair[0];
	if (agent->guard < 0) {
		close(pair[0]);
		agent->guard_fd = -1;
		return err_errno(err, errnum, "cannot start the guard");
	}
	return 0;
}

static void end_guard(struct agent *agent, bool thawed)
{
	if (agent->guard <= 0)
		return;
	/* Without the byte it tries as well. */
	if (thawed && send(agent->guard_fd, "d", 1, MSG_NOSIGNAL) < 0)
		log_debug("the guard of the frozen guest has ended already");
	close(agent->guard_fd);
	agent->guard_fd = -1;
	while (waitpid(agent->guard, NULL, 0) < 0 && errno == EINTR)
		;
	agent->guard = 0;
}

/* --- talking ---------------------------------------------------------------------------- */

static int ask(struct agent *agent, const char *text, const struct cancel *cancel,
	struct deadline until, struct err *err)
{
	return wire_send(
		&agent->wire, text, strlen(text), -1, cancel, until, "asking the agent", err);
}

/* The next answer's "return", which the caller owns. */
static json_t *hear(struct agent *agent, const struct cancel *cancel, struct deadline until,
	const char *what, struct err *err)
{
	json_t *answer = wire_receive(&agent->wire, true, cancel, until, what, err);
	if (!answer)
		return NULL;
	json_t *result = json_incref(json_object_get(answer, "return"));
	const char *text =
		json_string_value(json_object_get(json_object_get(answer, "error"), "desc"));
	if (!result)
		err_set(err, ERR_REFUSED, "the guest agent refused: %s",
			text ? text : "without a reason");
	json_decref(answer);
	return result;
}

/* Throws away what an earlier conversation left in the channel. */
static int synchronise(
	struct agent *agent, const struct cancel *cancel, struct deadline until, struct err *err)
{
	uint32_t id;
	char text[96];
	if (file_random(&id, sizeof id, err) < 0)
		return -1;
	id &= 0x7fffffff;
	snprintf(text, sizeof text,
		MARK "{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%" PRIu32 "}}\n",
		id);
	if (ask(agent, text, cancel, until, err) < 0)
		return -1;
	for (;;) {
		struct err local = ERR_INIT;
		json_t *result = hear(agent, cancel, until, "waiting for the guest agent", &local);
		if (!result && local.code != ERR_REFUSED)
			return err_copy(err, &local);
		bool mine = json_is_integer(result) && json_integer_value(result) == id;
		json_decref(result);
		if (mine)
			return 0;
	}
}

static int connect_agent(struct agent *agent, const char *socket, const struct cancel *cancel,
	struct deadline until, struct err *err)
{
	*agent = (struct agent){.wire = {.fd = -1}, .guard_fd = -1};
	if (wire_open(&agent->wire, "guest agent", socket, LINE_MOST, cancel, until, err) < 0)
		return -1;
	return synchronise(agent, cancel, until, err);
}

/* --- freezing ------------------------------------------------------------------------------ */

bool agent_freeze(
	struct agent *agent, const char *socket, unsigned timeout_ms, const struct cancel *cancel)
{
	struct err err = ERR_INIT;
	struct deadline until = deadline_after_ms(timeout_ms);
	if (connect_agent(agent, socket, cancel, deadline_min(until, deadline_after_ms(SYNC_MS)),
		    &err) < 0)
		return fail(agent, "the guest agent cannot be reached", &err);
	agent->until = until;
	if (start_guard(agent, timeout_ms, &err) < 0)
		return fail(agent, "the guest was not frozen", &err);
	agent->asked = true;
	json_t *result = NULL;
	if (ask(agent, "{\"execute\":\"guest-fsfreeze-freeze\"}\n", cancel, until, &err) == 0)
		result = hear(agent, cancel, until, "freezing the guest's file systems", &err);
	agent->nr_frozen = json_integer_value(result);
	bool frozen = json_is_integer(result) && agent->nr_frozen > 0;
	json_decref(result);
	if (!result)
		return fail(agent, "the guest was not frozen", &err);
	return frozen || fail(agent, "the guest agent froze no file system", NULL);
}

/* How many file systems it says that it thawed, -1 when it does not say. */
static json_int_t thaw(struct agent *agent, struct err *err)
{
	struct deadline until = deadline_after_ms(THAW_MS);
	/* The answer to a freeze that came too late may stand before it. */
	if (synchronise(agent, NULL, until, err) < 0 ||
		ask(agent, "{\"execute\":\"guest-fsfreeze-thaw\"}\n", NULL, until, err) < 0)
		return -1;
	json_t *result = hear(agent, NULL, until, "thawing the guest's file systems", err);
	json_int_t nr = json_is_integer(result) ? json_integer_value(result) : -1;
	json_decref(result);
	return nr;
}

bool agent_thaw(struct agent *agent)
{
	struct err err = ERR_INIT;
	bool counts = agent->asked && !agent->reason[0];
	if (agent->asked) {
		json_int_t nr = thaw(agent, &err);
		bool late = deadline_passed(agent->until);
		if (nr < 0)
			log_error("the guest's file systems may still be frozen: %s (in the guest: "
				  "fsfreeze --unfreeze, or restart qemu-ga)",
				err.text);
		if (counts && nr < 0)
			counts = fail(agent, "the guest could not be thawed in time", &err);
		else if (counts && nr != agent->nr_frozen)
			counts = fail(
				agent, "file systems of the guest were thawed by another", NULL);
		else if (counts && late)
			counts = fail(agent, "freezing the guest took too long", NULL);
		end_guard(agent, nr >= 0);
	}
	wire_close(&agent->wire);
	agent->asked = false;
	return counts;
}

void agent_recover(const char *socket)
{
	struct agent agent;
	struct err err = ERR_INIT;
	struct deadline until = deadline_after_ms(SYNC_MS);
	if (connect_agent(&agent, socket, NULL, until, &err) == 0 &&
		ask(&agent, "{\"execute\":\"guest-fsfreeze-status\"}\n", NULL, until, &err) == 0) {
		json_t *result = hear(&agent, NULL, until, "asking for the guest's state", &err);
		const char *state = json_string_value(result);
		if (state && strcmp(state, "frozen") == 0) {
			json_int_t nr = thaw(&agent, &err);
			if (nr >= 0)
				log_warning("the guest's file systems were still frozen by a "
					    "backup that died, and are thawed now");
		}
		json_decref(result);
	}
	if (err.code != ERR_NONE)
		log_error("whether a backup that died left the guest frozen is not known: %s",
			err.text);
	wire_close(&agent.wire);
}
