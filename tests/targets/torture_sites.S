/* SPDX-License-Identifier: Apache-2.0
 *
 * Functions whose first instructions take a given form when they are traced, at
 * every offset of a cache line and across pages; each with a twin that is never
 * traced. torture.c runs both with the same registers, flags and red zone, and
 * compares all that they leave.
 *
 * Which form a site takes depends on its bytes and on what lies where a jump made
 * of them would lead: a displacement whose highest byte is 80 or more leads below
 * the program, where nothing is; one of up to 0x09ffffff leads into `room`. The
 * tests look at the engine's plans and do not believe the names.
 */
	.altmacro
	/* Line offsets, and offsets in a page at which a site of up to 10 bytes straddles
	 * its end. */
	.set	LINE, 64
	.set	PAGE, 4096

	.bss
	.p2align 12
	.skip	160 << 20		/* room: taken, never touched */
	.section torture_names, "a", @progbits
	.section torture_table, "aw", @progbits
	.section .text.twins, "ax", @progbits
	.type	torture_twins, @function
torture_twins:
	.section .text.torture, "ax", @progbits
	.type	torture_fill_0, @function
torture_fill_0:

/* ---- one site ----
 * 77 is its entry, 78 the instruction that is changed. The function before it is
 * filling, and reaches up to it, so that there is padding only where `pad` asks for
 * it (for `hop`). */
	.set	number, 0
	.set	fillings, 0

.macro BREAKPOINTS count
	.if \count
	.skip	\count, 0xcc
	.endif
.endm
.macro FILLING n, bits, offset
	ret
	BREAKPOINTS 3
	.p2align \bits, 0xcc
	BREAKPOINTS \offset
	.size	torture_fill_\n, . - torture_fill_\n
.endm
.macro FILLING_BEGINS n
	.type	torture_fill_\n, @function
torture_fill_\n:
.endm
.macro PLACED form, flavour, n, bits, offset, pad
	.pushsection .text.torture
	FILLING %fillings, \bits, \offset
	.type	\form\()_\flavour\()_\n, @function
\form\()_\flavour\()_\n:
77:
	.set	traced, 1
	BODY_\flavour \n
	.size	\form\()_\flavour\()_\n, . - \form\()_\flavour\()_\n
	BREAKPOINTS \pad
	.set	fillings, fillings + 1
	FILLING_BEGINS %fillings
	.popsection
	.pushsection .text.twins
	.p2align 4
66:
77:
	.set	traced, 0
	BODY_\flavour \n
	.popsection
	.pushsection torture_names
55:	.asciz	"\form\()_\flavour\()_\n"
	.popsection
	.pushsection torture_table
	.quad	\form\()_\flavour\()_\n, 66b, 55b
	.popsection
	.set	number, number + 1
.endm

/* At every `step`th offset of a line; `lead` is what precedes the instruction. */
.macro LINES form, flavour, lead=0, step=1, pad=0
	.set	at, 0
	.rept	LINE / \step
	PLACED \form, \flavour, %number, 6, %((at + LINE - \lead) % LINE), \pad
	.set	at, at + \step
	.endr
.endm
/* At the last `count` offsets of a page. */
.macro PAGES form, flavour, lead=0, step=1, count=7, pad=0
	.set	at, \step
	.rept	\count / \step
	PLACED \form, \flavour, %number, 12, %(PAGE - at - \lead), \pad
	.set	at, at + \step
	.endr
.endm
.macro FORM form
	.pushsection torture_table
	.globl	torture_\form
	.hidden	torture_\form
torture_\form:
	.popsection
	.set	number, 0
.endm
.macro END_FORM form
	.pushsection torture_table
	.globl	torture_\form\()_end
	.hidden	torture_\form\()_end
torture_\form\()_end:
	.popsection
.endm

/* ---- what follows the first instruction ----
 * The flags that it left are used, every general register takes part, and r15
 * points to a count of the calls. The constants are large, so that no four bytes of
 * them look like the distance of a jump to the next site. */
.macro MIX k
	adcq	$(0x5a5a0000 + \k), %rdx
	leaq	(0x5a5a0000 + \k)(%rax,%rsi), %rsi
	rolq	$7, %rdi
	adcq	%rcx, %r8
	xorq	%rsi, %r9
	addq	%rbx, %r10
	subq	%rbp, %r11
	xorq	%r14, %r12
	paddq	%xmm15, %xmm0
	incq	(%r15)
