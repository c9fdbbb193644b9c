/* SPDX-License-Identifier: Apache-2.0
 *
 * Functions whose first instruction crosses the end of an 8-byte word, of a cache line
 * or of a page after each of its bytes. As a jump's displacement what it holds leads
 * below address 0, so that only the whole instruction can become a jump.
 */
	.text
	.type	straddle_begin, @function
straddle_begin:
	ret

	/* mov $number,%eax; lea (%rax,%rdi),%eax; ret: 5 bytes */
.macro SHORT offset
	.p2align 12, 0xcc
	.skip	\offset, 0xcc
	.globl	straddle_5_\offset
	.type	straddle_5_\offset, @function
straddle_5_\offset:
	.byte	0xb8
	.long	0x80000000 + \offset
	lea	(%rax, %rdi), %eax
	ret
	.size	straddle_5_\offset, . - straddle_5_\offset
.endm
	/* mov $number,%rax; ...: 7 bytes */
.macro LONG offset
	.p2align 12, 0xcc
	.skip	\offset, 0xcc
	.globl	straddle_7_\offset
	.type	straddle_7_\offset, @function
straddle_7_\offset:
	.byte	0x48, 0xc7, 0xc0
	.long	0x8000 + \offset % 256
	lea	(%rax, %rdi), %eax
	ret
	.size	straddle_7_\offset, . - straddle_7_\offset
.endm

	.irp	offset, 12, 13, 14, 15, 60, 61, 62, 63, 4092, 4093, 4094, 4095
	SHORT	\offset
	.endr
	.irp	offset, 10, 11, 58, 59, 4090, 4091, 4095
	LONG	\offset
	.endr
	.p2align 12, 0xcc

	.section .note.GNU-stack, "", @progbits
