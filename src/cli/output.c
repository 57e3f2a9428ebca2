/* Standard output; see output.h. */
#include "output.h"

#include "base.h"
#include "console.h"

#include <errno.h>
#include <stdio.h>

static FILE *plain; /* the one of the C library, while another one is in its place */
static char before; /* the last byte that was written */

static bool write_all(const char *bytes, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t n = write(STDOUT_FILENO, bytes + done, length - done);
		if (n < 0 && errno != EINTR)
			return false;
		done += n > 0 ? (size_t)n : 0;
	}
	return true;
}

/* Less than all of it would be an error to stdio. */
static ssize_t write_clean(void *cookie, const char *bytes, size_t length)
{
	char out[4096];
	(void)cookie;
	for (size_t done = 0; done < length;) {
		size_t nr = min_size(length - done, sizeof out);
		for (size_t i = 0; i < nr; i++, done++) {
			bool is_layout = bytes[done] == '\n' || bytes[done] == '\t';
			out[i] = is_layout ? bytes[done] : console_clean(bytes[done], before);
			before = bytes[done];
		}
		if (!write_all(out, nr))
			return 0;
	}
	return (ssize_t)length;
}

void output_clean(void)
{
	FILE *file = plain ? NULL
			   : fopencookie(NULL, "w", (cookie_io_functions_t){.write = write_clean});
	if (!file)
		return;
	fflush(stdout);
	plain = stdout;
	stdout = file;
}

void output_restore(void)
{
	FILE *file = stdout;
	if (!plain)
		return;
	stdout = plain;
	plain = NULL;
	fclose(file);
}
