/* A signed POST; see notify.h. */
#include "notify_internal.h"

#include "file.h"
#include "job.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define CONNECT_MS 10000
#define SECRET_MOST 4096
#define MAC_BYTES 32

int notify_webhook_sign(const char *secret, size_t secret_length, int64_t timestamp,
	const char *body, char out[72], struct err *err)
{
	char stamp[32];
	uint8_t mac[MAC_BYTES];
	gnutls_hmac_hd_t hmac;
	int rc = gnutls_hmac_init(&hmac, GNUTLS_MAC_SHA256, secret, secret_length);
	if (rc == 0) {
		int length = snprintf(stamp, sizeof stamp, "%" PRId64 ".", timestamp);
		rc = gnutls_hmac(hmac, stamp, (size_t)length);
		if (rc == 0)
			rc = gnutls_hmac(hmac, body, strlen(body));
		gnutls_hmac_deinit(hmac, mac);
	}
	if (rc != 0)
		return err_set(err, ERR_IO, "cannot sign a webhook: %s", gnutls_strerror(rc));
	char hex[2 * MAC_BYTES + 1];
	digest_hex(mac, sizeof mac, hex);
	snprintf(out, 72, "sha256=%s", hex);
	return 0;
}

/* What the receiver answers is of no interest, but it must not be without end. */
static size_t throw_away(char *bytes, size_t size, size_t nr, void *context)
{
	size_t *left = context;
	(void)bytes;
	if (size * nr > *left)
		return 0;
	*left -= size * nr;
	return size * nr;
}

static int look_for_cancel(void *context, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
	(void)a, (void)b, (void)c, (void)d;
	return cancel_requested(context);
}

static struct curl_slist *make_headers(
	const json_t *body, const char *id, int64_t now, const char *signature)
{
	struct curl_slist *headers = NULL;
	const char *const event = json_string_value(json_object_get(body, "event"));
	char lines[5][160];
	snprintf(lines[0], sizeof lines[0], "Content-Type: application/json");
	snprintf(lines[1], sizeof lines[1], "Sendense-Event: %s", event);
	snprintf(lines[2], sizeof lines[2], "Sendense-Delivery: %s", id);
	snprintf(lines[3], sizeof lines[3], "Sendense-Timestamp: %" PRId64, now);
	snprintf(lines[4], sizeof lines[4], "Sendense-Signature: %s", signature);
	for (size_t i = 0; i < ARRAY_LENGTH(lines); i++) {
		struct curl_slist *more = curl_slist_append(headers, lines[i]);
		if (!more) {
			curl_slist_free_all(headers);
			return NULL;
		}
		headers = more;
	}
	return headers;
}

static int send_it(const char *url, const char *body, struct curl_slist *headers,
	const struct cancel *cancel, struct err *err)
{
	char why[CURL_ERROR_SIZE] = "";
	long status = 0;
	size_t left = 1 << 20;
	CURL *curl = curl_easy_init();
	if (!curl)
		return err_errno(err, ENOMEM, "cannot call the webhook");
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(curl, CURLOPT_PROXY, "");
	curl_easy_setopt(curl, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_USERAGENT, "sendense");
	curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
	curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)NOTIFY_WEBHOOK_MS);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, throw_away);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, &left);
	curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, look_for_cancel);
	curl_easy_setopt(curl, CURLOPT_XFERINFODATA, (void *)cancel);
	curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
	curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, why);
	CURLcode rc = curl_easy_perform(curl);
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	curl_easy_cleanup(curl);
	if (status >= 200 && status < 300)
		return 0;
	if (status != 0)
		return err_set(err, ERR_REFUSED, "webhook %s: it answered with status %ld%s", url,
			status, status >= 300 && status < 400 ? ", which is not followed" : "");
	return err_set(err, ERR_DISCONNECTED, "webhook %s: %s", url,
		why[0] ? why : curl_easy_strerror(rc));
}

static int sign(const struct hub_config *config, const char *body, int64_t now, char out[72],
	struct err *err)
{
	char *secret = NULL;
	size_t length;
	if (file_load(AT_FDCWD, config->webhook_secret_file, SECRET_MOST, &secret, &length, err) <
		0)
		return err_context(err, "the webhook's secret");
	while (length > 0 && (secret[length - 1] == '\n' || secret[length - 1] == '\r'))
		length--;
	int rc = length > 0 ? notify_webhook_sign(secret, length, now, body, out, err)
			    : err_set(err, ERR_USAGE, "the webhook's secret in %s is empty",
				      config->webhook_secret_file);
	explicit_bzero(secret, length);
	free(secret);
	return rc;
}

int notify_webhook(const struct hub_config *config, const char *id, const json_t *body, int64_t now,
	const struct cancel *cancel, struct err *err)
{
	char url[ALLOW_NAME_BYTES], signature[72];
	char *AUTO_FREE text = NULL;
	if (!config->webhook)
		return err_set(err, ERR_USAGE, "no webhook is configured any more");
	if (allow_check((const char *const *)config->allow_webhooks, ALLOW_WEBHOOK, config->webhook,
		    url, err) < 0)
		return -1;
	json_t *with_id = json_pack("{s:s}", "id", id);
	if (with_id)
		json_object_update_missing(with_id, (json_t *)body);
	text = json_dumps(with_id, JSON_COMPACT);
	json_decref(with_id);
	if (!text)
		return err_errno(err, ENOMEM, "cannot call the webhook");
	if (sign(config, text, now, signature, err) < 0)
		return -1;
	struct curl_slist *headers = make_headers(body, id, now, signature);
	if (!headers)
		return err_errno(err, ENOMEM, "cannot call the webhook");
	int rc = send_it(url, text, headers, cancel, err);
	curl_slist_free_all(headers);
	return rc;
}
