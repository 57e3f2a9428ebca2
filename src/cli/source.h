/* source: what a command reads a disk from. */
#ifndef SENDENSE_CLI_SOURCE_H
#define SENDENSE_CLI_SOURCE_H

#include "cli.h"
#include "locator.h"
#include "tls_options.h"

#define ALLOW_BACKING_ROW(values, member)                                                         \
	{                                                                                         \
		.name = "allow-backing", .kind = OPTION_LIST, .offset = offsetof(values, member), \
		.argument = "DIR", .words = WORDS_FOLDER,                                         \
		.help = "follow backing files of a QCOW2 image below this folder too"             \
	}

struct source_options {
	bool read_only;
	const char *bitmap; /* of an NBD export, see nbd_client_options; NULL: none */
	bool no_reconnect; /* see there */
	const struct option_list *allow_backing; /* folders as given */
	const struct tls_options *tls; /* NULL: none */
	struct cancel *cancel;
};

struct block *source_open(const char *name, const struct source_options *options, struct err *err);

#endif
