/* The options of vddk as the OPEN message. */
#include "vddk_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define SHA1 "AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:0A:0B:0C:0D"

static const struct vddk_options good = {
	.server = "vcenter.example",
	.user = "administrator@vsphere.local",
	.password = "secret",
	.vm = "vm-57",
	.snapshot = "snapshot-60",
	.path = "[ds] web01/web01.vmdk",
};

static struct vddk_request request;

static const char *text_of(enum vddk_text which)
{
	const char *at = request.text;
	for (int i = 0; i < (int)which; i++)
		at += strlen(at) + 1;
	return at;
}

static void fill(const struct vddk_options *options)
{
	struct err err = ERR_INIT;
	assert_int_equal(vddk_request_fill(&request, options, "/vddk", &err), 0);
}

static void refuse(const struct vddk_options *options, const char *text)
{
	struct err err = ERR_INIT;
	assert_int_equal(vddk_request_fill(&request, options, "/vddk", &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	if (!strstr(err.text, text))
		fail_msg("\"%s\" lacks \"%s\"", err.text, text);
}

static void test_defaults(void **state)
{
	(void)state;
	fill(&good);
	assert_int_equal(request.head.sector, 443);
	assert_int_equal(request.head.count, 902);
	assert_int_equal(request.head.code, 4);
	assert_int_equal(request.head.slot, 8);
	assert_int_equal(request.head.flags, 0);
	assert_string_equal(text_of(VDDK_TEXT_FOLDER), "/vddk");
	assert_string_equal(text_of(VDDK_TEXT_MODES), "nbdssl:nbd");
	assert_string_equal(text_of(VDDK_TEXT_PASSWORD), "secret");
	assert_string_equal(text_of(VDDK_TEXT_COOKIE), "");
	assert_string_equal(text_of(VDDK_TEXT_CONFIG),
		"vixDiskLib.nfcAio.Session.BufSizeIn64KB=16\n"
		"vixDiskLib.nfcAio.Session.BufCount=4\n");
	assert_ptr_equal(text_of(VDDK_TEXT_CONFIG) + strlen(text_of(VDDK_TEXT_CONFIG)) + 1,
		request.text + request.head.text_bytes);
}

static void test_thumbprint(void **state)
{
	(void)state;
	static const char *const same[] = {SHA1,
		"aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99:0a:0b:0c:0d",
		"aabbccddeeff00112233445566778899"
		"0a0b0c0d"};
	struct vddk_options options = good;
	for (size_t i = 0; i < ARRAY_LENGTH(same); i++) {
		options.thumbprint = same[i];
		fill(&options);
		assert_string_equal(text_of(VDDK_TEXT_THUMBPRINT), SHA1);
	}
	static const char *const wrong[] = {"", "AA", SHA1 ":00", "zz" SHA1, "AA:BB"};
	for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
		options.thumbprint = wrong[i];
		refuse(&options, "thumbprint");
	}
}

static void test_compression_and_buffers(void **state)
{
	(void)state;
	struct vddk_options options = good;
	options.compression = "fastlz";
	options.nfc_buffer_kib = 4096;
	options.nfc_buffers = 4;
	fill(&options);
	assert_int_equal(request.head.code, 4 | 32);
	options.nfc_buffers = 5;
	refuse(&options, "16 MiB");
	options.nfc_buffers = UINT32_MAX;
	refuse(&options, "16 MiB");
	options = good;
	options.nfc_buffer_kib = 100;
	refuse(&options, "multiple of 64");
	options = good;
	options.compression = "lzma";
	refuse(&options, "lzma");
}

static void test_what_is_missing_or_wrong(void **state)
{
	(void)state;
	struct vddk_options options = good;
	options.server = "";
	refuse(&options, "server");
	options = good;
	options.password = NULL;
	refuse(&options, "password");
	options.cookie = "52 ab";
	fill(&options);
	options = good;
	options.vm = "vm-57 spec=/etc";
	refuse(&options, "machine");
	options = good;
	options.snapshot = NULL;
	refuse(&options, "snapshot");
	options = good;
	options.nr_reads = VDDK_SLOTS_MAX + 1;
	refuse(&options, "in flight");
	static char longest[VDDK_TEXT_BYTES + 1];
	memset(longest, 'x', sizeof longest - 1);
	options = good;
	options.path = longest;
	refuse(&options, "too long");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_thumbprint),
		cmocka_unit_test(test_compression_and_buffers),
		cmocka_unit_test(test_what_is_missing_or_wrong),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
