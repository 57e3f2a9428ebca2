/* Inside notify: the two ways out. */
#ifndef SENDENSE_HUB_NOTIFY_INTERNAL_H
#define SENDENSE_HUB_NOTIFY_INTERNAL_H

#include "notify.h"

/* The longest that one delivery may take. */
#define NOTIFY_WEBHOOK_MS 30000
#define NOTIFY_MAIL_MS 60000

/* body: of the notice.  id: of the delivery.  At most NOTIFY_WEBHOOK_MS. */
int notify_webhook(const struct hub_config *config, const char *id, const json_t *body, int64_t now,
	const struct cancel *cancel, struct err *err);
/* "sha256=HEX" of a body; out has room for 72. */
int notify_webhook_sign(const char *secret, size_t secret_length, int64_t timestamp,
	const char *body, char out[72], struct err *err);

/* By sendmail -t; at most NOTIFY_MAIL_MS.  The caller's thread has SIGPIPE blocked or ignored. */
int notify_mail(const struct hub_config *config, const json_t *body, int64_t now,
	const struct cancel *cancel, struct err *err);
/* The message as it goes to sendmail; the caller's. */
char *notify_mail_text(
	const struct hub_config *config, const json_t *body, int64_t now, struct err *err);

#endif
