/* Notices that are kept until they are delivered; see notify.h. */
#include "notify_internal.h"

#include "time_internal.h"

#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ID_BYTES 32
#define PENDING_MOST 1000u
#define FIRST_PAUSE_S 10
#define PAUSE_MOST_S 3600
#define KEPT_S (INT64_C(3) * 86400)
#define LOOK_AGAIN_MS 20000 /* the clock may have jumped */

enum channel { CHANNEL_WEBHOOK, CHANNEL_MAIL };
static const char *const channels[] = {[CHANNEL_WEBHOOK] = "webhook", [CHANNEL_MAIL] = "mail"};

struct pending {
	char id[ID_BYTES]; /* in the order of their making */
	enum channel channel;
	json_t *body;
	int64_t created, next;
	unsigned tries;
};

struct notify {
	struct notify_options options;
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	bool woken, stop;
	struct cancel *cancel;
	pthread_t thread;
	uint64_t last; /* number of the last id */
	struct pending *pending; /* by id */
	size_t nr_pending, room;
	struct notify_figures figures;
};

static int64_t now_of(const struct notify *notify)
{
	return notify->options.now ? notify->options.now(notify->options.context) : time(NULL);
}

/* --- the list; the mutex is held ---------------------------------------------------------- */

static int store(struct notify *notify, const struct pending *item, struct err *err)
{
	json_t *value = json_pack("{s:s, s:O, s:I, s:I, s:i}", "channel", channels[item->channel],
		"body", item->body, "created", (json_int_t)item->created, "next",
		(json_int_t)item->next, "tries", (int)item->tries);
	if (!value)
		return err_errno(err, ENOMEM, "cannot keep a notice");
	int rc = state_put(notify->options.state, "notice", item->id, value, STATE_ANY, NULL, err);
	json_decref(value);
	return rc;
}

/* Takes item's body, also when it fails. */
static int append(struct notify *notify, const struct pending *item, struct err *err)
{
	if (notify->nr_pending == notify->room) {
		size_t room = notify->room ? notify->room * 2 : 16;
		struct pending *grown = reallocarray(notify->pending, room, sizeof *grown);
		if (!grown) {
			json_decref(item->body);
			return err_errno(err, ENOMEM, "cannot keep a notice");
		}
		notify->pending = grown;
		notify->room = room;
	}
	notify->pending[notify->nr_pending++] = *item;
	return 0;
}

static void forget(struct notify *notify, const char *id)
{
	struct err err = ERR_INIT;
	for (size_t i = 0; i < notify->nr_pending; i++) {
		struct pending *item = &notify->pending[i];
		if (strcmp(item->id, id) != 0)
			continue;
		if (state_delete(notify->options.state, "notice", id, STATE_ANY, &err) < 0)
			log_error("a notice that was dealt with stays: %s", err.text);
		json_decref(item->body);
		memmove(item, item + 1, (--notify->nr_pending - i) * sizeof *item);
		return;
	}
}

static void give_up(struct notify *notify, const struct pending *item, const char *why)
{
	log_error("the notice \"%s\" could not be delivered by %s: %s; it is given up",
		time_text(item->body, "title"), channels[item->channel], why);
	notify->figures.nr_given_up++;
	forget(notify, item->id);
}

static int add(struct notify *notify, enum channel channel, const json_t *body, int64_t now,
	struct err *err)
{
	struct pending item = {
		.channel = channel, .body = json_deep_copy(body), .created = now, .next = now};
	snprintf(item.id, sizeof item.id, "%016" PRIx64, ++notify->last);
	if (!item.body)
		return err_errno(err, ENOMEM, "cannot keep a notice");
	if (notify->nr_pending >= PENDING_MOST)
		give_up(notify, &notify->pending[0], "too many wait");
	if (append(notify, &item, err) < 0)
		return -1;
	if (store(notify, &item, err) == 0)
		return 0;
	json_decref(item.body);
	notify->nr_pending--;
	return -1;
}

/* --- posting ------------------------------------------------------------------------------- */

