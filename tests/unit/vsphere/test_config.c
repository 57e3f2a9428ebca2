/* Configurations: disks with their keys, what covers them, and what a rebuild needs. */
#include "capture.h"
#include "config.h"

/* A configuration around devices. */
static struct vsphere_config *config_of(const char *devices, struct err *err)
{
	char *text;
	assert_true(
		asprintf(&text,
			"<val xmlns:x='http://www.w3.org/2001/XMLSchema-instance'>"
			"<name>web01</name><uuid>bios</uuid><instanceUuid>instance</instanceUuid>"
			"<version>vmx-19</version><guestId>debian11_64Guest</guestId>"
			"<firmware>efi</firmware><changeTrackingEnabled>true"
			"</changeTrackingEnabled><files><vmPathName>[ds 1] web/web01.vmx"
			"</vmPathName></files><extraConfig><key>nvram</key><value>web01.nvram"
			"</value></extraConfig><bootOptions><efiSecureBootEnabled>true"
			"</efiSecureBootEnabled></bootOptions><hardware><numCPU>4</numCPU>"
			"<numCoresPerSocket>2</numCoresPerSocket><memoryMB>2048</memoryMB>%s"
			"</hardware></val>",
			devices) > 0);
	struct capture capture = capture_of(text);
	free(text);
	*err = ERR_INIT;
	struct vsphere_config *config = config_read(capture.root, err);
	capture_free(&capture);
	return config;
}

#define DISK(key, capacity, backing)                                                      \
	"<device x:type='VirtualDisk'><key>" key "</key><deviceInfo><label>Hard disk"     \
	"</label></deviceInfo>" backing "<controllerKey>1000</controllerKey><unitNumber>" \
	"3</unitNumber>" capacity "</device>"
#define BACKING(type, more) \
	"<backing x:type='" type "'><fileName>[ds] d.vmdk</fileName>" more "</backing>"
#define FLAT BACKING("VirtualDiskFlatVer2BackingInfo", "<diskMode>persistent</diskMode>")
#define KB1024 "<capacityInKB>1024</capacityInKB>"

static void test_facts(void **state)
{
	(void)state;
	struct err err;
	struct vsphere_config *config = config_of(
		"<device x:type='ns:ParaVirtualSCSIController'><key>1000</key><busNumber>0"
		"</busNumber><sharedBus>noSharing</sharedBus></device>"
		"<device x:type='VirtualPS2Controller'><key>300</key></device>"
		"<device x:type='VirtualVmxnet3'><key>4000</key><deviceInfo><label>Network adapter "
		"1"
		"</label></deviceInfo><backing x:type='VirtualEthernetCardNetworkBackingInfo'>"
		"<deviceName>VM Network</deviceName></backing><connectable><startConnected>true"
		"</startConnected></connectable><macAddress>00:50:56:00:00:01</macAddress></"
		"device>" DISK("16000",
			"<capacityInKB>1</capacityInKB><capacityInBytes>1536</capacityInBytes>",
			FLAT) DISK("2000", KB1024,
			BACKING("VirtualDiskSeSparseBackingInfo",
				"<diskMode>persistent</diskMode><uuid>6000C29</uuid><changeId>52/7"
				"</changeId><thinProvisioned>true</thinProvisioned>")),
		&err);
	assert_non_null(config);
	assert_string_equal(config->name, "web01");
	assert_string_equal(config->instance_uuid, "instance");
	assert_string_equal(config->bios_uuid, "bios");
	assert_int_equal(config->hardware_version, 19);
	assert_string_equal(config->firmware, "efi");
	assert_true(config->secure_boot && config->cbt_enabled && !config->template);
	assert_int_equal(config->nr_cpus, 4);
	assert_int_equal(config->cores_per_socket, 2);
	assert_int_equal(config->memory_bytes, 2 * GIB);
	assert_string_equal(config->nvram_file, "[ds 1] web/web01.nvram");
	assert_int_equal(config->nr_disks, 2);
	const struct vsphere_disk *disk = &config->disks[0];
	assert_int_equal(disk->key, 2000);
	assert_int_equal(disk->capacity_bytes, MIB);
	assert_int_equal(disk->unit, 3);
	assert_string_equal(disk->uuid, "6000C29");
	assert_string_equal(disk->change_id, "52/7");
	assert_string_equal(disk->backing, "VirtualDiskSeSparseBackingInfo");
	assert_true(disk->thin && !disk->unsupported);
	disk = vsphere_config_disk(config, 16000);
	assert_non_null(disk);
	assert_int_equal(disk->capacity_bytes, 1536);
	assert_string_equal(disk->change_id, "");
	assert_null(vsphere_config_disk(config, 2001));
	assert_int_equal(config->nr_controllers, 1);
	assert_string_equal(config->controllers[0].type, "ParaVirtualSCSIController");
	assert_int_equal(config->nr_nics, 1);
	assert_string_equal(config->nics[0].network, "VM Network");
	assert_true(config->nics[0].connected);
	assert_int_equal(strlen(config->xml), config->xml_length);
	struct capture printed = capture_of(config->xml);
	assert_string_equal(printed.root->name, "config");
	assert_string_equal(xml_text(printed.root, "hardware/device/busNumber"), "0");
	capture_free(&printed);
	vsphere_config_free(config);
}

