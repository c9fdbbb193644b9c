/* SPDX-License-Identifier: Apache-2.0
 *
 * The part of busy8.c that is about AArch64: vector arguments, and a function that must
 * change no register but one.
 */
#include <arm_neon.h>

COUNTER(vec_one);
COUNTER(vec_four);
COUNTER(asm_keep);

TRACED uint64x2_t vec_one(uint64x2_t a, uint64x2_t b)
{
	KEEP();
	return vaddq_u64(a, b);
}

/* In four registers each way: a homogeneous aggregate (AAPCS64 6.8.2, C.2). */
TRACED float64x2x4_t vec_four(float64x2x4_t a, float64x2_t b)
{
	KEEP();
	for (int i = 0; i < 4; i++)
		a.val[i] = vaddq_f64(a.val[i], b);
	return a;
}

/* asm_keep touches nothing but x0, so everything else must come back as it was: vectors
 * in full, where C may only rely on half of eight of them, and the general registers that
 * C treats as lost. Not x16 and x17: they belong to whatever is between a call and a
 * function (AAPCS64 6.1.1). keep_ymm (tests know it by its name on x86-64) and keep_gpr
 * load the state, call and store it again. */
unsigned long asm_keep(unsigned long x);
void keep_ymm(const void *in, void *out);
void keep_gpr(const unsigned long *in, unsigned long *out);
#define ALL_VECTORS "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
#ifdef __ARM_FEATURE_BTI_DEFAULT
#define LANDING_PAD " hint 34\n" /* bti c */
#else
#define LANDING_PAD
#endif
__asm__(".text\n"
	".p2align 4\n"
	".globl asm_keep\n.type asm_keep,%function\n"
	"asm_keep:" LANDING_PAD " add x0,x0,#9\n ret\n"
	".size asm_keep,.-asm_keep\n"
	".p2align 4\n"
	".globl keep_ymm\n.type keep_ymm,%function\n"
	"keep_ymm: .cfi_startproc\n" LANDING_PAD
	" stp x29,x30,[sp,#-96]!\n .cfi_def_cfa_offset 96\n"
	" .cfi_offset 29,-96\n .cfi_offset 30,-88\n"
	" str x19,[sp,#16]\n .cfi_offset 19,-80\n"
	" stp d8,d9,[sp,#32]\n stp d10,d11,[sp,#48]\n"
	" stp d12,d13,[sp,#64]\n stp d14,d15,[sp,#80]\n"
	" mov x29,sp\n mov x19,x1\n"
	" .irp i," ALL_VECTORS "\n ldr q\\i,[x0,#16*\\i]\n .endr\n"
	" bl asm_keep\n"
	" .irp i," ALL_VECTORS "\n str q\\i,[x19,#16*\\i]\n .endr\n"
	" ldp d8,d9,[sp,#32]\n ldp d10,d11,[sp,#48]\n"
	" ldp d12,d13,[sp,#64]\n ldp d14,d15,[sp,#80]\n"
	" ldr x19,[sp,#16]\n"
	" ldp x29,x30,[sp],#96\n .cfi_def_cfa_offset 0\n"
	" ret\n .cfi_endproc\n.size keep_ymm,.-keep_ymm\n"
	".p2align 4\n"
	".globl keep_gpr\n.type keep_gpr,%function\n"
	"keep_gpr: .cfi_startproc\n" LANDING_PAD
	" stp x29,x30,[sp,#-112]!\n .cfi_def_cfa_offset 112\n"
	" .cfi_offset 29,-112\n .cfi_offset 30,-104\n"
	" stp x19,x20,[sp,#16]\n .cfi_offset 19,-96\n .cfi_offset 20,-88\n"
	" stp x21,x22,[sp,#32]\n .cfi_offset 21,-80\n .cfi_offset 22,-72\n"
	" stp x23,x24,[sp,#48]\n .cfi_offset 23,-64\n .cfi_offset 24,-56\n"
	" stp x25,x26,[sp,#64]\n .cfi_offset 25,-48\n .cfi_offset 26,-40\n"
	" stp x27,x28,[sp,#80]\n .cfi_offset 27,-32\n .cfi_offset 28,-24\n"
	" str x1,[sp,#96]\n"
	" ldp x1,x2,[x0,#0]\n ldp x3,x4,[x0,#16]\n ldp x5,x6,[x0,#32]\n"
	" ldp x7,x8,[x0,#48]\n ldp x9,x10,[x0,#64]\n ldp x11,x12,[x0,#80]\n"
	" ldp x13,x14,[x0,#96]\n ldp x15,x18,[x0,#112]\n ldp x19,x20,[x0,#128]\n"
	" ldp x21,x22,[x0,#144]\n ldp x23,x24,[x0,#160]\n ldp x25,x26,[x0,#176]\n"
	" ldp x27,x28,[x0,#192]\n ldr x29,[x0,#208]\n"
	" ldr x0,[x0,#216]\n"
	" bl asm_keep\n"
	" ldr x16,[sp,#96]\n"
	" stp x1,x2,[x16,#0]\n stp x3,x4,[x16,#16]\n stp x5,x6,[x16,#32]\n"
	" stp x7,x8,[x16,#48]\n stp x9,x10,[x16,#64]\n stp x11,x12,[x16,#80]\n"
	" stp x13,x14,[x16,#96]\n stp x15,x18,[x16,#112]\n stp x19,x20,[x16,#128]\n"
	" stp x21,x22,[x16,#144]\n stp x23,x24,[x16,#160]\n stp x25,x26,[x16,#176]\n"
	" stp x27,x28,[x16,#192]\n str x29,[x16,#208]\n"
	" str x0,[x16,#216]\n"
	" ldp x19,x20,[sp,#16]\n"
	" ldp x21,x22,[sp,#32]\n"
	" ldp x23,x24,[sp,#48]\n"
	" ldp x25,x26,[sp,#64]\n"
	" ldp x27,x28,[sp,#80]\n"
	" ldp x29,x30,[sp],#112\n .cfi_def_cfa_offset 0\n"
	" ret\n .cfi_endproc\n.size keep_gpr,.-keep_gpr\n");

