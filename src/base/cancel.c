/* Cancel; see cancel.h. */
#include "cancel.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct cancel {
	atomic_bool requested;
	int fd;
	const struct cancel *parent; /* NULL: none */
	int both_fd; /* of a part: readable with its own or the parent's; else -1 */
};

struct cancel *cancel_new(struct err *err)
{
	struct cancel *c = calloc(1, sizeof *c);
	if (!c) {
		err_errno(err, ENOMEM, "cannot allocate a cancel flag");
		return NULL;
	}
	c->both_fd = -1;
	c->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->fd < 0) {
		err_errno(err, errno, "cannot make an event descriptor");
		free(c);
		return NULL;
	}
	return c;
}

struct cancel *cancel_new_part(const struct cancel *parent, struct err *err)
{
	struct cancel *c = cancel_new(err);
	if (!c || !parent)
		return c;
	struct epoll_event event = {.events = EPOLLIN};
	c->parent = parent;
	c->both_fd = epoll_create1(EPOLL_CLOEXEC);
	if (c->both_fd >= 0 && epoll_ctl(c->both_fd, EPOLL_CTL_ADD, c->fd, &event) == 0 &&
		epoll_ctl(c->both_fd, EPOLL_CTL_ADD, cancel_fd(parent), &event) == 0)
		return c;
	err_errno(err, errno, "cannot make an event descriptor");
	cancel_free(c);
	return NULL;
}

void cancel_free(struct cancel *cancel)
{
	if (!cancel)
		return;
	if (cancel->both_fd >= 0)
		close(cancel->both_fd);
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
	return cancel && (atomic_load_explicit(&cancel->requested, memory_order_relaxed) ||
				 cancel_requested(cancel->parent));
}

int cancel_fd(const struct cancel *cancel)
{
	if (!cancel)
		return -1;
	return cancel->parent ? cancel->both_fd : cancel->fd;
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
