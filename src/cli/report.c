/* How results and errors are told; see cli.h. */
#include "cli.h"
#include "console.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

const char *cli_size_text(uint64_t bytes, char out[SIZE_TEXT_BYTES])
{
	static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	if (bytes < 1024) {
		snprintf(out, SIZE_TEXT_BYTES, "%" PRIu64 " B", bytes);
		return out;
	}
	double value = (double)bytes / 1024;
	size_t unit = 0;
	/* 1023.95 would be shown as 1024.0. */
	while (value >= 1023.95 && unit + 1 < ARRAY_LENGTH(units)) {
		value /= 1024;
		unit++;
	}
	snprintf(out, SIZE_TEXT_BYTES, "%.1f %s", value, units[unit]);
	return out;
}

const char *cli_duration_text(int64_t ns, char out[SIZE_TEXT_BYTES])
{
	int64_t seconds = ns / 1000000000;
	if (seconds < 60)
		snprintf(out, SIZE_TEXT_BYTES, "%.1f s", (double)ns / 1e9);
	else if (seconds < 3600)
		snprintf(out, SIZE_TEXT_BYTES, "%" PRId64 " min %02" PRId64 " s", seconds / 60,
			seconds % 60);
	else
		snprintf(out, SIZE_TEXT_BYTES, "%" PRId64 " h %02" PRId64 " min", seconds / 3600,
			seconds / 60 % 60);
	return out;
}

int cli_padding(const char *text, int width)
{
	for (; *text && width > 0; text++)
		width -= ((unsigned char)*text & 0xc0) != 0x80; /* no further byte of a letter */
	return width;
}

int cli_flush(struct err *err)
{
	if (fflush(stdout) != 0 || ferror(stdout))
		return err_errno(err, errno, "cannot write to standard output");
	return 0;
}

int cli_print_json(json_t *object, struct err *err)
{
	if (!object)
		return err_errno(err, ENOMEM, "cannot make the JSON report");
	int rc = json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
	json_decref(object);
	if (rc < 0 || fputc('\n', stdout) == EOF)
		return err_errno(err, errno, "cannot write to standard output");
	return cli_flush(err);
}

int cli_report_error(bool json, const char *command, const struct err *err)
{
	int status = err->code == ERR_USAGE ? EXIT_USAGE : EXIT_FAILED;
	char line[ERR_TEXT_BYTES + 256];
	snprintf(line, sizeof line, "sendense: %s", err->text);
	if (cli_hooks())
		cli_hooks()->error(cli_hooks()->context, err);
	else
		console_line(line);
	if (status == EXIT_USAGE && !cli_hooks()) {
		snprintf(line, sizeof line, "Try: sendense %s%s--help", command,
			command[0] ? " " : "");
		console_line(line);
	}
	if (json) {
		/* Texts may hold bytes that are no UTF-8 (file names): replaced then. */
		json_t *text = json_string(err->text);
		json_t *object = json_pack("{s:{s:s, s:o}}", "error", "code",
			err_code_name(err->code), "text",
			text ? text : json_string("(the text is not UTF-8, see standard error)"));
		cli_print_json(object, NULL);
	}
	return status;
}

void cli_json_figures(json_t *object, uint64_t size_bytes, const struct copy_progress *figures)
{
	const struct {
		const char *name;
		uint64_t value;
	} members[] = {
		{"size", size_bytes},
		{"logical", atomic_load(&figures->logical)},
		{"read", atomic_load(&figures->read)},
		{"sent", atomic_load(&figures->sent)},
		{"stored", atomic_load(&figures->stored)},
		{"zeros_skipped", atomic_load(&figures->zeros_skipped)},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(members); i++)
		json_object_set_new(
			object, members[i].name, json_integer((json_int_t)members[i].value));
}
