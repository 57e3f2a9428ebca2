/* Calls within a session; see vim.h. */
#include "vim.h"

#include <stdio.h>

#define LOGINS_MOST 3 /* for one call */
#define BROKEN_MOST 3 /* answers that were no XML */
#define PAUSE_MS 200
#define PAUSE_DOUBLINGS 5

struct deadline vim_until(const struct vsphere *vsphere)
{
	return deadline_after_ms(vsphere->options.call_timeout_ms);
}

void vim_free(struct vim_answer *answer)
{
	xml_parser_free(answer->parser);
	*answer = (struct vim_answer){.parser = NULL};
}

/* --- one try -----------------------------------------------------------------------------------
 */

static int take(void *context, const char *bytes, size_t length, struct err *err)
{
	return xml_parser_feed(context, bytes, length, err);
}

static int wrong_status(const struct vsphere *vsphere, unsigned status, struct err *err)
{
	bool passing = status == 429 || (status >= 502 && status <= 504);
	return err_set(err, passing ? ERR_DISCONNECTED : ERR_PROTOCOL, "%s answered HTTP %u%s",
		https_where(vsphere->https), status,
		passing ? "" : " (is that a vCenter or ESXi?)");
}

/* Fills call for those who ask whether to try again. */
static int exchange(struct vsphere *vsphere, const struct soap *request, enum vim_repeat repeat,
	struct deadline until, struct https_call *call, struct vim_answer *answer, struct err *err)
{
	vim_free(answer);
	answer->parser = xml_parser_new(err);
	if (!answer->parser)
		return -1;
	/* A login whose answer was lost may have named a session: in that one there is no other. */
	if (!vsphere->logged_in)
		https_forget(vsphere->https);
	*call = (struct https_call){.what = request->method,
		.path = "/sdk",
		.body = request->text,
		.body_length = request->length,
		.once = repeat == VIM_ONCE,
		.until = deadline_min(until, vim_until(vsphere)),
		.cancel = vsphere->cancel,
		.take = take,
		.context = answer->parser,
		.most = HTTPS_ANSWER_MOST};
	if (https_call(vsphere->https, call, err))
		return -1;
	if (call->status != 200 && call->status != 500)
		return wrong_status(vsphere, call->status, err);
	const struct xml *root = xml_parser_end(answer->parser, err);
	if (root)
		answer->xml = soap_answer(root, request->method, &answer->fault, err);
	if (answer->xml)
		return 0;
	return err_context(err, "calling %s (%s)", https_where(vsphere->https), request->method);
}

/* --- sessions ----------------------------------------------------------------------------------
 */

/* Some servers answer a question for properties without a session, but each with a fault. */
static bool is_expired(const struct vim_answer *answer)
{
	static const char name[] = "NotAuthenticated";
	const struct xml *object = xml_at(answer->xml, "returnval/objects");
	if (!answer->xml)
		return !strcmp(answer->fault.name, name);
	for (; object; object = xml_again(object))
		for (const struct xml *missing = xml_child(object, "missingSet"); missing;
			missing = xml_again(missing)) {
			const struct xml *fault = xml_at(missing, "fault/fault");
			if (fault && !strcmp(fault->type, name))
				return true;
		}
	return false;
}

/* Whether another try may end better.  The server is asked about nothing here. */
static bool is_passing(
	const struct https_call *call, const struct vim_answer *answer, const struct err *err)
{
	return !answer->fault.name[0] &&
	       (err->code == ERR_DISCONNECTED || err->code == ERR_TIMEOUT ||
		       (err->code == ERR_PROTOCOL && (call->status == 200 || call->status == 500)));
}

/* Whether the server cannot have done it. */
static bool is_undone(const struct https_call *call)
{
	return !call->sent || call->status == 503 || call->status == 429;
}

/* -1 (err as it is) when the pause would end behind until. */
static int pause_before_next(const struct vsphere *vsphere, const struct https_call *call,
	unsigned tries, struct deadline until, struct err *err)
{
	struct err cancelled = ERR_INIT;
	int64_t wait_ms = (int64_t)PAUSE_MS << (tries < PAUSE_DOUBLINGS ? tries : PAUSE_DOUBLINGS);
	if (call->retry_after_s)
		wait_ms = (int64_t)call->retry_after_s * 1000;
	struct deadline next = deadline_after_ms(wait_ms);
	if (next.at_ns > until.at_ns)
		return -1;
	log_info("%s (trying again in %d ms)", err->text, (int)wait_ms);
	if (cancel_sleep(vsphere->cancel, next, &cancelled)) {
		err_copy(err, &cancelled);
		return err_context(err, "calling %s (%s)", https_where(vsphere->https), call->what);
	}
	return 0;
}

