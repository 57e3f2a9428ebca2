/* Reaching a vCenter; see vmware_options.h. */
#include "vmware_options.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define PASSWORD_MOST 1024u

/* The caller wipes it, length bytes, and frees it. */
static int load_password(const char *path, char **password, size_t *length, struct err *err)
{
	struct stat st;
	if (stat(path, &st) < 0)
		return err_errno(err, errno, "cannot read the password in %s", path);
	if ((st.st_mode & 077) != 0)
		return err_set(err, ERR_DENIED,
			"cannot use the password in %s: others may read it (chmod 600 %s)", path,
			path);
	if (file_load(AT_FDCWD, path, PASSWORD_MOST, password, length, err) < 0)
		return err_context(err, "cannot read the password");
	size_t end = strcspn(*password, "\r\n");
	if (end > 0 && end + strspn(*password + end, "\r\n") == *length) {
		(*password)[end] = '\0';
		return 0;
	}
	explicit_bzero(*password, *length);
	free(*password);
	return err_set(err, ERR_USAGE, "%s does not hold one line with a password", path);
}

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
	return load_password(file, &login->password, &login->password_bytes, err);
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
