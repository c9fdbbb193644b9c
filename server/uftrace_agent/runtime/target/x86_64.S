/* x86_64.S - probes, return thunks' common exit and the unwinder's hook.
 *
 * Rules of this file: every register and flag is as before when the probe
 * ends (H30-H32: callers may rely on any of them by IPA-RA or by hand-written
 * conventions); no vector register is touched; nothing within 128 bytes below
 * the stack pointer at entry is written (H29); no TLS, no call out (H57).
 * Nothing here is relocated: the same bytes run at any address.
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

/* 0x9E3779B1 as imm32. Hashes are the top bits of a product of 32 bits: those of
 * a product of 64 would hardly depend on the low bits of what is hashed, and
 * neighbouring return addresses or small stacks would all collide. */
	.set	GOLDEN, -1640531535

/* Stack of an entry probe below the site's stack pointer S:
 *	S-128		red zone
 *	S-136 rax	pushed by the stub
 *	S-144		return into the stub
 *	S-152 rsi, S-160 flags, S-168 rdx, S-176 rcx, S-184 rdi = rsp
 */
	.set	S_OFF, 184

	.macro	SAVE_ENTRY
	pushq	%rsi
	movl	%eax, %esi		/* the id word; movs keep the flags */
	lahf
	seto	%al
	pushq	%rax
	pushq	%rdx
	pushq	%rcx
	pushq	%rdi
	.endm

	.macro	RESTORE_ENTRY
	popq	%rdi
	popq	%rcx
	popq	%rdx
	popq	%rax
	addb	$127, %al		/* 1 -> overflow flag */
	sahf
	popq	%rsi
	.endm

/* \dst = address of the return address of the traced function */
	.macro	RETURN_SLOT how, dst
	.if \how == 0			/* site at the function's entry */
	leaq	S_OFF(%rsp), \dst
	.elseif \how == 1		/* called by `call __fentry__` */
	leaq	S_OFF+8(%rsp), \dst
	.elseif \how == 3		/* the stub has put the address there */
	movq	48(%rsp), \dst
	.elseif \how == 4		/* the same, on the stack of the goroutine whose g is r14: */
	movq	48(%rsp), \dst		/* none in signal handlers of threads that are not Go's */
	testq	%r14, %r14
	je	44f
	subq	UF_G_STACK_HI(%r14), \dst
44:
	.else				/* called by `call mcount` after push rbp; mov rsp,rbp */
	leaq	8(%rbp), \dst
	.endif
	.endm

	.macro	LOAD_RETURN how, dst
	.if \how == 0
	movq	S_OFF(%rsp), \dst
	.elseif \how == 1
	movq	S_OFF+8(%rsp), \dst
	.else
	movq	8(%rbp), \dst
	.endif
	.endm

	.macro	STORE_RETURN how, src
	.if \how == 0
	movq	\src, S_OFF(%rsp)
	.elseif \how == 1
	movq	\src, S_OFF+8(%rsp)
	.else
	movq	\src, 8(%rbp)
	.endif
	.endm

/* rdi = this thread's directory entry; else jumps to \miss. Clobbers rcx rdx.
 *
 * Where the word beside the thread pointer that holds the tid is known, so is
 * the C library, and %fs:0 points to itself (the x86-64 TLS ABI): reading it
 * takes 1 ns, rdfsbase 4. Thread pointers are reused, so it is the tid that
 * tells whose entry this is; an entry that nobody has taken holds tid 0. */
	.macro	FIND_THREAD miss
	movq	uf_params+UF_PARAM_TID_OFFSET(%rip), %rdx
	testq	%rdx, %rdx
	js	\miss
	movq	%fs:0, %rcx
	imull	$GOLDEN, %ecx, %edi
	movl	%fs:(%rdx), %edx
	shrl	$(32 - UF_DIRECTORY_BITS), %edi
	shlq	$6, %rdi
	addq	uf_params+UF_PARAM_DIRECTORY(%rip), %rdi
	cmpq	%rcx, UF_THREAD_KEY(%rdi)
	jne	\miss
	cmpl	%edx, UF_THREAD_TID(%rdi)
	jne	\miss
	.endm

/* Room for a record? else \full. rdi = thread entry; clobbers rcx. */
	.macro	CHECK_ROOM full
	movq	UF_THREAD_HEAD(%rdi), %rcx
	cmpq	UF_THREAD_LIMIT(%rdi), %rcx
	jae	\full
	.endm

