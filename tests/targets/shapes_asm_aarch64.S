/* SPDX-License-Identifier: Apache-2.0
 *
 * Function shapes that a compiler seldom makes for AArch64, each a legal function: bodies of
 * one and two instructions, every kind of first instruction that is relative to the PC or
 * touches the link register, entries in the middle, odd registers.
 */
	.text

.macro BEGIN name
	.globl \name
	.type \name, %function
\name:
.endm
.macro END name
	.size \name, . - \name
.endm
.macro ALIGNED name
	.p2align 4
	BEGIN \name
.endm

/* --- tiny bodies, back to back --- */
	.p2align 4
	BEGIN tiny_ret
	ret
	END tiny_ret
	BEGIN tiny_nop
	nop
	ret
	END tiny_nop
	BEGIN tiny_add
	add x0, x0, #2
	ret
	END tiny_add
	BEGIN tiny_mov
	mov w0, w0
	ret
	END tiny_mov
	BEGIN tiny_movz
	mov w0, #0x1234
	ret
	END tiny_movz
	BEGIN tiny_tail
	b shape_near
	END tiny_tail
	BEGIN tiny_ret_reg /* the return address in another register */
	mov x9, x30
	ret x9
	END tiny_ret_reg
shape_near:
	add x0, x0, #21
	ret

/* --- first instructions that are relative to the PC --- */
	ALIGNED shape_add1
	add x0, x0, #1
	ret
	END shape_add1

	ALIGNED first_b
	b 1f
	udf #0
1:	add x0, x0, #3
	ret
	END first_b

	ALIGNED first_b_away
	b shape_add1
	END first_b_away

	ALIGNED first_bl /* the caller passed its return address in x9 too */
	bl shape_add1
	add x0, x0, #10
	ret x9
	END first_bl

	ALIGNED first_bcond /* carry in */
	b.cs 1f
	add x0, x0, #1
	ret
1:	add x0, x0, #2
	ret
	END first_bcond

	ALIGNED first_cbz
	cbz x1, 1f
	add x0, x0, #5
	ret
1:	add x0, x0, #6
	ret
	END first_cbz

	ALIGNED first_cbnz_w /* of 32 bits */
	cbnz w1, 1f
	add x0, x0, #7
	ret
1:	add x0, x0, #8
	ret
	END first_cbnz_w

	ALIGNED first_tbz
	tbz x1, #40, 1f
	add x0, x0, #9
	ret
1:	add x0, x0, #11
	ret
	END first_tbz

	ALIGNED first_tbnz_away /* to another function */
	tbnz w1, #3, shape_near
	add x0, x0, #4
	ret
	END first_tbnz_away

	ALIGNED first_adr
	adr x1, shape_literal
	ldr x1, [x1]
	add x0, x0, x1
	ret
	END first_adr

	ALIGNED first_adrp
	adrp x1, shape_word
	ldr x1, [x1, :lo12:shape_word]
	sub x0, x1, x0
	ret
	END first_adrp

	ALIGNED first_ldr_x
	ldr x1, shape_literal
	add x0, x0, x1
	ret
	END first_ldr_x

	ALIGNED first_ldr_w
	ldr w1, shape_literal_w
	add x0, x0, x1
	ret
	END first_ldr_w

	ALIGNED first_ldrsw
	ldrsw x1, shape_literal_w
	add x0, x0, x1
	ret
	END first_ldrsw

	ALIGNED first_ldr_d
	ldr d1, shape_double
	fadd d0, d0, d1
	ret
	END first_ldr_d

	ALIGNED first_ldr_q
	ldr q1, shape_quad
	mov x1, v1.d[1]
	add x0, x0, x1
	ret
	END first_ldr_q

	ALIGNED first_prfm
	prfm pldl1keep, shape_literal
	add x0, x0, #12
	ret
	END first_prfm

	.p2align 4
shape_literal:
	.quad 1000003
shape_literal_w:
	.word 0x91223344
	.p2align 3
shape_double:
	.double 2.5
	.p2align 4
shape_quad:
	.quad 1, 77

