/* Reaching a vCenter; see vmware_options.h. */
#include "vmware_options.h"

#include <string.h>

static void tell_progress(void *context, const char *what, unsigned percent)
{
	(void)context;
	log_info("%s: %u %%", what, percent);
}

static int find_password(
	const struct vmware_access *options, struct vmware_login *login, struct err *err)
{
	const char *file = options->password_file;
	if (!file)
		file = getenv("SENDENSE_VMWARE_PASSWORD_FILE");
	if (!file)
		return err_set(err, ERR_USAGE,
			"which password has %s? (--password-file FILE, or "
			"SENDENSE_VMWARE_PASSWORD_FILE)",
			login->url.user);
	return vsphere_password_load(file, &login->password, &login->password_bytes, err);
}

int vmware_options_login(struct cli *cli, const char *url, const struct vmware_access *options,
	struct vmware_login *login, struct err *err)
{
	*login = (struct vmware_login){.password = NULL};
	if (vsphere_url_parse(url, &login->url, err) < 0)
		return -1;
	if (find_password(options, login, err) < 0) {
		vsphere_url_free(&login->url);
		return -1;
	}
	login->session = (struct vsphere_options){
		.host = login->url.host,
		.port = login->url.port,
		.user = login->url.user,
		.password = login->password,
		.ca_file = options->ca_file,
		.fingerprint = options->fingerprint,
		.cancel = cli->cancel,
		.progress = tell_progress,
	};
	return 0;
}

void vmware_options_forget(struct vmware_login *login)
{
	if (login->password)
		explicit_bzero(login->password, login->password_bytes);
	free(login->password);
	vsphere_url_free(&login->url);
	*login = (struct vmware_login){.password = NULL};
}

struct vsphere *vmware_options_open(struct cli *cli, const char *url,
	const struct vmware_access *options, char **path, struct err *err)
{
	struct vmware_login login;
	if (vmware_options_login(cli, url, options, &login, err) < 0)
		return NULL;
	struct vsphere *vsphere = vsphere_open(&login.session, err);
	if (vsphere) {
		*path = login.url.path;
		login.url.path = NULL;
	}
	vmware_options_forget(&login);
	return vsphere;
}