/* Write the record. rdi = thread entry, rsi = id word, rax = the return slot's
 * address. Reserving by one xadd (without lock: only this thread and its own
 * signal handlers use the head) keeps nested probes apart (H56).
 * Clobbers rax rcx rdx rsi. */
	.macro	WRITE_RECORD
	shlq	$(UF_KEY_SHIFT - 3), %rax
	orq	%rax, %rsi
	movl	$UF_RECORD_BYTES, %ecx
	xaddq	%rcx, UF_THREAD_HEAD(%rdi)
	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	movq	UF_THREAD_MASK(%rdi), %rdx
	andq	%rcx, %rdx
	addq	UF_THREAD_BASE(%rdi), %rdx
	testq	%rcx, UF_THREAD_SIZE(%rdi)
	movq	%rax, (%rdx)
	sete	%al
	orb	%al, %sil
	movq	%rsi, 8(%rdx)		/* last: the phase bit commits the record */
	.endm

/* One of the two records of WRITE_STRAND: rcx = its position, rax = the ticks, \word =
 * its word. Clobbers rdx r9. */
	.macro	PUT word
	movq	UF_THREAD_MASK(%rdi), %rdx
	andq	%rcx, %rdx
	addq	UF_THREAD_BASE(%rdi), %rdx
	testq	%rcx, UF_THREAD_SIZE(%rdi)
	movq	%rax, (%rdx)
	sete	%r9b
	movzbl	%r9b, %r9d
	orq	%r9, \word
	movq	\word, 8(%rdx)
	.endm

/* As WRITE_RECORD, for a goroutine: r14 = its g, rax = the frame's place, counted from
 * the end of the stack, since the stack may move while the frame is open. Clobbers rax
 * rcx rdx rsi. */
	.macro	WRITE_STRAND
	pushq	%r8
	pushq	%r9
	shlq	$(UF_KEY_SHIFT - 3), %rax
	orq	%rax, %rsi
	movl	$(2 * UF_RECORD_BYTES), %ecx
	xaddq	%rcx, UF_THREAD_HEAD(%rdi)
	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	movq	%r14, %r8
	shrq	$UF_STRAND_SHIFT, %r8
	shlq	$UF_KEY_SHIFT, %r8
	orq	$(UF_KIND_STRAND << UF_KIND_SHIFT), %r8
	PUT	%r8
	addq	$UF_RECORD_BYTES, %rcx
	PUT	%rsi			/* last: whoever sees this one sees both */
	popq	%r9
	popq	%r8
	.endm

	.macro	SAVE_MORE
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	.endm
	.macro	RESTORE_MORE
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	.endm

	.set	STUB_RETURN, S_OFF-144		/* from rsp: the return into the stub */

/* Entry probe. how: see RETURN_SLOT; hijack: replace the return address. With
 * `paired` the stub enters the function through a `call` in its thunk, which
 * must be matched by a `ret` in uf_exit: otherwise the return predictor goes wrong
 * for each traced call (5 ns), or for all outer frames (H47). Where the return
 * address is not replaced, a paired probe returns to UF_STUB_PLAIN. */
	.macro	ENTRY_PROBE name, how, hijack, paired
	.globl	\name
	.hidden	\name
	.p2align 6
\name:
	SAVE_ENTRY
	movq	uf_params+UF_PARAM_CONTROL(%rip), %rcx
	cmpl	$0, UF_CONTROL_ENABLED(%rcx)
	je	9f
	FIND_THREAD 5f
1:	CHECK_ROOM 6f
2:
	.if \hijack
	LOAD_RETURN \how, %rdx		/* the return address R */
	imull	$GOLDEN, %esi, %eax
	addl	%edx, %eax
	imull	$GOLDEN, %eax, %eax
	shrl	$(32 - UF_THUNK_BITS), %eax
	shlq	$4, %rax
	leaq	(%rax,%rax), %rcx
	addq	uf_params+UF_PARAM_SLOTS(%rip), %rcx
	cmpq	%rdx, (%rcx)
	jne	8f
	cmpl	%esi, 8(%rcx)
	jne	8f
3:	addq	uf_params+UF_PARAM_THUNKS(%rip), %rax
	.if !\paired
	addq	$UF_THUNK_RETURN, %rax	/* behind the call that is not made */
	.endif
	STORE_RETURN \how, %rax
	.endif
4:	RETURN_SLOT \how, %rax
	testq	%rdi, %rdi
	je	41f
	.if \how == 4
	testq	%r14, %r14
	je	45f
	WRITE_STRAND
	jmp	91f
45:
	.endif
	WRITE_RECORD
	.if \paired
91:	RESTORE_ENTRY
	ret

49:	addq	$UF_STUB_PLAIN, STUB_RETURN(%rsp)
	jmp	4b
9:	addq	$UF_STUB_PLAIN, STUB_RETURN(%rsp)
	jmp	91b
	.else
91:
9:	RESTORE_ENTRY
	ret
	.endif

41:	/* no ring of its own: the shared one. rsi = id word */
	movq	%rax, %rdi
	SAVE_MORE
	.if \how == 4
	movq	%r14, %rdx
	call	uf_record_shared_strand
	.else
	call	uf_record_shared
	.endif
	RESTORE_MORE
	jmp	91b