/* --- first instructions about calls and returns --- */
	ALIGNED first_bti
	hint #34 /* bti c */
	add x0, x0, #7
	ret
	END first_bti

	ALIGNED first_bti_only
	hint #34
	ret
	END first_bti_only

	ALIGNED first_paciasp
	hint #25 /* paciasp */
	stp x29, x30, [sp, #-16]!
	bl shape_add1
	ldp x29, x30, [sp], #16
	hint #29 /* autiasp */
	ret
	END first_paciasp

	ALIGNED first_bti_paciasp
	hint #34
	hint #25
	stp x29, x30, [sp, #-16]!
	bl shape_add1
	add x0, x0, #1
	ldp x29, x30, [sp], #16
	hint #29
	ret
	END first_bti_paciasp

	ALIGNED first_stp
	stp x29, x30, [sp, #-32]!
	str x0, [sp, #16]
	bl shape_add1
	ldr x1, [sp, #16]
	add x0, x0, x1
	ldp x29, x30, [sp], #32
	ret
	END first_stp

	ALIGNED first_sub_sp
	sub sp, sp, #48
	stp x0, x30, [sp, #16]
	bl shape_add1
	ldp x1, x30, [sp, #16]
	add x0, x0, x1
	add sp, sp, #48
	ret
	END first_sub_sp

	ALIGNED first_mov_lr /* as code for -pg with -mnop-mcount: the link register is read first */
	mov x9, x30
	bl shape_add1
	mov x30, x9
	ret
	END first_mov_lr

	ALIGNED first_str_lr
	str x30, [sp, #-16]!
	bl shape_add1
	ldr x30, [sp], #16
	ret
	END first_str_lr

	ALIGNED first_br /* a tail call through a register */
	br x1
	END first_br

	ALIGNED first_blr /* x9: the return address */
	blr x1
	add x0, x0, #20
	ret x9
	END first_blr

	ALIGNED first_exclusive /* adds x1 to the word at x0, atomically; the loop's head comes first */
	ldaxr x2, [x0]
	add x2, x2, x1
	stlxr w3, x2, [x0]
	cbnz w3, first_exclusive
	mov x0, x1
	ret
	END first_exclusive

/* --- entries --- */
	/* Adds x1 to x2, x0 times; every round goes through the first instruction. */
	ALIGNED self_branch
	add x2, x2, x1
	subs x0, x0, #1
	b.ne self_branch
	mov x0, x2
	ret
	END self_branch

	/* The first instruction is a loop of its own, until x0 is even. */
	ALIGNED self_first
	tbnz x0, #0, 1f
	ret
1:	add x0, x0, #1
	b self_first
	END self_first

	/* The loop's head is the second instruction. */
	ALIGNED loop_at_1
	mov x2, x1
1:	add x2, x2, #3
	subs x0, x0, #1
	b.ne 1b
	mov x0, x2
	ret
	END loop_at_1

	/* A second entry at the second instruction that takes its argument in x10. */
	ALIGNED second_entry
	mov x10, x0
	.globl second_entry_1
	.type second_entry_1, %function
second_entry_1:
	add x0, x10, #5
	ret
	.size second_entry_1, . - second_entry_1
	END second_entry

	/* The same without a symbol: another function jumps to the second instruction. */
	ALIGNED hidden_entry
	mov w0, w0
	add x0, x0, #7
	ret
	END hidden_entry
	ALIGNED hidden_entry_user
	add x0, x0, #100
	b hidden_entry + 4
	END hidden_entry_user

	/* Mutual tail calls without any frame, as deep as x0 says. */
	ALIGNED asm_even
	cbz x0, 1f
	sub x0, x0, #1
	b asm_odd
1:	mov x0, #1
	ret
	END asm_even
	ALIGNED asm_odd
	cbz x0, 1f
	sub x0, x0, #1
	b asm_even
1:	mov x0, #0
	ret
	END asm_odd

/* --- odd registers, called through asm_call --- */
	ALIGNED odd_x9
	add x0, x0, x9
	ret
	END odd_x9

	ALIGNED odd_x15
	add x0, x0, x15
	ret
	END odd_x15

	ALIGNED odd_x18
	add x0, x0, x18
	ret
	END odd_x18

	ALIGNED odd_carry_in
	adc x0, x0, xzr
	ret
	END odd_carry_in

	ALIGNED odd_carry_out
	cmp x0, #0
	tst x0, #1
	lsl x1, x0, #63
	adds xzr, x1, x1 /* carry: the lowest bit of x0 */
	mov x1, x0
	ret
	END odd_carry_out

	ALIGNED odd_results /* several results, in registers of no convention */
	add x8, x0, #1
	add x9, x0, #2
	add x15, x0, #3
	add x18, x0, #4
	add x7, x0, #5
	add x0, x0, #6
	ret
	END odd_results

/* void asm_call(function, const struct asm_state *in, struct asm_state *out): x0 to x15, x18
 * and the carry. x30 goes to the function in x9 too where in->link says so. */
	ALIGNED asm_call
	.cfi_startproc
	stp x29, x30, [sp, #-48]!
	.cfi_def_cfa_offset 48
	.cfi_offset 29, -48
	.cfi_offset 30, -40
	mov x29, sp
	stp x19, x20, [sp, #16]
	.cfi_offset 19, -32
	.cfi_offset 20, -24
	str x2, [sp, #32]
	mov x19, x0
	mov x20, x1
	ldr x0, [x20, #136] /* the carry */
	cmp x0, #1 /* set when x0 >= 1 */
	ldp x0, x1, [x20]
	ldp x2, x3, [x20, #16]
	ldp x4, x5, [x20, #32]
	ldp x6, x7, [x20, #48]
	ldp x8, x9, [x20, #64]
	ldp x10, x11, [x20, #80]
	ldp x12, x13, [x20, #96]
	ldp x14, x15, [x20, #112]
	ldr x18, [x20, #128]
	ldr x20, [x20, #144]
	cbz x20, 1f
	adr x9, 2f
1:	blr x19
2:	ldr x20, [sp, #32]
	stp x0, x1, [x20]
	stp x2, x3, [x20, #16]
	stp x4, x5, [x20, #32]
	stp x6, x7, [x20, #48]
	stp x8, x9, [x20, #64]
	stp x10, x11, [x20, #80]
	stp x12, x13, [x20, #96]
	stp x14, x15, [x20, #112]
	str x18, [x20, #128]
	cset x0, cs
	str x0, [x20, #136]
	ldp x19, x20, [sp, #16]
	ldp x29, x30, [sp], #48
	.cfi_def_cfa_offset 0
	ret
	.cfi_endproc
	END asm_call

	.section .rodata
	.p2align 3
	.globl shape_word
	.hidden shape_word
shape_word:
	.quad 1000003

	.section .note.GNU-stack, "", %progbits
