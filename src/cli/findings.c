/* Findings; see findings.h. */
#include "findings.h"

#include "console.h"

static void put_text(json_t *object, const char *name, const char *text)
{
	if (text && text[0])
		json_object_set_new(object, name, json_string(text));
}

static void add_json(struct findings *findings, const struct repository_finding *finding)
{
	json_t *object = json_pack("{s:s, s:b}", "kind", repository_finding_name(finding->kind),
		"damage", repository_finding_is_damage(finding->kind));
	put_text(object, "vm", finding->vm);
	put_text(object, "point", finding->point);
	put_text(object, "disk", finding->key);
	put_text(object, "file", finding->file);
	put_text(object, "text", finding->text);
	put_text(object, "remedy", finding->remedy);
	if (finding->guest_length > 0) {
		json_object_set_new(
			object, "offset", json_integer((json_int_t)finding->guest_offset));
		json_object_set_new(
			object, "length", json_integer((json_int_t)finding->guest_length));
	}
	json_array_append_new(findings->list, object);
}

static void print_text(const struct repository_finding *finding)
{
	printf("%s:", repository_finding_name(finding->kind));
	if (finding->vm && finding->point)
		printf(" %s@%s", finding->vm, finding->point);
	else if (finding->vm)
		printf(" %s", finding->vm);
	if (finding->key)
		printf(" disk %s", finding->key);
	printf(" %s\n", finding->text);
	if (finding->file)
		printf("  file: %s\n", finding->file);
	if (finding->remedy && finding->remedy[0])
		printf("  what to do: %s\n", finding->remedy);
	fflush(stdout);
}

void findings_tell(void *context, const struct repository_finding *finding)
{
	struct findings *findings = context;
	if (findings->list)
		add_json(findings, finding);
	else if (!findings->quiet || repository_finding_is_damage(finding->kind))
		print_text(finding);
}
