/* tls_options: what commands that read or write nbds:// disks take for it. */
#ifndef SENDENSE_CLI_TLS_OPTIONS_H
#define SENDENSE_CLI_TLS_OPTIONS_H

#include "nbd.h"
#include "options.h"

/* The member "tls" of their values. */
struct tls_options {
	const char *certificates, *psk_file, *username;
};

#define TLS_OPTION_ROWS(values)                                                              \
	{.name = "tls-certificates",                                                         \
		.kind = OPTION_TEXT,                                                         \
		.offset = offsetof(values, tls.certificates),                                \
		.argument = "DIR",                                                           \
		.words = WORDS_FOLDER,                                                       \
		.help = "for nbds://: a folder with ca-cert.pem, perhaps client-cert.pem, "  \
			"client-key.pem"},                                                   \
		{.name = "tls-psk-file",                                                     \
			.kind = OPTION_TEXT,                                                 \
			.offset = offsetof(values, tls.psk_file),                            \
			.argument = "FILE",                                                  \
			.words = WORDS_FILE,                                                 \
			.help = "for nbds://: a file with a pre-shared key (IDENTITY:HEX)"}, \
	{                                                                                    \
		.name = "tls-username", .kind = OPTION_TEXT,                                 \
		.offset = offsetof(values, tls.username), .argument = "NAME",                \
		.help = "whose key of the file (default: the first)"                         \
	}

/* What to take for a disk where the command line has nothing of it: fills found, whose strings live
 * as long as the program; false: there is nothing. */
typedef bool tls_options_find(void *context, const char *name, struct tls_options *found);
/* Before the command runs; find NULL: none. */
void tls_options_otherwise(tls_options_find *find, void *context);

/* Puts them into the options of the client that opens name; options may be NULL. */
void tls_options_set(
	struct nbd_client_options *client, const char *name, const struct tls_options *options);

#endif
