/* Plans: from what is asked for to the words of a command line. */
#include "test_support.h"

#include "jobplan.h"

#include <stdio.h>
#include <string.h>

/* The words, each in [], of disks "use:name"; or "code: text". */
static const char *words(const char *spec_text)
{
	static char out[4096];
	struct err err = ERR_INIT;
	json_t *spec = json_loads(spec_text, JSON_ALLOW_NUL, NULL);
	assert_non_null(spec);
	static const struct job_repository repositories[] = {{.name = "main", .path = "/srv/r"},
		{.name = "hub",
			.url = "https://hub:8080/main",
			.token_file = "/etc/token",
			.ca_file = "/etc/hub-ca.pem"},
		{.name = "plain", .url = "http://hub"}};
	static const struct job_vcenter vcenters[] = {
		{.name = "lab",
			.url = "vmware://backup%40vsphere.local@vc.example:8443/",
			.password_file = "/etc/pw",
			.ca_file = "/etc/vc-ca.pem"},
		{.name = "esx",
			.url = "vmware://root@esx",
			.password_file = "/etc/pw2",
			.fingerprint = "AA:BB"}};
	static const struct jobs_options options = {.repositories = repositories,
		.nr_repositories = ARRAY_LENGTH(repositories),
		.vcenters = vcenters,
		.nr_vcenters = ARRAY_LENGTH(vcenters),
		.vmware_state_dir = "/state/vmware",
		.replica_state_dir = "/state/replica",
		.vddk_dir = "/opt/vddk",
		.vddk_modes = "nbdssl"};
	json_t *argv = jobplan_argv(&options, spec, &err);
	size_t i, used = 0;
	const json_t *word;
	out[0] = '\0';
	if (!argv)
		snprintf(out, sizeof out, "%s: %s", err_code_name(err.code), err.text);
	json_array_foreach(argv, i, word)
	{
		const char *name = json_string_value(json_object_get(word, "name"));
		used += (size_t)snprintf(out + used, sizeof out - used,
			name ? "[%s<%s:%s>]" : "[%s]",
			name ? json_string_value(json_object_get(word, "text"))
			     : json_string_value(word),
			json_string_value(json_object_get(word, "use")), name);
	}
	json_decref(argv);
	json_decref(spec);
	return out;
}

#define BACKUP "\"kind\":\"backup\",\"repository\":\"main\",\"vm\":\"web\""

static void test_words(void **state)
{
	(void)state;
	assert_string_equal(words("{" BACKUP ",\"disks\":[{\"source\":\"raw:/a\"}]}"),
		"[backup][--json][--repo=/srv/r][--vm=web][--][<source:raw:/a>]");
	assert_string_equal(
		words("{" BACKUP ",\"mode\":\"full\",\"audit\":1.5,\"limit_rate\":1000,"
		      "\"resume\":false,\"parallel\":null,\"disks\":[{\"key\":\"1\",\"source\":"
		      "\"nbd://h/x\",\"changed_by\":\"bitmap:b\",\"change_id\":\"c=d\"},"
		      "{\"key\":\"2\",\"source\":\"raw:/b\",\"changed_by\":\"extents:/l\"}]}"),
		"[backup][--json][--repo=/srv/r][--vm=web][--mode=full][--audit=1.5%]"
		"[--limit-rate=1000][--no-resume][--changed-by=1=bitmap:b][--change-id=1=c=d]"
		"[--disk=1=<source:nbd://h/x>][--changed-by=2=<source:extents:/l>]"
		"[--disk=2=<source:raw:/b>]");
	assert_string_equal(
		words("{\"kind\":\"restore\",\"repository\":\"main\",\"vm\":\"--x\",\"point\":"
		      "\"20261121T200000Z-7f3a9c\",\"force\":true,\"targets\":[{\"key\":\"1\","
		      "\"target\":\"raw:/t\"}]}"),
		"[restore][--json][--repo=/srv/r][--to=1=<target:raw:/t>][--force][--]"
		"[--x@20261121T200000Z-7f3a9c]");
	assert_string_equal(
		words("{\"kind\":\"prune\",\"repository\":\"main\",\"keep\":{\"last\":3,"
		      "\"within_s\":60},\"timezone\":\"UTC\",\"dry_run\":true}"),
		"[prune][--json][--repo=/srv/r][--keep-last=3][--keep-within=60][--timezone=UTC]"
		"[--dry-run]");
	assert_string_equal(words("{\"kind\":\"verify\",\"repository\":\"main\",\"time_box_s\":9}"),
		"[verify][--json][--repo=/srv/r][--time-box=9]");
	assert_string_equal(words("{\"kind\":\"reindex\",\"repository\":\"main\"}"),
		"[repo][reindex][--json][--dry-run][--][/srv/r]");
}

