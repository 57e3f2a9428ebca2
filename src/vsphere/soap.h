/*
 * soap: requests as text, faults as errors.
 *
 *     <Envelope><Body><Login xmlns="urn:vim25"><_this type="SessionManager">…</_this> … </Login> …
 *
 * A request is put together element by element; nothing fails before soap_end(), which tells of
 * the first thing that was wrong.  Its memory is wiped when it is freed: it may hold a password.
 */
#ifndef SENDENSE_VSPHERE_SOAP_H
#define SENDENSE_VSPHERE_SOAP_H

#include "xml.h"

#define SOAP_METHOD_BYTES 64u
#define SOAP_NAME_BYTES 64u
#define SOAP_TEXT_BYTES 512u

struct soap {
	char method[SOAP_METHOD_BYTES];
	char *text;
	size_t length, room;
	struct err err;
};

/* type and moref: of the object whose method is called. */
void soap_begin(struct soap *soap, const char *method, const char *type, const char *moref);
/* Opens and closes an element; type: its xsi:type, or NULL. */
void soap_open(struct soap *soap, const char *name, const char *type);
void soap_close(struct soap *soap, const char *name);
/* <name>text</name>; text is UTF-8 without control characters other than tab and line ends. */
void soap_text(struct soap *soap, const char *name, const char *text);
void soap_bool(struct soap *soap, const char *name, bool value);
void soap_number(struct soap *soap, const char *name, int64_t value);
/* <name type="type">moref</name> */
void soap_ref(struct soap *soap, const char *name, const char *type, const char *moref);
/* The envelope is whole: 0, or -1 (ERR_USAGE, ERR_NO_MEMORY). */
int soap_end(struct soap *soap, struct err *err);
/* Harmless on one of zeros. */
void soap_free(struct soap *soap);

/* --- answers -------------------------------------------------------------------------------- */

/* What the server did not do, and why, in its words. */
struct soap_fault {
	char name[SOAP_NAME_BYTES]; /* "InvalidArgument"; "": none */
	char property[SOAP_NAME_BYTES]; /* InvalidArgument: which one; NoPermission: the privilege
					 */
	char text[SOAP_TEXT_BYTES]; /* "" where it says nothing */
};

/*
 * The element METHODResponse of an answer.  NULL when it is none: with a fault, if the answer is
 * one (fault->name is set; err is soap_fault_set()'s), else ERR_PROTOCOL.
 */
const struct xml *soap_answer(
	const struct xml *root, const char *method, struct soap_fault *fault, struct err *err);

/* From a LocalizedMethodFault, as tasks and missing properties have it. */
void soap_fault_read(const struct xml *localized, struct soap_fault *fault);
/* Makes an error of it: "NoPermission: ... (the privilege System.View is missing)".  -1. */
int soap_fault_set(const struct soap_fault *fault, struct err *err);

#endif
