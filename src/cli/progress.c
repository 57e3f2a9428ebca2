/* Progress; see progress.h. */
#include "progress.h"

#include "console.h"
#include "repository.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JSON_PERIOD_MS 500
#define BAR_PERIOD_MS 200
#define BAR_CELLS_MOST 24u
/* Rates are told over this much of the recent past. */
#define RATE_WINDOW_NS 4000000000

enum progress_mode { PROGRESS_NONE, PROGRESS_BAR, PROGRESS_JSON };

struct progress_disk {
	char *key;
	uint64_t size_bytes;
	const struct copy_progress *figures;
};

/* The figures of all disks at one moment. */
struct sums {
	int64_t at_ns;
	uint64_t size, logical, read, sent, stored, zeros_skipped;
};

struct progress {
	enum progress_mode mode;
	bool has_thread;
	pthread_t thread;

	pthread_mutex_t mutex; /* over what follows */
	pthread_cond_t changed;
	bool ending;
	const char *stage;
	char stage_since[CLOCK_UTC_BYTES];
	char vm[REPOSITORY_VM_BYTES];
	struct progress_disk *disks;
	size_t nr_disks;
	struct sums window[2]; /* the start of the rate window, and of the next */
};

/* The one that is at it, for progress_now(). */
static pthread_mutex_t current_mutex = PTHREAD_MUTEX_INITIALIZER; /* before its own */
static struct progress *current;
static void (*watcher)(void *context);
static void *watcher_context;

void progress_watch(void (*changed)(void *context), void *context)
{
	watcher = changed;
	watcher_context = context;
}

static void tell_watcher(void)
{
	if (watcher)
		watcher(watcher_context);
}

/* --- figures ----------------------------------------------------------------- */

static struct sums add_up(const struct progress *p)
{
	struct sums sums = {.at_ns = clock_now_ns()};
	for (size_t i = 0; i < p->nr_disks; i++) {
		const struct copy_progress *f = p->disks[i].figures;
		sums.size += p->disks[i].size_bytes;
		sums.logical += atomic_load(&f->logical);
		sums.read += atomic_load(&f->read);
		sums.sent += atomic_load(&f->sent);
		sums.stored += atomic_load(&f->stored);
		sums.zeros_skipped += atomic_load(&f->zeros_skipped);
	}
	return sums;
}

static double percent_of(const struct sums *sums)
{
	if (sums->size == 0)
		return 0;
	double percent = 100.0 * (double)sums->logical / (double)sums->size;
	return percent > 100 ? 100 : percent;
}

/* Bytes a second over the window: of data read and of the disk dealt with. */
static void rates_of(struct progress *p, const struct sums *now, double *read, double *logical)
{
	if (p->window[0].at_ns == 0)
		p->window[0] = p->window[1] = *now;
	if (now->at_ns - p->window[1].at_ns > RATE_WINDOW_NS) {
		p->window[0] = p->window[1];
		p->window[1] = *now;
	}
	double seconds = (double)(now->at_ns - p->window[0].at_ns) / 1e9;
	*read = *logical = 0;
	if (seconds > 0.05) {
		*read = (double)(now->read - p->window[0].read) / seconds;
		*logical = (double)(now->logical - p->window[0].logical) / seconds;
	}
}

/* Seconds left, or -1 when nothing moves. */
static double time_left(const struct sums *sums, double logical_rate)
{
	if (logical_rate < 1 || sums->logical > sums->size)
		return -1;
	return (double)(sums->size - sums->logical) / logical_rate;
}

/* --- JSON lines ---------------------------------------------------------------- */

static void print_object(json_t *object)
{
	char *text = object ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(4)) : NULL;
	if (text)
		console_line(text);
	free(text);
	json_decref(object);
}

static void put_sums(json_t *object, const struct sums *sums)
{
	struct copy_progress figures;
	atomic_init(&figures.logical, sums->logical);
	atomic_init(&figures.read, sums->read);
	atomic_init(&figures.sent, sums->sent);
	atomic_init(&figures.stored, sums->stored);
	atomic_init(&figures.zeros_skipped, sums->zeros_skipped);
	json_object_set_new(object, "percent", json_real(percent_of(sums)));
	cli_json_figures(object, sums->size, &figures);
}

static void put_disks(json_t *object, const struct progress *p)
{
	json_t *disks = json_array();
	for (size_t i = 0; i < p->nr_disks; i++) {
		json_t *disk = json_object();
		if (p->disks[i].key)
			json_object_set_new(disk, "key", json_string(p->disks[i].key));
		cli_json_figures(disk, p->disks[i].size_bytes, p->disks[i].figures);
		json_array_append_new(disks, disk);
	}
	json_object_set_new(object, "disks", disks);
}

static void tell_json(struct progress *p)
{
	struct sums now = add_up(p);
	double read_rate, logical_rate;
	rates_of(p, &now, &read_rate, &logical_rate);
	json_t *object = json_pack("{s:s, s:s}", "event", "progress", "stage", p->stage);
	put_sums(object, &now);
	json_object_set_new(object, "rate_bytes_per_second", json_integer((json_int_t)read_rate));
	double left = time_left(&now, logical_rate);
	if (left >= 0)
		json_object_set_new(object, "seconds_left", json_integer((json_int_t)left));
	put_disks(object, p);
	print_object(object);
}

