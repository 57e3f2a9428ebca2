/*
 * notify: what is told to the outside, by webhook and by mail.
 *
 *   notice ─► state (one for each channel) ─► thread: tried until delivered ─► forgotten
 *
 * Tried again after 10 s, then twice as long each time, at most an hour, for three days; then it
 * is given up, which is logged.  At most 1000 wait; then the oldest are given up.  So nothing
 * is lost over restarts, and a receiver may get one twice (Sendense-Delivery tells).
 *
 * Webhook: POST of JSON {"id","event","time","hub","title","text", and what it is about}, to an
 * address that [allow] webhook allows, without following redirects.  Signed:
 *
 *   Sendense-Timestamp: seconds since 1970
 *   Sendense-Signature: sha256=HEX   HMAC-SHA256(secret, timestamp "." body)
 *
 * Thread rule: any thread.
 */
#ifndef SENDENSE_HUB_NOTIFY_H
#define SENDENSE_HUB_NOTIFY_H

#include "catalogue.h"
#include "config.h"

struct notify;

struct notify_options {
	struct state *state; /* lent */
	/* The configuration that counts now. */
	const struct hub_config *(*config)(void *context);
	/* Seconds since 1970; NULL: the system's clock. */
	int64_t (*now)(void *context);
	void *context;
};

/* Reads what is still to be delivered, and begins. */
struct notify *notify_start(const struct notify_options *options, struct err *err);
/* Within a few seconds; what was not delivered stays in the state.  NULL is harmless. */
void notify_stop(struct notify *notify);

struct notice {
	const char *event; /* "failed", "recovered", "alarm", "report" */
	const char *title; /* one line */
	const char *text; /* for people, may have lines */
	const json_t *about; /* members that are added to the webhook's body; NULL: none */
};
/* Kept when it returns 0.  Without webhook and mail in the configuration nothing happens. */
int notify_post(struct notify *notify, const struct notice *notice, struct err *err);

/* The clock was moved, or the configuration is another one: what waits is looked at now. */
void notify_wake(struct notify *notify);

struct notify_figures {
	unsigned nr_pending;
	uint64_t nr_webhooks, nr_mails; /* delivered */
	uint64_t nr_webhook_failures, nr_mail_failures; /* tries that failed */
	uint64_t nr_given_up;
};
void notify_figures(struct notify *notify, struct notify_figures *figures);

#endif
