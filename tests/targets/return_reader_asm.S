/* SPDX-License-Identifier: Apache-2.0
 *
 * hold_return(struct hold *hold): as unwinders do, reads the address that it will
 * return to, and has it, and the byte before it, in registers and on its stack while
 * hold->wait is set. What they are then goes to hold->values.
 */
	.text
	.p2align 4
	.globl hold_return
#if defined(__x86_64__)
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
#elif defined(__aarch64__)
	/* It signs the address, as its kind does; what is signed is on the stack alone. */
	.type hold_return, %function
hold_return:
	hint #25		/* paciasp */
	stp x29, x30, [sp, #-128]!
	mov x29, sp
	stp x19, x20, [sp, #32]
	stp x21, x22, [sp, #48]
	stp x23, x24, [sp, #64]
	stp x25, x26, [sp, #80]
	stp x27, x28, [sp, #96]
	hint #7			/* xpaclri */
	mov x1, x30
	sub x2, x30, #1
	stp x1, x2, [sp, #16]
	.irp r, 3, 5, 7, 9, 11, 13, 15, 19, 21, 23, 25, 27
	mov x\r, x1
	.endr
	.irp r, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 26, 28
	mov x\r, x2
	.endr
	ldr x17, [x0, #8]
	add x17, x17, #1
	str x17, [x0, #8]
1:	ldr x17, [x0]
	cbnz x17, 1b
	stp x1, x2, [x0, #16]
	stp x3, x4, [x0, #32]
	stp x9, x10, [x0, #48]
	stp x15, x16, [x0, #64]
	stp x19, x20, [x0, #80]
	stp x27, x28, [x0, #96]
	str x30, [x0, #112]
	ldr x30, [sp, #8]
	hint #7
	str x30, [x0, #120]
	ldp x1, x2, [sp, #16]
	stp x1, x2, [x0, #128]
	ldp x27, x28, [sp, #96]
	ldp x25, x26, [sp, #80]
	ldp x23, x24, [sp, #64]
	ldp x21, x22, [sp, #48]
	ldp x19, x20, [sp, #32]
	ldp x29, x30, [sp], #128
	hint #29		/* autiasp: with a wrong signature the return faults */
	ret
#endif
	.size hold_return, . - hold_return

	.section .note.GNU-stack,"",%progbits
