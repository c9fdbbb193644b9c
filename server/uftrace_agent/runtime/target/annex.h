/* annex.h - the layout of what the agent leaves in a target.
 *
 * The one source of these numbers: the assembler, the C of both runtimes and
 * the agent (runtime/layout.py reads this file) take them from here. Only
 * plain `#define UF_NAME number` lines and nothing derived, so that all three
 * can read it.
 */
#ifndef UF_ANNEX_H
#define UF_ANNEX_H

#define UF_ANNEX_VERSION 6

/* Parameter block at the start of every code region: constants of the session. */
#define UF_PARAM_CONTROL 0
#define UF_PARAM_DIRECTORY 8
#define UF_PARAM_SLOTS 16
#define UF_PARAM_THUNKS 24
/* Offset of the tid from the thread pointer; negative where there is none. On AArch64
 * what a thread has of its own lies below that: there it counts from so far below. */
#define UF_PARAM_TID_OFFSET 32
#define UF_A64_TID_BIAS 65536
#define UF_PARAM_RING_HEADERS 40
#define UF_PARAM_RING_DATA 48
#define UF_PARAM_RING_BYTES 56
#define UF_PARAM_RING_COUNT 64
/* Offset of the FDE behind its CIE in the unwind block. */
#define UF_PARAM_FDE_OFFSET 72
#define UF_PARAM_TRAPS 80
#define UF_PARAM_BYTES 128

/* Control word (a page with MADV_WIPEONFORK): 0 = every probe is a no-op. */
#define UF_CONTROL_ENABLED 0

/* Directory of threads: open addressing by thread pointer. */
#define UF_DIRECTORY_BITS 11
#define UF_DIRECTORY_PROBES 16
#define UF_THREAD_BYTES 64
#define UF_THREAD_KEY 0
#define UF_THREAD_TID 8
#define UF_THREAD_HEAD 16
#define UF_THREAD_LIMIT 24
#define UF_THREAD_MASK 32
#define UF_THREAD_BASE 40
#define UF_THREAD_HEADER 48
#define UF_THREAD_SIZE 56

/* Ring header, in memory shared with the agent. Owner is {tid, state} in one
 * 64-bit word, so that every change of hands is one compare-and-swap. */
#define UF_RING_HEADER_BYTES 128
#define UF_RING_OWNER 0
#define UF_RING_LOST 8
#define UF_RING_SHARED_HEAD 16
#define UF_RING_THREAD 24
/* The low words of the latest records that were lost, a sample of eight: whose they
 * are is known even where nobody reads the ring. */
#define UF_RING_LOST_WORDS 32
#define UF_RING_TAIL 64
/* The agent's own counts, kept here for the agent after it: records taken, and
 * given up as holes. */
#define UF_RING_TAKEN 72
#define UF_RING_HOLES 80
#define UF_RING_FREE 0
#define UF_RING_USED 1
#define UF_RING_RETIRED 2
/* Bytes kept free for probes that signal handlers stack on top of a probe
 * that has passed its check for room. */
#define UF_RING_SLACK 4096

/* Records: u64 ticks, u64 word; see the protocol's ThreadRecords. Bit 0 is
 * the phase: 1 on even laps of the ring, 0 on odd ones. */
#define UF_RECORD_BYTES 16
#define UF_KIND_ENTRY 1
#define UF_KIND_EXIT 2
#define UF_KIND_ENTRY_ONLY 3
#define UF_KIND_TAIL_ENTRY 4
/* "The record after this is of strand (word >> 28)": of the goroutine whose g lies at
 * so many times 16. The two are reserved together. */
#define UF_KIND_STRAND 6
#define UF_STRAND_SHIFT 4
/* struct g of Go: stack.lo, stack.hi, ... (runtime/runtime2.go; the assembler of every
 * Go release relies on these two). */
#define UF_G_STACK_HI 8
/* In rings only: "the records after this are of thread (word >> 28)". */
#define UF_KIND_THREAD 7
#define UF_KIND_SHIFT 1
#define UF_ID_SHIFT 4
#define UF_KEY_SHIFT 28
#define UF_ID_MAX 16777215

/* Return thunks: thunk i is `call *slot i's resume`; `push $i`; `jmp uf_exit`, and
 * slot i {return address, id word, resume}. The call is how a traced function is
 * entered, so that the processor predicts its return into the thunk, and the
 * exit's into the caller. Sites that are no function's first instruction are not
 * entered that way: their slots' resume is 0. */
#define UF_THUNK_RETURN 6
#define UF_SLOT_ADDRESS 0
#define UF_SLOT_WORD 8
#define UF_SLOT_RESUME 16
/* In a stub, behind its call of the probe: where it goes on without a thunk, and
 * the displaced instruction. */
#define UF_STUB_PLAIN 13
#define UF_STUB_RESUME 22
/* On AArch64 thunk i is `ldr x30, [sp], #16; blr x30; adr x30, .; b uf_exit`: where the
 * function goes on is on the stack, and no slot has a resume. A stub's frame is so long,
 * the word for the thunk at its end. */
#define UF_A64_THUNK_RETURN 8
#define UF_A64_STUB_FRAME 80
#define UF_THUNK_BITS 16
#define UF_THUNK_BYTES 16
#define UF_SLOT_BYTES 32
#define UF_SLOT_PROBES 8

/* Table of trapped sites: header, then entries by rising address. While any of
 * them may hold a trap, the handler of SIGTRAP is ours, and the program's own
 * action waits here (each 32 bytes, as rt_sigaction takes them). */
#define UF_TRAPS_INSTALLED 0
#define UF_TRAPS_COUNT 8
#define UF_TRAPS_OURS 16
#define UF_TRAPS_PROGRAMS 48
#define UF_TRAPS_ANSWER 80
/* First and last address (and one) of the handler's code. */
#define UF_TRAPS_HANDLER 112
#define UF_TRAPS_ENTRIES 128
#define UF_TRAP_ADDRESS 0
#define UF_TRAP_TARGET 8
#define UF_TRAP_RETURN 16
#define UF_TRAP_BYTES 24
#define UF_TRAP_CAPACITY 65536
#define UF_SIGACTION_BYTES 32

/* Table of system calls that a thread makes for the agent in one go: a word that
 * counts down the calls left, then {number, six arguments, result} each. */
#define UF_CALLS_LEFT 0
#define UF_CALLS_ENTRIES 64
#define UF_CALL_BYTES 64
#define UF_CALL_RESULT 56
#define UF_CALLS_CAPACITY 1023

/* Manifest: header, then one entry a site. */
#define UF_MANIFEST_MAGIC 0x31464d6563617266
#define UF_MANIFEST_HEADER_BYTES 8192
#define UF_SITE_BYTES 128

#endif
