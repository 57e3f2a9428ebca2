/* Keys of disks from what QEMU calls them. */
#include "inventory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const char *key_of(const char *qdev, const char *device, const char *node)
{
	static char key[QEMU_KEY_BYTES];
	memset(key, 'x', sizeof key);
	inventory_key(qdev, device, node, key);
	return key;
}

static void test_a_device_with_an_id_goes_by_it(void **state)
{
	(void)state;
	assert_string_equal(key_of("/machine/peripheral/vd0/virtio-backend", "", "n"), "vd0");
	assert_string_equal(
		key_of("/machine/peripheral/virtio-disk0", "drive0", "n"), "virtio-disk0");
	assert_string_equal(key_of("scsi0-0-0-1", "", "n"), "scsi0-0-0-1");
}

static void test_a_device_without_an_id_goes_by_its_drive_or_place(void **state)
{
	(void)state;
	static const char qdev[] = "/machine/peripheral-anon/device[3]/virtio-backend";
	assert_string_equal(key_of(qdev, "virtio0", "#block123"), "virtio0");
	assert_string_equal(key_of(qdev, "", "#block123"), "device-3");
	assert_string_equal(key_of("/machine/unattached/device[16]", "ide0-hd0", "n"), "ide0-hd0");
	assert_string_equal(key_of(NULL, NULL, "node"), "node");
}

static void test_other_characters_become_dashes(void **state)
{
	(void)state;
	assert_string_equal(key_of("a.b c:d\xc3\xa4", "", "n"), "a-b-c-d--");
	assert_string_equal(key_of("", "", "#block1"), "-block1");
	assert_string_equal(key_of("", "", ""), "disk");
}

static void test_long_names_stay_distinct(void **state)
{
	(void)state;
	char name[200], first[QEMU_KEY_BYTES];
	memset(name, 'a', sizeof name);
	name[64] = '\0';
	assert_string_equal(key_of(name, "", "n"), name);
	name[64] = 'a';
	name[65] = '\0';
	snprintf(first, sizeof first, "%s", key_of(name, "", "n"));
	assert_int_equal(strlen(first), 64);
	assert_string_equal(key_of(name, "", "n"), first);
	name[65] = 'a';
	name[66] = '\0';
	assert_string_not_equal(key_of(name, "", "n"), first);
	assert_int_equal(strlen(key_of(name, "", "n")), 64);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_device_with_an_id_goes_by_it),
		cmocka_unit_test(test_a_device_without_an_id_goes_by_its_drive_or_place),
		cmocka_unit_test(test_other_characters_become_dashes),
		cmocka_unit_test(test_long_names_stay_distinct),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