5:	/* not in the directory where it should be */
	SAVE_MORE
	pushq	%rsi
	rdfsbase %rdi
	call	uf_find_thread
	popq	%rsi
	RESTORE_MORE
	movq	%rax, %rdi
	testq	%rdi, %rdi
	jne	1b
	jmp	2b
6:	/* full as far as is known: look at the consumer's tail. rsi = id word */
	SAVE_MORE
	pushq	%rsi
	pushq	%rdi
	call	uf_refresh_room
	popq	%rdi
	popq	%rsi
	RESTORE_MORE
	testl	%eax, %eax
	jne	2b
	.if \hijack
	/* The exit, which will not be seen, is lost as well, except a tail call's. */
	RETURN_SLOT \how, %rcx
	movq	(%rcx), %rax
	subq	uf_params+UF_PARAM_THUNKS(%rip), %rax
	cmpq	$(UF_THUNK_BYTES << UF_THUNK_BITS), %rax
	jb	9b
	movq	UF_THREAD_HEADER(%rdi), %rcx
	incq	UF_RING_LOST(%rcx)
	.endif
	jmp	9b
	.if \hijack
7:	xorl	$((UF_KIND_ENTRY ^ UF_KIND_TAIL_ENTRY) << UF_KIND_SHIFT), %esi
	.if \paired
	jmp	49b
	.else
	jmp	4b
	.endif
8:	/* slot of another call, or free. rdx = R, esi = id word. No slot ever
	 * holds a thunk, so tail calls (H45) come here too. */
	movq	%rdx, %rax
	subq	uf_params+UF_PARAM_THUNKS(%rip), %rax
	cmpq	$(UF_THUNK_BYTES << UF_THUNK_BITS), %rax
	jb	7b
	SAVE_MORE
	pushq	%rsi
	pushq	%rdi
	movq	%rdx, %rdi
	.if \paired
	movq	STUB_RETURN+48(%rsp), %rdx
	addq	$UF_STUB_RESUME, %rdx
	.else
	xorl	%edx, %edx
	.endif
	call	uf_find_slot		/* byte offset of the thunk, or -1 */
	popq	%rdi
	popq	%rsi
	RESTORE_MORE
	testq	%rax, %rax
	jns	3b
	xorl	$((UF_KIND_ENTRY ^ UF_KIND_ENTRY_ONLY) << UF_KIND_SHIFT), %esi
	.if \paired
	jmp	49b
	.else
	jmp	4b
	.endif
	.endif
	.endm

	ENTRY_PROBE uf_entry_paired, 0, 1, 1
	ENTRY_PROBE uf_entry, 0, 1, 0
	ENTRY_PROBE uf_entry_fentry, 1, 1, 0
	ENTRY_PROBE uf_entry_mcount, 2, 1, 0
	ENTRY_PROBE uf_entry_only, 0, 0, 0
	ENTRY_PROBE uf_entry_only_fentry, 1, 0, 0
	ENTRY_PROBE uf_entry_only_mcount, 2, 0, 0
	ENTRY_PROBE uf_point, 3, 0, 0
	ENTRY_PROBE uf_strand, 4, 0, 0

/* ---- function exit: thunk i is `call *resume; push $i; jmp uf_exit` ----
 * The traced function has returned to behind the call; rsp is as its caller
 * wants it. The push puts i where the return address was. A function that was
 * entered by the thunk's call is left by a ret, any other by a jump: so returns
 * are predicted right in all outer frames too (H47). */
	.macro	EXIT_TAIL paired
	xorl	$((UF_KIND_ENTRY ^ UF_KIND_EXIT) << UF_KIND_SHIFT), %esi
	FIND_THREAD 5f
1:	CHECK_ROOM 6f
2:	leaq	48(%rsp), %rax
	WRITE_RECORD
9:	popq	%rdi
	popq	%rsi
	popq	%rcx
	popq	%rdx
	popq	%rax
	addb	$127, %al
	sahf
	popq	%rax
	.if \paired
	ret
	.else
	leaq	8(%rsp), %rsp
	jmp	*-8(%rsp)
	.endif
5:	SAVE_MORE
	pushq	%rsi
	rdfsbase %rdi
	call	uf_find_thread
	popq	%rsi
	RESTORE_MORE
	movq	%rax, %rdi
	testq	%rdi, %rdi
	jne	1b
	leaq	48(%rsp), %rdi
	SAVE_MORE
	call	uf_record_shared
	RESTORE_MORE
	jmp	9b
6:	SAVE_MORE
	pushq	%rsi
	pushq	%rdi
	call	uf_refresh_room
	popq	%rdi
	popq	%rsi
	RESTORE_MORE
	testl	%eax, %eax
	jne	2b
	jmp	9b
	.endm

	.globl	uf_exit
	.hidden	uf_exit
	.p2align 6
