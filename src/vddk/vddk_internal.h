/*
 * Inside of vddk.
 *
 *   vddk_folder    where the library and the helper are
 *   vddk_request   the options as the OPEN message
 *   vddk_helper    the helper process: started, spoken to, ended
 *   vddk_engine    the thread that owns the helper: messages, slots, deadlines
 *   vddk_answer    what is made of the helper's messages
 *   vddk_map       allocated areas
 *   vddk           the block: opening, closing, lanes, blocking calls
 *
 * All requests of all lanes go through one queue to nr_slots slots.  The engine's thread takes
 * the answers, copies what was read, and rings the lane's eventfd.
 *
 *   from      to        when
 *   OPENING   READY     the helper has opened the disk
 *             FAILED    it has not, in time or at all
 *             ENDING    the opener gave up
 *   READY     FAILED    the helper ended, broke the rules, or let a call run out of time
 *             ENDING    the block is closed
 *   FAILED    ENDING    the block is closed
 *
 * vddk_engine_set_state() is the one place where it changes, under the mutex.
 */
#ifndef SENDENSE_VDDK_INTERNAL_H
#define SENDENSE_VDDK_INTERNAL_H

#include "vddk.h"
#include "vddk_wire.h"

#include <sys/types.h>

#define VDDK_OUTPUT_BYTES 1024

/* --- folder ------------------------------------------------------------------- */

/* The folder that the user named, or that is found; without a lib64 at its end. */
int vddk_folder_choose(const char *named, char path[VDDK_PATH_BYTES], struct err *err);
int vddk_folder_helper(const char *named, char path[VDDK_PATH_BYTES], struct err *err);

/* --- request ------------------------------------------------------------------- */

/* What the helper is to do: the OPEN message with its texts. */
struct vddk_request {
	struct vddk_message head;
	char text[VDDK_TEXT_BYTES];
};

int vddk_request_fill(struct vddk_request *request, const struct vddk_options *options,
	const char *folder, struct err *err);
int vddk_request_fill_probe(struct vddk_request *request, const char *folder, struct err *err);

/* --- helper -------------------------------------------------------------------- */

struct vddk_helper {
	pid_t pid; /* 0: none */
	int pidfd;
	int socket;
	int output; /* what it wrote to stdout and stderr */
	int memory_fd;
	uint8_t *memory; /* nr_slots slots */
	size_t memory_bytes;
	char said[VDDK_OUTPUT_BYTES]; /* the last of its output */
	size_t nr_said;
	bool said_more; /* before that */
};

void vddk_helper_init(struct vddk_helper *helper);

/* To be called in the thread that lives as long as the helper shall: when that thread ends,
 * the helper takes it for the end of its parent. */
int vddk_helper_start(struct vddk_helper *helper, const char *program, const char *folder,
	unsigned nr_slots, struct err *err);
/* Never blocks: so few messages are under way that they fit. */
int vddk_helper_send(struct vddk_helper *helper, const struct vddk_message *message,
	const char *text, struct err *err);
/* 1: a message, its text with a zero behind it; 0: none now; -1: the socket is at its end, or
 * what came is no message (ERR_PROTOCOL). */
int vddk_helper_receive(struct vddk_helper *helper, struct vddk_message *message,
	char text[VDDK_TEXT_BYTES], struct err *err);
void vddk_helper_drain_output(struct vddk_helper *helper);
/* Waits for its end until then, and kills it when that has passed.  how: "was killed by signal
 * 9", ...; false: it ended with status 0. */
bool vddk_helper_end(struct vddk_helper *helper, struct deadline until, char *how, size_t room);
void vddk_helper_fini(struct vddk_helper *helper);

/* --- engine -------------------------------------------------------------------- */

struct vddk;
struct vddk_lane;

/* A request of a lane's on its way. */
struct vddk_work {
	struct vddk_lane *lane; /* NULL, and io too: its lane was closed, nobody waits for it */
	struct block_io *io; /* its err: the first of its parts' */
	uint64_t next_offset, left; /* READ: not asked for yet */
	unsigned nr_out; /* slots that it has */
	struct vddk_work *next;
};

struct vddk_slot {
	bool busy;
	struct vddk_work *work; /* NULL: the map's */
	uint64_t tag;
	uint64_t sector, count;
	uint64_t skip, length; /* the part of it that the request wants, in bytes */
	uint8_t *to;
	struct deadline until;
};