static json_t *make_body(const struct hub_config *config, const struct notice *notice, int64_t now)
{
	char time_text_[CLOCK_UTC_BYTES];
	clock_utc_text(now, time_text_);
	json_t *body = json_pack("{s:s, s:s, s:s, s:s, s:s}", "event", notice->event, "time",
		time_text_, "hub", config->name, "title", notice->title, "text", notice->text);
	if (body && notice->about)
		json_object_update_missing(body, (json_t *)notice->about);
	return body;
}

int notify_post(struct notify *notify, const struct notice *notice, struct err *err)
{
	const struct hub_config *config = notify->options.config(notify->options.context);
	int rc = 0;
	if (!config->webhook && !config->mail_to)
		return 0;
	int64_t now = now_of(notify);
	json_t *body = make_body(config, notice, now);
	if (!body)
		return err_errno(err, ENOMEM, "cannot keep a notice");
	WITH_LOCK(&notify->mutex);
	if (config->webhook)
		rc = add(notify, CHANNEL_WEBHOOK, body, now, err);
	if (rc == 0 && config->mail_to)
		rc = add(notify, CHANNEL_MAIL, body, now, err);
	json_decref(body);
	notify->woken = true;
	pthread_cond_signal(&notify->wake);
	return rc;
}

void notify_wake(struct notify *notify)
{
	WITH_LOCK(&notify->mutex);
	notify->woken = true;
	pthread_cond_signal(&notify->wake);
}

void notify_figures(struct notify *notify, struct notify_figures *figures)
{
	WITH_LOCK(&notify->mutex);
	*figures = notify->figures;
	figures->nr_pending = (unsigned)notify->nr_pending;
}

/* --- delivering ------------------------------------------------------------------------------ */

static int deliver(struct notify *notify, const struct pending *item, int64_t now, struct err *err)
{
	const struct hub_config *config = notify->options.config(notify->options.context);
	if (item->channel == CHANNEL_MAIL)
		return notify_mail(config, item->body, now, notify->cancel, err);
	return notify_webhook(config, item->id, item->body, now, notify->cancel, err);
}

static void count(struct notify *notify, enum channel channel, bool good)
{
	struct notify_figures *f = &notify->figures;
	if (channel == CHANNEL_MAIL)
		++*(good ? &f->nr_mails : &f->nr_mail_failures);
	else
		++*(good ? &f->nr_webhooks : &f->nr_webhook_failures);
}

static void try_again(struct notify *notify, const char *id, int64_t now, const struct err *why)
{
	struct err err = ERR_INIT;
	for (size_t i = 0; i < notify->nr_pending; i++) {
		struct pending *item = &notify->pending[i];
		if (strcmp(item->id, id) != 0)
			continue;
		if (now - item->created > KEPT_S) {
			give_up(notify, item, why->text);
			return;
		}
		int64_t pause = FIRST_PAUSE_S;
		for (unsigned n = 0; n < item->tries && pause < PAUSE_MOST_S; n++)
			pause *= 2;
		item->tries++;
		item->next = now + (pause < PAUSE_MOST_S ? pause : PAUSE_MOST_S);
		log_warning("the notice \"%s\" could not be delivered by %s (try %u): %s",
			time_text(item->body, "title"), channels[item->channel], item->tries,
			why->text);
		if (store(notify, item, &err) < 0)
			log_error("%s", err.text);
		return;
	}
}

/* One that is due, with a body of its own; the mutex is held. */
static bool choose(struct notify *notify, int64_t now, struct pending *chosen)
{
	for (size_t i = 0; i < notify->nr_pending; i++) {
		struct pending *item = &notify->pending[i];
		/* Further ahead than any pause: the clock was put back. */
		if (item->next > now + PAUSE_MOST_S)
			item->next = now;
		if (item->next > now)
			continue;
		*chosen = *item;
		chosen->body = json_deep_copy(item->body);
		return chosen->body != NULL;
	}
	return false;
}

