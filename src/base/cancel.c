/* Cancel; see cancel.h. */
#include "cancel.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct cancel {
	atomic_bool requested;
	int fd;
};

struct cancel *cancel_new(struct err *err)
{
	struct cancel *c = calloc(1, sizeof *c);
	if (!c) {
		err_errno(err, ENOMEM, "cannot allocate a cancel flag");
		return NULL;
	}
	c->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->fd < 0) {
		err_errno(err, errno, "cannot make an event descriptor");
		free(c);
		return NULL;
	}
	return c;
}

void cancel_free(struct cancel *cancel)
{
	if (!cancel)
		return;
	close(cancel->fd);
	free(cancel);
}

void cancel_request(struct cancel *cancel)
{
	int saved = errno;
	uint64_t one = 1;
	atomic_store(&cancel->requested, true);
	/* Can only fail when the counter is full, and then it is readable. */
	ssize_t n = write(cancel->fd, &one, sizeof one);
	(void)n;
	errno = saved;
}

bool cancel_requested(const struct cancel *cancel)
{
	return cancel && atomic_load_explicit(&cancel->requested, memory_order_relaxed);
}

int cancel_fd(const struct cancel *cancel)
{
	return cancel ? cancel->fd : -1;
}

int cancel_check(const struct cancel *cancel, struct err *err)
{
	if (cancel_requested(cancel))
		return err_set(err, ERR_CANCELLED, "cancelled");
	return 0;
}

int cancel_poll(const struct cancel *cancel, int fd, short events, struct deadline until,
	const char *what, struct err *err)
{
	for (;;) {
		struct pollfd fds[2] = {
			{.fd = fd, .events = events},
			{.fd = cancel_fd(cancel), .events = POLLIN},
		};
		int n = poll(fds, 2, deadline_left_ms(until));
		if (n < 0 && errno != EINTR)
			return err_errno(err, errno, "cannot wait for %s", what);
		if (cancel_check(cancel, err) < 0)
			return -1;
		if (n > 0 && fds[0].revents)
			return fds[0].revents;
		if (deadline_passed(until))
			return err_set(
				err, ERR_TIMEOUT, "%s: no progress before the deadline", what);
	}
}

int cancel_sleep(const struct cancel *cancel, struct deadline until, struct err *err)
{
	struct err why = ERR_INIT;
	if (cancel_poll(cancel, -1, 0, until, "sleep", &why) < 0 && why.code == ERR_TIMEOUT)
		return 0;
	return err_copy(err, &why);
}
