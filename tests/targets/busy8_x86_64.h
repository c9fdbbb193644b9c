/* SPDX-License-Identifier: Apache-2.0
 *
 * The part of busy8.c that is about x86-64: vector arguments, and a function that must
 * change no register but one.
 */
#include <immintrin.h>

COUNTER(vec_xmm);
COUNTER(vec_ymm);
COUNTER(asm_keep);

TRACED __m128i vec_xmm(__m128i a, __m128i b)
{
	KEEP();
	return _mm_add_epi64(a, b);
}

__attribute__((target("avx"))) TRACED __m256d vec_ymm(__m256d a, __m256d b)
{
	KEEP();
	return _mm256_add_pd(a, b);
}

/* asm_keep touches nothing but rax, so everything else must come back as it
 * was: vectors with their upper halves, and the registers that C treats as
 * lost. keep_ymm and keep_gpr load the state, call and store it again. */
unsigned long asm_keep(unsigned long x);
void keep_ymm(const void *in, void *out);
void keep_gpr(const unsigned long *in, unsigned long *out);
__asm__(".text\n"
	".p2align 4\n"
	".globl asm_keep\n.type asm_keep,@function\n"
	"asm_keep: lea 9(%rdi),%rax\n ret\n"
	".size asm_keep,.-asm_keep\n"
	".p2align 4\n"
	".globl keep_ymm\n.type keep_ymm,@function\n"
	"keep_ymm: .cfi_startproc\n"
	" push %rbx\n .cfi_adjust_cfa_offset 8\n .cfi_offset %rbx,-16\n"
	" mov %rsi,%rbx\n"
	" .irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovups 32*\\i(%rdi),%ymm\\i\n .endr\n"
	" call asm_keep\n"
	" .irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovups %ymm\\i,32*\\i(%rbx)\n .endr\n"
	" vzeroupper\n"
	" pop %rbx\n .cfi_adjust_cfa_offset -8\n ret\n"
	" .cfi_endproc\n.size keep_ymm,.-keep_ymm\n"
	".p2align 4\n"
	".globl keep_gpr\n.type keep_gpr,@function\n"
	"keep_gpr: .cfi_startproc\n"
	" push %rbx\n .cfi_adjust_cfa_offset 8\n .cfi_offset %rbx,-16\n"
	" push %rbp\n .cfi_adjust_cfa_offset 8\n .cfi_offset %rbp,-24\n"
	" push %r12\n .cfi_adjust_cfa_offset 8\n .cfi_offset %r12,-32\n"
	" push %r13\n .cfi_adjust_cfa_offset 8\n .cfi_offset %r13,-40\n"
	" push %r14\n .cfi_adjust_cfa_offset 8\n .cfi_offset %r14,-48\n"
	" push %r15\n .cfi_adjust_cfa_offset 8\n .cfi_offset %r15,-56\n"
	" push %rsi\n .cfi_adjust_cfa_offset 8\n"
	" mov 0(%rdi),%rcx\n mov 8(%rdi),%rdx\n mov 16(%rdi),%rsi\n mov 24(%rdi),%r8\n"
	" mov 32(%rdi),%r9\n mov 40(%rdi),%r10\n mov 48(%rdi),%r11\n mov 56(%rdi),%rbx\n"
	" mov 64(%rdi),%rbp\n mov 72(%rdi),%r12\n mov 80(%rdi),%r13\n mov 88(%rdi),%r14\n"
	" mov 96(%rdi),%r15\n mov 104(%rdi),%rdi\n"
	" call asm_keep\n"
	" xchg %rax,(%rsp)\n" /* rax: out; the result stays on the stack */
	" mov %rcx,0(%rax)\n mov %rdx,8(%rax)\n mov %rsi,16(%rax)\n mov %r8,24(%rax)\n"
	" mov %r9,32(%rax)\n mov %r10,40(%rax)\n mov %r11,48(%rax)\n mov %rbx,56(%rax)\n"
	" mov %rbp,64(%rax)\n mov %r12,72(%rax)\n mov %r13,80(%rax)\n mov %r14,88(%rax)\n"
	" mov %r15,96(%rax)\n mov %rdi,104(%rax)\n"
	" pop %rcx\n .cfi_adjust_cfa_offset -8\n mov %rcx,112(%rax)\n"
	" pop %r15\n .cfi_adjust_cfa_offset -8\n pop %r14\n .cfi_adjust_cfa_offset -8\n"
	" pop %r13\n .cfi_adjust_cfa_offset -8\n pop %r12\n .cfi_adjust_cfa_offset -8\n"
	" pop %rbp\n .cfi_adjust_cfa_offset -8\n pop %rbx\n .cfi_adjust_cfa_offset -8\n"
	" ret\n .cfi_endproc\n.size keep_gpr,.-keep_gpr\n");

static int has_avx;

static void prepare_vectors(void)
{
	has_avx = __builtin_cpu_supports("avx");
}

__attribute__((target("avx"))) static void check_ymm(unsigned long x)
{
	double d = (double)(x & 0xffffff);
	__m256d a = _mm256_set_pd(d, d + 1, d + 2, d + 3), b = _mm256_set_pd(4, 3, 2, 1);
	double sum[4];
	_mm256_storeu_pd(sum, CALL(vec_ymm, a, b));
	for (int i = 0; i < 4; i++)
		CHECK_FP("vec_ymm", sum[i], (d + 3 - i) + (i + 1));

	unsigned long in[64], out[64] = { 0 };
	for (int i = 0; i < 64; i++)
		in[i] = x * 0x9e3779b97f4a7c15u + (unsigned long)i * 0x100000001b3u;
	COUNT(asm_keep, 1);
	keep_ymm(in, out);
	for (int i = 0; i < 64; i++)
		CHECK("keep_ymm", out[i], in[i]);
}

static void check_vectors(unsigned long x)
{
	__m128i sum = CALL(vec_xmm, _mm_set_epi64x((long long)x, (long long)(x + 1)), _mm_set_epi64x(7, 9));
	unsigned long halves[2];
	_mm_storeu_si128((__m128i *)halves, sum);
	CHECK("vec_xmm low", halves[0], x + 10);
	CHECK("vec_xmm high", halves[1], x + 7);

	unsigned long in[14], out[15] = { 0 };
	for (int i = 0; i < 14; i++)
		in[i] = x * 31 + (unsigned long)i * 0x0101010101010101u;
	COUNT(asm_keep, 1);
	keep_gpr(in, out);
	for (int i = 0; i < 14; i++)
		CHECK("keep_gpr", out[i], in[i]);
	CHECK("asm_keep", out[14], in[13] + 9);
	if (has_avx)
		check_ymm(x);
}