static void tell_stage_json(struct progress *p)
{
	print_object(json_pack("{s:s, s:s}", "event", "stage", "stage", p->stage));
}

static void tell_end_json(struct progress *p, const struct err *err)
{
	bool failed = err && err->code != ERR_NONE;
	const char *outcome = !failed                      ? "done"
			      : err->code == ERR_CANCELLED ? "cancelled"
							   : "failed";
	struct sums now = add_up(p);
	json_t *object =
		json_pack("{s:s, s:s, s:s}", "event", "end", "outcome", outcome, "stage", p->stage);
	put_sums(object, &now);
	put_disks(object, p);
	print_object(object);
}

/* --- for others ---------------------------------------------------------------------- */

static json_t *now_of(struct progress *p)
{
	struct sums now = add_up(p);
	double read_rate, logical_rate;
	rates_of(p, &now, &read_rate, &logical_rate);
	json_t *figures = json_object(), *out = json_object();
	const struct {
		const char *name;
		uint64_t value;
	} members[] = {{"total", now.size}, {"logical", now.logical}, {"read", now.read},
		{"sent", now.sent}, {"stored", now.stored}, {"zeros_skipped", now.zeros_skipped},
		{"rate_bytes_per_second", (uint64_t)read_rate}};
	for (size_t i = 0; i < ARRAY_LENGTH(members); i++)
		json_object_set_new(
			figures, members[i].name, json_integer((json_int_t)members[i].value));
	double left = time_left(&now, logical_rate);
	if (left >= 0 && now.size > 0)
		json_object_set_new(figures, "seconds_left", json_integer((json_int_t)left));
	json_object_set_new(out, "stage", json_string(p->stage));
	json_object_set_new(out, "stage_since", json_string(p->stage_since));
	if (p->vm[0])
		json_object_set_new(out, "vm", json_string(p->vm));
	json_object_set_new(out, "progress", figures);
	put_disks(out, p);
	return out;
}

json_t *progress_now(void)
{
	WITH_LOCK(&current_mutex);
	if (!current)
		return NULL;
	pthread_mutex_lock(&current->mutex);
	json_t *out = now_of(current);
	pthread_mutex_unlock(&current->mutex);
	return out;
}

/* --- the bar --------------------------------------------------------------------- */

/* "3.6G": the compact form for the bar. */
static const char *compact(uint64_t bytes, char out[16])
{
	static const char units[] = "BKMGTPE";
	double value = (double)bytes;
	size_t unit = 0;
	while (value >= 999.5 && unit + 2 < sizeof units) {
		value /= 1024;
		unit++;
	}
	snprintf(out, 16, unit > 0 && value < 9.95 ? "%.1f%c" : "%.0f%c", value, units[unit]);
	return out;
}

static void put_left(char *line, size_t bytes, double seconds)
{
	size_t used = strlen(line);
	if (seconds < 0)
		return;
	long s = (long)seconds;
	if (s < 3600)
		snprintf(line + used, bytes - used, "  %ld:%02ld left", s / 60, s % 60);
	else
		snprintf(line + used, bytes - used, "  %ldh%02ldm left", s / 3600, s / 60 % 60);
}

static void draw_bar(struct progress *p, bool last)
{
	struct sums now = add_up(p);
	double read_rate, logical_rate;
	rates_of(p, &now, &read_rate, &logical_rate);
	double percent = percent_of(&now);

	unsigned width = console_width();
	unsigned cells = width > 110 ? BAR_CELLS_MOST : width > 90 ? 10 : 0;
	char bar[BAR_CELLS_MOST + 4] = "";
	if (cells > 0) {
		unsigned full = (unsigned)(percent / 100 * cells);
		char *at = bar;
		*at++ = '[';
		memset(at, '#', full);
		memset(at + full, '.', cells - full);
		at += cells;
		memcpy(at, "] ", 3);
	}
	char logical[16], rate[16], value[16];
	const struct {
		const char *name;
		uint64_t bytes;
	} figures[] = {{"read", now.read}, {"sent", now.sent}, {"stored", now.stored},
		{"zeros", now.zeros_skipped}};
	char line[512];
	/* A narrow terminal shows the figures that fit, the rate and the time always. */
	for (size_t nr = ARRAY_LENGTH(figures) + 1; nr-- > 0;) {
		snprintf(line, sizeof line, "%-8s %s%3.0f%%  %s", p->stage, bar, percent,
			compact(now.logical, logical));
		for (size_t i = 0; i < nr; i++) {
			size_t used = strlen(line);
			snprintf(line + used, sizeof line - used, " %s %s", figures[i].name,
				compact(figures[i].bytes, value));
		}
		size_t used = strlen(line);
		snprintf(line + used, sizeof line - used, "  %s/s",
			compact((uint64_t)read_rate, rate));
		if (!last)
			put_left(line, sizeof line, time_left(&now, logical_rate));
		if (strlen(line) < width)
			break;
	}
	/* A line that wraps cannot be drawn over. */
	if (strlen(line) >= width)
		line[width - 1] = '\0';
	console_status(line);
}

