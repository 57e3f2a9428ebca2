/*
 * sendense tunnel run: ssh from the node to the hub, looked after.
 * sendense tunnel sshd-config: what the hub's sshd needs for it, from the same file.
 *
 * A reverse forward is proven from end to end as well: ssh also leads a port of this machine,
 * picked by the kernel, to where the server listens, and what is asked there comes back
 * through the tunnel a second time.
 */
#include "commands.h"
#include "nbd.h"
#include "rest.h"
#include "transport.h"
#include "tunnel_config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

struct tunnel_values {
	const char *config, *part;
};

struct prover {
	struct cli *cli;
	const struct tunnel_section *section;
	char at[TUNNEL_ENDPOINT_BYTES + 16]; /* that answers, on this side */
};

struct setup {
	struct tunnel_config *config;
	struct tunnel_forward *forwards;
	size_t nr_forwards;
	char (*texts)[2][TUNNEL_ENDPOINT_BYTES + 16];
	struct prover *provers; /* one a section */
	size_t nr_provers;
};

/* --- proving ------------------------------------------------------------------------------- */

static int prove_nbd(const struct prover *p, struct deadline until, struct err *err)
{
	char uri[128];
	struct err why = ERR_INIT;
	snprintf(uri, sizeof uri, "%s://%s/", p->section->service == TUNNEL_NBDS ? "nbds" : "nbd",
		p->at);
	if (nbd_probe(uri, until, &why) == 0)
		return 0;
	/* A server that says no has answered: there is no export without a name, or it demands
	 * TLS.  That the connection was refused, or ended, is no answer. */
	return why.sys_errno == ENOENT || why.sys_errno == ENOTSUP || why.sys_errno == EACCES
		       ? 0
		       : err_copy(err, &why);
}

static int prove_rest(const struct prover *p, struct deadline until, struct err *err)
{
	char url[128];
	unsigned left_ms = (unsigned)deadline_left_ms(until) + 1;
	snprintf(url, sizeof url, "%s://%s", p->section->ca_file ? "https" : "http", p->at);
	struct rest_client_options options = {
		.url = url,
		.ca_file = p->section->ca_file,
		.connect_timeout_ms = left_ms,
		.silence_timeout_ms = left_ms,
		.retry_ms = 1,
		.cancel = p->cli->cancel,
	};
	struct rest_client *client = rest_client_new(&options, err);
	if (!client)
		return -1;
	json_t *reply = NULL;
	int rc = rest_call(client, "GET", "/api/v1/health", NULL, &reply, err);
	json_decref(reply);
	rest_client_free(client);
	return rc;
}

static int prove(
	void *context, const struct tunnel_forward *forward, struct deadline until, struct err *err)
{
	const struct prover *p = context;
	(void)forward;
	return p->section->service == TUNNEL_REST ? prove_rest(p, until, err)
						  : prove_nbd(p, until, err);
}

/* --- forwards ------------------------------------------------------------------------------- */

static unsigned nr_ports(const struct tunnel_section *section)
{
	return section->listen.last - section->listen.first + 1;
}

static bool is_proven_back(const struct tunnel_section *section)
{
	return section->reverse && section->service != TUNNEL_NONE;
}

static struct tunnel_forward *add_forward(struct setup *s, const struct tunnel_section *section,
	const struct tunnel_endpoint *listen, const struct tunnel_endpoint *to, unsigned i)
{
	struct tunnel_forward *f = &s->forwards[s->nr_forwards];
	char(*texts)[TUNNEL_ENDPOINT_BYTES + 16] = s->texts[s->nr_forwards++];
	tunnel_endpoint_text(listen, listen->first + i, texts[0]);
	tunnel_endpoint_text(to, to->first + i, texts[1]);
	*f = (struct tunnel_forward){.name = section->name, .listen = texts[0], .to = texts[1]};
	return f;
}

/* On 127.0.0.1, which is in the certificates. */
static int pick_port(struct tunnel_endpoint *out, struct err *err)
{
	struct listener listener;
	if (transport_listen_tcp(&listener, "127.0.0.1", 0, err) < 0)
		return -1;
	*out = (struct tunnel_endpoint){
		.address = "127.0.0.1", .first = listener.port, .last = listener.port};
	listener_close(&listener);
	return 0;
}

static int fill_section(
	struct setup *s, struct cli *cli, const struct tunnel_section *section, struct err *err)
{
	struct prover *p = &s->provers[s->nr_provers++];
	struct tunnel_forward *last;
	struct tunnel_endpoint here = section->listen;
	unsigned i = 0;
	do {
		last = add_forward(s, section, &section->listen, &section->to, i);
		last->reverse = section->reverse;
	} while (++i < nr_ports(section));
	if (is_proven_back(section)) {
		if (pick_port(&here, err) < 0)
			return -1;
		last = add_forward(s, section, &here, &section->listen, 0);
	}
	*p = (struct prover){.cli = cli, .section = section};
	tunnel_endpoint_text(&here, here.first, p->at);
	if (section->service == TUNNEL_NONE)
		return 0;
	last->prove = prove;
	last->context = p;
	return 0;
}

