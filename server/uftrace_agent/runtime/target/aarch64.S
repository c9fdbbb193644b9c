/* aarch64.S - probes, return thunks' common exit and the unwinder's hook.
 *
 * Rules of this file: every register is as before when the probe ends, x16 and x17
 * too (H30-H32: callers may rely on any of them by IPA-RA or by hand-written
 * conventions), and on the fast paths no instruction sets the flags, so that they
 * need no saving; no vector, SVE or SME register is touched; no TLS, no call out
 * (H57). There is no red zone (AAPCS64, "Stack constraints"): the kernel's signal
 * frames are the only ones to write below the stack pointer.
 * Nothing here is relocated: the same bytes run at any address. The memory is mapped
 * without PROT_BTI, so branches into it need no landing pads (ARM ARM, D8.4, "Guarded
 * pages"); branches out of it are direct, or `ret`, which is never checked.
 */
#include "annex.h"

	.section .params,"ax",@progbits

/* ---- parameters: filled by the agent before the region is used ---- */
	.globl	uf_params
	.hidden	uf_params
	.p2align 6
uf_params:
	.skip	UF_PARAM_BYTES, 0
	.globl	uf_unwind_fde
	.hidden	uf_unwind_fde
uf_unwind_fde:
	.skip	256, 0

	.text

