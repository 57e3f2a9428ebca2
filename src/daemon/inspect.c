/* What every daemon's "check-config" looks at; see inspect.h. */
#include "inspect.h"

#include "catalogue.h"
#include "clock.h"
#include "transport.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPIRES_SOON_S (30 * INT64_C(86400))

void inspect_told(void *context, const struct settings_finding *finding)
{
	struct inspect *inspect = context;
	inspect->nr_errors += finding->is_error;
	if (inspect->tell)
		inspect->tell(inspect->context, finding);
}

void inspect_say(struct inspect *inspect, bool is_error, const char *format, ...)
{
	char text[ERR_TEXT_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	inspect_told(inspect, &(struct settings_finding){.is_error = is_error, .text = text});
}

/* --- folders and files ------------------------------------------------------------------- */

void inspect_config(struct inspect *inspect, const char *path)
{
	struct stat st;
	/* Who may change it may have jobs read and write whatever the daemon can. */
	if (stat(path, &st) == 0 && (st.st_mode & 022) != 0)
		inspect_say(inspect, true, "others may write to %s (chmod 640 it)", path);
}

void inspect_folder(struct inspect *inspect, const char *setting, const char *path, bool made_later)
{
	const char *kind = inspect->kind;
	struct stat st;
	if (stat(path, &st) < 0 && errno == ENOENT && made_later)
		return;
	if (stat(path, &st) < 0 && errno == ENOENT)
		inspect_say(inspect, true,
			"[%s] %s: there is no %s (\"sendense %s init\" makes it)", kind, setting,
			path, kind);
	else if (stat(path, &st) < 0)
		inspect_say(inspect, true, "[%s] %s: cannot look at %s: %s", kind, setting, path,
			strerror(errno));
	else if (!S_ISDIR(st.st_mode))
		inspect_say(inspect, true, "[%s] %s: %s is no folder", kind, setting, path);
	else if ((st.st_mode & 022) != 0)
		inspect_say(inspect, true, "[%s] %s: others may write to %s (chmod 700 it)", kind,
			setting, path);
	else if (access(path, R_OK | W_OK | X_OK) < 0)
		inspect_say(inspect, true,
			"[%s] %s: %s cannot be written to by this user (run this as the user "
			"that the %s runs as)",
			kind, setting, path, kind);
}

void inspect_state(struct inspect *inspect, const char *state_dir, bool loopback)
{
	char path[4096 + 16];
	struct err err = ERR_INIT;
	snprintf(path, sizeof path, "%s/state.db", state_dir);
	if (access(path, F_OK) == 0 && state_check(path, &err) < 0)
		inspect_say(inspect, true, "%s", err.text);
	else if (access(path, F_OK) < 0 && access(state_dir, F_OK) == 0)
		inspect_say(inspect, !loopback,
			"there are no tokens in %s yet (\"sendense %s init\" makes the first one)",
			state_dir, inspect->kind);
}

void inspect_file(struct inspect *inspect, const char *where, const char *path, bool is_secret)
{
	struct stat st;
	if (stat(path, &st) < 0)
		inspect_say(
			inspect, true, "%s: cannot look at %s: %s", where, path, strerror(errno));
	else if (access(path, R_OK) < 0)
		inspect_say(inspect, true, "%s: %s cannot be read by this user", where, path);
	else if (is_secret && (st.st_mode & 077) != 0)
		inspect_say(inspect, true, "%s: others may read %s (chmod 600 it)", where, path);
}

/* --- TLS ----------------------------------------------------------------------------------- */

static void look_at_expiry(struct inspect *inspect, const char *certificate)
{
	struct err err = ERR_INIT;
	int64_t expires;
	char when[CLOCK_UTC_BYTES];
	if (pki_expiry(certificate, &expires, &err) < 0) {
		inspect_say(inspect, true, "[tls] certificate: %s", err.text);
		return;
	}
	clock_utc_text(expires, when);
	int64_t left_s = expires - time(NULL);
	if (left_s < EXPIRES_SOON_S)
		inspect_say(inspect, left_s < 0, "[tls] certificate: %s %s at %s", certificate,
			left_s < 0 ? "expired" : "expires", when);
}

void inspect_tls(struct inspect *inspect, const char *certificate, const char *key, const char *ca)
{
	struct err err = ERR_INIT;
	struct stat st;
	if (!certificate)
		return;
	if (stat(key, &st) == 0 && (st.st_mode & 077) != 0)
		inspect_say(inspect, true, "[tls] key: others may read %s (chmod 600 it)", key);
	const struct tls_server_options options = {
		.certificate = certificate,
		.key = key,
		.clients_ca = ca,
		.clients = ca ? TLS_CLIENTS_OPTIONAL : TLS_CLIENTS_ANY,
	};
	struct tls_server *server = tls_server_new(&options, &err);
	if (!server)
		inspect_say(inspect, true, "[tls] %s", err.text);
	else
		look_at_expiry(inspect, certificate);
	tls_server_free(server);
}
