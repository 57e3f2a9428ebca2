/* Requests and faults; see soap.h. */
#include "soap.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define HEAD                                                           \
	"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"                 \
	"<soapenv:Envelope"                                            \
	" xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\"" \
	" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">"    \
	"<soapenv:Body>"
#define TAIL "</soapenv:Body></soapenv:Envelope>\n"

/* --- requests ----------------------------------------------------------------------------------
 */

/* realloc() would leave copies of a password behind. */
static bool grow(struct soap *soap, size_t more)
{
	if (soap->err.code != ERR_NONE)
		return false;
	if (more < soap->room - soap->length)
		return true;
	size_t room = (soap->length + more + 1) * 2;
	char *grown = malloc(room);
	if (!grown) {
		err_set(&soap->err, ERR_NO_MEMORY, "putting a request together: no memory");
		return false;
	}
	if (soap->text) {
		memcpy(grown, soap->text, soap->length);
		explicit_bzero(soap->text, soap->length);
		free(soap->text);
	}
	soap->text = grown;
	soap->room = room;
	return true;
}

static void put(struct soap *soap, const char *bytes, size_t length)
{
	if (!grow(soap, length))
		return;
	memcpy(soap->text + soap->length, bytes, length);
	soap->length += length;
	soap->text[soap->length] = 0;
}

__attribute__((format(printf, 2, 3))) static void put_format(
	struct soap *soap, const char *format, ...)
{
	char text[512];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	if (length >= 0 && (size_t)length < sizeof text)
		put(soap, text, (size_t)length);
	else
		err_set(&soap->err, ERR_USAGE, "putting a request together: a name is too long");
}

static void put_escaped(struct soap *soap, const char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;
		if (c == '&')
			put(soap, "&amp;", 5);
		else if (c == '<')
			put(soap, "&lt;", 4);
		else if (c == '>')
			put(soap, "&gt;", 4);
		else if (c == '"')
			put(soap, "&quot;", 6);
		else if (c == '\r')
			put(soap, "&#13;", 5);
		else if (c >= 0x20 || c == '\t' || c == '\n')
			put(soap, text, 1);
		else if (soap->err.code == ERR_NONE)
			err_set(&soap->err, ERR_USAGE,
				"%s: a control character cannot be sent to the server",
				soap->method);
	}
}

void soap_begin(struct soap *soap, const char *method, const char *type, const char *moref)
{
	*soap = (struct soap){.length = 0};
	snprintf(soap->method, sizeof soap->method, "%s", method);
	put(soap, HEAD, strlen(HEAD));
	put_format(soap, "<%s xmlns=\"urn:vim25\">", method);
	soap_ref(soap, "_this", type, moref);
}

void soap_open(struct soap *soap, const char *name, const char *type)
{
	if (type)
		put_format(soap, "<%s xsi:type=\"%s\">", name, type);
	else
		put_format(soap, "<%s>", name);
}

void soap_close(struct soap *soap, const char *name)
{
	put_format(soap, "</%s>", name);
}

void soap_text(struct soap *soap, const char *name, const char *text)
{
	soap_open(soap, name, NULL);
	put_escaped(soap, text);
	soap_close(soap, name);
}

void soap_bool(struct soap *soap, const char *name, bool value)
{
	soap_text(soap, name, value ? "true" : "false");
}

void soap_number(struct soap *soap, const char *name, int64_t value)
{
	put_format(soap, "<%s>%" PRId64 "</%s>", name, value, name);
}

void soap_ref(struct soap *soap, const char *name, const char *type, const char *moref)
{
	put_format(soap, "<%s type=\"", name);
	put_escaped(soap, type);
	put(soap, "\">", 2);
	put_escaped(soap, moref);
	soap_close(soap, name);
}

int soap_end(struct soap *soap, struct err *err)
{
	soap_close(soap, soap->method);
	put(soap, TAIL, strlen(TAIL));
	return soap->err.code == ERR_NONE ? 0 : err_copy(err, &soap->err);
}

void soap_free(struct soap *soap)
{
	if (soap->text)
		explicit_bzero(soap->text, soap->length);
	free(soap->text);
	*soap = (struct soap){.length = 0};
}

/* --- faults ------------------------------------------------------------------------------------
 */

