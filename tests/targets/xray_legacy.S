/* SPDX-License-Identifier: Apache-2.0
 *
 * Sleds with map entries of versions 0 and 1, as clang made them up to version
 * 10: absolute addresses, for which a position-independent program needs
 * relocations. And sleds with more state that is live around them than a
 * compiler can be made to have: flags, registers, the red zone.
 */
	.text

.macro MAP sled, kind, version
	.pushsection xray_instr_map, "aw", @progbits
	.quad \sled, 77b
	.byte \kind, 0, \version
	.zero 13
	.popsection
.endm

/* 77 is the function that MAP's entries belong to. */
.macro FUNCTION name
	.p2align 4
	.globl \name
	.type \name, @function
\name:
77:
.endm
.macro END name
	.size \name, . - \name
.endm

.macro JUMP_SLED kind, version
	.p2align 1
.Lsled\@:
	.byte 0xeb, 0x09, 0x66, 0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0
	MAP .Lsled\@, \kind, \version
.endm
.macro ENTRY version
	JUMP_SLED 0, \version
.endm
.macro TAIL version
	JUMP_SLED 2, \version
.endm
.macro LOGGED_ENTRY version
	JUMP_SLED 3, \version
.endm
.macro EXIT version
	.p2align 1
.Lsled\@:
	.byte 0xc3, 0x2e, 0x66, 0x0f, 0x1f, 0x84, 0, 0, 2, 0, 0
	MAP .Lsled\@, 1, \version
.endm

/* Custom events of version 0 are five bytes longer than those of version 1.
 * .org fails when it would have to go back. */
.macro CUSTOM_EVENT version, data, size
	.p2align 1
.Lsled\@:
	.byte 0xeb, 20 - 5 * \version
	push %rdi
	push %rsi
	mov \data, %rdi
	mov \size, %rsi
	call __xray_CustomEvent
	pop %rsi
	pop %rdi
	.org .Lsled\@ + 22 - 5 * \version, 0x90
	MAP .Lsled\@, 4, \version
.endm
.macro TYPED_EVENT version, number, data, size
	.p2align 1
.Lsled\@:
	.byte 0xeb, 20
	push %rdi
	push %rsi
	push %rdx
	mov \number, %rdi
	mov \data, %rsi
	mov \size, %rdx
	call __xray_TypedEvent
	pop %rdx
	pop %rsi
	pop %rdi
	.org .Lsled\@ + 22, 0x90
	MAP .Lsled\@, 5, \version
.endm

/* Carry, overflow, zero and parity are set; mov and lea keep them. */
.macro SET_FLAGS
	mov $0x80000000, %eax
	add %eax, %eax
.endm
.macro CHECK_FLAGS wrong
	jnc \wrong
	jno \wrong
	jnz \wrong
	jnp \wrong
.endm

	/* What the sleds of events call, when a runtime lets them. */
	.hidden __xray_CustomEvent, __xray_TypedEvent
	FUNCTION __xray_CustomEvent
	ret
	END __xray_CustomEvent
	FUNCTION __xray_TypedEvent
	ret
	END __xray_TypedEvent

	FUNCTION legacy_leaf /* 41 x + 3 */
	ENTRY 0
	imul $41, %rdi, %rax
	add $3, %rax
	EXIT 0
	END legacy_leaf

	FUNCTION legacy_exits /* x + 1 to x + 3 for x % 4 = 1 to 3, else x */
	ENTRY 1
	mov %rdi, %rax
	and $3, %edi
	jz 1f
	cmp $2, %edi
	je 2f
	ja 3f
	add $1, %rax
	EXIT 1
2:	add $2, %rax
	EXIT 1
3:	add $3, %rax
	EXIT 1
