/* systemd's notification protocol: datagrams to the socket that NOTIFY_SOCKET names. */
#include "systemd.h"

#include "log.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

void systemd_tell(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length = path ? strlen(path) : 0;
	if (length < 2 || length >= sizeof address.sun_path || !strchr("/@", path[0]))
		return;
	memcpy(address.sun_path, path, length);
	if (path[0] == '@')
		address.sun_path[0] = '\0'; /* an abstract name */
	int AUTO_CLOSE fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	socklen_t bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
	if (fd < 0 || sendto(fd, state, strlen(state), MSG_NOSIGNAL,
			      (const struct sockaddr *)&address, bytes) < 0)
		log_warning("cannot tell systemd \"%s\": %s", state, strerror(errno));
}

int64_t systemd_watchdog_ms(void)
{
	const char *interval = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
	if (!interval || (pid && strtoll(pid, NULL, 10) != getpid()))
		return 0;
	int64_t us = strtoll(interval, NULL, 10);
	return us > 0 ? us / 3000 + 1 : 0; /* three times in each interval */
}
