/* What runs may differ from what is installed: the file that this process came from. */
#include "node_internal.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

void node_digest(char out[NODE_DIGEST_BYTES])
{
	uint8_t digest[DIGEST_ROOT_BYTES];
	struct stat st;
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	void *bytes = MAP_FAILED;
	if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 0)
		bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (fd >= 0)
		close(fd);
	out[0] = '\0';
	if (bytes == MAP_FAILED) {
		log_warning("the program's own file cannot be read: %s", strerror(errno));
		return;
	}
	digest_sha256(bytes, (size_t)st.st_size, digest);
	munmap(bytes, (size_t)st.st_size);
	digest_hex(digest, sizeof digest, out);
}