struct vddk_work_list {
	struct vddk_work *first, *last;
};

/* What is known of the allocated areas: one stretch. */
struct vddk_map {
	uint64_t from, to; /* in bytes */
	struct block_extent *extents;
	size_t nr;
	struct vddk_work_list waiting;
	bool asked; /* a slot is out for it */
	uint64_t asked_from, asked_to;
	bool useless; /* the library failed to tell: all is data */
};

enum vddk_state { VDDK_IS_OPENING, VDDK_IS_READY, VDDK_IS_FAILED, VDDK_IS_ENDING, VDDK_NR_STATES };

struct vddk_lane {
	struct block_lane head;
	struct vddk *vddk;
	int ring; /* eventfd */
	struct vddk_work_list finished;
};

struct vddk {
	struct block block;
	/* of the options */
	char program[VDDK_PATH_BYTES], folder[VDDK_PATH_BYTES];
	char *disk; /* "[ds] a/a.vmdk of vm-57 at HOST" */
	char *secrets[2]; /* to be cut out of what the helper wrote; NULL: none; wiped at the end */
	uint64_t expected_bytes;
	uint32_t open_ms, call_ms, close_ms;
	bool want_allocated, probe;
	struct cancel *cancel;
	void (*log)(void *context, enum log_level level, const char *line);
	void *log_context;
	struct vddk_request *request; /* until it is sent */

	pthread_t thread;
	bool has_thread;
	int wake; /* eventfd: look at the state, and at the queue */
	int opened; /* eventfd: the state is no longer OPENING */

	pthread_mutex_t mutex; /* over all that follows, and over the lanes' lists */
	enum vddk_state state;
	enum vddk_stage stage;
	struct deadline open_until;
	struct err err; /* why it is FAILED */
	bool kill_now; /* FAILED: the helper is not to be trusted with its own end */
	struct vddk_facts facts;
	char loaded[VDDK_PATH_BYTES]; /* probe: the file */
	char last_warning[512];
	struct vddk_helper helper;
	struct vddk_slot slots[VDDK_SLOTS_MAX];
	unsigned nr_slots;
	uint64_t next_tag;
	struct vddk_work_list queue; /* those with something left to ask for */
	struct vddk_map map;
};

void *vddk_engine_main(void *arg);
/* All with the mutex held. */
void vddk_engine_set_state(struct vddk *vddk, enum vddk_state state);
/* The block is of no more use: everything in flight fails with err. */
void vddk_engine_fail(struct vddk *vddk, const struct err *err);
/* Sends what can be sent. */
void vddk_engine_pump(struct vddk *vddk);
void vddk_engine_finish(struct vddk *vddk, struct vddk_work *work);
/* A free slot, or NULL. */
struct vddk_slot *vddk_engine_slot(struct vddk *vddk);
void vddk_engine_ask(struct vddk *vddk, struct vddk_slot *slot, enum vddk_message_type type);

void vddk_work_append(struct vddk_work_list *list, struct vddk_work *work);
struct vddk_work *vddk_work_take(struct vddk_work_list *list);
/* What that lane has in the list is freed: its requests are forgotten. */
void vddk_work_forget(struct vddk_work_list *list, const struct vddk_lane *lane);

/* --- answer -------------------------------------------------------------------- */

/* Takes one message; false when it breaks the protocol.  With the mutex held. */
bool vddk_answer_take(struct vddk *vddk, const struct vddk_message *message, char *text);
void vddk_answer_log(struct vddk *vddk, const struct vddk_message *message, const char *text);
/* Puts behind err what may help: the library's last warning, and what is often the reason. */
void vddk_answer_explain(const struct vddk *vddk, struct err *err);
/* Cuts secrets and control characters out.  The text never grows.  begins: it is the whole text,
 * else what may be the rest of a secret goes as well. */
void vddk_answer_clean(const struct vddk *vddk, char *text, bool begins);
/* What the helper is doing, for messages: "while opening the disk". */
const char *vddk_answer_stage_text(enum vddk_stage stage);

/* --- map ----------------------------------------------------------------------- */

/* With the mutex held. */
void vddk_map_submit(struct vddk *vddk, struct vddk_work *work);
void vddk_map_pump(struct vddk *vddk);
bool vddk_map_answer(struct vddk *vddk, struct vddk_slot *slot, uint64_t code, uint64_t count);
void vddk_map_fini(struct vddk_map *map);

#endif
