/* SPDX-License-Identifier: Apache-2.0
 *
 * torture_drive(struct state *state, void (*function)(void)): eight calls in a row
 * with every register, flag and vector register of `state`, each going on with what
 * the one before left; then everything is stored back. Before each call three words
 * are put where the called function finds its red zone.
 */
	.set	FLAGS, 15 * 8
	.set	VECTORS, FLAGS + 9 * 8
	.set	CALLS, 8

	.text
	.globl	torture_drive
	.hidden	torture_drive
	.type	torture_drive, @function
	.p2align 4
torture_drive:
	.cfi_startproc
	.irp	register, %rbp, %rbx, %r12, %r13, %r14, %r15
	pushq	\register
	.cfi_adjust_cfa_offset 8
	.endr
	subq	$24, %rsp
	.cfi_adjust_cfa_offset 24
	movq	%rsi, (%rsp)
	movq	%rdi, 8(%rsp)
	.irp	i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu	VECTORS + 16 * \i(%rdi), %xmm\i
	.endr
	pushq	FLAGS(%rdi)
	popfq
	movq	0(%rdi), %rax
	movq	8(%rdi), %rbx
	movq	16(%rdi), %rcx
	movq	24(%rdi), %rdx
	movq	32(%rdi), %rsi
	movq	48(%rdi), %rbp
	movq	56(%rdi), %r8
	movq	64(%rdi), %r9
	movq	72(%rdi), %r10
	movq	80(%rdi), %r11
	movq	88(%rdi), %r12
	movq	96(%rdi), %r13
	movq	104(%rdi), %r14
	movq	112(%rdi), %r15
	movq	40(%rdi), %rdi

	/* Neither mov nor lea nor pushf changes a flag. */
	.set	below, 0
	.rept	CALLS
	movq	%rax, -16(%rsp)
	movq	%rdx, -72(%rsp)
	movq	%r9, -128(%rsp)
	call	*below(%rsp)
	pushfq
	.cfi_adjust_cfa_offset 8
	leaq	-8(%rsp), %rsp
	.cfi_adjust_cfa_offset 8
	.set	below, below + 16
	.endr

	movq	%rdi, -8(%rsp)
	movq	8 + 16 * CALLS(%rsp), %rdi
	movq	%rax, 0(%rdi)
	movq	%rbx, 8(%rdi)
	movq	%rcx, 16(%rdi)
	movq	%rdx, 24(%rdi)
	movq	%rsi, 32(%rdi)
	movq	%rbp, 48(%rdi)
	movq	%r8, 56(%rdi)
	movq	%r9, 64(%rdi)
	movq	%r10, 72(%rdi)
	movq	%r11, 80(%rdi)
	movq	%r12, 88(%rdi)
	movq	%r13, 96(%rdi)
	movq	%r14, 104(%rdi)
	movq	%r15, 112(%rdi)
	movq	-8(%rsp), %rax
	movq	%rax, 40(%rdi)
	.irp	i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu	%xmm\i, VECTORS + 16 * \i(%rdi)
	.endr
	.irp	i, 1, 2, 3, 4, 5, 6, 7, 8
	movq	16 * (CALLS - \i) + 8(%rsp), %rax
	movq	%rax, FLAGS + 8 * \i(%rdi)
	.endr
	addq	$(16 * CALLS + 24), %rsp
	.cfi_adjust_cfa_offset -(16 * CALLS + 24)
	.irp	register, %r15, %r14, %r13, %r12, %rbx, %rbp
	popq	\register
	.cfi_adjust_cfa_offset -8
	.endr
	ret
	.cfi_endproc
	.size	torture_drive, . - torture_drive
	.section .note.GNU-stack, "", @progbits