.endm
/* The same with what the caller put below its stack pointer (the call went over the
 * first word of it). */
.macro MIX_RED k
	adcq	-8(%rsp), %rcx
	xorq	-64(%rsp), %rbx
	addq	-120(%rsp), %rbp
	movq	%rsi, -128(%rsp)
	MIX	\k
	addq	-128(%rsp), %rsi
.endm
/* Back to the first instruction while r13 counts down. */
.macro AGAIN
	subq	$1, %r13
	jg	77b
.endm

/* ---- one byte changes: it is followed by a displacement that leads below ---- */
.macro BODY_ret k
78:	ret
	.skip	4, 0xcc
.endm
.macro BODY_push k
78:	pushq	%rbx
	subq	$(0x91 + (\k << 8)), %rbx
	addq	%rbx, %rax
	MIX	\k
	popq	%rbx
	ret
.endm
.macro BODY_two k
78:	adcl	%edi, %eax
	addl	$(0x91 + (\k << 8)), %edx
	MIX_RED	\k
	ret
.endm
.macro BODY_three k
78:	adcq	%rdi, %rax
	addl	$(0x91 + (\k << 8)), %edx
	MIX_RED	\k
	ret
.endm
.macro BODY_four k
78:	imulq	%rdi, %rax
	addl	$(0x91 + (\k << 8)), %edx
	MIX_RED	\k
	ret
.endm
.macro BODY_seven k
78:	addq	$(0x9001 + (\k << 16)), %rdi
	MIX_RED	\k
	ret
.endm
.macro BODY_red k
78:	movl	-120(%rsp), %eax
	addl	$(0x91 + (\k << 8)), %edx
	MIX_RED	\k
	ret
.endm
.macro BODY_branch k
78:	jc	1f
	addl	$(0x91 + (\k << 8)), %edx
1:	MIX_RED	\k
	ret
.endm
.macro BODY_landing k
	endbr64
	BODY_two \k
.endm
.macro BODY_loop k
78:	adcl	%edi, %eax
	addl	$(0x91 + (\k << 8)), %edx
	MIX_RED	\k
	AGAIN
	ret
.endm

/* ---- a prefix more: without it the displacement leads into `room` ---- */
.macro BODY_after1 k
78:	adcl	%edi, %eax
	addl	$(0x9000 + (\k << 16)), %edx
	MIX_RED	\k
	ret
.endm
.macro BODY_after1of3 k
78:	adcq	%rdi, %rax
	addl	$(0x9001 + (\k << 16)), %eax
	MIX_RED	\k
	ret
.endm
.macro BODY_after2of3 k
78:	adcq	%rdi, %rax
	addl	$(0x900101 + ((\k - \k / 64 * 64) << 24)), %eax
	MIX_RED	\k
	ret
.endm
.macro BODY_after1of4 k
78:	imulq	%rdi, %rax
	addl	$(0x90 + (\k << 8)), %eax
	MIX_RED	\k
	ret
.endm
.macro BODY_after_loop k
78:	adcl	%edi, %eax
	addl	$(0x9000 + (\k << 16)), %edx
	MIX_RED	\k
	AGAIN
	ret
.endm

/* ---- five bytes and more, no pun ---- */
.macro BODY_adc5 k
78:	adcl	$(0x01000000 + 8 * \k), %eax
	MIX_RED	\k
	ret
.endm
.macro BODY_mov5 k
78:	movl	$(0x01000000 + 8 * \k), %eax
	MIX_RED	\k
	ret
.endm
.macro BODY_six k
78:	addl	$(0x010000 + \k), %edi
	MIX_RED	\k
	ret
.endm
.macro BODY_data k
78:	adcl	torture_datum(%rip), %eax
	MIX_RED	\k
	ret
.endm
.macro BODY_long7 k
78:	addq	$(0x0180 + (\k << 16)), %rdi
	MIX_RED	\k
	ret
.endm
.macro BODY_eight k
78:	leaq	(0x0505 + (\k << 16))(%rsi,%rdi), %rax
	MIX_RED	\k
	ret
.endm
.macro BODY_ten k
78:	movabsq	$(0x1122334455030101 + (\k << 32)), %rax
	MIX_RED	\k
	ret
