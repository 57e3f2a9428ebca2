/*
 * sendense-vddk: loads VMware's libvixDiskLib in a process of its own, and serves one disk
 * of one snapshot to the sendense that started it (../vddk_wire.h).
 *
 * On its own because the library brings its own OpenSSL and C++ runtime, may crash, and may
 * never come back from a call: then this process is ended, and nothing else.
 * It ends when its parent does (orphan.h).
 */
#include "build.h"
#include "orphan.h"
#include "serve.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static int prepare(void)
{
	const struct rlimit no_core = {0, 0}; /* it would hold the password */
	setrlimit(RLIMIT_CORE, &no_core);
	/* What ends sendense ends us in order. */
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	return orphan_prepare();
}

static int usage(FILE *to, int status)
{
	fprintf(to, "sendense-vddk is started by sendense; it has no use on its own\n"
		    "(sendense doctor tells about VMware's library)\n");
	return status;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--version") == 0) {
		printf("sendense-vddk " BUILD_VERSION " (" BUILD_COMMIT ")\n");
		return 0;
	}
	int type = 0;
	socklen_t length = sizeof type;
	if (argc > 1)
		return usage(stderr, 2);
	if (getsockopt(0, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || type != SOCK_SEQPACKET)
		return usage(stderr, 2);
	if (prepare() < 0) {
		perror("sendense-vddk: cannot prepare");
		return 1;
	}
	int status = serve_parent();
	/* Not exit(): the library's threads may still be there, and its destructors too. */
	fflush(NULL);
	_exit(status);
}
