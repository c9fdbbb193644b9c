/* SPDX-License-Identifier: Apache-2.0
 *
 * Where a program starts (AAPCS64: the stack as in the kernel's binfmt_elf.c): what Debian's
 * crt1.o does, with a landing pad and the note that says so. One object without that note
 * takes it from the whole program.
 */
	.text
	.globl _start
	.type _start, %function
_start:
	.cfi_startproc
	.cfi_undefined 30
	hint #34 /* bti c */
	mov x29, #0
	mov x30, #0
	mov x5, x0 /* the loader's own function for the end */
	ldr x1, [sp]
	add x2, sp, #8
	mov x6, sp
	adrp x0, :got:main
	ldr x0, [x0, :got_lo12:main]
	mov x3, #0
	mov x4, #0
	bl __libc_start_main
	bl abort
	.cfi_endproc
	.size _start, . - _start

	.section .note.gnu.property, "a"
	.p2align 3
	.word 4, 16, 5 /* NT_GNU_PROPERTY_TYPE_0 */
	.asciz "GNU"
	.word 0xc0000000, 4, 3, 0 /* GNU_PROPERTY_AARCH64_FEATURE_1_AND: BTI, PAC */

	.section .note.GNU-stack, "", %progbits
