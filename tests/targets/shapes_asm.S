/* SPDX-License-Identifier: Apache-2.0
 *
 * Function shapes that a compiler seldom makes, each a legal function: bodies
 * of 1 to 8 bytes with and without padding behind them, every kind of first
 * instruction that is PC-relative, entries in the middle, odd registers.
 */
	.text

.macro BEGIN name
	.globl \name
	.type \name, @function
\name:
.endm
.macro END name
	.size \name, . - \name
.endm
.macro ALIGNED name
	.p2align 4
	BEGIN \name
.endm

/* The same tiny bodies twice: back to back, and each in 16 bytes of its own.
 * The digit is the size in bytes. */
.macro PADDING padded
.if \padded
	.p2align 4
.endif
.endm
.macro TINY prefix, padded
	PADDING \padded
	BEGIN \prefix\()_1_ret
	ret
	END \prefix\()_1_ret
	PADDING \padded
	BEGIN \prefix\()_3_xor
	xor %eax, %eax
	ret
	END \prefix\()_3_xor
	PADDING \padded
	BEGIN \prefix\()_2_nop
	nop
	ret
	END \prefix\()_2_nop
	PADDING \padded
	BEGIN \prefix\()_2_rep
	rep ret
	END \prefix\()_2_rep
	PADDING \padded
	BEGIN \prefix\()_3_retn
	.byte 0xc2, 0, 0 /* ret $0 */
	END \prefix\()_3_retn
	PADDING \padded
	BEGIN \prefix\()_3_mov
	mov %edi, %eax
	ret
	END \prefix\()_3_mov
	PADDING \padded
	BEGIN \prefix\()_4_lea
	lea 1(%rdi), %eax
	ret
	END \prefix\()_4_lea
	PADDING \padded
	BEGIN \prefix\()_4_mov
	mov %rdi, %rax
	ret
	END \prefix\()_4_mov
	PADDING \padded
	BEGIN \prefix\()_5_lea
	lea 2(%rdi), %rax
	ret
	END \prefix\()_5_lea
	PADDING \padded
	BEGIN \prefix\()_6_imm
	mov $0x12345678, %eax
	ret
	END \prefix\()_6_imm
	PADDING \padded
	BEGIN \prefix\()_7_add
	lea (%rdi,%rsi), %eax
	add $5, %eax
	ret
	END \prefix\()_7_add
	PADDING \padded
	BEGIN \prefix\()_8_inc
	lea (%rdi,%rsi), %rax
	inc %rax
	ret
	END \prefix\()_8_inc
	PADDING \padded
	BEGIN \prefix\()_2_jmp
	jmp shape_near /* a two-byte tail call */
	END \prefix\()_2_jmp
.if \padded == 0
shape_near:
	lea 21(%rdi), %rax
	ret
.endif
.endm
	.p2align 4
	TINY packed, 0
	TINY padded, 1
	.p2align 4

/* --- first instructions that are relative to the PC --- */
	ALIGNED shape_add1
	lea 1(%rdi), %rax
	ret
	END shape_add1

	ALIGNED first_call
	call shape_add1
	add $10, %rax
	ret
	END first_call

	ALIGNED first_jmp8
	jmp 1f
	ud2
1:	lea 3(%rdi), %rax
	ret
	END first_jmp8

	ALIGNED first_jmp32
	.byte 0xe9
	.long 1f - . - 4
	ud2
1:	lea 4(%rdi), %rax
	ret
	END first_jmp32

	ALIGNED first_jmp_away
	.byte 0xe9
	.long shape_add1 - . - 4
	END first_jmp_away

	ALIGNED first_jcc8 /* carry in */
	jc 1f
	lea 1(%rdi), %rax
	ret
1:	lea 2(%rdi), %rax
	ret
	END first_jcc8

	ALIGNED first_jcc32 /* carry in */
	.byte 0x0f, 0x82
	.long 1f - . - 4
	lea 3(%rdi), %rax
	ret
1:	lea 4(%rdi), %rax
	ret
	END first_jcc32

	ALIGNED first_jrcxz /* rcx: the fourth argument */
	jrcxz 1f
	lea 5(%rdi), %rax
	ret