/* Tries until there is an answer, in the session that there is. */
static int try_until(struct vsphere *vsphere, const struct soap *request, enum vim_repeat repeat,
	struct deadline until, struct vim_answer *answer, struct err *err)
{
	unsigned nr_broken = 0;
	for (unsigned tries = 0;; tries++) {
		struct https_call call = {.what = request->method};
		struct err why = ERR_INIT;
		if (!exchange(vsphere, request, repeat, until, &call, answer, &why))
			return 0;
		bool undone = is_undone(&call);
		nr_broken += why.code == ERR_PROTOCOL;
		bool again = is_passing(&call, answer, &why) && nr_broken < BROKEN_MOST &&
			     (repeat == VIM_SAFE || undone);
		if (!again || pause_before_next(vsphere, &call, tries, until, &why)) {
			answer->lost = !undone && !answer->fault.name[0];
			return err_copy(err, &why);
		}
	}
}

void vim_has_expired(struct vsphere *vsphere)
{
	vsphere->logged_in = false;
	log_info("%s: the session has expired, logging in again", https_where(vsphere->https));
}

int vim_login(struct vsphere *vsphere, struct deadline until, struct err *err)
{
	struct vim_answer answer = {.parser = NULL};
	struct soap soap;
	if (vsphere->logged_in)
		return 0;
	soap_begin(&soap, "Login", "SessionManager", vsphere->session_manager);
	soap_text(&soap, "userName", vsphere->user);
	soap_text(&soap, "password", vsphere->password);
	int rc = soap_end(&soap, err);
	if (!rc)
		rc = try_until(vsphere, &soap, VIM_SAFE, until, &answer, err);
	soap_free(&soap);
	vim_free(&answer);
	if (rc)
		return err_context(
			err, "logging in at %s as %s", https_where(vsphere->https), vsphere->user);
	vsphere->logged_in = true;
	vsphere->nr_logins++;
	return 0;
}

static void logout(struct vsphere *vsphere)
{
	struct vim_answer answer = {.parser = NULL};
	struct err err = ERR_INIT;
	struct soap soap;
	struct https_call call;
	if (!vsphere->logged_in)
		return;
	vsphere->cancel = NULL;
	soap_begin(&soap, "Logout", "SessionManager", vsphere->session_manager);
	if (soap_end(&soap, &err) ||
		exchange(vsphere, &soap, VIM_SAFE, deadline_after_ms(VIM_LOGOUT_MS), &call, &answer,
			&err))
		if (!is_expired(&answer))
			log_warning(
				"%s (the session ends when it has been idle for long)", err.text);
	vsphere->logged_in = false;
	soap_free(&soap);
	vim_free(&answer);
}

int vim_call(struct vsphere *vsphere, struct soap *request, enum vim_repeat repeat,
	struct deadline until, struct vim_answer *answer, struct err *err)
{
	*answer = (struct vim_answer){.parser = NULL};
	if (soap_end(request, err)) {
		soap_free(request);
		return -1;
	}
	int rc = 0;
	for (unsigned nr_logins = 0;; nr_logins++) {
		struct err why = ERR_INIT;
		if (vim_login(vsphere, until, err)) {
			rc = -1;
			break;
		}
		rc = try_until(vsphere, request, repeat, until, answer, &why);
		if (!is_expired(answer)) {
			err_copy(err, &why);
			break;
		}
		vim_has_expired(vsphere);
		if (nr_logins == LOGINS_MOST) {
			rc = err_set(err, ERR_DENIED,
				"calling %s (%s): the server does not keep the session",
				https_where(vsphere->https), request->method);
			break;
		}
	}
	soap_free(request);
	return rc;
}

/* --- ids ---------------------------------------------------------------------------------------
 */

int vim_moref(
	const struct xml *xml, const char *path, char out[VSPHERE_MOREF_BYTES], struct err *err)
{
	const char *text = xml_text(xml, path);
	size_t length = strlen(text);
	if (!length || length >= VSPHERE_MOREF_BYTES)
		return err_set(err, ERR_PROTOCOL, "the answer has no usable id (%s)", path);
	memcpy(out, text, length + 1);
	return 0;
}

int vim_call_for_moref(struct vsphere *vsphere, struct soap *request, enum vim_repeat repeat,
	struct deadline until, char out[VSPHERE_MOREF_BYTES], struct vim_answer *answer,
	struct err *err)
{
	int rc = vim_call(vsphere, request, repeat, until, answer, err);
	return rc ? rc : vim_moref(answer->xml, "returnval", out, err);
}

/* --- opening and closing -----------------------------------------------------------------------
 */

static char *copy(const char *text, bool *failed)
{
	char *made = text ? strdup(text) : NULL;
	*failed = *failed || (text && !made);
	return made;
}