#define LAB "\"vcenter\":\"lab\",\"machine\":\"/DC0/vm/web01\""
#define LAB_URL "vmware://backup%40vsphere.local@vc.example:8443/DC0/vm/web01"
#define LAB_WORDS \
	"[--password-file=/etc/pw][--vcenter-ca-file=/etc/vc-ca.pem][--state-dir=/state/vmware]"
#define VDDK "[--vddk=/opt/vddk][--transport-modes=nbdssl]"

static void test_words_of_vcenters(void **state)
{
	(void)state;
	assert_string_equal(words("{\"kind\":\"backup\",\"repository\":\"main\"," LAB "}"),
		"[backup][--json][--repo=/srv/r]" LAB_WORDS VDDK "[--][" LAB_URL "]");
	assert_string_equal(
		words("{" BACKUP "," LAB ",\"mode\":\"incremental\",\"audit\":2,\"resume\":true,"
		      "\"quiesce\":false,\"enable_cbt\":false,\"skip_unsupported\":true,"
		      "\"skip_disks\":[\"2001\",\"2002\"],\"limit_rate\":9,\"parallel\":3,"
		      "\"hub_job\":\"20261121T200000Z-00000000\"}"),
		"[backup][--json][--repo=/srv/r]" LAB_WORDS
		"[--vm=web][--mode=incremental][--audit=2.0%][--resume]" VDDK
		"[--no-quiesce][--no-enable-cbt][--skip-unsupported][--limit-rate=9]"
		"[--parallel=3][--skip-disk=2001][--skip-disk=2002][--][" LAB_URL "]");
	/* What their defaults are is left to the command. */
	assert_string_equal(words("{\"kind\":\"backup\",\"repository\":\"hub\","
				  "\"vcenter\":\"esx\",\"machine\":\"a b%2f@?#ü\","
				  "\"quiesce\":true,\"enable_cbt\":true,\"skip_disks\":[]}"),
		"[backup][--json][--repo=https://hub:8080/main][--token-file=/etc/token]"
		"[--ca-file=/etc/hub-ca.pem][--password-file=/etc/pw2][--fingerprint=AA:BB]"
		"[--state-dir=/state/vmware]" VDDK
		"[--][vmware://root@esx/a%20b%252f%40%3F%23%C3%BC]");
	assert_string_equal(words("{\"kind\":\"backup\",\"repository\":\"plain\",\"vm\":\"a\","
				  "\"disks\":[{\"source\":\"raw:/a\"}]}"),
		"[backup][--json][--repo=http://hub][--vm=a][--][<source:raw:/a>]");
	assert_string_equal(
		words("{\"kind\":\"replicate\"," LAB ",\"vm\":\"web\",\"cutover\":true,"
		      "\"verify\":\"read-back\",\"force\":true,\"targets\":[{\"key\":"
		      "\"2000\",\"target\":\"raw:/dev/a\"},{\"key\":\"2001\",\"target\":"
		      "\"nbd://h/b\"}]}"),
		"[replicate][--json][--password-file=/etc/pw][--vcenter-ca-file=/etc/vc-ca.pem]"
		"[--state-dir=/state/replica][--vmware-state-dir=/state/vmware][--vm=web]"
		"[--target=2000=<target:raw:/dev/a>][--target=2001=<target:nbd://h/b>]"
		"[--cutover][--force][--verify=read-back]" VDDK "[--][" LAB_URL "]");
	assert_string_equal(words("{\"kind\":\"cleanup\",\"vcenter\":\"lab\"}"),
		"[vmware][collect][--json][--password-file=/etc/pw][--ca-file=/etc/vc-ca.pem]"
		"[--state-dir=/state/vmware][--]"
		"[vmware://backup%40vsphere.local@vc.example:8443]");
	assert_string_equal(words("{\"kind\":\"cleanup\",\"vcenter\":\"esx\",\"machine\":"
				  "\"//web01/\"}"),
		"[vmware][collect][--json][--password-file=/etc/pw2][--fingerprint=AA:BB]"
		"[--state-dir=/state/vmware][--][vmware://root@esx/web01]");
}

