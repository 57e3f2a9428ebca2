/* vmware_options: how commands reach a vCenter or an ESXi host: a URL, a password, whom to trust.
 */
#ifndef SENDENSE_CLI_VMWARE_OPTIONS_H
#define SENDENSE_CLI_VMWARE_OPTIONS_H

#include "cli.h"

#include "vsphere.h"

/* The member "vmware" of their values. */
struct vmware_options {
	const char *password_file, *ca_file, *fingerprint;
};

#define VMWARE_OPTION_ROWS(values)                                                                 \
	{.name = "password-file",                                                                  \
		.kind = OPTION_TEXT,                                                               \
		.offset = offsetof(values, vmware.password_file),                                  \
		.argument = "FILE",                                                                \
		.words = WORDS_FILE,                                                               \
		.help = "the file that holds the user's password (default: "                       \
			"$SENDENSE_VMWARE_PASSWORD_FILE)"},                                        \
		{.name = "ca-file",                                                                \
			.kind = OPTION_TEXT,                                                       \
			.offset = offsetof(values, vmware.ca_file),                                \
			.argument = "FILE",                                                        \
			.words = WORDS_FILE,                                                       \
			.help = "the CA that its certificate must be of (default: the system's)"}, \
	{                                                                                          \
		.name = "fingerprint", .kind = OPTION_TEXT,                                        \
		.offset = offsetof(values, vmware.fingerprint), .argument = "SHA256",              \
		.help = "instead of a CA: the SHA-256 of its certificate"                          \
	}

/* Connects and logs in.  *path: what the URL names there, "" for nothing; the caller frees it. */
struct vsphere *vmware_options_open(struct cli *cli, const char *url,
	const struct vmware_options *options, char **path, struct err *err);

#endif
