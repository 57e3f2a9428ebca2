/* Requests read back as XML; answers and faults out of captures. */
#include "capture.h"

static void test_a_request_says_what_was_put_in(void **state)
{
	(void)state;
	struct soap soap;
	struct err err = ERR_INIT;
	soap_begin(&soap, "CreateSnapshot_Task", "VirtualMachine", "vm-57");
	soap_text(&soap, "name", "a <&> \"b' \xc3\xbc\r\n");
	soap_bool(&soap, "memory", false);
	soap_number(&soap, "key", -5);
	soap_open(&soap, "spec", "TraversalSpec");
	soap_ref(&soap, "snapshot", "VirtualMachineSnapshot", "snapshot-1");
	soap_close(&soap, "spec");
	assert_int_equal(soap_end(&soap, &err), 0);
	assert_int_equal(strlen(soap.text), soap.length);
	struct capture capture = capture_of(soap.text);
	const struct xml *call = xml_at(capture.root, "Body/CreateSnapshot_Task");
	assert_non_null(call);
	assert_string_equal(call->first->name, "_this");
	assert_string_equal(call->first->ref, "VirtualMachine");
	assert_string_equal(call->first->text, "vm-57");
	assert_string_equal(xml_text(call, "name"), "a <&> \"b' \xc3\xbc\r\n");
	assert_string_equal(xml_text(call, "memory"), "false");
	assert_string_equal(xml_text(call, "key"), "-5");
	assert_string_equal(xml_at(call, "spec")->type, "TraversalSpec");
	assert_string_equal(xml_at(call, "spec/snapshot")->ref, "VirtualMachineSnapshot");
	capture_free(&capture);
	soap_free(&soap);
	soap_free(&soap);
}

static void test_what_cannot_be_sent_is_told(void **state)
{
	(void)state;
	struct soap soap;
	struct err err = ERR_INIT;
	soap_begin(&soap, "Login", "SessionManager", "SessionManager");
	soap_text(&soap, "password", "a\x01z");
	assert_int_equal(soap_end(&soap, &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_null(strstr(err.text, "\x01z"));
	soap_free(&soap);
}

static struct soap_fault fault_of(const char *capture_name, const char *method, struct err *err)
{
	struct soap_fault fault;
	struct capture capture = capture_load(capture_name);
	*err = ERR_INIT;
	assert_null(soap_answer(capture.root, method, &fault, err));
	capture_free(&capture);
	return fault;
}

static void test_faults_have_a_name_and_a_code(void **state)
{
	(void)state;
	struct err err;
	struct soap_fault fault = fault_of("02-unauth-FindByInventoryPath", "Find", &err);
	assert_string_equal(fault.name, "NotAuthenticated");
	assert_string_equal(fault.property, "System.View");
	assert_int_equal(err.code, ERR_DENIED);
	fault = fault_of("03-Login-bad", "Login", &err);
	assert_string_equal(fault.name, "InvalidLogin");
	assert_int_equal(err.code, ERR_DENIED);
	assert_non_null(strstr(err.text, "password is wrong"));
	fault = fault_of("17-QueryChangedDiskAreas", "QueryChangedDiskAreas", &err);
	assert_string_equal(fault.name, "MethodNotFound");
	assert_int_equal(err.code, ERR_UNSUPPORTED);
	fault = fault_of("cbt-09-badid", "QueryChangedDiskAreas", &err);
	assert_string_equal(fault.name, "InvalidArgument");
	assert_string_equal(fault.property, "changeId");
	assert_non_null(strstr(err.text, "A specified parameter was not correct"));
	fault = fault_of("cbt-09-badkey", "QueryChangedDiskAreas", &err);
	assert_string_equal(fault.property, "deviceKey");
	fault = fault_of("cbt-09-oldepoch", "QueryChangedDiskAreas", &err);
	assert_string_equal(fault.name, "FileFault");
	assert_int_equal(err.code, ERR_REFUSED);
}

static void test_a_fault_of_a_task(void **state)
{
	(void)state;
	struct soap_fault fault;
	struct err err = ERR_INIT;
	struct capture capture =
		capture_of("<e xmlns:x='http://www.w3.org/2001/XMLSchema-instance'><fault "
			   "x:type='NoPermission'><privilegeId>VirtualMachine.State.CreateSnapshot"
			   "</privilegeId></fault><localizedMessage>No.</localizedMessage></e>");
	soap_fault_read(capture.root, &fault);
	assert_string_equal(fault.name, "NoPermission");
	assert_int_equal(soap_fault_set(&fault, &err), -1);
	assert_int_equal(err.code, ERR_DENIED);
	assert_string_equal(err.text, "NoPermission: No. (the user lacks the privilege "
				      "VirtualMachine.State.CreateSnapshot)");
	capture_free(&capture);
	capture = capture_of("<e/>");
	soap_fault_read(capture.root, &fault);
	assert_string_equal(fault.name, "unknown fault");
	capture_free(&capture);
	soap_fault_read(NULL, &fault);
	assert_string_equal(fault.name, "unknown fault");
}

static void test_other_xml_is_no_answer(void **state)
{
	(void)state;
	static const char *const texts[] = {"<html/>", "<Envelope/>",
		"<Envelope><Body/></Envelope>",
		"<Envelope><Body><LogoutResponse/></Body></Envelope>",
		"<x><Body><LoginResponse/></Body></x>"};
	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
		struct soap_fault fault;
		struct err err = ERR_INIT;
		struct capture capture = capture_of(texts[i]);
		assert_null(soap_answer(capture.root, "Login", &fault, &err));
		assert_int_equal(err.code, ERR_PROTOCOL);
		assert_string_equal(fault.name, "");
		capture_free(&capture);
	}
	struct capture capture = capture_load("05b-FindByInventoryPath-missing");
	assert_null(xml_child(capture_answer(&capture, "FindByInventoryPath"), "returnval"));
	capture_free(&capture);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_request_says_what_was_put_in),
		cmocka_unit_test(test_what_cannot_be_sent_is_told),
		cmocka_unit_test(test_faults_have_a_name_and_a_code),
		cmocka_unit_test(test_a_fault_of_a_task),
		cmocka_unit_test(test_other_xml_is_no_answer),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
