/* SPDX-License-Identifier: Apache-2.0
 *
 * What calls of -pg lead to, as a shared object of its own: nothing is changed, so
 * that whatever a site changes shows (the C library's change flags, r10 and r11).
 */
	.text
.macro PROFILER name
	.globl	\name
	.type	\name, @function
	.p2align 4
\name:
	ret
	.size	\name, . - \name
.endm
	PROFILER __fentry__
	PROFILER mcount
	PROFILER _mcount
	.section .note.GNU-stack, "", @progbits
