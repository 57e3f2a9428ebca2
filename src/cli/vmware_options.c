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

static struct vsphere *connect_to(struct cli *cli, const struct vsphere_url *url,
	const struct vmware_options *options, struct err *err)
{
	const char *file = options->password_file;
	char *password;
	size_t length;
	if (!file)
		file = getenv("SENDENSE_VMWARE_PASSWORD_FILE");
	if (!file) {
		err_set(err, ERR_USAGE,
			"which password has %s? (--password-file FILE, or "
			"SENDENSE_VMWARE_PASSWORD_FILE)",
			url->user);
		return NULL;
	}
	if (load_password(file, &password, &length, err) < 0)
		return NULL;
	const struct vsphere_options session = {
		.host = url->host,
		.port = url->port,
		.user = url->user,
		.password = password,
		.ca_file = options->ca_file,
		.fingerprint = options->fingerprint,
		.cancel = cli->cancel,
		.progress = tell_progress,
	};
	struct vsphere *vsphere = vsphere_open(&session, err);
	explicit_bzero(password, length);
	free(password);
	return vsphere;
}

struct vsphere *vmware_options_open(struct cli *cli, const char *text,
	const struct vmware_options *options, char **path, struct err *err)
{
	struct vsphere_url url;
	if (vsphere_url_parse(text, &url, err) < 0)
		return NULL;
	struct vsphere *vsphere = connect_to(cli, &url, options, err);
	if (vsphere) {
		*path = url.path;
		url.path = NULL;
	}
	vsphere_url_free(&url);
	return vsphere;
}