uf_exit:
	pushq	%rax
	lahf
	seto	%al
	pushq	%rax
	pushq	%rdx
	pushq	%rcx
	pushq	%rsi
	pushq	%rdi
	movq	48(%rsp), %rdx
	shlq	$5, %rdx
	addq	uf_params+UF_PARAM_SLOTS(%rip), %rdx
	movq	UF_SLOT_ADDRESS(%rdx), %rax
	movl	UF_SLOT_WORD(%rdx), %esi
	movq	%rax, 48(%rsp)		/* from here on the slot holds R again */
	movq	uf_params+UF_PARAM_CONTROL(%rip), %rcx
	cmpq	$0, UF_SLOT_RESUME(%rdx)
	je	8f
	cmpl	$0, UF_CONTROL_ENABLED(%rcx)
	je	9f
	EXIT_TAIL 1
8:	cmpl	$0, UF_CONTROL_ENABLED(%rcx)
	je	9f
	EXIT_TAIL 0

/* ---- _Unwind_Find_FDE(pc, bases): sees through the thunk array (H39, H40) ----
 * Called by the hook's stub. ZF set: go on with the original, rdi may have
 * changed. ZF clear: rax is the answer, and the stub returns it.
 *
 * libgcc calls it with bases = &context->bases and pc = context->ra, less 1 but
 * for signal frames; struct _Unwind_Context has {cfa, ra, lsda, bases} in a row
 * (libgcc/unwind-dw2.c). So where the word two before bases is a thunk and
 * agrees with pc, it becomes the real return address, and the unwinder goes
 * on as if nothing had been hijacked: backtraces and handlers are those of the
 * untraced program. Anybody else who asks for a pc in the thunk array gets the
 * array's own FDE, whose range begins one thunk early since pc is usually one
 * byte before a return address. */
	.globl	uf_find_fde
	.hidden	uf_find_fde
	.p2align 4
uf_find_fde:
	movq	uf_params+UF_PARAM_THUNKS(%rip), %rdx
	leaq	UF_THUNK_BYTES(%rdi), %rax
	subq	%rdx, %rax
	cmpq	$((UF_THUNK_BYTES << UF_THUNK_BITS) + UF_THUNK_BYTES), %rax
	jae	1f
	movq	-16(%rsi), %rax		/* context->ra */
	movq	%rax, %rcx
	subq	%rdi, %rcx		/* 1, or 0 in a signal frame */
	cmpq	$1, %rcx
	ja	2f
	subq	%rdx, %rax
	cmpq	$(UF_THUNK_BYTES << UF_THUNK_BITS), %rax
	jae	2f
	subq	$UF_THUNK_RETURN, %rax
	testb	$(UF_THUNK_BYTES - 1), %al
	jne	2f
	addq	%rax, %rax		/* slots are twice as long as thunks */
	addq	uf_params+UF_PARAM_SLOTS(%rip), %rax
	movq	(%rax), %rax
	testq	%rax, %rax
	je	2f
	movq	%rax, -16(%rsi)
	movq	%rax, %rdi
	subq	%rcx, %rdi
1:	xorl	%eax, %eax
	ret
2:	subq	$UF_THUNK_BYTES, %rdx
	movq	$0, (%rsi)		/* struct dwarf_eh_bases {tbase, dbase, func} */
	movq	$0, 8(%rsi)
	movq	%rdx, 16(%rsi)
	leaq	uf_unwind_fde(%rip), %rax
	addq	uf_params+UF_PARAM_FDE_OFFSET(%rip), %rax	/* never 0: ZF clear */
	ret

/* ---- the way back from uf_trapped: the bytes by which unwinders and debuggers know
 * a signal frame ---- */
	.section .text.trap,"ax",@progbits
	.globl	uf_restorer
	.hidden	uf_restorer
	.p2align 4
uf_restorer:
	movq	$15, %rax
	syscall
	.text

/* ---- system calls for the agent: rbx = the table, rsp = a signal frame's ucontext,
 * from which the thread goes on where it was ---- */
	.globl	uf_calls
	.hidden	uf_calls
	.p2align 4
uf_calls:
	leaq	UF_CALLS_ENTRIES(%rbx), %r12
1:	cmpq	$0, UF_CALLS_LEFT(%rbx)
	je	uf_restorer
	movq	(%r12), %rax
	movq	8(%r12), %rdi
	movq	16(%r12), %rsi
	movq	24(%r12), %rdx
	movq	32(%r12), %r10
	movq	40(%r12), %r8
	movq	48(%r12), %r9
	syscall
	movq	%rax, UF_CALL_RESULT(%r12)
	addq	$UF_CALL_BYTES, %r12
	decq	UF_CALLS_LEFT(%rbx)
	jmp	1b

	.section .note.GNU-stack,"",@progbits
