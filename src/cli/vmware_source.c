/* Machines of a vCenter as sources; see vmware_source.h. */
#include "vmware_source.h"

#include "version.h"

#include <errno.h>
#include <string.h>

#define BY_NBDKIT "nbdkit-vddk://"

static bool is_by_nbdkit(const char *name)
{
	return strncmp(name, BY_NBDKIT, strlen(BY_NBDKIT)) == 0;
}

bool vmware_source_is(const char *name)
{
	return strncmp(name, "vmware://", strlen("vmware://")) == 0 || is_by_nbdkit(name);
}

const char *vmware_source_given(const struct vmware_access *access,
	const struct vmware_wishes *wishes, const char *state_name)
{
	const struct {
		const char *name;
		bool given;
	} options[] = {
		{"password-file", access->password_file},
		{"vcenter-ca-file", access->ca_file},
		{"fingerprint", access->fingerprint},
		{"vddk", wishes->vddk_folder},
		{"nbdkit", wishes->nbdkit},
		{"transport-modes", wishes->modes},
		{"no-quiesce", wishes->no_quiesce},
		{"no-enable-cbt", wishes->no_cbt},
		{"skip-disk", wishes->skip.nr > 0},
		{"skip-unsupported", wishes->skip_unsupported},
		{state_name, wishes->state_folder},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(options); i++)
		if (options[i].given)
			return options[i].name;
	return NULL;
}

struct vmware_session *vmware_source_open(struct cli *cli, const char *url,
	const struct vmware_access *access, const struct vmware_wishes *wishes, const char *purpose,
	struct err *err)
{
	struct vmware_login login;
	char text[512], *AUTO_FREE plain = NULL;
	const char *nbdkit = wishes->nbdkit ? wishes->nbdkit : "nbdkit";
	bool by_nbdkit = is_by_nbdkit(url);
	if (!by_nbdkit && wishes->nbdkit) {
		err_set(err, ERR_USAGE, "--nbdkit is for " BY_NBDKIT "USER@HOST/VM");
		return NULL;
	}
	/* But for who reads its disks it is the same machine. */
	if (by_nbdkit && asprintf(&plain, "vmware://%s", url + strlen(BY_NBDKIT)) < 0) {
		plain = NULL;
		err_errno(err, ENOMEM, "cannot open %s", url);
		return NULL;
	}
	if (vmware_options_login(cli, plain ? plain : url, access, &login, err) < 0)
		return NULL;
	snprintf(text, sizeof text, "sendense %s, %s", version_text(), purpose);
	redact_uris(text);
	const struct vmware_options options = {
		.server = login.session,
		.cancel = cli->cancel,
		.what = login.url.path,
		.state_folder = wishes->state_folder,
		.purpose = text,
		.skip = wishes->skip.items,
		.nr_skip = wishes->skip.nr,
		.skip_unsupported = wishes->skip_unsupported,
		.no_quiesce = wishes->no_quiesce,
		.no_cbt = wishes->no_cbt,
		.vddk_folder = wishes->vddk_folder,
		.vddk_modes = wishes->modes,
		.nbdkit = by_nbdkit ? nbdkit : NULL,
	};
	struct vmware_session *session = vmware_open(&options, err);
	vmware_options_forget(&login);
	if (!session)
		err_context(err, "cannot open %s", url);
	for (size_t i = 0; session && i < vmware_nr_skipped(session); i++) {
		const struct vmware_skipped *skipped = vmware_skipped(session, i);
		log_warning(
			"disk %s (%s) is left out: %s", skipped->key, skipped->label, skipped->why);
	}
	return session;
}

/* --- the name ------------------------------------------------------------------------------- */

struct search {
	struct store *store;
	const char *uuid;
	char *vm;
	unsigned nr;
	struct err err;
};

static bool is_of(const struct repository_source *source, const char *uuid)
{
	for (size_t i = 0; i < source->nr_identity; i++)
		if (strcmp(source->identity[i].name, "vm-uuid") == 0)
			return strcmp(source->identity[i].value, uuid) == 0;
	return false;
}

static int look_at_vm(void *context, const char *vm)
{
	struct search *search = context;
	struct err why = ERR_INIT;
	struct repository_point *latest = store_point_load(search->store, vm, NULL, &why);
	/* One whose latest point is damaged is not known by it. */
	if (!latest && why.code != ERR_NOT_FOUND && why.code != ERR_CORRUPT) {
		err_copy(&search->err, &why);
		return 1;
	}
	if (latest && is_of(&latest->source, search->uuid)) {
		if (search->nr++ == 0)
			snprintf(search->vm, REPOSITORY_VM_BYTES, "%s", vm);
	}
	repository_point_free(latest);
	return 0;
}

int vmware_source_own_name(
	const struct vmware_session *session, char vm[REPOSITORY_VM_BYTES], struct err *err)
{
	const char *name = vmware_vm_name(session);
	if (repository_name_check_vm(name, err) < 0)
		return err_hint(err, "--vm NAME");
	snprintf(vm, REPOSITORY_VM_BYTES, "%s", name);
	return 0;
}

int vmware_source_name(const struct vmware_session *session, struct store *store,
	char vm[REPOSITORY_VM_BYTES], struct err *err)
{
	struct search search = {
		.store = store, .uuid = vmware_vm_uuid(session), .vm = vm, .err = ERR_INIT};
	if (store_list_vms(store, look_at_vm, &search, err) < 0)
		return -1;
	if (search.err.code != ERR_NONE)
		return err_copy(err, &search.err);
	if (search.nr > 1)
		return err_set(err, ERR_USAGE,
			"%s has restore points under more than one name: which one? (--vm NAME)",
			vmware_vm_name(session));
	return search.nr == 0 ? vmware_source_own_name(session, vm, err) : 0;
}

/* --- what is kept, and the end ------------------------------------------------------------ */

static int keep_file(
	void *context, const char *name, const void *bytes, size_t length, struct err *err)
{
	return store_backup_config(context, name, bytes, length, err);
}

int vmware_source_keep(struct vmware_session *session, struct store_backup *backup, struct err *err)
{
	return vmware_config(session, keep_file, backup, err);
}

void vmware_source_end(struct vmware_session *session)
{
	struct err err = ERR_INIT;
	if (vmware_end(session, &err) < 0)
		log_warning("%s", err.text);
}
