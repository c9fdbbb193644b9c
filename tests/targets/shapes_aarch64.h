/* SPDX-License-Identifier: Apache-2.0
 *
 * Part of shapes.c: declares, calls and checks what is in shapes_asm_aarch64.S.
 */
/* The functions of one argument: name and what they return for x. */
#define UNARY(F) \
	F(tiny_add, x + 2) \
	F(tiny_mov, (word)(unsigned)x) \
	F(tiny_movz, 0x1234) \
	F(tiny_tail, x + 21) \
	F(tiny_ret_reg, x) \
	F(first_b, x + 3) \
	F(first_b_away, x + 1) \
	F(first_adr, x + 1000003) \
	F(first_adrp, 1000003 - x) \
	F(first_ldr_x, x + 1000003) \
	F(first_ldr_w, x + 0x91223344) \
	F(first_ldrsw, x + (word)(long)(int)0x91223344) \
	F(first_ldr_q, x + 77) \
	F(first_prfm, x + 12) \
	F(first_bti, x + 7) \
	F(first_paciasp, x + 1) \
	F(first_bti_paciasp, x + 2) \
	F(first_stp, x + x + 1) \
	F(first_sub_sp, x + x + 1) \
	F(first_mov_lr, x + 1) \
	F(first_str_lr, x + 1) \
	F(self_first, x + (x & 1)) \
	F(second_entry, x + 5) \
	F(hidden_entry, (word)(unsigned)x + 7) \
	F(hidden_entry_user, x + 107)
#define DECLARE(name, result) \
	word name(word); \
	COUNTER(name);
UNARY(DECLARE)
/* And of two: name, the second argument, the result. */
#define BINARY(F) \
	F(first_cbz, 0, x + 6) \
	F(first_cbz, 1ul << 40, x + 5) \
	F(first_cbnz_w, 1ul << 40, x + 7) \
	F(first_cbnz_w, 3, x + 8) \
	F(first_tbz, 1ul << 40, x + 9) \
	F(first_tbz, ~(1ul << 40), x + 11) \
	F(first_tbnz_away, 8, x + 21) \
	F(first_tbnz_away, 7, x + 4) \
	F(first_br, (word)shape_add1, x + 1)
word first_cbz(word, word), first_cbnz_w(word, word), first_tbz(word, word), first_tbnz_away(word, word);
word first_br(word, word), first_exclusive(word *, word), shape_add1(word);
word self_branch(word, word, word), loop_at_1(word, word);
double first_ldr_d(double);
void tiny_ret(void), tiny_nop(void), first_bti_only(void);
word asm_even(word), asm_odd(word);
COUNTER(first_cbz);
COUNTER(first_cbnz_w);
COUNTER(first_tbz);
COUNTER(first_tbnz_away);
COUNTER(first_br);
COUNTER(first_exclusive);
COUNTER(self_branch);
COUNTER(loop_at_1);
COUNTER(first_ldr_d);
COUNTER(tiny_ret);
COUNTER(tiny_nop);
COUNTER(first_bti_only);
COUNTER(asm_even);
COUNTER(asm_odd);

static word exclusive_total;

static void check_entries(word x)
{
#define CHECK_UNARY(name, result) CHECK(#name, CALL(name, x), result);
	UNARY(CHECK_UNARY)
#define CHECK_BINARY(name, second, result) CHECK(#name, CALL(name, x, second), result);
	BINARY(CHECK_BINARY)
	CALL(tiny_ret);
	CALL(tiny_nop);
	CALL(first_bti_only);
	CHECK_FP("first_ldr_d", CALL(first_ldr_d, (double)(x & 0xffff)), (double)(x & 0xffff) + 2.5);
	CHECK("first_exclusive", CALL(first_exclusive, &exclusive_total, 1), 1);
	word n = x % 7 + 1;
	CHECK("self_branch", CALL(self_branch, n, 9, 1), 9 * n + 1);
	CHECK("loop_at_1", CALL(loop_at_1, n, x), x + 3 * n);
	word depth = x % 256 == 128 ? 1000000 : 10;
	COUNT(asm_even, depth / 2 + 1);
	COUNT(asm_odd, depth / 2);
	CHECK("asm_even", asm_even(depth), 1);
}

/* Not x16 and x17: they belong to whatever is between a call and a function. */
struct asm_state {
	word x[16], x18, carry, link;
};
_Static_assert(sizeof(struct asm_state) == 152, "shapes_asm_aarch64.S");
void asm_call(void (*function)(void), const struct asm_state *in, struct asm_state *out);
void odd_x9(void), odd_x15(void), odd_x18(void), odd_carry_in(void), odd_carry_out(void), odd_results(void);
void first_bcond(void), first_bl(void), first_blr(void), second_entry_1(void);
COUNTER(odd_x9);
COUNTER(odd_x15);
COUNTER(odd_x18);
COUNTER(odd_carry_in);
COUNTER(odd_carry_out);
COUNTER(odd_results);
COUNTER(first_bcond);
COUNTER(first_bl);
COUNTER(first_blr);
COUNTER(second_entry_1);

/* Calls with odd arguments; every register that the function does not write must come back
 * as it went in. `carry` is the expected carry, 2 for any. */
static void check_odd(const char *name, void (*function)(void), const struct asm_state *in, word x0, word carry)
{
	struct asm_state out = { 0 };
	asm_call(function, in, &out);
	CHECK(name, out.x[0], x0);
	for (int i = 1; i < 16; i++)
		if (i != 9 || !in->link)
			CHECK(name, out.x[i], in->x[i]);
	CHECK(name, out.x18, in->x18);
	if (carry != 2)
		CHECK(name, out.carry, carry);
}
#define ODD(name, in, x0, carry) (COUNT(name, 1), check_odd(#name, name, in, x0, carry))

static void check_registers(word x)
{
	struct asm_state in = { .x18 = x + 18, .carry = x & 1 }, out = { 0 };
	for (word i = 0; i < 16; i++)
		in.x[i] = x + i;
	ODD(odd_x9, &in, x + in.x[9], in.carry);
	ODD(odd_x15, &in, x + in.x[15], in.carry);
	ODD(odd_x18, &in, x + in.x18, in.carry);
	ODD(odd_carry_in, &in, x + in.carry, in.carry);
	ODD(first_bcond, &in, x + 1 + in.carry, in.carry);
	ODD(second_entry_1, &in, in.x[10] + 5, in.carry);

	COUNT(odd_carry_out, 1);
	asm_call(odd_carry_out, &in, &out);
	CHECK("odd_carry_out", out.x[1], x);
	CHECK("odd_carry_out carry", out.carry, x & 1);
	COUNT(odd_results, 1);
	asm_call(odd_results, &in, &out);
	CHECK("odd_results x8", out.x[8], x + 1);
	CHECK("odd_results x9", out.x[9], x + 2);
	CHECK("odd_results x15", out.x[15], x + 3);
	CHECK("odd_results x18", out.x18, x + 4);
	CHECK("odd_results x7", out.x[7], x + 5);
	CHECK("odd_results x0", out.x[0], x + 6);

	in.link = 1;
	ODD(first_bl, &in, x + 11, 2);
	in.x[1] = (word)shape_add1;
	ODD(first_blr, &in, x + 21, 2);
}

static void check_assembly(word x)
{
	check_entries(x);
	check_registers(x);
}

static void finish_assembly(void)
{
	CHECK("first_exclusive total", exclusive_total, calls_first_exclusive.value);
}