.endm
.macro BODY_landing5 k
	endbr64
	BODY_adc5 \k
.endm
.macro BODY_loop5 k
78:	adcl	$(0x01000000 + 8 * \k), %eax
	MIX_RED	\k
	AGAIN
	ret
.endm

/* ---- as compilers begin functions; only what the ABI promises is relied on ---- */
.macro BODY_frame k
78:	pushq	%rbp
	movq	%rsp, %rbp
	subq	$64, %rsp
	MIX	\k
	leave
	ret
.endm
.macro BODY_long k
78:	movl	$(0x01000000 + 8 * \k), %eax
	movl	$(0x01000000 + 8 * \k), %r11d
	MIX	\k
	ret
.endm

/* ---- one nop of five bytes, as the manual has it and as clang does ---- */
.macro BODY_nop k
78:	.byte	0x0f, 0x1f, 0x44, 0, 0
	MIX_RED	\k
	ret
.endm
.macro BODY_nop8 k
78:	.byte	0x0f, 0x1f, 0x44, 0, 8
	MIX_RED	\k
	ret
.endm
.macro BODY_landing_nop k
	endbr64
	BODY_nop \k
.endm
.macro BODY_nop_loop k
78:	.byte	0x0f, 0x1f, 0x44, 0, 0
	MIX_RED	\k
	AGAIN
	ret
.endm

/* ---- the calls that -pg makes ----
 * The C library's own functions keep neither flags nor r10 and r11. */
.macro AFTER_CALL
#ifdef LIBC_MCOUNT
	xorl	%r10d, %r10d
	xorl	%r11d, %r11d
#endif
.endm
.macro GOT_CALL name
	.byte	0xff, 0x15	/* as the linker leaves it: no R_X86_64_GOTPCRELX */
	.long	\name\()@GOTPCREL - 4
.endm
.macro BODY_fentry k
78:	call	__fentry__@PLT
	AFTER_CALL
	MIX	\k
	ret
.endm
.macro BODY_fentry_got k
78:	GOT_CALL __fentry__
	AFTER_CALL
	MIX	\k
	ret
.endm
.macro BODY_landing_fentry k
	endbr64
	BODY_fentry \k
.endm
.macro BODY_mcount k
	pushq	%rbp
	movq	%rsp, %rbp
78:	call	mcount@PLT
	AFTER_CALL
	popq	%rbp
	MIX	\k
	ret
.endm
.macro BODY_mcount_got k
	pushq	%rbp
	movq	%rsp, %rbp
78:	GOT_CALL mcount
	AFTER_CALL
	popq	%rbp
	MIX	\k
	ret
.endm

/* ---- two to four bytes, all puns lead into `room`, padding behind ---- */
.macro BODY_hop2 k
78:	adcl	%edi, %eax
	addl	$(0x010203 + ((\k - \k / 64 * 64) << 24)), %eax
	MIX_RED	\k
	ret
.endm
.macro BODY_hop3 k
78:	adcq	%rdi, %rax
	addl	$(0x010203 + ((\k - \k / 64 * 64) << 24)), %eax
	MIX_RED	\k
	ret
.endm
.macro BODY_hop4 k
78:	imulq	%rdi, %rax
	addl	$(0x010203 + ((\k - \k / 64 * 64) << 24)), %eax
	MIX_RED	\k
	ret
.endm
.macro BODY_hop_branch k
78:	jc	1f
	addl	$(0x010203 + ((\k - \k / 64 * 64) << 24)), %eax
1:	MIX_RED	\k
	ret
.endm
.macro BODY_hop_loop k
78:	adcl	%edi, %eax
	addl	$(0x010203 + ((\k - \k / 64 * 64) << 24)), %eax
	MIX_RED	\k
	AGAIN
	ret
.endm

/* ---- XRay's sleds; 2-aligned, as LLVM makes them ---- */
.macro SLED kind
	.if traced
	.pushsection xray_instr_map, "a", @progbits
44:	.quad	76b - 44b
	.quad	77b - (44b + 8)
	.byte	\kind, 0, 2
	.zero	13
	.popsection
	.endif
.endm
.macro SLED_ENTRY
	.p2align 1
76:	.byte	0xeb, 0x09, 0x66, 0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0
	SLED	0
.endm
.macro SLED_EXIT
	.p2align 1
76:	.byte	0xc3, 0x2e, 0x66, 0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0
	SLED	1
