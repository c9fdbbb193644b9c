/* SPDX-License-Identifier: Apache-2.0
 *
 * Functions that can only be traced by moving several instructions, in a program at
 * fixed low addresses: two pushes come first, and as a jump's displacement what
 * follows them leads below address 0.
 */
	.text
.macro FUNCTION name
	.p2align 4
	.globl \name
	.type \name, @function
\name:
	.cfi_startproc
	push %rbx
	.cfi_adjust_cfa_offset 8
	push %rcx
	.cfi_adjust_cfa_offset 8
.endm
.macro END name
	pop %rcx
	.cfi_adjust_cfa_offset -8
	pop %rbx
	.cfi_adjust_cfa_offset -8
	ret
	.cfi_endproc
	.size \name, . - \name
.endm

	FUNCTION movable_nops /* 3 x + 5 */
	nop
	nop
	nop
	nop
	lea 5(%rdi, %rdi, 2), %rax
	END movable_nops

	/* Every instruction of the window leaves something to the next one. */
	FUNCTION movable_flags /* 2 x + 1 */
	xchg %eax, %ebx
	stc
	cltd
	cwtl
	lea (%rdi), %rax
	adc %rdi, %rax
	END movable_flags

	/* The third instruction faults where %rdi is no address. */
	FUNCTION movable_fault /* the int at %rdi, and 7 */
	mov (%rdi), %eax
	nop
	nop
	add $7, %eax
	END movable_fault

	/* The third instruction takes as long as %rcx says: bytes from %rsi on. */
	FUNCTION movable_long
	rep lodsb
	nop
	nop
	mov %rsi, %rax
	END movable_long

	.section .note.GNU-stack, "", @progbits