static void test_refused(void **state)
{
	(void)state;
	static const struct {
		const char *spec, *why;
	} cases[] = {
		{"{}", "usage: kind"},
		{"{\"kind\":7}", "usage: kind"},
		{"{\"kind\":\"measure\"}", "unsupported: kind"},
		{"{\"kind\":\"backup\"}", "usage: repository: it is missing"},
		{"{" BACKUP "}", "usage: disks: it is missing"},
		{"{" BACKUP ",\"disks\":{}}", "usage: disks: it is no list"},
		{"{" BACKUP ",\"disks\":[]}", "usage: disks: must be 1 to 256 members, not 0"},
		{"{" BACKUP ",\"disks\":[7]}", "usage: disks[0].it is no object"},
		{"{" BACKUP ",\"disks\":[{\"source\":\"raw:/a\",\"x\":1}]}",
			"usage: disks[0].x: there is no such field"},
		{"{" BACKUP ",\"disks\":[{\"source\":\"\"}]}", "usage: disks[0].source"},
		{"{" BACKUP ",\"disks\":[{\"source\":\"raw:\\u0000\"}]}", "usage: disks[0].source"},
		{"{" BACKUP ",\"disks\":[{\"key\":\"a=b\",\"source\":\"raw:/a\"}]}",
			"usage: disks[0].key"},
		{"{" BACKUP ",\"disks\":[{\"source\":\"raw:/a\"},{\"source\":\"raw:/b\"}]}",
			"usage: disks[0].key: it is missing"},
		{"{" BACKUP ",\"disks\":[{\"key\":\"vd0\",\"source\":\"qemu:/run/q\"}]}",
			"usage: disks[0].key: a machine's disks have keys of their own"},
		{"{" BACKUP ",\"parallel\":17,\"disks\":[{\"source\":\"raw:/a\"}]}",
			"usage: parallel: must be 1 to 16"},
		{"{" BACKUP ",\"disks\":[{\"source\":\"raw:/a\",\"changed_by\":"
		 "\"disk0=extents:/etc/shadow\"}]}",
			"usage: disks[0].changed_by: it is none of"},
		{"{" BACKUP ",\"disks\":[{\"key\":\"1\",\"source\":\"raw:/a\",\"changed_by\":"
		 "\"2=extents:/etc/shadow\"}]}",
			"usage: disks[0].changed_by: it is none of"},
		{"{" BACKUP ",\"disks\":[{\"source\":\"raw:/a\",\"changed_by\":\"extents:/l\"}]}",
			"usage: disks[0].changed_by: a list needs"},
		{"{" BACKUP ",\"mode\":\"quick\",\"disks\":[{\"source\":\"raw:/a\"}]}",
			"usage: mode"},
		{"{\"kind\":\"backup\",\"repository\":\"other\",\"vm\":\"a\","
		 "\"disks\":[{\"source\":\"raw:/a\"}]}",
			"usage: repository: there is none of the name other"},
		{"{\"kind\":\"backup\",\"repository\":\"other\"," LAB "}",
			"usage: repository: there is none of the name other"},
		{"{\"kind\":\"reindex\",\"repository\":\"hub\"}",
			"usage: repository: hub is behind"},
		{"{\"kind\":\"backup\"," LAB "}", "usage: repository: it is missing"},
		{"{\"kind\":\"replicate\"}", "usage: vcenter: it is missing"},
		{"{\"kind\":\"replicate\"," LAB "}", "usage: targets: it is missing"},
		{"{\"kind\":\"replicate\"," LAB ",\"targets\":[{\"target\":\"raw:/a\"}]}",
			"usage: targets[0].key: it is missing"},
		{"{\"kind\":\"replicate\"," LAB ",\"repository\":\"main\",\"targets\":[]}",
			"usage: repository: there is no such field"},
		{"{" BACKUP ",\"vcenter\":\"lab\"}", "usage: machine: it is missing"},
		{"{" BACKUP ",\"vcenter\":7,\"machine\":\"a\"}", "usage: vcenter: it is no text"},
		{"{" BACKUP ",\"vcenter\":\"vmware://u@h\",\"machine\":\"a\"}",
			"usage: vcenter: there is none of the name"},
		{"{" BACKUP "," LAB ",\"disks\":[{\"source\":\"raw:/a\"}]}",
			"usage: disks: there is no such field"},
		{"{" BACKUP "," LAB ",\"password_file\":\"/etc/shadow\"}",
			"usage: password_file: there is no such field"},
		{"{" BACKUP "," LAB ",\"skip_disks\":[\"a=b\"]}", "usage: skip_disks[0]"},
		{"{" BACKUP "," LAB ",\"skip_disks\":[7]}", "usage: skip_disks[0]"},
		{"{" BACKUP "," LAB ",\"quiesce\":\"no\"}", "usage: quiesce"},
		{"{\"kind\":\"cleanup\",\"vcenter\":\"lab\",\"vm\":\"a\"}",
			"usage: vm: there is no such field"},
		{"{" BACKUP ",\"argv\":[],\"disks\":[{\"source\":\"raw:/a\"}]}", "usage: argv"},
		{"{\"kind\":\"verify\",\"repository\":\"main\",\"point\":"
		 "\"20261121T200000Z-7f3a9c\"}",
			"usage: vm: it is missing"},
		{"{\"kind\":\"verify\",\"repository\":\"main\",\"vm\":\"a\",\"point\":\"x\"}",
			"usage: point"},
		{"{\"kind\":\"prune\",\"repository\":\"main\",\"keep\":{}}", "usage: keep"},
		{"{\"kind\":\"prune\",\"repository\":\"main\",\"keep\":{\"last\":0}}",
			"usage: keep.last: must be 1 to 1000000"},
		{"{\"kind\":\"prune\",\"repository\":\"main\",\"keep\":{\"last\":1.5}}",
			"usage: keep.last: it is no whole number"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		const char *is = words(cases[i].spec);
		if (strncmp(is, cases[i].why, strlen(cases[i].why)) != 0)
			fail_msg("%s: %s", cases[i].spec, is);
	}
}

static void test_writers(void **state)
{
	(void)state;
	static const struct {
		const char *spec;
		bool writes;
	} cases[] = {
		{"{\"kind\":\"backup\",\"vm\":\"a\"}", true},
		{"{\"kind\":\"push\",\"vm\":\"a\"}", true},
		{"{\"kind\":\"prune\",\"vm\":\"a\"}", true},
		{"{\"kind\":\"prune\",\"vm\":\"a\",\"dry_run\":true}", false},
		{"{\"kind\":\"prune\"}", false},
		{"{\"kind\":\"restore\",\"vm\":\"a\"}", false},
		{"{\"kind\":\"verify\",\"vm\":\"a\"}", false},
		{"{\"kind\":\"backup\",\"vcenter\":\"l\",\"machine\":\"a\"}", true},
		{"{\"kind\":\"replicate\",\"vcenter\":\"l\",\"machine\":\"a\"}", true},
		{"{\"kind\":\"cleanup\",\"vcenter\":\"l\",\"machine\":\"a\"}", false},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		json_t *spec = json_loads(cases[i].spec, 0, NULL);
		assert_int_equal(jobplan_writes(spec), cases[i].writes);
		json_decref(spec);
	}
}

static void test_same_machine(void **state)
{
	(void)state;
	static const struct {
		const char *a, *b;
		bool same;
	} cases[] = {
		{"{\"repository\":\"r\",\"vm\":\"a\"}", "{\"repository\":\"r\",\"vm\":\"a\"}",
			true},
		{"{\"repository\":\"r\",\"vm\":\"a\"}", "{\"repository\":\"s\",\"vm\":\"a\"}",
			false},
		{"{\"repository\":\"r\"}", "{\"repository\":\"r\"}", false},
		{"{\"vcenter\":\"l\",\"machine\":\"m\",\"repository\":\"r\"}",
			"{\"vcenter\":\"l\",\"machine\":\"m\"}", true},
		{"{\"vcenter\":\"l\",\"machine\":\"m\"}", "{\"vcenter\":\"k\",\"machine\":\"m\"}",
			false},
		{"{\"vm\":\"a\",\"vcenter\":\"l\",\"machine\":\"m\",\"repository\":\"r\"}",
			"{\"vm\":\"a\",\"repository\":\"r\"}", true},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		json_t *a = json_loads(cases[i].a, 0, NULL), *b = json_loads(cases[i].b, 0, NULL);
		assert_int_equal(jobplan_same_machine(a, b), cases[i].same);
		json_decref(a);
		json_decref(b);
	}
}

/* In the worker. */
static void test_plans(void **state)
{
	(void)state;
	static const struct {
		const char *plan, *last; /* the last word, or why not */
	} cases[] = {
		{"{\"argv\":[\"a\",\"b\"]}", "b"},
		{"{\"argv\":[{\"text\":\"--disk=\",\"use\":\"source\",\"name\":\"null:1\"}],"
		 "\"allow\":{\"source\":[\"null:\"]}}",
			"--disk=null:1"},
		{"{\"argv\":[{\"text\":\"--to=\",\"use\":\"target\",\"name\":\"null:1\"}],"
		 "\"allow\":{\"source\":[\"null:\"]}}",
			"denied"},
		{"{\"argv\":[{\"text\":\"--disk=\",\"use\":\"source\",\"name\":\"null:1\"}]}",
			"denied"},
		{"{\"argv\":[7]}", "format"},
		{"{\"argv\":[{\"use\":\"source\"}]}", "format"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		json_t *plan = json_loads(cases[i].plan, 0, NULL);
		char **list = jobplan_words(plan, &err);
		size_t nr = 0;
		while (list && list[nr])
			nr++;
		assert_string_equal(nr ? list[nr - 1] : err_code_name(err.code), cases[i].last);
		jobplan_free(list);
		json_decref(plan);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_words),
		cmocka_unit_test(test_words_of_vcenters),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_writers),
		cmocka_unit_test(test_same_machine),
		cmocka_unit_test(test_plans),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
