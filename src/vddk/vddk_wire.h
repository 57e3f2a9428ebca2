/*
 * What a vddk block and its helper process say to each other.
 *
 *   sendense                                     sendense-vddk
 *   ────────                                     ─────────────
 *   fd 0 of the helper: a Unix socket, SOCK_SEQPACKET, one message a packet
 *   fd 3 of the helper: a memory file of nr_slots slots of VDDK_SLOT_BYTES each, whose size
 *                       is sealed; the library reads straight into it
 *
 *   OPEN ─────────────────────────────────────▶  loads, initialises, connects, opens
 *        ◀───────────────────────────── STAGE    before each step, so that a step that
 *        ◀──────────────────────────── OPENED    never ends has a name
 *   READ slot tag sector count ───────────────▶
 *   READ …                                       several are in flight
 *        ◀─────────────── DONE slot tag code     in any order; the bytes lie in the slot
 *   MAP  slot tag sector count ───────────────▶
 *        ◀───────── DONE slot tag code count     count areas lie in the slot (vddk_area)
 *   CLOSE ────────────────────────────────────▶  closes, disconnects, ends the access
 *        ◀────────────────────────────── EOF     and the process ends
 *        ◀────────────────────────────── LOG     at any time: a line of the library
 *        ◀─────────────────────────── FAILED     OPEN did not succeed; EOF follows
 *
 * A message is the struct below, then text_bytes bytes of text without a terminating zero
 * (OPEN: the texts in the order of enum vddk_text, each with one).  Both ends are of the
 * same build, on the same machine: native integers.  The helper runs somebody else's
 * code, so its parent believes nothing: slots, tags, lengths and areas are checked.
 */
#ifndef SENDENSE_VDDK_WIRE_H
#define SENDENSE_VDDK_WIRE_H

#include <stdint.h>

#define VDDK_WIRE_VERSION 1u
#define VDDK_SECTOR 512u
#define VDDK_SLOT_BYTES (1u << 20)
#define VDDK_SLOTS_MAX 32u
#define VDDK_TEXT_BYTES 8192u
#define VDDK_MEMORY_FD 3
/* The finest that the library maps, and how much of the disk one MAP may ask about: also
 * when every other chunk is stored, the areas fit a slot. */
#define VDDK_CHUNK_SECTORS 128u
#define VDDK_MAP_SECTORS (8u << 20)

enum vddk_message_type {
	/* to the helper */
	VDDK_OPEN = 1, /* tag: wire version, slot: how many slots, sector: port, count: port of
			  NFC, flags: below, code: the library's open flags */
	VDDK_READ,
	VDDK_MAP,
	VDDK_CLOSE,
	/* from it */
	VDDK_STAGE, /* slot: enum vddk_stage */
	VDDK_OPENED, /* count: sectors of the disk, slot: major version, flags; text: transport mode
		      */
	VDDK_DONE, /* code: the library's, 0: done; text: what it means */
	VDDK_LOG, /* slot: enum vddk_loudness, count: lines lost before it */
	VDDK_FAILED, /* slot: the stage, code: the library's or 0; text: why */
};

/* Flags of OPEN and of OPENED. */
#define VDDK_FLAG_PROBE 1u /* OPEN: load the library, and no more */
#define VDDK_FLAG_ACCESS 2u /* OPEN: hold the machine's migration off */
#define VDDK_FLAG_ALLOCATED 4u /* OPENED: MAP is there */
#define VDDK_FLAG_ASYNC 8u /* OPENED: reads run beside each other */

enum vddk_loudness { VDDK_LOUD_INFO, VDDK_LOUD_WARNING, VDDK_LOUD_PANIC };

enum vddk_stage {
	VDDK_STAGE_START, /* of the process */
	VDDK_STAGE_LOAD, /* the library */
	VDDK_STAGE_SYMBOLS, /* its entry points */
	VDDK_STAGE_INIT,
	VDDK_STAGE_CONNECT,
	VDDK_STAGE_OPEN,
	VDDK_STAGE_INFO,
	VDDK_STAGE_READY,
	VDDK_NR_STAGES,
};

/* Texts of OPEN; "" where there is none. */
enum vddk_text {
	VDDK_TEXT_FOLDER,
	VDDK_TEXT_SERVER,
	VDDK_TEXT_THUMBPRINT,
	VDDK_TEXT_USER,
	VDDK_TEXT_PASSWORD,
	VDDK_TEXT_COOKIE,
	VDDK_TEXT_VM,
	VDDK_TEXT_SNAPSHOT,
	VDDK_TEXT_PATH,
	VDDK_TEXT_MODES,
	VDDK_TEXT_CONFIG_FILE, /* the user's */
	VDDK_TEXT_CONFIG, /* or the content of one */
	VDDK_NR_TEXTS,
};

struct vddk_message {
	uint32_t type;
	uint32_t slot;
	uint64_t tag;
	uint64_t sector, count;
	uint64_t code;
	uint32_t flags;
	uint32_t text_bytes;
};

/* Stored bytes of the disk, in sectors. */
struct vddk_area {
	uint64_t sector, count;
};

#endif
