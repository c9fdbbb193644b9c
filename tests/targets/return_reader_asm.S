/* SPDX-License-Identifier: Apache-2.0
 *
 * hold_return(struct hold *hold): as unwinders do, reads the address that it will
 * return to, and has it, and the byte before it, in registers and on its stack while
 * hold->wait is set. What they are then goes to hold->values.
 */
	.text
	.p2align 4
	.globl hold_return
	.type hold_return, @function
hold_return:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq 48(%rsp), %rax
	leaq -1(%rax), %rbx
	pushq %rax
	pushq %rbx
	movq %rax, %rcx
	movq %rbx, %rdx
	movq %rax, %rsi
	movq %rbx, %rbp
	movq %rax, %r8
	movq %rbx, %r9
	movq %rax, %r10
	movq %rbx, %r11
	movq %rax, %r12
	movq %rbx, %r13
	movq %rax, %r14
	movq %rbx, %r15
	incq 8(%rdi)
1:	pause
	cmpq $0, (%rdi)
	jne 1b
	movq %rax, 16(%rdi)
	movq %rbx, 24(%rdi)
	movq %rcx, 32(%rdi)
	movq %rdx, 40(%rdi)
	movq %rsi, 48(%rdi)
	movq %rbp, 56(%rdi)
	movq %r8, 64(%rdi)
	movq %r9, 72(%rdi)
	movq %r10, 80(%rdi)
	movq %r11, 88(%rdi)
	movq %r12, 96(%rdi)
	movq %r13, 104(%rdi)
	movq %r14, 112(%rdi)
	movq %r15, 120(%rdi)
	popq 136(%rdi)
	popq 128(%rdi)
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret
	.size hold_return, . - hold_return

	.section .note.GNU-stack,"",@progbits
