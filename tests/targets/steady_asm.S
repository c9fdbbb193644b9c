/* SPDX-License-Identifier: Apache-2.0
 *
 * steady_hold(state, rounds): all registers hold what the state says for so many rounds
 * of a loop that calls nothing; what they hold then is written behind it. The data in
 * the red zone is checked too. struct state in steady.c has the layout.
 */
	.set	FLAGS, 120
	.set	MXCSR, 128
	.set	CONTROL, 132
	.set	FLOAT, 136
	.set	VECTORS, 192
	.set	MASKS, 192 + 32 * 64
	.set	AFTER, 192 + 32 * 64 + 64

	.text
	.macro EACH_GENERAL do, base
	\do	%rax, \base+0
	\do	%rbx, \base+8
	\do	%rcx, \base+16
	\do	%rdx, \base+24
	\do	%rsi, \base+32
	\do	%rbp, \base+48
	\do	%r8, \base+56
	\do	%r9, \base+64
	\do	%r10, \base+72
	\do	%r11, \base+80
	\do	%r12, \base+88
	\do	%r13, \base+96
	\do	%r14, \base+104
	\do	%r15, \base+112
	.endm
	.macro LOAD register, offset
	mov	\offset(%rdi), \register
	.endm
	.macro STORE register, offset
	mov	\register, \offset(%rdi)
	.endm
	.macro EACH_YMM do, base
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	\do	%ymm\n, \base+64*\n
	.endr
	.endm
	.macro LOAD_YMM register, offset
	vmovdqu	\offset(%rdi), \register
	.endm
	.macro STORE_YMM register, offset
	vmovdqu	\register, \offset(%rdi)
	.endm
	.macro EACH_ZMM do, base
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	\do	%zmm\n, \base+64*\n
	.endr
	.endm
	.macro LOAD_ZMM register, offset
	vmovdqu64 \offset(%rdi), \register
	.endm
	.macro STORE_ZMM register, offset
	vmovdqu64 \register, \offset(%rdi)
	.endm
	.macro EACH_MASK do, base
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7
	\do	%k\n, \base+8*\n
	.endr
	.endm
	.macro LOAD_MASK register, offset
	kmovw	\offset(%rdi), \register
	.endm
	.macro STORE_MASK register, offset
	kmovw	\register, \offset(%rdi)
	.endm

	/* Where the state is, and what rdi held: above the red zone. */
	.set	STATE, 0
	.set	ROUNDS, 8
	.set	KEPT_RDI, 16
	.set	KEPT_MXCSR, 24
	.set	KEPT_CONTROL, 28

	.macro HOLD name, vectors
	.globl	\name
	.type	\name, @function
\name:
	.cfi_startproc
	.irp	r, %rbx, %rbp, %r12, %r13, %r14, %r15
	push	\r
	.cfi_adjust_cfa_offset 8
	.endr
	sub	$40, %rsp
	.cfi_adjust_cfa_offset 40
	mov	%rdi, STATE(%rsp)
	mov	%rsi, ROUNDS(%rsp)
	stmxcsr	KEPT_MXCSR(%rsp)
	fnstcw	KEPT_CONTROL(%rsp)
	fninit
	fldt	FLOAT(%rdi)
	fldcw	CONTROL(%rdi)
	ldmxcsr	MXCSR(%rdi)
	.irp	n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
	lea	\n(%rsi), %rax
	mov	%rax, -8 * \n(%rsp)
	.endr
	.ifc	\vectors, zmm
	EACH_ZMM LOAD_ZMM, VECTORS
	EACH_MASK LOAD_MASK, MASKS
	.else
	EACH_YMM LOAD_YMM, VECTORS
	.endif
	EACH_GENERAL LOAD, 0
	mov	40(%rdi), %rdi
	.p2align 4
1:	decq	ROUNDS(%rsp)
	jnz	1b
	mov	%rdi, KEPT_RDI(%rsp)
	mov	STATE(%rsp), %rdi
	EACH_GENERAL STORE, AFTER
	mov	KEPT_RDI(%rsp), %rax
	mov	%rax, AFTER + 40(%rdi)
	.ifc	\vectors, zmm
	EACH_ZMM STORE_ZMM, AFTER+VECTORS
	EACH_MASK STORE_MASK, AFTER+MASKS
	.else
	EACH_YMM STORE_YMM, AFTER+VECTORS
	.endif
	stmxcsr	AFTER + MXCSR(%rdi)
	fnstcw	AFTER + CONTROL(%rdi)
	fstpt	AFTER + FLOAT(%rdi)
	ldmxcsr	KEPT_MXCSR(%rsp)
	fldcw	KEPT_CONTROL(%rsp)
	vzeroupper
	/* The red zone: -8 n was rounds + n. Its sum, less that of the first. */
	mov	-8(%rsp), %rcx
	xor	%eax, %eax
	.irp	n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
	add	-8 * \n(%rsp), %rax
	sub	%rcx, %rax
	.endr
	add	$40, %rsp
	.cfi_adjust_cfa_offset -40
	.irp	r, %r15, %r14, %r13, %r12, %rbp, %rbx
	pop	\r
	.cfi_adjust_cfa_offset -8
	.endr
	ret
	.cfi_endproc
	.size	\name, . - \name
	.endm

	HOLD	steady_hold_ymm, ymm
	HOLD	steady_hold_zmm, zmm

	.section .note.GNU-stack, "", @progbits