/* The stub's frame, from its stack pointer S on; the function's is S + FRAME:
 *	 0 x0, x30	saved by the stub; x30 is the return address
 *	16 x1, x2	by the probe, as all that follows
 *	32 x3, x4
 *	48 x5, x6
 *	64 		where to go on behind a thunk's call (a thunk takes it from here)
 *	72		the key of the frame, where the stub gives it
 */
	.set	FRAME, UF_A64_STUB_FRAME
	.set	RESUME_AT, FRAME - 16
	.set	KEY_AT, FRAME - 8

	.macro	PARAM register, offset
	ldr	\register, uf_params + \offset
	.endm

	.macro	SAVE_ENTRY
	stp	x1, x2, [sp, #16]
	stp	x3, x4, [sp, #32]
	stp	x5, x6, [sp, #48]
	.endm

	.macro	RESTORE_ENTRY
	ldp	x1, x2, [sp, #16]
	ldp	x3, x4, [sp, #32]
	ldp	x5, x6, [sp, #48]
	.endm

/* 0x9E3779B1; see x86_64.S. */
	.macro	GOLDEN register
	movz	\register, #0x79b1
	movk	\register, #0x9e37, lsl #16
	.endm

/* x5 = this thread's directory entry, w6 = GOLDEN; else jumps to \miss. Clobbers x1-x4.
 *
 * Thread pointers are reused, so it is the tid that tells whose entry this is; an
 * entry that nobody has taken holds tid 0. */
	.macro	FIND_THREAD miss
	PARAM	x2, UF_PARAM_TID_OFFSET
	GOLDEN	w6
	tbnz	x2, #63, \miss
	mrs	x1, tpidr_el0
	PARAM	x5, UF_PARAM_DIRECTORY
	sub	x3, x1, #(UF_A64_TID_BIAS >> 12), lsl #12
	mul	w4, w1, w6
	ldr	w2, [x3, x2]
	lsr	w4, w4, #(32 - UF_DIRECTORY_BITS)
	add	x5, x5, x4, lsl #6
	ldp	x3, x4, [x5, #UF_THREAD_KEY]
	eor	x3, x3, x1
	eor	w4, w4, w2
	orr	x3, x3, x4
	cbnz	x3, \miss
	.endm

/* Room for a record? else \full. x5 = thread entry; clobbers x1 x2. */
	.macro	CHECK_ROOM full
	ldp	x1, x2, [x5, #UF_THREAD_HEAD]
	sub	x1, x1, x2
	tbz	x1, #63, \full
	.endm

/* Write the record. x5 = thread entry, x0 = id word, x1 = the stack pointer that names
 * the frame. Only this thread and its own signal handlers use the head; the exclusive
 * pair keeps nested probes apart (H56), since the way back from a handler clears the
 * monitor (ARM ARM, B2.12.3). The release makes sure that who sees the word sees the
 * ticks (x86 orders stores by itself). Clobbers x0-x4. */
	.macro	WRITE_RECORD
	orr	x0, x0, x1, lsl #(UF_KEY_SHIFT - 3)
	add	x2, x5, #UF_THREAD_HEAD
77:	ldxr	x3, [x2]
	add	x4, x3, #UF_RECORD_BYTES
	stxr	w1, x4, [x2]
	cbnz	w1, 77b
	mrs	x1, cntvct_el0
	ldp	x2, x4, [x5, #UF_THREAD_MASK]
	and	x2, x2, x3
	add	x2, x2, x4
	ldr	x4, [x5, #UF_THREAD_SIZE]
	and	x3, x3, x4
	sub	x3, x3, #1		/* bit 63 where it was 0 */
	str	x1, [x2], #8
	orr	x0, x0, x3, lsr #63
	stlr	x0, [x2]		/* last: the phase bit commits the record */
	.endm

/* Around calls of C, which uses general registers alone: what the probe has not saved.
 * x18 belongs to the platform, and the C is compiled to leave it alone. */
	.macro	SAVE_MORE
	stp	x7, x8, [sp, #-112]!
	stp	x9, x10, [sp, #16]
	stp	x11, x12, [sp, #32]
	stp	x13, x14, [sp, #48]
	stp	x15, x16, [sp, #64]
	stp	x17, x30, [sp, #80]
	mrs	x7, nzcv
	str	x7, [sp, #96]
	.endm
	.macro	RESTORE_MORE
	ldr	x7, [sp, #96]
	msr	nzcv, x7
	ldp	x17, x30, [sp, #80]
	ldp	x15, x16, [sp, #64]
	ldp	x13, x14, [sp, #48]
	ldp	x11, x12, [sp, #32]
	ldp	x9, x10, [sp, #16]
	ldp	x7, x8, [sp], #112
	.endm

/* Calls `function` of runtime.c with x0 and x1 as they are; x5 is kept on the stack, and
 * x0 in its low half. */
	.macro	SLOW function
	SAVE_MORE
	stp	x0, x5, [sp, #-16]!
	.ifc	\function, uf_find_thread
	mrs	x0, tpidr_el0
	.endif
	.ifc	\function, uf_refresh_room
	mov	x1, x0
	mov	x0, x5
	.endif
	bl	\function
	mov	x1, x0
	ldp	x0, x5, [sp], #16
	RESTORE_MORE
	.endm

/* \dst = the return address of the traced function. how 0: the site is at its entry,
 * 2: behind its prologue, at the call of _mcount, with a frame record at x29. */
	.macro	LOAD_RETURN how, dst
	.if \how == 2
	ldr	\dst, [x29, #8]
	.else
	ldr	\dst, [sp, #8]
	.endif
	.endm

/* \dst = the function's stack pointer at its entry, which is also what it has at its
 * return: it names the frame. */
	.macro	FRAME_KEY how, dst
	.if \how == 0
	add	\dst, sp, #FRAME
	.else				/* the stub has put it there */
	ldr	\dst, [sp, #KEY_AT]
	.endif
	.endm

/* Entry probe. how: see above, and 3: no function's entry; the key is given. hijack:
 * replace the return address.
 *
 * A function whose site is at its entry is entered by a call in its thunk (`paired`),
 * which the processor matches with the function's own return; the thunk's return then
 * pairs with the caller's call (H47). The stub goes on behind the probe's return with
 * `ldp x0, x30, [sp], #(FRAME - 16); br x30` into the thunk, and 8 bytes further, where
 * the return address is not replaced, with `ldp x0, x30, [sp], #FRAME`; behind that,
 * at 12, is the displaced instruction. */
	.macro	ENTRY_PROBE name, how, hijack, paired
	.globl	\name
	.hidden	\name
	.p2align 6
\name:
	SAVE_ENTRY
	PARAM	x3, UF_PARAM_CONTROL
	ldr	w3, [x3, #UF_CONTROL_ENABLED]
	cbz	w3, 9f
	FIND_THREAD 5f
1:	CHECK_ROOM 6f
2:
	.if \hijack
	LOAD_RETURN \how, x2		/* the return address R */
	mul	w3, w0, w6
	PARAM	x4, UF_PARAM_SLOTS
	add	w3, w3, w2
	mul	w3, w3, w6
	lsr	w3, w3, #(32 - UF_THUNK_BITS)
	add	x4, x4, x3, lsl #5
	ldp	x1, x4, [x4, #UF_SLOT_ADDRESS]
	eor	x1, x1, x2
	eor	w4, w4, w0
	orr	x1, x1, x4
	PARAM	x4, UF_PARAM_THUNKS
	cbnz	x1, 8f
	lsl	x1, x3, #4
3:	add	x1, x1, x4
	.if \paired
	add	x2, x30, #12
	str	x1, [sp, #8]
	str	x2, [sp, #RESUME_AT]
	.else
	add	x1, x1, #UF_A64_THUNK_RETURN	/* behind the call that is not made */
	str	x1, [x29, #8]
	.endif
	.endif
4:	cbz	x5, 41f
	FRAME_KEY \how, x1
	WRITE_RECORD
91:	RESTORE_ENTRY
	ret
	.if \paired
9:	add	x30, x30, #8
	b	91b
	.else
9:	b	91b
	.endif

41:	/* no ring of its own: the shared one */
	FRAME_KEY \how, x1
	eor	x0, x0, x1
	eor	x1, x1, x0
	eor	x0, x0, x1		/* (key, word) */
	SLOW	uf_record_shared
	b	91b
5:	/* not in the directory where it should be */
	SLOW	uf_find_thread
	mov	x5, x1
	GOLDEN	w6
	cbnz	x5, 1b
	b	2b
6:	/* full as far as is known: look at the consumer's tail */
	SLOW	uf_refresh_room
	GOLDEN	w6
	cbnz	w1, 2b
	.if \hijack
	/* The exit, which will not be seen, is lost as well, except a tail call's. */
	LOAD_RETURN \how, x2
	PARAM	x4, UF_PARAM_THUNKS
	sub	x2, x2, x4
	lsr	x2, x2, #(UF_THUNK_BITS + 4)
	cbz	x2, 9b
	ldr	x2, [x5, #UF_THREAD_HEADER]
	ldr	x3, [x2, #UF_RING_LOST]
	add	x3, x3, #1
	str	x3, [x2, #UF_RING_LOST]
	.endif
	b	9b
	.if \hijack
7:	add	w0, w0, #((UF_KIND_TAIL_ENTRY - UF_KIND_ENTRY) << UF_KIND_SHIFT)
	.if \paired
	add	x30, x30, #8
	.endif
	b	4b
8:	/* slot of another call, or free. x2 = R, w0 = id word, x4 = the thunks. No slot
	 * ever holds a thunk, so tail calls (H45) come here too. */
	sub	x1, x2, x4
	lsr	x1, x1, #(UF_THUNK_BITS + 4)
	cbz	x1, 7b
	stp	x0, x5, [sp, #-16]!
	SAVE_MORE
	mov	w1, w0
	mov	x0, x2
	mov	x2, #0
	bl	uf_find_slot		/* byte offset of the thunk, or -1 */
	mov	x1, x0
	RESTORE_MORE
	ldp	x0, x5, [sp], #16
	PARAM	x4, UF_PARAM_THUNKS
	tbz	x1, #63, 3b
	eor	w0, w0, #((UF_KIND_ENTRY ^ UF_KIND_ENTRY_ONLY) << UF_KIND_SHIFT)
	.if \paired
	add	x30, x30, #8
	.endif
	b	4b
	.endif
	.endm

	ENTRY_PROBE uf_entry_paired, 0, 1, 1
	ENTRY_PROBE uf_entry_mcount, 2, 1, 0
	ENTRY_PROBE uf_entry_only, 0, 0, 0
	ENTRY_PROBE uf_point, 3, 0, 0

/* ---- function exit: thunk i is `ldr x30, [sp], #16; blr x30; adr x30, .; b uf_exit` ----
 * The traced function has returned to behind the call; the stack pointer is as its
 * caller wants it. x30 names the thunk, whichever register the function returned by,
 * and is the real return address in the end, as if nothing had been. */
	.globl	uf_exit
	.hidden	uf_exit
	.p2align 6
uf_exit:
	stp	x0, x30, [sp, #-FRAME]!
	SAVE_ENTRY
	PARAM	x1, UF_PARAM_THUNKS
	PARAM	x2, UF_PARAM_SLOTS
	sub	x1, x30, x1
	lsr	x1, x1, #4
	add	x2, x2, x1, lsl #5
	PARAM	x3, UF_PARAM_CONTROL
	ldp	x1, x0, [x2, #UF_SLOT_ADDRESS]
	ldr	w3, [x3, #UF_CONTROL_ENABLED]
	str	x1, [sp, #8]		/* from here on R is where x30 will be taken from */
	cbz	w3, 9f
	eor	w0, w0, #((UF_KIND_ENTRY ^ UF_KIND_EXIT) << UF_KIND_SHIFT)
	FIND_THREAD 5f
1:	CHECK_ROOM 6f
2:	add	x1, sp, #FRAME
	WRITE_RECORD
9:	RESTORE_ENTRY
	ldp	x0, x30, [sp], #FRAME
	ret
5:	SLOW	uf_find_thread
	mov	x5, x1
	cbnz	x5, 1b
	mov	w1, w0
	add	x0, sp, #FRAME
	SLOW	uf_record_shared
	b	9b
6:	SLOW	uf_refresh_room
	cbnz	w1, 2b
	b	9b

/* ---- _Unwind_Find_FDE(pc, bases): sees through the thunk array (H39, H40) ----
 * Called by the hook's stub, which has saved x0 and x30 as other stubs have. To the
 * answer, which is in the place of x0 then, it returns like a paired probe to a thunk;
 * 8 bytes further to go on with the original, whose pc may have changed. See x86_64.S;
 * struct _Unwind_Context has the same order here (libgcc/unwind-dw2.c), and its ra is
 * without a signature (uw_update_context, aarch64_demangle_return_addr). Flags mean
 * nothing at a call of C. */
	.globl	uf_find_fde
	.hidden	uf_find_fde
	.p2align 4
uf_find_fde:
	SAVE_ENTRY
	PARAM	x2, UF_PARAM_THUNKS
	add	x3, x0, #UF_THUNK_BYTES
	sub	x3, x3, x2
	mov	x4, #(UF_THUNK_BYTES << UF_THUNK_BITS)
	add	x5, x4, #UF_THUNK_BYTES
	cmp	x3, x5
	b.hs	1f
	ldur	x3, [x1, #-16]		/* context->ra */
	sub	x5, x3, x0		/* 1, or 0 in a signal frame */
	cmp	x5, #1
	b.hi	2f
	sub	x3, x3, x2
	cmp	x3, x4
	b.hs	2f
	sub	x3, x3, #UF_A64_THUNK_RETURN
	tst	x3, #(UF_THUNK_BYTES - 1)
	b.ne	2f
	PARAM	x4, UF_PARAM_SLOTS
	add	x4, x4, x3, lsl #1	/* slots are twice as long as thunks */
	ldr	x3, [x4, #UF_SLOT_ADDRESS]
	cbz	x3, 2f
	stur	x3, [x1, #-16]
	sub	x3, x3, x5
	str	x3, [sp]
1:	add	x30, x30, #8
	b	3f
2:	sub	x2, x2, #UF_THUNK_BYTES
	stp	xzr, xzr, [x1]		/* struct dwarf_eh_bases {tbase, dbase, func} */
	str	x2, [x1, #16]
	adr	x2, uf_unwind_fde
	PARAM	x3, UF_PARAM_FDE_OFFSET
	add	x2, x2, x3
	str	x2, [sp]
3:	RESTORE_ENTRY
	ret

/* ---- the way back from uf_trapped: nothing here is ever trapped, but the C has it.
 * The bytes are those of the vdso's __kernel_rt_sigreturn, by which unwinders know a
 * signal frame ---- */
	.section .text.trap,"ax",@progbits
	.globl	uf_restorer
	.hidden	uf_restorer
	.p2align 4
uf_restorer:
	mov	x8, #139
	svc	#0
	.text

/* ---- system calls for the agent: x19 = the table, sp = a signal frame, from which the
 * thread goes on where it was ---- */
	.globl	uf_calls
	.hidden	uf_calls
	.p2align 4
uf_calls:
	add	x20, x19, #UF_CALLS_ENTRIES
1:	ldr	x21, [x19, #UF_CALLS_LEFT]
	cbz	x21, 2f
	ldp	x8, x0, [x20]
	ldp	x1, x2, [x20, #16]
	ldp	x3, x4, [x20, #32]
	ldr	x5, [x20, #48]
	svc	#0
	str	x0, [x20, #UF_CALL_RESULT]
	add	x20, x20, #UF_CALL_BYTES
	sub	x21, x21, #1
	stlr	x21, [x19]		/* who sees that none is left sees the results */
	b	1b
2:	b	uf_restorer

	.section .note.GNU-stack,"",@progbits
