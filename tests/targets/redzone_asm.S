/* SPDX-License-Identifier: Apache-2.0
 *
 * Functions that keep live data below the stack pointer while a first
 * instruction runs again, or (redzone_pass, redzone_result) pass it there.
 */
	.text
.macro FUNCTION name
	.p2align 4
	.globl \name
	.type \name, @function
\name:
.endm
.macro END name
	.size \name, . - \name
.endm

	/* redzone_loop(rounds, value, first = 1): from the second round on the
	 * first instruction runs with 13 live words in the red zone. */
	FUNCTION redzone_loop
	test %edx, %edx
	jz 1f
	mov %rsi, -8(%rsp)
	lea 1(%rsi), %rax
	mov %rax, -24(%rsp)
	lea 2(%rsi), %rax
	mov %rax, -64(%rsp)
	lea 3(%rsi), %rax
	mov %rax, -112(%rsp)
	lea 4(%rsi), %rax
	mov %rax, -128(%rsp)
	xor %edx, %edx
1:	dec %rdi
	jnz redzone_loop
	mov -8(%rsp), %rax
	add -24(%rsp), %rax
	add -64(%rsp), %rax
	add -112(%rsp), %rax
	add -128(%rsp), %rax
	ret
	END redzone_loop

	/* A leaf with its locals in the red zone: signals may hit it anywhere. */
	FUNCTION redzone_leaf
	mov %rdi, -128(%rsp)
	mov %rdi, -8(%rsp)
	lea (%rdi,%rdi), %rax
	mov %rax, -72(%rsp)
	mov -128(%rsp), %rax
	add -8(%rsp), %rax
	add -72(%rsp), %rax
	ret
	END redzone_leaf

	/* Takes its argument from below the stack pointer of its caller. */
	FUNCTION redzone_callee
	mov -40(%rsp), %rax
	add -104(%rsp), %rax
	ret
	END redzone_callee
	FUNCTION redzone_pass
	mov %rdi, -48(%rsp)
	mov %rsi, -112(%rsp)
	call redzone_callee
	ret
	END redzone_pass

	/* Leaves its results below the stack pointer. */
	FUNCTION redzone_maker
	lea 5(%rdi), %rax
	mov %rax, -32(%rsp)
	lea 6(%rdi), %rax
	mov %rax, -96(%rsp)
	ret
	END redzone_maker
	FUNCTION redzone_result
	call redzone_maker
	mov -40(%rsp), %rax
	add -104(%rsp), %rax
	ret
	END redzone_result

	.section .note.GNU-stack, "", @progbits