static void prepare_vectors(void)
{
}

static void check_vectors(unsigned long x)
{
	unsigned long halves[2];
	uint64x2_t sum = CALL(vec_one, (uint64x2_t){ x + 1, x }, (uint64x2_t){ 9, 7 });
	vst1q_u64((uint64_t *)halves, sum);
	CHECK("vec_one low", halves[0], x + 10);
	CHECK("vec_one high", halves[1], x + 7);

	double d = (double)(x & 0xffffff);
	float64x2x4_t four;
	for (int i = 0; i < 4; i++)
		four.val[i] = (float64x2_t){ d + i, d - i };
	four = CALL(vec_four, four, (float64x2_t){ 1, 2 });
	for (int i = 0; i < 4; i++) {
		CHECK_FP("vec_four low", vgetq_lane_f64(four.val[i], 0), d + i + 1);
		CHECK_FP("vec_four high", vgetq_lane_f64(four.val[i], 1), d - i + 2);
	}

	enum { GENERAL = 27 };
	unsigned long in[64], out[64] = { 0 };
	for (int i = 0; i < 64; i++)
		in[i] = x * 0x9e3779b97f4a7c15u + (unsigned long)i * 0x100000001b3u;
	COUNT(asm_keep, 1);
	keep_ymm(in, out);
	for (int i = 0; i < 64; i++)
		CHECK("keep_ymm", out[i], in[i]);
	COUNT(asm_keep, 1);
	keep_gpr(in, out);
	for (int i = 0; i < GENERAL; i++)
		CHECK("keep_gpr", out[i], in[i]);
	CHECK("asm_keep", out[GENERAL], in[GENERAL] + 9);
}