static int take_options(
	struct vsphere *vsphere, const struct vsphere_options *options, struct err *err)
{
	bool failed = false;
	if (!options->host || !options->user || !options->password)
		return err_set(err, ERR_USAGE, "connecting to a vCenter: %s is missing",
			!options->host   ? "its address"
			: !options->user ? "the user"
					 : "the password");
	vsphere->host = copy(options->host, &failed);
	vsphere->user = copy(options->user, &failed);
	vsphere->password = copy(options->password, &failed);
	vsphere->ca_file = copy(options->ca_file, &failed);
	vsphere->fingerprint = copy(options->fingerprint, &failed);
	vsphere->user_agent = copy(options->user_agent ? options->user_agent : "sendense", &failed);
	if (failed)
		return err_set(err, ERR_NO_MEMORY, "connecting to %s: no memory", options->host);
	vsphere->options = *options;
	vsphere->options.host = vsphere->host;
	vsphere->options.user = vsphere->user;
	vsphere->options.password = vsphere->password;
	vsphere->options.ca_file = vsphere->ca_file;
	vsphere->options.fingerprint = vsphere->fingerprint;
	vsphere->options.user_agent = vsphere->user_agent;
	if (!options->connect_timeout_ms)
		vsphere->options.connect_timeout_ms = 30000;
	if (!options->call_timeout_ms)
		vsphere->options.call_timeout_ms = 60000;
	vsphere->cancel = options->cancel;
	vsphere->https = https_new(&vsphere->options, err);
	return vsphere->https ? 0 : -1;
}

static int take_content(struct vsphere *vsphere, const struct xml *content, struct err *err)
{
	bool failed = false;
	if (vim_moref(content, "sessionManager", vsphere->session_manager, err) ||
		vim_moref(content, "propertyCollector", vsphere->property_collector, err) ||
		vim_moref(content, "viewManager", vsphere->view_manager, err) ||
		vim_moref(content, "searchIndex", vsphere->search_index, err) ||
		vim_moref(content, "rootFolder", vsphere->root_folder, err))
		return -1;
	vsphere->full_name = copy(xml_text(content, "about/fullName"), &failed);
	vsphere->api_version = copy(xml_text(content, "about/apiVersion"), &failed);
	vsphere->instance_uuid = copy(xml_text(content, "about/instanceUuid"), &failed);
	if (failed)
		return err_set(err, ERR_NO_MEMORY, "no memory");
	vsphere->about = (struct vsphere_about){
		.full_name = vsphere->full_name,
		.api_version = vsphere->api_version,
		.instance_uuid = vsphere->instance_uuid,
		.is_vcenter = !strcmp(xml_text(content, "about/apiType"), "VirtualCenter"),
		.sha1 = https_sha1(vsphere->https),
		.sha256 = https_sha256(vsphere->https),
	};
	return 0;
}

/* Needs no session. */
static int retrieve_content(struct vsphere *vsphere, struct deadline until, struct err *err)
{
	struct vim_answer answer = {.parser = NULL};
	struct soap soap;
	soap_begin(&soap, "RetrieveServiceContent", "ServiceInstance", "ServiceInstance");
	int rc = soap_end(&soap, err);
	if (!rc)
		rc = try_until(vsphere, &soap, VIM_SAFE, until, &answer, err);
	if (!rc && take_content(vsphere, xml_child(answer.xml, "returnval"), err))
		rc = err_context(err, "asking %s for what it has", https_where(vsphere->https));
	soap_free(&soap);
	vim_free(&answer);
	return rc;
}

struct vsphere *vsphere_open(const struct vsphere_options *options, struct err *err)
{
	struct vsphere *vsphere = calloc(1, sizeof *vsphere);
	if (!vsphere) {
		err_set(err, ERR_NO_MEMORY, "connecting to a vCenter: no memory");
		return NULL;
	}
	if (take_options(vsphere, options, err))
		goto fail;
	struct deadline until = vim_until(vsphere);
	if (retrieve_content(vsphere, until, err) || vim_login(vsphere, until, err))
		goto fail;
	return vsphere;
fail:
	vsphere_close(vsphere);
	return NULL;
}

void vsphere_set_cancel(struct vsphere *vsphere, const struct cancel *cancel)
{
	vsphere->cancel = cancel;
}

void vsphere_close(struct vsphere *vsphere)
{
	if (!vsphere)
		return;
	logout(vsphere);
	https_free(vsphere->https);
	if (vsphere->password)
		explicit_bzero(vsphere->password, strlen(vsphere->password));
	free(vsphere->password);
	free(vsphere->host);
	free(vsphere->user);
	free(vsphere->ca_file);
	free(vsphere->fingerprint);
	free(vsphere->user_agent);
	free(vsphere->full_name);
	free(vsphere->api_version);
	free(vsphere->instance_uuid);
	free(vsphere);
}

const struct vsphere_about *vsphere_about(const struct vsphere *vsphere)
{
	return &vsphere->about;
}