static const char *unsupported(const char *devices)
{
	static char why[200];
	struct err err;
	struct vsphere_config *config = config_of(devices, &err);
	assert_non_null(config);
	assert_int_equal(config->nr_disks, 1);
	const char *text = config->disks[0].unsupported;
	snprintf(why, sizeof why, "%s", text ? text : "");
	vsphere_config_free(config);
	return why;
}

static void test_disks_that_no_snapshot_covers(void **state)
{
	(void)state;
	static const char persistent[] = DISK("1", KB1024, FLAT);
	assert_string_equal(unsupported(persistent), "");
	assert_string_equal(unsupported(DISK("1", KB1024,
				    BACKING("VirtualDiskRawDiskMappingVer1BackingInfo",
					    "<compatibilityMode>virtualMode</compatibilityMode>"
					    "<diskMode>persistent</diskMode>"))),
		"");
	assert_non_null(strstr(unsupported(DISK("1", KB1024,
				       BACKING("VirtualDiskFlatVer2BackingInfo",
					       "<diskMode>independent_persistent</diskMode>"))),
		"independent"));
	assert_non_null(strstr(unsupported(DISK("1", KB1024,
				       BACKING("VirtualDiskFlatVer2BackingInfo",
					       "<diskMode>nonpersistent</diskMode>"))),
		"not persistent"));
	assert_non_null(strstr(unsupported(DISK("1", KB1024,
				       BACKING("VirtualDiskRawDiskMappingVer1BackingInfo",
					       "<compatibilityMode>physicalMode"
					       "</compatibilityMode>"))),
		"physical"));
	assert_non_null(strstr(unsupported(DISK("1", KB1024,
				       BACKING("VirtualDiskFlatVer2BackingInfo",
					       "<sharing>sharingMultiWriter</sharing>"))),
		"several VMs"));
	assert_non_null(strstr(unsupported(DISK("1", KB1024, "")), "where it is stored"));
	assert_non_null(
		strstr(unsupported("<device x:type='VirtualLsiLogicSASController'><key>1000"
				   "</key><busNumber>1</busNumber><sharedBus>physicalSharing"
				   "</sharedBus></device>" DISK("1", KB1024, FLAT)),
			"shared"));
}

static void test_disks_that_cannot_be(void **state)
{
	(void)state;
	static const char *const bad[] = {
		DISK("1", "", FLAT),
		DISK("1", "<capacityInKB>0</capacityInKB>", FLAT),
		DISK("1", "<capacityInBytes>1000</capacityInBytes>", FLAT),
		DISK("1", "<capacityInKB>-1</capacityInKB>", FLAT),
		DISK("1", "<capacityInKB>9223372036854775807</capacityInKB>", FLAT),
		DISK("x", KB1024, FLAT),
		DISK("-1", KB1024, FLAT),
		DISK("2147483648", KB1024, FLAT),
		DISK("7", KB1024, FLAT) DISK("7", KB1024, FLAT),
		"<device x:type='VirtualDisk'>" KB1024 "</device>",
	};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		struct err err;
		assert_null(config_of(bad[i], &err));
		assert_int_equal(err.code, ERR_PROTOCOL);
		assert_non_null(strstr(err.text, "web01"));
	}
}

static void test_a_snapshot_of_the_simulator(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct capture capture = capture_load("cbt-04-snap1-config");
	const struct xml *devices = xml_at(
		capture_answer(&capture, "RetrievePropertiesEx"), "returnval/objects/propSet/val");
	assert_non_null(devices);
	size_t length;
	/* An array of devices names each VirtualDevice; a configuration's are called device. */
	char *text = xml_print(devices, "hardware", &length), *at;
	assert_non_null(text);
	while ((at = strstr(text, "VirtualDevice ")) || (at = strstr(text, "VirtualDevice>")))
		memcpy(at, "device       ", 13);
	char *whole;
	assert_true(asprintf(&whole, "<val>%s</val>", text) > 0);
	struct capture made = capture_of(whole);
	struct vsphere_config *config = config_read(made.root, &err);
	assert_non_null(config);
	assert_int_equal(config->nr_disks, 2);
	assert_int_equal(config->disks[0].key, 2000);
	assert_int_equal(config->disks[0].capacity_bytes, 64 * MIB);
	assert_string_equal(
		config->disks[0].change_id, "23 a3 b8 02 25 1c 16 06-c8 42 49 7c c8 2c 66 4a/1");
	assert_string_equal(config->disks[1].uuid, "6000C291-0000-0000-0000-000000002001");
	assert_string_equal(config->disks[1].file, "[LocalDS_0] DC0_H0_VM0/DC0_H0_VM0.vmdk");
	assert_string_equal(config->nics[0].network, "dvportgroup-13");
	vsphere_config_free(config);
	capture_free(&made);
	capture_free(&capture);
	free(text);
	free(whole);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_facts),
		cmocka_unit_test(test_disks_that_no_snapshot_covers),
		cmocka_unit_test(test_disks_that_cannot_be),
		cmocka_unit_test(test_a_snapshot_of_the_simulator),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