1:	lea 6(%rdi), %rax
	ret
	END first_jrcxz

	ALIGNED first_jecxz
	jecxz 1f
	lea 7(%rdi), %rax
	ret
1:	lea 8(%rdi), %rax
	ret
	END first_jecxz

	ALIGNED first_loop /* returns rcx - 1 when that is not zero */
	loop 1f
	mov $99, %eax
	ret
1:	mov %rcx, %rax
	ret
	END first_loop

	ALIGNED first_rip_mov
	mov shape_word(%rip), %rax
	add %rdi, %rax
	ret
	END first_rip_mov

	ALIGNED first_rip_lea
	lea shape_word(%rip), %rax
	mov (%rax), %rax
	sub %rdi, %rax
	ret
	END first_rip_lea

	ALIGNED first_rip_cmp8 /* an immediate behind the displacement */
	cmpq $77, shape_77(%rip)
	sete %al
	movzbl %al, %eax
	add %rdi, %rax
	ret
	END first_rip_cmp8

	ALIGNED first_rip_cmp32
	cmpl $0x11223344, shape_long(%rip)
	sete %al
	movzbl %al, %eax
	lea 1(%rax,%rdi), %rax
	ret
	END first_rip_cmp32

	ALIGNED first_rip_add
	add shape_word(%rip), %rdi
	lea 2(%rdi), %rax
	ret
	END first_rip_add

	ALIGNED first_rip_inc /* a write: shape_total is checked at the end */
	lock incq shape_total(%rip)
	mov %rdi, %rax
	ret
	END first_rip_inc

	ALIGNED first_rip_sse
	movsd shape_double(%rip), %xmm1
	addsd %xmm1, %xmm0
	ret
	END first_rip_sse

	ALIGNED first_call_mem
	call *shape_pointer(%rip)
	add $20, %rax
	ret
	END first_call_mem

	ALIGNED first_jmp_mem
	jmp *shape_pointer(%rip)
	END first_jmp_mem

	ALIGNED first_endbr
	endbr64
	lea 7(%rdi), %rax
	ret
	END first_endbr

	ALIGNED first_endbr_only
	endbr64
	ret
	END first_endbr_only

	ALIGNED first_endbr_push
	endbr64
	push %rdi
	pop %rax
	ret
	END first_endbr_push

	ALIGNED first_push_imm8
	push $17
	pop %rax
	add %rdi, %rax
	ret
	END first_push_imm8

	ALIGNED first_push_imm32
	push $0x1234567
	pop %rax
	add %rdi, %rax
	ret
	END first_push_imm32

	ALIGNED first_push_1
	push %rbx
	mov %rdi, %rbx
	call shape_add1
	add %rbx, %rax
	pop %rbx
	ret
	END first_push_1

	ALIGNED first_push_2
	push %r12
	lea 2(%rdi), %r12
	mov %r12, %rax
	pop %r12
	ret
	END first_push_2

	ALIGNED first_sub_rsp
	sub $24, %rsp
	mov %rdi, 8(%rsp)
	call shape_add1
	add 8(%rsp), %rax
	add $24, %rsp
	ret
	END first_sub_rsp

	ALIGNED first_sub_rsp32
	sub $1032, %rsp
	mov %rdi, (%rsp)
	call shape_add1
	add (%rsp), %rax
	add $1032, %rsp
	ret
	END first_sub_rsp32

	ALIGNED first_pop /* pops its own return address and jumps there */
	pop %rdx
	lea 12(%rdi), %rax
	jmp *%rdx
	END first_pop

/* --- entries --- */
	/* Adds y x times; every round goes through the first byte. */
	ALIGNED self_branch
	lea (%rdx,%rsi), %rdx
	dec %rdi
	jnz self_branch
	mov %rdx, %rax
	ret
	END self_branch

	/* The loop's head is the second byte. */
	ALIGNED loop_at_1
	push %rbx
1:	dec %rdi
	lea 3(%rsi), %rsi
	jnz 1b
	mov %rsi, %rax
	pop %rbx
	ret
	END loop_at_1

	/* The loop's head is byte 3. */
	ALIGNED loop_at_3
	mov %rsi, %rax
