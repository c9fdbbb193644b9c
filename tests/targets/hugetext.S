/* SPDX-License-Identifier: Apache-2.0
 *
 * Makes a program's code long enough for huge pages.
 */
	.section .text.huge, "ax", @progbits
	.zero 0x400000
	.section .note.GNU-stack, "", @progbits