static enum err_code code_of(const char *name)
{
	static const struct {
		const char *name;
		enum err_code code;
	} codes[] = {
		{"InvalidLogin", ERR_DENIED},
		{"NoPermission", ERR_DENIED},
		{"NotAuthenticated", ERR_DENIED},
		{"PasswordExpired", ERR_DENIED},
		{"ManagedObjectNotFound", ERR_NOT_FOUND},
		{"NotFound", ERR_NOT_FOUND},
		{"FileNotFound", ERR_NOT_FOUND},
		{"TaskInProgress", ERR_BUSY},
		{"ResourceInUse", ERR_BUSY},
		{"ConcurrentAccess", ERR_BUSY},
		{"FileLocked", ERR_BUSY},
		{"MethodNotFound", ERR_UNSUPPORTED},
		{"NotImplemented", ERR_UNSUPPORTED},
		{"NotSupported", ERR_UNSUPPORTED},
		{"NoDiskSpace", ERR_NO_SPACE},
		{"InsufficientStorageSpace", ERR_NO_SPACE},
		{"Timedout", ERR_TIMEOUT},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(codes); i++)
		if (!strcmp(name, codes[i].name))
			return codes[i].code;
	return ERR_REFUSED;
}

static void take_name(const char *text, char out[SOAP_NAME_BYTES])
{
	snprintf(out, SOAP_NAME_BYTES, "%s", text);
}

/* In one line. */
static void take_text(const char *text, char out[SOAP_TEXT_BYTES])
{
	snprintf(out, SOAP_TEXT_BYTES, "%s", text);
	for (; *out; out++)
		if ((unsigned char)*out < ' ')
			*out = ' ';
}

/* fault: the element whose xsi:type names it. */
static void read_detail(const struct xml *fault, struct soap_fault *out)
{
	take_name(fault->type, out->name);
	if (!out->name[0])
		take_name(fault->name, out->name);
	const char *property = xml_text(fault, "invalidProperty");
	take_name(*property ? property : xml_text(fault, "privilegeId"), out->property);
	const char *message = xml_text(fault, "faultMessage/message");
	if (!out->text[0])
		take_text(message, out->text);
}

void soap_fault_read(const struct xml *localized, struct soap_fault *fault)
{
	*fault = (struct soap_fault){.name = "unknown fault"};
	take_text(xml_text(localized, "localizedMessage"), fault->text);
	const struct xml *detail = xml_child(localized, "fault");
	if (detail)
		read_detail(detail, fault);
}

/* A Fault of the envelope: its detail has one child, FooFault, of the type Foo. */
static void read_fault(const struct xml *envelope_fault, struct soap_fault *fault)
{
	*fault = (struct soap_fault){.name = "unknown fault"};
	take_text(xml_text(envelope_fault, "faultstring"), fault->text);
	const struct xml *detail = xml_child(envelope_fault, "detail");
	if (detail && detail->first)
		read_detail(detail->first, fault);
}

int soap_fault_set(const struct soap_fault *fault, struct err *err)
{
	enum err_code code = code_of(fault->name);
	if (fault->text[0])
		err_set(err, code, "%s: %s", fault->name, fault->text);
	else
		err_set(err, code, "%s", fault->name);
	if (!strcmp(fault->name, "InvalidLogin"))
		return err_hint(err, "the user's name or password is wrong");
	if (!fault->property[0])
		return -1;
	return err_hint(err,
		code == ERR_DENIED ? "the user lacks the privilege %s" : "it is about %s",
		fault->property);
}

const struct xml *soap_answer(
	const struct xml *root, const char *method, struct soap_fault *fault, struct err *err)
{
	char name[SOAP_METHOD_BYTES + 8];
	const struct xml *body =
		strcmp(root->name, "Envelope") == 0 ? xml_child(root, "Body") : NULL;
	const struct xml *refused = xml_child(body, "Fault");
	*fault = (struct soap_fault){.name = ""};
	if (refused) {
		read_fault(refused, fault);
		soap_fault_set(fault, err);
		return NULL;
	}
	snprintf(name, sizeof name, "%sResponse", method);
	const struct xml *answer = xml_child(body, name);
	if (!answer)
		err_set(err, ERR_PROTOCOL, "the answer is XML, but no answer to that (<%s>)",
			root->name);
	return answer;
}