static size_t count_ports(const struct tunnel_section *sections, size_t nr_sections)
{
	size_t nr = 0;
	for (size_t i = 0; i < nr_sections; i++)
		nr += nr_ports(&sections[i]) + 1;
	return nr;
}

static int fill_sections(struct setup *s, struct cli *cli, const struct tunnel_section *sections,
	size_t nr, struct err *err)
{
	for (size_t i = 0; i < nr; i++)
		if (fill_section(s, cli, &sections[i], err) < 0)
			return -1;
	return 0;
}

static int fill(struct setup *s, struct cli *cli, struct err *err)
{
	const struct tunnel_config *c = s->config;
	size_t nr =
		count_ports(c->forwards, c->nr_forwards) + count_ports(c->reverses, c->nr_reverses);
	assert(nr > 0);
	s->forwards = calloc(nr, sizeof *s->forwards);
	s->texts = calloc(nr, sizeof *s->texts);
	s->provers = calloc(c->nr_forwards + c->nr_reverses, sizeof *s->provers);
	if (!s->forwards || !s->texts || !s->provers)
		return err_set(err, ERR_NO_MEMORY, "cannot make a tunnel: out of memory");
	if (fill_sections(s, cli, c->forwards, c->nr_forwards, err) < 0)
		return -1;
	return fill_sections(s, cli, c->reverses, c->nr_reverses, err);
}

/* clear() is the caller's, also when it fails. */
static int set_up(struct setup *s, struct cli *cli, const struct tunnel_values *v, struct err *err)
{
	if (!v->config)
		return err_set(err, ERR_USAGE, "which tunnel? (--config FILE)");
	s->config = tunnel_config_load(v->config, err);
	return s->config ? fill(s, cli, err) : -1;
}

static void clear(struct setup *s)
{
	free(s->forwards);
	free(s->texts);
	free(s->provers);
	tunnel_config_free(s->config);
}

/* --- run ------------------------------------------------------------------------------------- */

static void tell_change(void *context, bool up, const char *text)
{
	struct cli *cli = context;
	struct err err = ERR_INIT;
	int rc = 0;
	if (cli->common.json) {
		rc = cli_print_json(
			json_pack("{s:b, s:s}", "up", up, "reason", up ? "" : text), &err);
	} else if (up) {
		printf("the tunnel is up\n");
		rc = cli_flush(&err);
	}
	if (rc < 0)
		log_warning("%s", err.text);
}

static int run_tunnel(struct setup *s, struct cli *cli, struct err *err)
{
	struct tunnel_options options = {
		.host = s->config->host,
		.user = s->config->user,
		.port = s->config->port,
		.identity_file = s->config->identity,
		.known_hosts_file = s->config->known_hosts,
		.forwards = s->forwards,
		.nr_forwards = s->nr_forwards,
		.look_ms = 1000 * (unsigned)s->config->look_s,
		.pause_most_ms = 1000 * (unsigned)s->config->pause_most_s,
		.changed = tell_change,
		.context = cli,
		.cancel = cli->cancel,
	};
	int rc = tunnel_run(&options, err);
	/* To be told to end is how it ends. */
	if (rc < 0 && err->code == ERR_CANCELLED && cli_stop_signal() != 0) {
		err_clear(err);
		return 0;
	}
	return rc;
}

static int run(struct cli *cli, const void *values, struct err *err)
{
	const struct tunnel_values *v = values;
	struct setup s = {.nr_forwards = 0};
	int rc = set_up(&s, cli, v, err);
	if (rc == 0)
		rc = run_tunnel(&s, cli, err);
	clear(&s);
	return rc < 0 ? err_context(err, "cannot run the tunnel") : 0;
}

/* --- sshd-config ----------------------------------------------------------------------------- */

/* Calls put for each address that this tunnel needs at the server: to connect to, or to
 * listen at. */
static void each_place(const struct setup *s, bool listen,
	void (*put)(const char *place, const char *separator), const char *separator)
{
	for (size_t i = 0; i < s->nr_forwards; i++) {
		const struct tunnel_forward *f = &s->forwards[i];
		if (f->reverse == listen)
			put(listen ? f->listen : f->to, separator);
	}
}

static void put_word(const char *place, const char *separator)
{
	(void)separator;
	printf(" %s", place);
}

static void put_option(const char *place, const char *separator)
{
	printf(",%s=\"%s\"", separator, place);
}

static bool has_reverse(const struct setup *s)
{
	for (size_t i = 0; i < s->nr_forwards; i++)
		if (s->forwards[i].reverse)
			return true;
	return false;
}

static void print_user(const struct setup *s)
{
	/* Not locked ("!"), which sshd without PAM refuses, but with no password that fits. */
	printf("useradd --system --no-create-home --home-dir /nonexistent "
	       "--shell /usr/sbin/nologin --password '*' %s\n"
	       "install -d -m 755 /etc/ssh/authorized_keys\n",
		s->config->user);
}

