/* sendense: the one binary. */
#include "cli.h"
#include "worker_main.h"

#include <string.h>

int main(int argc, char **argv)
{
	/* Not for people: what the hub starts for each job. */
	if (argc == 3 && strcmp(argv[1], "worker") == 0)
		return worker_main(argv[2]);
	return cli_main(argc, (const char *const *)argv);
}
