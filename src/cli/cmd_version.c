/* sendense version: the exact build. */
#include "cli.h"
#include "version.h"

#include "build.h"

#include <string.h>
#include <zlib.h>
#include <zstd.h>

/* Versions at build time come from meson; where a library can tell what runs
 * now, that is shown as well. */
static const struct {
	const char *name, *built;
	const char *(*running)(void);
} libraries[] = {
	{"libnbd", BUILT_LIBNBD, NULL},
	{"jansson", BUILT_JANSSON, jansson_version_str},
	{"gnutls", BUILT_GNUTLS, NULL},
	{"zstd", BUILT_ZSTD, ZSTD_versionString},
	{"zlib", BUILT_ZLIB, zlibVersion},
	{"xxhash", BUILT_XXHASH, NULL},
};

const char *version_text(void)
{
	return BUILD_VERSION " (git " BUILD_COMMIT ")";
}

const char *version_build(void)
{
	return BUILD_COMMIT;
}

static int print_json(struct err *err)
{
	json_t *used = json_object();
	for (size_t i = 0; i < ARRAY_LENGTH(libraries); i++)
		json_object_set_new(used, libraries[i].name,
			json_string(libraries[i].running ? libraries[i].running()
							 : libraries[i].built));
	return cli_print_json(json_pack("{s:s, s:s, s:s, s:o}", "version", BUILD_VERSION, "commit",
				      BUILD_COMMIT, "compiler", BUILT_COMPILER, "libraries", used),
		err);
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	(void)values;
	if (cli->common.json)
		return print_json(err);
	printf("sendense %s\n", version_text());
	printf("compiler %s\n", BUILT_COMPILER);
	for (size_t i = 0; i < ARRAY_LENGTH(libraries); i++) {
		const char *running =
			libraries[i].running ? libraries[i].running() : libraries[i].built;
		printf("%s %s", libraries[i].name, running);
		if (strcmp(running, libraries[i].built) != 0)
			printf(" (built with %s)", libraries[i].built);
		putchar('\n');
	}
	return cli_flush(err);
}

const struct command command_version = {
	.name = "version",
	.summary = "Tell the exact build: version, commit, compiler, libraries",
	.common = COMMON_JSON,
	.run = run,
};