static void print_match(const struct setup *s)
{
	printf("Match User %s\n"
	       "\tAuthenticationMethods publickey\n"
	       "\tAuthorizedKeysFile /etc/ssh/authorized_keys/%%u\n"
	       "\tMaxSessions 0\n"
	       "\tPermitTTY no\n"
	       "\tX11Forwarding no\n"
	       "\tAllowAgentForwarding no\n"
	       "\tAllowStreamLocalForwarding no\n"
	       "\tPermitTunnel no\n"
	       "\tGatewayPorts no\n"
	       "\tClientAliveInterval 15\n"
	       "\tClientAliveCountMax 3\n"
	       "\tAllowTcpForwarding yes\n",
		s->config->user);
	printf("\tPermitOpen");
	each_place(s, false, put_word, NULL);
	printf("\n\tPermitListen");
	if (has_reverse(s))
		each_place(s, true, put_word, NULL);
	else
		printf(" none");
	printf("\n");
}

static int print_key(const struct setup *s, struct err *err)
{
	char path[4200];
	char *AUTO_FREE key = NULL;
	size_t length;
	snprintf(path, sizeof path, "%s.pub", s->config->identity);
	if (file_load(AT_FDCWD, path, 16384, &key, &length, err) < 0)
		return err_hint(err,
			"the node's public key; ssh-keygen -t ed25519 -f %s makes both",
			s->config->identity);
	key[strcspn(key, "\r\n")] = '\0';
	/* A private key has no business in a line that is copied about. */
	if (strncmp(key, "ssh-", 4) != 0 && strncmp(key, "ecdsa-", 6) != 0 &&
		strncmp(key, "sk-", 3) != 0)
		return err_set(err, ERR_FORMAT, "%s is no public key of OpenSSH's", path);
	/* Not even where the Match block is missing. */
	printf("restrict,port-forwarding,command=\"/usr/sbin/nologin\"");
	each_place(s, false, put_option, "permitopen");
	each_place(s, true, put_option, "permitlisten");
	printf(" %s\n", key);
	return 0;
}

static int print_parts(const struct setup *s, const char *part, struct err *err)
{
	bool all = !part || strcmp(part, "all") == 0;
	if (all)
		printf("# 1. The user, on the hub's machine (it can do nothing but forward):\n");
	if (all || strcmp(part, "user") == 0)
		print_user(s);
	if (all)
		printf("\n# 2. /etc/ssh/sshd_config.d/sendense-%s.conf:\n", s->config->user);
	if (all || strcmp(part, "match") == 0)
		print_match(s);
	if (all)
		printf("\n# 3. A line of /etc/ssh/authorized_keys/%s (owned by root, 0644):\n",
			s->config->user);
	if ((all || strcmp(part, "key") == 0) && print_key(s, err) < 0)
		return -1;
	if (all)
		printf("\n# 4. sshd -t && systemctl reload ssh\n");
	return cli_flush(err);
}

static int run_sshd_config(struct cli *cli, const void *values, struct err *err)
{
	const struct tunnel_values *v = values;
	struct setup s = {.nr_forwards = 0};
	int rc = set_up(&s, cli, v, err);
	if (rc == 0)
		rc = print_parts(&s, v->part, err);
	clear(&s);
	return rc < 0 ? err_context(err, "cannot print what sshd needs") : 0;
}

#define CONFIG_ROW                                                                    \
	{                                                                             \
		.name = "config", .kind = OPTION_TEXT,                                \
		.offset = offsetof(struct tunnel_values, config), .argument = "FILE", \
		.words = WORDS_FILE,                                                  \
		.help = "the tunnel's settings, the same on both sides (required)"    \
	}

static const struct option_spec run_options[] = {
	CONFIG_ROW,
};

const struct command command_tunnel_run = {
	.name = "tunnel run",
	.summary = "Keep an SSH tunnel from this node to the hub",
	.details = "OpenSSH's ssh is started and looked after: it knows the hub by its host key "
		   "alone, each\n"
		   "forward is proven from end to end (an NBD handshake, a call of the API), again "
		   "every\n"
		   "30 seconds, and what is broken is started anew. It stays until SIGTERM.",
	COMMAND_OPTIONS(run_options),
	.common = COMMON_JSON,
	.values_bytes = sizeof(struct tunnel_values),
	.run = run,
};

static const char *const parts[] = {"all", "user", "match", "key", NULL};

static const struct option_spec sshd_options[] = {
	CONFIG_ROW,
	{.name = "part",
		.kind = OPTION_CHOICE,
		.offset = offsetof(struct tunnel_values, part),
		.argument = "all|user|match|key",
		.choices = parts,
		.help = "only the command that makes the user, the Match block, or the line for "
			"the key (default: all)"},
};

const struct command command_tunnel_sshd_config = {
	.name = "tunnel sshd-config",
	.summary = "Print what the hub's sshd needs for a tunnel",
	.details = "A user that can do nothing but forward, the Match block that holds it to the\n"
		   "tunnel's own ports, and the line for its key.",
	COMMAND_OPTIONS(sshd_options),
	.values_bytes = sizeof(struct tunnel_values),
	.run = run_sshd_config,
};