/* --- the thread -------------------------------------------------------------------- */

static void *report(void *arg)
{
	struct progress *p = arg;
	int64_t period_ms = p->mode == PROGRESS_JSON ? JSON_PERIOD_MS : BAR_PERIOD_MS;
	WITH_LOCK(&p->mutex);
	struct deadline next = deadline_after_ms(period_ms);
	while (!p->ending) {
		if (thread_cond_wait(&p->changed, &p->mutex, next) || p->ending)
			continue;
		if (p->mode == PROGRESS_JSON)
			tell_json(p);
		else
			draw_bar(p, false);
		next = deadline_after_ms(period_ms);
	}
	return NULL;
}

static enum progress_mode mode_of(const struct cli_common *common)
{
	if (common->progress && strcmp(common->progress, "json") == 0)
		return PROGRESS_JSON;
	if (common->progress && strcmp(common->progress, "none") == 0)
		return PROGRESS_NONE;
	/* A bar in a file is of no use to anybody. */
	if (!console_is_terminal() || common->quiet)
		return PROGRESS_NONE;
	return PROGRESS_BAR;
}

struct progress *progress_start(const struct cli_common *common, struct err *err)
{
	struct progress *p = calloc(1, sizeof *p);
	if (!p) {
		err_errno(err, ENOMEM, "cannot show progress");
		return NULL;
	}
	p->mode = mode_of(common);
	p->stage = "prepare";
	clock_utc_text(time(NULL), p->stage_since);
	pthread_mutex_init(&p->mutex, NULL);
	thread_cond_init(&p->changed);
	pthread_mutex_lock(&current_mutex);
	current = p;
	pthread_mutex_unlock(&current_mutex);
	tell_watcher();
	if (p->mode == PROGRESS_NONE)
		return p;
	if (p->mode == PROGRESS_JSON)
		tell_stage_json(p);
	if (thread_start(&p->thread, "progress", report, p, err) < 0) {
		p->mode = PROGRESS_NONE;
		progress_end(p, NULL);
		return NULL;
	}
	p->has_thread = true;
	return p;
}

static bool set_stage(struct progress *p, const char *stage)
{
	WITH_LOCK(&p->mutex);
	if (strcmp(p->stage, stage) == 0)
		return false;
	p->stage = stage;
	clock_utc_text(time(NULL), p->stage_since);
	log_info("%s", stage);
	if (p->mode == PROGRESS_JSON)
		tell_stage_json(p);
	else if (p->mode == PROGRESS_BAR)
		draw_bar(p, false);
	return true;
}

void progress_stage(struct progress *p, const char *stage)
{
	if (set_stage(p, stage))
		tell_watcher();
}

void progress_vm(struct progress *p, const char *vm)
{
	WITH_LOCK(&p->mutex);
	snprintf(p->vm, sizeof p->vm, "%s", vm);
}

int progress_add_disk(struct progress *p, const char *key, uint64_t size_bytes,
	const struct copy_progress *figures, struct err *err)
{
	WITH_LOCK(&p->mutex);
	struct progress_disk *disks = reallocarray(p->disks, p->nr_disks + 1, sizeof *disks);
	if (!disks)
		return err_errno(err, ENOMEM, "cannot show progress");
	p->disks = disks;
	char *copy = key ? strdup(key) : NULL;
	if (key && !copy)
		return err_errno(err, ENOMEM, "cannot show progress");
	disks[p->nr_disks++] = (struct progress_disk){copy, size_bytes, figures};
	return 0;
}

static void drop_disks(struct progress *p)
{
	for (size_t i = 0; i < p->nr_disks; i++)
		free(p->disks[i].key);
	free(p->disks);
	p->disks = NULL;
	p->nr_disks = 0;
}

void progress_begin_again(struct progress *p)
{
	WITH_LOCK(&p->mutex);
	drop_disks(p);
	memset(p->window, 0, sizeof p->window);
}

static void tell_end(struct progress *p, const struct err *err)
{
	if (p->mode == PROGRESS_JSON) {
		tell_end_json(p, err);
	} else if (p->mode == PROGRESS_BAR) {
		draw_bar(p, true);
		console_status_keep();
	}
}

void progress_end(struct progress *p, const struct err *err)
{
	if (!p)
		return;
	tell_watcher();
	pthread_mutex_lock(&current_mutex);
	current = NULL;
	pthread_mutex_unlock(&current_mutex);
	if (p->has_thread) {
		pthread_mutex_lock(&p->mutex);
		p->ending = true;
		pthread_cond_signal(&p->changed);
		pthread_mutex_unlock(&p->mutex);
		pthread_join(p->thread, NULL);
	}
	tell_end(p, err);
	drop_disks(p);
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->mutex);
	free(p);
}
