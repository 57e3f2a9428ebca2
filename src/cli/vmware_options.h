/* vmware_options: how commands reach a vCenter or an ESXi host: a URL, a password, whom to trust.
 */
#ifndef SENDENSE_CLI_VMWARE_OPTIONS_H
#define SENDENSE_CLI_VMWARE_OPTIONS_H

#include "cli.h"

#include "vsphere.h"

/* The member "vmware" of their values. */
struct vmware_access {
	const char *password_file, *ca_file, *fingerprint;
};

#define VMWARE_OPTION_ROWS(values) VMWARE_ACCESS_ROWS(values, "ca-file")

/* ca_name: of the option for the CA, where "ca-file" is another server's. */
#define VMWARE_ACCESS_ROWS(values, ca_name)                                                       \
	{.name = "password-file",                                                                 \
		.kind = OPTION_TEXT,                                                              \
		.offset = offsetof(values, vmware.password_file),                                 \
		.argument = "FILE",                                                               \
		.words = WORDS_FILE,                                                              \
		.help = "of a vCenter: the file that holds the user's password (default: "        \
			"$SENDENSE_VMWARE_PASSWORD_FILE)"},                                       \
		{.name = (ca_name),                                                               \
			.kind = OPTION_TEXT,                                                      \
			.offset = offsetof(values, vmware.ca_file),                               \
			.argument = "FILE",                                                       \
			.words = WORDS_FILE,                                                      \
			.help = "of a vCenter: the CA that its certificate must be of (default: " \
				"the system's)"},                                                 \
	{                                                                                         \
		.name = "fingerprint", .kind = OPTION_TEXT,                                       \
		.offset = offsetof(values, vmware.fingerprint), .argument = "SHA256",             \
		.help = "of a vCenter: instead of a CA, the SHA-256 of its certificate"           \
	}

/* What it takes to log in, as the options say. */
struct vmware_login {
	struct vsphere_url url;
	char *password;
	size_t password_bytes;
	struct vsphere_options session; /* borrows all from here and from the options */
};

int vmware_options_login(struct cli *cli, const char *url, const struct vmware_access *options,
	struct vmware_login *login, struct err *err);
/* Wipes it.  Harmless on one of zeros. */
void vmware_options_forget(struct vmware_login *login);

/* Connects and logs in.  *path: what the URL names there, "" for nothing; the caller frees it. */
struct vsphere *vmware_options_open(struct cli *cli, const char *url,
	const struct vmware_access *options, char **path, struct err *err);

#endif