static void deliver_due(struct notify *notify)
{
	struct pending item;
	int64_t now = now_of(notify);
	while (!notify->stop && choose(notify, now, &item)) {
		struct err why = ERR_INIT;
		pthread_mutex_unlock(&notify->mutex);
		int rc = deliver(notify, &item, now, &why);
		json_decref(item.body);
		pthread_mutex_lock(&notify->mutex);
		if (rc < 0 && notify->stop)
			return;
		count(notify, item.channel, rc == 0);
		now = now_of(notify);
		if (rc == 0)
			forget(notify, item.id);
		else
			try_again(notify, item.id, now, &why);
	}
}

static int64_t sleep_ms(struct notify *notify)
{
	int64_t now = now_of(notify), least = LOOK_AGAIN_MS;
	for (size_t i = 0; i < notify->nr_pending; i++) {
		int64_t left_ms = (notify->pending[i].next - now) * 1000;
		least = left_ms < least ? left_ms : least;
	}
	return least > 0 ? least : 0;
}

static void *notify_main(void *arg)
{
	struct notify *notify = arg;
	WITH_LOCK(&notify->mutex);
	while (!notify->stop) {
		notify->woken = false;
		deliver_due(notify);
		struct deadline until = deadline_after_ms(sleep_ms(notify));
		while (!notify->stop && !notify->woken &&
			thread_cond_wait(&notify->wake, &notify->mutex, until))
			continue;
	}
	return NULL;
}

/* --- start and stop ----------------------------------------------------------------------- */

struct opening {
	struct notify *notify;
	int rc;
	struct err *err;
};

static int take(void *context, const struct state_object *object)
{
	struct opening *o = context;
	const char *channel = time_text(object->value, "channel");
	json_t *body = json_object_get(object->value, "body");
	struct pending item = {.created = time_number(object->value, "created", 0),
		.next = 0, /* a start is worth a try */
		.tries = (unsigned)time_number(object->value, "tries", 0)};
	uint64_t number = strtoull(object->id, NULL, 16);
	if (!channel || !time_text(body, "title"))
		return 0;
	item.channel =
		strcmp(channel, channels[CHANNEL_MAIL]) == 0 ? CHANNEL_MAIL : CHANNEL_WEBHOOK;
	snprintf(item.id, sizeof item.id, "%s", object->id);
	item.body = json_deep_copy(body);
	if (number > o->notify->last)
		o->notify->last = number;
	o->rc = item.body ? append(o->notify, &item, o->err)
			  : err_errno(o->err, ENOMEM, "cannot read the notices");
	return o->rc < 0;
}

static void notify_free(struct notify *notify)
{
	for (size_t i = 0; i < notify->nr_pending; i++)
		json_decref(notify->pending[i].body);
	free(notify->pending);
	cancel_free(notify->cancel);
	pthread_cond_destroy(&notify->wake);
	pthread_mutex_destroy(&notify->mutex);
	free(notify);
}

struct notify *notify_start(const struct notify_options *options, struct err *err)
{
	struct notify *notify = calloc(1, sizeof *notify);
	struct opening opening = {.notify = notify, .err = err};
	if (!notify) {
		err_errno(err, ENOMEM, "cannot start the notices");
		return NULL;
	}
	notify->options = *options;
	pthread_mutex_init(&notify->mutex, NULL);
	thread_cond_init(&notify->wake);
	/* Numbers that were given and dealt with do not come up again: receivers know them. */
	notify->last = (uint64_t)now_of(notify) << 20;
	curl_global_init(CURL_GLOBAL_DEFAULT);
	notify->cancel = cancel_new(err);
	if (!notify->cancel ||
		state_list(options->state, "notice", NULL, take, &opening, err) < 0 ||
		opening.rc < 0 ||
		thread_start(&notify->thread, "notify", notify_main, notify, err) < 0) {
		notify_free(notify);
		return NULL;
	}
	return notify;
}

void notify_stop(struct notify *notify)
{
	if (!notify)
		return;
	pthread_mutex_lock(&notify->mutex);
	notify->stop = true;
	pthread_cond_signal(&notify->wake);
	pthread_mutex_unlock(&notify->mutex);
	cancel_request(notify->cancel);
	pthread_join(notify->thread, NULL);
	notify_free(notify);
}