1:	dec %rdi
	lea 5(%rax), %rax
	jnz 1b
	ret
	END loop_at_3

	/* A second entry at byte 3 that takes its argument in rax. */
	ALIGNED second_entry
	mov %rdi, %rax
	.globl second_entry_3
	.type second_entry_3, @function
second_entry_3:
	add $5, %rax
	ret
	.size second_entry_3, . - second_entry_3
	END second_entry

	/* The same without a symbol: another function jumps to byte 2. */
	ALIGNED hidden_entry
	mov %edi, %eax
	add $7, %rax
	ret
	END hidden_entry
	ALIGNED hidden_entry_user
	lea 100(%rdi), %rax
	jmp hidden_entry + 2
	END hidden_entry_user

	/* Mutual tail calls without any frame, as deep as rdi says. */
	ALIGNED asm_even
	test %rdi, %rdi
	jz 1f
	dec %rdi
	jmp asm_odd
1:	mov $1, %eax
	ret
	END asm_even
	ALIGNED asm_odd
	test %rdi, %rdi
	jz 1f
	dec %rdi
	jmp asm_even
1:	xor %eax, %eax
	ret
	END asm_odd

/* --- odd registers, called through asm_call --- */
	ALIGNED odd_r10
	lea (%rdi,%r10), %rax
	ret
	END odd_r10

	ALIGNED odd_r11
	lea (%rdi,%r11), %rax
	ret
	END odd_r11

	ALIGNED odd_rax
	add %rdi, %rax
	ret
	END odd_rax

	ALIGNED odd_carry_in
	adc $0, %rdi
	mov %rdi, %rax
	ret
	END odd_carry_in

	ALIGNED odd_carry_out
	mov %rdi, %rax
	bt $0, %rdi
	ret
	END odd_carry_out

	ALIGNED odd_results /* several results, in registers of no convention */
	lea 1(%rdi), %rcx
	lea 2(%rdi), %rsi
	lea 3(%rdi), %r8
	lea 4(%rdi), %r9
	lea 5(%rdi), %r10
	lea 6(%rdi), %r11
	lea 7(%rdi), %rdx
	lea 8(%rdi), %rax
	ret
	END odd_results

/* void asm_call(function, const struct asm_state *in, struct asm_state *out) */
	ALIGNED asm_call
	.cfi_startproc
	push %rbx
	.cfi_adjust_cfa_offset 8
	.cfi_offset %rbx, -16
	push %rbp
	.cfi_adjust_cfa_offset 8
	.cfi_offset %rbp, -24
	push %rdx
	.cfi_adjust_cfa_offset 8
	mov %rdi, %rbx
	mov %rsi, %rbp
	mov 0(%rbp), %rdi
	mov 8(%rbp), %rsi
	mov 16(%rbp), %rdx
	mov 24(%rbp), %rcx
	mov 32(%rbp), %r8
	mov 40(%rbp), %r9
	mov 56(%rbp), %r10
	mov 64(%rbp), %r11
	btq $0, 72(%rbp) /* carry */
	mov 48(%rbp), %rax
	call *%rbx
	mov (%rsp), %rbp
	mov %rdi, 0(%rbp)
	mov %rsi, 8(%rbp)
	mov %rdx, 16(%rbp)
	mov %rcx, 24(%rbp)
	mov %r8, 32(%rbp)
	mov %r9, 40(%rbp)
	mov %rax, 48(%rbp)
	mov %r10, 56(%rbp)
	mov %r11, 64(%rbp)
	setc 72(%rbp)
	pop %rdx
	.cfi_adjust_cfa_offset -8
	pop %rbp
	.cfi_adjust_cfa_offset -8
	pop %rbx
	.cfi_adjust_cfa_offset -8
	ret
	.cfi_endproc
	END asm_call

	.section .rodata
	.p2align 3
	.globl shape_word
	.hidden shape_word
shape_word:
	.quad 1000003
shape_77:
	.quad 77
shape_double:
	.double 2.5
shape_long:
	.long 0x11223344

	.section .data.rel.local, "aw"
	.p2align 3
shape_pointer:
	.quad shape_add1
	.data
	.p2align 3
	.globl shape_total
	.hidden shape_total
shape_total:
	.quad 0

	.section .note.GNU-stack, "", @progbits