1:	EXIT 1
	END legacy_exits

	FUNCTION legacy_tail /* legacy_leaf(x + 1) */
	ENTRY 0
	inc %rdi
	TAIL 0
	jmp legacy_leaf
	END legacy_tail

	FUNCTION legacy_maybe /* legacy_leaf(x) for odd x, else x */
	ENTRY 1
	mov %rdi, %rax
	test $1, %edi
	TAIL 1
	jnz legacy_leaf
	EXIT 1
	END legacy_maybe

	FUNCTION legacy_logged /* x + 5 */
	LOGGED_ENTRY 0
	lea 5(%rdi), %rax
	EXIT 0
	END legacy_logged

	/* Adds y x times; every round goes through the entry sled. */
	FUNCTION legacy_loop /* (x, y, sum = 0) */
	ENTRY 1
	add %rsi, %rdx
	dec %rdi
	jnz legacy_loop
	mov %rdx, %rax
	EXIT 1
	END legacy_loop

	FUNCTION legacy_custom0 /* x + 6 */
	ENTRY 0
	lea legacy_label(%rip), %r10
	mov $8, %r9d
	CUSTOM_EVENT 0, %r10, %r9
	lea 6(%rdi), %rax
	EXIT 0
	END legacy_custom0

	FUNCTION legacy_custom1 /* x + 7 */
	ENTRY 1
	lea legacy_label(%rip), %rax
	mov $8, %ecx
	CUSTOM_EVENT 1, %rax, %rcx
	lea 7(%rdi), %rax
	EXIT 1
	END legacy_custom1

	FUNCTION legacy_typed /* x + 8 */
	ENTRY 0
	lea legacy_label(%rip), %r11
	mov $3, %r10d
	mov $8, %r9d
	TYPED_EVENT 0, %r10, %r11, %r9
	lea 8(%rdi), %rax
	EXIT 0
	END legacy_typed

	/* Everything that a call may destroy is live across two events.
	 * 25 x + 308 */
	FUNCTION legacy_live
	ENTRY 1
	.irp i, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
	lea \i(%rdi), %rax
	mov %rax, -8 * \i(%rsp)
	.endr
	SET_FLAGS
	lea 23(%rdi), %rax
	movq %rax, %xmm0
	lea 24(%rdi), %rax
	movq %rax, %xmm15
	lea 17(%rdi), %rax
	lea 18(%rdi), %rcx
	lea 19(%rdi), %rdx
	lea 20(%rdi), %rsi
	lea legacy_label(%rip), %r8
	mov $8, %r9d
	lea 21(%rdi), %r10
	lea 22(%rdi), %r11
	CUSTOM_EVENT 1, %r8, %r9
	CHECK_FLAGS 9f
	TYPED_EVENT 1, %r9, %r8, %r9
	CHECK_FLAGS 9f
	.irp register, %rdi, %rcx, %rdx, %rsi, %r9, %r10, %r11
	add \register, %rax
	.endr
	.irp i, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
	add -8 * \i(%rsp), %rax
	.endr
	.irp register, %xmm0, %xmm15
	movq \register, %rcx
	add %rcx, %rax
	.endr
	lea legacy_label(%rip), %rcx
	sub %rcx, %r8
	add %r8, %rax
	EXIT 1
9:	xor %eax, %eax
	EXIT 1
	END legacy_live

	/* Takes arguments in every register that a call may destroy, and flags. */
	FUNCTION legacy_registers
	ENTRY 0
	CHECK_FLAGS 9f
	.irp register, %rdi, %rsi, %rdx, %rcx, %r8, %r9, %r10, %r11
	add \register, %rax
	.endr
	.irp register, %xmm0, %xmm15
	movq \register, %rcx
	add %rcx, %rax
	.endr
	EXIT 0
9:	xor %eax, %eax
	EXIT 0
	END legacy_registers

	FUNCTION legacy_call_registers /* 11 x + 51 */
	.cfi_startproc
	sub $8, %rsp
	.cfi_adjust_cfa_offset 8
	SET_FLAGS
	lea 1(%rdi), %rsi
	lea 2(%rdi), %rdx
	lea 3(%rdi), %rcx
	lea 4(%rdi), %r8
	lea 5(%rdi), %r9
	lea 6(%rdi), %rax
	lea 7(%rdi), %r10
	lea 8(%rdi), %r11
	movq %r10, %xmm15
	movq %r11, %xmm0
	call legacy_registers
	add $8, %rsp
	.cfi_adjust_cfa_offset -8
	ret
	.cfi_endproc
	END legacy_call_registers

	FUNCTION legacy_results /* in rax, rdx, xmm0 and xmm1 */
	ENTRY 1
	lea 1(%rdi), %rax
	lea 2(%rdi), %rdx
	movq %rax, %xmm0
	movq %rdx, %xmm1
	EXIT 1
	END legacy_results

	FUNCTION legacy_call_results /* 4 x + 6 */
	.cfi_startproc
	sub $8, %rsp
	.cfi_adjust_cfa_offset 8
	call legacy_results
	add %rdx, %rax
	.irp register, %xmm0, %xmm1
	movq \register, %rcx
	add %rcx, %rax
	.endr
	add $8, %rsp
	.cfi_adjust_cfa_offset -8
	ret
	.cfi_endproc
	END legacy_call_results

	/* An entry such as a discarded function leaves. */
	.pushsection xray_instr_map
	.zero 32
	.popsection

	.section .rodata
legacy_label:
	.ascii "legacy!\0"
	.section .note.GNU-stack, "", @progbits
