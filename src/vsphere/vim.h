/*
 * vim: calls of the server's methods within a session.  Who calls need not know that a session
 * expired, that a proxy said 503 or that a connection broke: see vim_call().
 */
#ifndef SENDENSE_VSPHERE_VIM_H
#define SENDENSE_VSPHERE_VIM_H

#include "https.h"
#include "soap.h"

#define VIM_LOGOUT_MS 5000

struct vsphere {
	struct vsphere_options options; /* with its defaults; its strings are ours */
	char *host, *user, *password, *ca_file, *fingerprint, *user_agent;
	const struct cancel *cancel;
	struct https *https;
	struct vsphere_about about;
	char *full_name, *api_version, *instance_uuid;
	/* of the objects that are there once */
	char session_manager[VSPHERE_MOREF_BYTES], property_collector[VSPHERE_MOREF_BYTES],
		view_manager[VSPHERE_MOREF_BYTES], search_index[VSPHERE_MOREF_BYTES],
		root_folder[VSPHERE_MOREF_BYTES];
	bool logged_in;
	unsigned nr_logins; /* what belonged to a session is gone when this has changed */
};

enum vim_repeat {
	VIM_SAFE, /* doing it twice does no harm */
	VIM_ONCE, /* it does */
};

struct vim_answer {
	struct xml_parser *parser;
	const struct xml *xml; /* METHODResponse */
	struct soap_fault fault; /* name "": none */
	/* With an error and VIM_ONCE: it may have been done, nobody knows. */
	bool lost;
};

/*
 * Ends the request (soap_end) and sends it, until there is an answer; each try lasts at most
 * options.call_timeout_ms.  A session that is no more is opened anew.  HTTP 502, 503, 504, a broken
 * connection, silence and broken XML are tried again with growing pauses as long as until
 * lasts: for VIM_ONCE only where the server cannot have done it.
 * 0: answer->xml.  -1: err, and answer->fault when it is the server's own.
 * vim_free() in both cases.
 */
int vim_call(struct vsphere *vsphere, struct soap *request, enum vim_repeat repeat,
	struct deadline until, struct vim_answer *answer, struct err *err);
void vim_free(struct vim_answer *answer);

/* Opens the session if there is none; one that the server was heard to have ended is not there. */
int vim_login(struct vsphere *vsphere, struct deadline until, struct err *err);
void vim_has_expired(struct vsphere *vsphere);

/* For calls that no caller gave a deadline. */
struct deadline vim_until(const struct vsphere *vsphere);

/* Copies a managed object's id out of an answer: -1 (ERR_PROTOCOL) when there is none at the path,
 * or one that cannot be. */
int vim_moref(
	const struct xml *xml, const char *path, char out[VSPHERE_MOREF_BYTES], struct err *err);

/* The request is built by soap_begin() to soap_close(); the call's answer is a moref. */
int vim_call_for_moref(struct vsphere *vsphere, struct soap *request, enum vim_repeat repeat,
	struct deadline until, char out[VSPHERE_MOREF_BYTES], struct vim_answer *answer,
	struct err *err);

#endif
