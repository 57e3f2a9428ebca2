/* sendense copy: any disk to any disk. */
#include "commands.h"
#include "figures.h"
#include "progress.h"
#include "source.h"
#include "target.h"

struct values {
	struct target_options target;
	struct option_list allow_backing;
	struct option_number rate;
	struct tls_options tls;
};

static const struct option_spec option_table[] = {
	TARGET_OPTION_ROWS(struct values),
	{.name = "limit-rate",
		.kind = OPTION_RATE,
		.offset = offsetof(struct values, rate),
		.argument = "RATE",
		.minimum = 1,
		.maximum = UINT64_MAX,
		.help = "read no more bytes a second than that"},
	ALLOW_BACKING_ROW(struct values, allow_backing),
	TLS_OPTION_ROWS(struct values),
};

static int print_report(const struct cli *cli, uint64_t size_bytes,
	const struct copy_progress *figures, int64_t took_ns, struct err *err)
{
	const char *from = cli->arguments.items[0], *to = cli->arguments.items[1];
	if (cli->common.json) {
		json_t *object = json_pack("{s:s%, s:s%, s:f}", "source", from, strlen(from),
			"target", to, strlen(to), "seconds", (double)took_ns / 1e9);
		if (object)
			cli_json_figures(object, size_bytes, figures);
		return cli_print_json(object, err);
	}
	if (cli->common.quiet)
		return 0;
	char took[SIZE_TEXT_BYTES];
	printf("Copied %s to %s in %s.\n", from, to, cli_duration_text(took_ns, took));
	figures_print(&(struct figures_row){NULL, size_bytes, figures}, 1);
	return cli_flush(err);
}

static int copy(struct cli *cli, const struct values *v, struct block *source,
	struct target *target, struct copy_progress *figures, struct progress *progress,
	struct err *err)
{
	uint64_t size_bytes = block_info(source)->size_bytes;
	if (progress_add_disk(progress, NULL, size_bytes, figures, err) < 0)
		return -1;
	struct copy_options copy = {
		.rate_bytes_per_s = v->rate.value,
		.progress = figures,
		.cancel = cli->cancel,
	};
	progress_stage(progress, "copy");
	if (copy_run(source, target->block, &copy, err) < 0)
		return -1;
	progress_stage(progress, "close");
	uint64_t stored = 0;
	if (target_finish(target, &stored, err) < 0)
		return -1;
	atomic_store(&figures->stored, stored);
	return 0;
}

static struct block *open_both(
	struct cli *cli, const struct values *v, struct target *target, struct err *err)
{
	const char *from = cli->arguments.items[0], *to = cli->arguments.items[1];
	struct source_options open = {
		.read_only = true,
		.allow_backing = &v->allow_backing,
		.tls = &v->tls,
		.cancel = cli->cancel,
	};
	struct block *source = source_open(from, &open, err);
	if (source && target_open(target, to, &v->target, &v->tls, block_info(source)->size_bytes,
			      cli->cancel, err) == 0)
		return source;
	block_close(source, NULL);
	return NULL;
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct values *v = values;
	const char *from = cli->arguments.items[0], *to = cli->arguments.items[1];
	struct copy_progress figures = {0};
	struct target target = {0};
	int64_t began_ns = clock_now_ns();
	if (locator_same(from, to))
		return err_set(err, ERR_USAGE, "%s and %s are the same disk", from, to);
	struct progress *progress = progress_start(&cli->common, err);
	if (!progress)
		return -1;
	uint64_t size_bytes = 0;
	int rc = -1;
	struct block *source = open_both(cli, v, &target, err);
	if (source) {
		size_bytes = block_info(source)->size_bytes;
		rc = copy(cli, v, source, &target, &figures, progress, err);
	}
	if (rc < 0) {
		err_context(err, "cannot copy %s to %s", from, to);
		target_discard(&target, err);
	}
	block_close(source, NULL);
	progress_end(progress, err);
	if (rc < 0)
		return -1;
	return print_report(cli, size_bytes, &figures, clock_now_ns() - began_ns, err);
}

const struct command command_copy = {
	.name = "copy",
	.arguments = "SOURCE TARGET",
	.summary = "Copy a disk to another: files, devices, QCOW2 images, NBD exports",
	.details =
		"A file as the target is made; a device or an NBD export must be there and have\n"
		"the source's size, and an export is overwritten without --force. Holes and zeros\n"
		"stay holes where the target can have them. When the copy fails or is cancelled,\n"
		"the file that it was making is removed, also one that --force overwrote. New "
		"files\n"
		"can be read by their owner alone.",
	COMMAND_OPTIONS(option_table),
	.common = COMMON_JSON | COMMON_PROGRESS,
	.min_arguments = 2,
	.max_arguments = 2,
	.words = WORDS_DISK,
	.values_bytes = sizeof(struct values),
	.run = run,
};