.endm
.macro SLED_TAIL
	.p2align 1
76:	.byte	0xeb, 0x09, 0x66, 0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0
	SLED	2
.endm
.macro BODY_plain k
	SLED_ENTRY
	MIX_RED	\k
	SLED_EXIT
.endm
.macro BODY_exits k
	SLED_ENTRY
	jc	1f
	MIX	\k
	SLED_EXIT
1:	MIX_RED	\k
	SLED_EXIT
.endm
.macro BODY_tail k
	SLED_ENTRY
	MIX_RED	\k
	SLED_TAIL
	jmp	torture_tail
.endm
.macro BODY_sled_loop k
	SLED_ENTRY
	MIX_RED	\k
	AGAIN
	SLED_EXIT
.endm

/* ---- several instructions: no other form fits, and nothing leads between them ---- */
.macro BODY_pushes k
78:	pushq	%rbx
	pushq	%rbp
	movl	$(0x01020304 + ((\k - \k / 64 * 64) << 24)), %eax
	MIX	\k
	popq	%rbp
	popq	%rbx
	ret
.endm
.macro BODY_branch_alone k
78:	jc	1f
	movl	$(0x01020304 + ((\k - \k / 64 * 64) << 24)), %eax
1:	MIX_RED	\k
	ret
.endm

	/* Where the tail sleds lead. */
	.pushsection .text.twins
	.p2align 4
torture_tail:
	adcq	%rax, %rbx
	ret
	.popsection

	FORM	exact
	.irp	flavour, ret, push, two, three, four, seven, red, branch, loop
	LINES	exact, \flavour
	PAGES	exact, \flavour, , , 4
	.endr
	LINES	exact, landing, 4
	END_FORM exact

	/* The same bytes: with the `stop` writer, and for many functions at once,
	 * displacements are chosen. */
	FORM	pun
	.irp	flavour, two, three, four, red, branch, loop
	LINES	pun, \flavour
	PAGES	pun, \flavour, , , 4
	.endr
	LINES	pun, landing, 4
	END_FORM pun

	FORM	prefixed
	.irp	flavour, after1, after1of3, after2of3, after1of4, after_loop
	LINES	prefixed, \flavour
	PAGES	prefixed, \flavour
	.endr
	END_FORM prefixed

	FORM	near
	.irp	flavour, adc5, mov5, six, data, long7, eight, ten, loop5
	LINES	near, \flavour
	PAGES	near, \flavour
	.endr
	LINES	near, landing5, 4
	END_FORM near
	.pushsection .text.torture
	/* So near that the second byte of its displacement leads into `room`. */
torture_datum:
	.quad	0x1234567890abcdef
	.popsection

	FORM	nop
	.irp	flavour, nop, nop8, nop_loop
	LINES	nop, \flavour
	PAGES	nop, \flavour
	.endr
	LINES	nop, landing_nop, 4
	PAGES	nop, landing_nop, 4
	END_FORM nop

	FORM	call
	.irp	flavour, fentry, fentry_got
	LINES	call, \flavour
	PAGES	call, \flavour
	.endr
	.irp	flavour, landing_fentry, mcount, mcount_got
	LINES	call, \flavour, 4
	PAGES	call, \flavour, 4
	.endr
	END_FORM call

	FORM	hop
	.irp	flavour, hop2, hop3, hop4, hop_branch, hop_loop
	LINES	hop, \flavour, , , 8
	PAGES	hop, \flavour, , , , 8
	.endr
	END_FORM hop

	FORM	sled
	.irp	flavour, plain, exits, tail, sled_loop, plain, exits, tail, sled_loop
	LINES	sled, \flavour, , 2
	PAGES	sled, \flavour, , 2
	.endr
	END_FORM sled

	FORM	multi
	.irp	flavour, pushes, branch_alone, pushes, branch_alone
	LINES	multi, \flavour
	PAGES	multi, \flavour
	.endr
	END_FORM multi

	FORM	plain
	.irp	flavour, frame, long
	LINES	plain, \flavour
	PAGES	plain, \flavour
	.endr
	END_FORM plain

	.pushsection .text.torture
	FILLING %fillings, 6, 0
	.popsection
	.pushsection .text.twins
	.size	torture_twins, . - torture_twins
	.popsection
	.section .note.GNU-stack, "", @progbits
