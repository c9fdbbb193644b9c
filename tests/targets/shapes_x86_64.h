/* SPDX-License-Identifier: Apache-2.0
 *
 * Part of shapes.c: declares, calls and checks what is in shapes_asm.S.
 */
#define TINY(prefix) \
	void prefix##_1_ret(void); \
	void prefix##_2_nop(void); \
	void prefix##_2_rep(void); \
	void prefix##_3_retn(void); \
	word prefix##_3_xor(void); \
	word prefix##_3_mov(word); \
	word prefix##_4_lea(word); \
	word prefix##_4_mov(word); \
	word prefix##_5_lea(word); \
	word prefix##_6_imm(void); \
	word prefix##_7_add(word, word); \
	word prefix##_8_inc(word, word); \
	word prefix##_2_jmp(word); \
	COUNTER(prefix##_1_ret); \
	COUNTER(prefix##_2_nop); \
	COUNTER(prefix##_2_rep); \
	COUNTER(prefix##_3_retn); \
	COUNTER(prefix##_3_xor); \
	COUNTER(prefix##_3_mov); \
	COUNTER(prefix##_4_lea); \
	COUNTER(prefix##_4_mov); \
	COUNTER(prefix##_5_lea); \
	COUNTER(prefix##_6_imm); \
	COUNTER(prefix##_7_add); \
	COUNTER(prefix##_8_inc); \
	COUNTER(prefix##_2_jmp); \
	static void check_##prefix(word x) \
	{ \
		CALL(prefix##_1_ret); \
		CALL(prefix##_2_nop); \
		CALL(prefix##_2_rep); \
		CALL(prefix##_3_retn); \
		CHECK(#prefix "_3_xor", CALL(prefix##_3_xor), 0); \
		CHECK(#prefix "_3_mov", CALL(prefix##_3_mov, x), (unsigned)x); \
		CHECK(#prefix "_4_lea", CALL(prefix##_4_lea, x), (unsigned)(x + 1)); \
		CHECK(#prefix "_4_mov", CALL(prefix##_4_mov, x), x); \
		CHECK(#prefix "_5_lea", CALL(prefix##_5_lea, x), x + 2); \
		CHECK(#prefix "_6_imm", CALL(prefix##_6_imm), 0x12345678); \
		CHECK(#prefix "_7_add", CALL(prefix##_7_add, x, 3), (unsigned)(x + 8)); \
		CHECK(#prefix "_8_inc", CALL(prefix##_8_inc, x, 3), x + 4); \
		CHECK(#prefix "_2_jmp", CALL(prefix##_2_jmp, x), x + 21); \
	}
TINY(packed)
TINY(padded)

extern word shape_total __attribute__((visibility("hidden")));
double first_rip_sse(double);
word first_jrcxz(word, word, word, word), first_jecxz(word, word, word, word), first_loop(word, word, word, word);
word self_branch(word, word, word), loop_at_1(word, word), loop_at_3(word, word);
COUNTER(first_rip_sse);
COUNTER(first_jrcxz);
COUNTER(first_jecxz);
COUNTER(first_loop);
COUNTER(self_branch);
COUNTER(loop_at_1);
COUNTER(loop_at_3);
/* The functions of one argument: name and what they return for x. */
#define UNARY(F) \
	F(first_call, x + 11) \
	F(first_jmp8, x + 3) \
	F(first_jmp32, x + 4) \
	F(first_jmp_away, x + 1) \
	F(first_rip_mov, x + 1000003) \
	F(first_rip_lea, 1000003 - x) \
	F(first_rip_cmp8, x + 1) \
	F(first_rip_cmp32, x + 2) \
	F(first_rip_add, x + 1000005) \
	F(first_rip_inc, x) \
	F(first_call_mem, x + 21) \
	F(first_jmp_mem, x + 1) \
	F(first_endbr, x + 7) \
	F(first_endbr_push, x) \
	F(first_push_imm8, x + 17) \
	F(first_push_imm32, x + 0x1234567) \
	F(first_push_1, x + x + 1) \
	F(first_push_2, x + 2) \
	F(first_sub_rsp, x + x + 1) \
	F(first_sub_rsp32, x + x + 1) \
	F(first_pop, x + 12) \
	F(second_entry, x + 5) \
	F(hidden_entry_user, x + 107)
#define DECLARE(name, result) \
	word name(word); \
	COUNTER(name);
UNARY(DECLARE)
word hidden_entry(word);
void first_endbr_only(void);
word asm_even(word), asm_odd(word);
COUNTER(hidden_entry);
COUNTER(first_endbr_only);
COUNTER(asm_even);
COUNTER(asm_odd);

static void check_entries(word x)
{
#define CHECK_UNARY(name, result) CHECK(#name, CALL(name, x), result);
	UNARY(CHECK_UNARY)
	CHECK("hidden_entry", CALL(hidden_entry, x), (word)(unsigned)x + 7);
	CALL(first_endbr_only);
	CHECK_FP("first_rip_sse", CALL(first_rip_sse, (double)(x & 0xffff)), (double)(x & 0xffff) + 2.5);
	CHECK("first_jrcxz 0", CALL(first_jrcxz, x, 0, 0, 0), x + 6);
	CHECK("first_jrcxz 1", CALL(first_jrcxz, x, 0, 0, 1), x + 5);
	CHECK("first_jecxz 0", CALL(first_jecxz, x, 0, 0, 1ul << 40), x + 8);
	CHECK("first_jecxz 1", CALL(first_jecxz, x, 0, 0, 2), x + 7);
	CHECK("first_loop 1", CALL(first_loop, 0, 0, 0, 1), 99);
	CHECK("first_loop 7", CALL(first_loop, 0, 0, 0, 7), 6);
	word n = x % 7 + 1;
	CHECK("self_branch", CALL(self_branch, n, 9, 1), 9 * n + 1);
	CHECK("loop_at_1", CALL(loop_at_1, n, x), x + 3 * n);
	CHECK("loop_at_3", CALL(loop_at_3, n, x), x + 5 * n);
	word depth = x % 256 == 128 ? 1000000 : 10;
	COUNT(asm_even, depth / 2 + 1);
	COUNT(asm_odd, depth / 2);
	CHECK("asm_even", asm_even(depth), 1);
}

struct asm_state {
	word rdi, rsi, rdx, rcx, r8, r9, rax, r10, r11, carry;
};
void asm_call(void (*function)(void), const struct asm_state *in, struct asm_state *out);
void odd_r10(void), odd_r11(void), odd_rax(void), odd_carry_in(void), odd_carry_out(void), odd_results(void);
void first_jcc8(void), first_jcc32(void), second_entry_3(void);
COUNTER(odd_r10);
COUNTER(odd_r11);
COUNTER(odd_rax);
COUNTER(odd_carry_in);
COUNTER(odd_carry_out);
COUNTER(odd_results);
COUNTER(first_jcc8);
COUNTER(first_jcc32);
COUNTER(second_entry_3);

/* Calls with odd arguments; every register that the function does not write
 * must come back as it went in. `carry` is the expected carry, 2 for any. */
static void check_odd(const char *name, void (*function)(void), const struct asm_state *in, word rdi, word rax,
		      word carry)
{
	struct asm_state out = { 0 };
	asm_call(function, in, &out);
	CHECK(name, out.rax, rax);
	CHECK(name, out.rdi, rdi);
	CHECK(name, out.rsi, in->rsi);
	CHECK(name, out.rdx, in->rdx);
	CHECK(name, out.rcx, in->rcx);
	CHECK(name, out.r8, in->r8);
	CHECK(name, out.r9, in->r9);
	CHECK(name, out.r10, in->r10);
	CHECK(name, out.r11, in->r11);
	if (carry != 2)
		CHECK(name, out.carry, carry);
}
#define ODD(name, in, rdi, rax, carry) (COUNT(name, 1), check_odd(#name, name, in, rdi, rax, carry))

static void check_registers(word x)
{
	struct asm_state in = { x, x + 1, x + 2, x + 3, x + 4, x + 5, x + 6, x + 7, x + 8, x & 1 }, out = { 0 };
	ODD(odd_r10, &in, x, x + in.r10, in.carry);
	ODD(odd_r11, &in, x, x + in.r11, in.carry);
	ODD(odd_rax, &in, x, x + in.rax, 2);
	ODD(odd_carry_in, &in, x + in.carry, x + in.carry, 2);
	ODD(odd_carry_out, &in, x, x, x & 1);
	ODD(first_jcc8, &in, x, x + 1 + in.carry, in.carry);
	ODD(first_jcc32, &in, x, x + 3 + in.carry, in.carry);
	ODD(second_entry_3, &in, x, in.rax + 5, 2);
	COUNT(odd_results, 1);
	asm_call(odd_results, &in, &out);
	CHECK("odd_results rcx", out.rcx, x + 1);
	CHECK("odd_results rsi", out.rsi, x + 2);
	CHECK("odd_results r8", out.r8, x + 3);
	CHECK("odd_results r9", out.r9, x + 4);
	CHECK("odd_results r10", out.r10, x + 5);
	CHECK("odd_results r11", out.r11, x + 6);
	CHECK("odd_results rdx", out.rdx, x + 7);
	CHECK("odd_results rax", out.rax, x + 8);
}

static void check_assembly(word x)
{
	check_packed(x);
	check_padded(x);
	check_entries(x);
	check_registers(x);
}

static void finish_assembly(void)
{
	CHECK("first_rip_inc total", shape_total, calls_first_rip_inc.value);
}
