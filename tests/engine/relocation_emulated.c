/* relocation_emulated.c - runs cases in Unicorn (see relocation_case.h).
 *
 * Standard input and output are as of relocation_native.c, but for the child:
 * only isolated cases have any, and the status is always 0.
 */
#include "relocation_case.h"

#include <errno.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unicorn/unicorn.h>

enum { MOST = 1 << 16, XMMS = 16, ENDLESS_MICROSECONDS = 5000,
       ISOLATED_MICROSECONDS = 999999 };

static struct case_ cases[MOST];
static struct result results[MOST];
static uc_engine *cpu;
static uc_context **contexts;
static uint64_t fault_address;

static const int gprs[16] = { UC_X86_REG_RAX, UC_X86_REG_RCX, UC_X86_REG_RDX, UC_X86_REG_RBX,
			      UC_X86_REG_RSP, UC_X86_REG_RBP, UC_X86_REG_RSI, UC_X86_REG_RDI,
			      UC_X86_REG_R8,  UC_X86_REG_R9,  UC_X86_REG_R10, UC_X86_REG_R11,
			      UC_X86_REG_R12, UC_X86_REG_R13, UC_X86_REG_R14, UC_X86_REG_R15 };
enum { ST = 8, SMALL = 4 };
static int registers[16 + 4 + XMMS + ST + SMALL];
static void *places[2][16 + 4 + XMMS + ST + SMALL];
static size_t sizes[16 + 4 + XMMS + ST + SMALL];
enum { REGISTERS = sizeof registers / sizeof *registers };

static void check(uc_err error, const char *what)
{
	if (error == UC_ERR_OK)
		return;
	fprintf(stderr, "%s: %s\n", what, uc_strerror(error));
	exit(3);
}

static void list_registers(void)
{
	static const int small[SMALL] = { UC_X86_REG_MXCSR, UC_X86_REG_FPSW, UC_X86_REG_FPCW,
					  UC_X86_REG_FPTAG };
	static const int named[4] = { UC_X86_REG_RIP, UC_X86_REG_EFLAGS, UC_X86_REG_FS_BASE,
				      UC_X86_REG_GS_BASE };

	for (int which = 0; which < 2; which++) {
		struct outcome *outcome = &outcomes[which];
		uint8_t *vectors = outcome->vectors;
		void *fields[4] = { &outcome->pc, &outcome->flags, &outcome->bases[0],
				    &outcome->bases[1] };
		int at = 0;

		for (int i = 0; i < 16; i++, at++)
			registers[at] = gprs[i], places[which][at] = &outcome->gpr[i], sizes[at] = 8;
		for (int i = 0; i < 4; i++, at++)
			registers[at] = named[i], places[which][at] = fields[i], sizes[at] = 8;
		for (int i = 0; i < XMMS + ST + SMALL; i++, at++, vectors += 16) {
			registers[at] = i < XMMS ? UC_X86_REG_XMM0 + i
					: i < XMMS + ST ? UC_X86_REG_ST0 + i - XMMS
							: small[i - XMMS - ST];
			places[which][at] = vectors;
			sizes[at] = i < XMMS ? 16 : i < XMMS + ST ? 10 : 4;
		}
		outcome->vector_bytes = (uint32_t)(vectors - outcome->vectors);
	}
}

static bool on_invalid(uc_engine *engine, uc_mem_type type, uint64_t address, int size,
		       int64_t value, void *data)
{
	(void)engine, (void)type, (void)size, (void)value, (void)data;
	fault_address = address;
	return false;
}

/* A limit of time as Unicorn offers it would cost a thread for each run. */
static volatile sig_atomic_t current_run, seen_run, timed_out;

static void on_tick(int signal)
{
	(void)signal;
	if (current_run % 2 && current_run == seen_run) {
		timed_out = 1;
		uc_emu_stop(cpu);
	}
	seen_run = current_run;
}

static const struct case_ *current_case;

/* Unicorn gives up where it finds itself inconsistent. */
static void on_abort(int signal)
{
	(void)signal;
	dprintf(2, "Unicorn gave up at %#lx: ", (unsigned long)current_case->address);
	for (int i = 0; i < current_case->length; i++)
		dprintf(2, "%02x", current_case->code[i]);
	dprintf(2, "\n");
}

static void tick_every(long microseconds)
{
	struct itimerval tick = { { 0, microseconds }, { 0, microseconds } };
	struct sigaction action = { .sa_handler = on_tick, .sa_flags = SA_RESTART };

	must(!sigaction(SIGPROF, &action, 0), "sigaction");
	must(!setitimer(ITIMER_PROF, &tick, 0), "setitimer");
}

/* int3, and what the processor itself raises, such as a division by zero. */
static uint32_t raised;

static void on_interrupt(uc_engine *engine, uint32_t number, void *data)
{
	(void)data;
	raised = number + 1;
	uc_emu_stop(engine);
}

static void map(uint64_t start, uint64_t size, uint32_t protection)
{
	check(uc_mem_map_ptr(cpu, start, size, protection, (void *)start), "uc_mem_map_ptr");
}

static void make_cpu(void)
{
	uint64_t at = the_world.low;
	uc_hook hook;

	check(uc_open(UC_ARCH_X86, UC_MODE_64, &cpu), "uc_open");
	map(LOW_START, LOW_END - LOW_START, UC_PROT_READ | UC_PROT_WRITE);
	map(STACK_START, STACK_END - STACK_START, UC_PROT_READ | UC_PROT_WRITE);
	for (uint32_t i = 0; i < the_world.ranges; i++) {
		if (at < the_text[i].start)
			map(at, the_text[i].start - at, UC_PROT_READ | UC_PROT_WRITE);
		map(the_text[i].start, the_text[i].size, UC_PROT_READ | UC_PROT_EXEC);
		at = the_text[i].start + the_text[i].size;
	}
	map(at, the_world.high - at, UC_PROT_READ | UC_PROT_WRITE);
	check(uc_hook_add(cpu, &hook, UC_HOOK_MEM_INVALID, (void *)on_invalid, 0, 1, 0), "hook");
	check(uc_hook_add(cpu, &hook, UC_HOOK_INTR, (void *)on_interrupt, 0, 1, 0), "hook");
}

static void make_contexts(void)
{
	contexts = calloc(the_world.states, sizeof *contexts);
	must(contexts != 0, "calloc");
	for (uint32_t i = 0; i < the_world.states; i++) {
		struct state *state = &the_states[i];
		uint64_t seed = state->seed, flags = state->flags | 2;

		for (int k = 0; k < 16; k++)
			check(uc_reg_write(cpu, gprs[k], &state->gpr[k]), "uc_reg_write");
		check(uc_reg_write(cpu, UC_X86_REG_EFLAGS, &flags), "uc_reg_write");
		check(uc_reg_write(cpu, UC_X86_REG_FS_BASE, &state->fs), "uc_reg_write");
		check(uc_reg_write(cpu, UC_X86_REG_GS_BASE, &state->gs), "uc_reg_write");
		for (int k = 0; k < XMMS; k++) {
			uint64_t value[2] = { next_random(&seed), next_random(&seed) };

			check(uc_reg_write(cpu, UC_X86_REG_XMM0 + k, value), "uc_reg_write");
		}
		check(uc_context_alloc(cpu, &contexts[i]), "uc_context_alloc");
		check(uc_context_save(cpu, contexts[i]), "uc_context_save");
	}
}

static void forget(uint64_t start, uint64_t size)
{
	check(uc_ctl_remove_cache(cpu, start, start + size), "uc_ctl_remove_cache");
}

/* Some of Unicorn's stores of several words fail and let the program go on. */
static int is_memory_error(uc_err error)
{
	return error >= UC_ERR_READ_UNMAPPED && error <= UC_ERR_FETCH_UNMAPPED ? 1
	       : error >= UC_ERR_WRITE_PROT && error <= UC_ERR_FETCH_PROT;
}

static int is_in_window(const struct case_ *one, uint64_t pc)
{
	return pc - one->address < one->length || pc - one->moved_to < one->moved_length;
}

static void run(const struct case_ *one, int which, int first)
{
	struct outcome *outcome = &outcomes[which];
	uint64_t start = which ? one->moved_to : one->address;
	uc_err error;

	lay_out(one, first);
	check(uc_context_restore(cpu, contexts[one->state]), "uc_context_restore");
	current_case = one;
	fault_address = raised = 0;
	timed_out = 0;
	current_run++;
	error = uc_emu_start(cpu, start, ~0ull, 0, 0);
	current_run++;
	check(uc_reg_read_batch2(cpu, registers, places[which], sizes, REGISTERS), "uc_reg_read");
	outcome->fault = fault_address;
	outcome->detail = error << 8 | raised;
	if (timed_out)
		outcome->kind = KIND_ENDLESS;
	else if (is_memory_error(error) && outcome->pc != fault_address &&
		 (raised || !is_in_window(one, outcome->pc)))
		outcome->kind = KIND_IMPRECISE;
	else if (raised == 2)
		outcome->kind = KIND_STEPPED;
	else if (raised == 4)
		outcome->kind = KIND_TRAP, outcome->pc--;
	else if (error == UC_ERR_INSN_INVALID)
		outcome->kind = KIND_ILLEGAL;
	else
		outcome->kind = KIND_FAULT;
	keep_memory(one, outcome);
}

/* Nothing that was translated stays: other code will lie there. */
static void forget_case(const struct case_ *one)
{
	forget(one->address, one->length + 1);
	forget(one->moved_to, one->moved_length);
	for (int i = 0; i < WINDOW; i++)
		if (in_text(one->targets[i]))
			forget(one->targets[i], 1);
	for (int i = 0; i < 2; i++)
		if (in_text(outcomes[i].pc))
			forget(outcomes[i].pc, 1);
}

static void run_isolated(const struct case_ *one)
{
	for (int which = 0; which < 2; which++) {
		int status;
		pid_t child = fork();

		must(child >= 0, "fork");
		if (!child) {
			tick_every(ISOLATED_MICROSECONDS);
			run(one, which, 1);
			_exit(0);
		}
		while (waitpid(child, &status, 0) < 0)
			must(errno == EINTR, "waitpid");
		must(!status, "isolated child");
	}
}

int main(void)
{
	make_world();
	list_registers();
	make_cpu();
	make_contexts();
	tick_every(ENDLESS_MICROSECONDS);
	must(signal(SIGABRT, on_abort) != SIG_ERR, "signal");
	for (;;) {
		uint32_t count, head[2] = { 0, 0 };

		read_all(&count, sizeof count);
		must(count <= MOST, "count");
		read_all(cases, count * sizeof *cases);
		for (uint32_t i = 0; i < count; i++) {
			if (cases[i].flags & ISOLATED) {
				run_isolated(&cases[i]);
			} else {
				run(&cases[i], 0, 1);
				run(&cases[i], 1, 0);
				clear_up();
				forget_case(&cases[i]);
			}
			judge(&cases[i], &outcomes[0], &outcomes[1], &results[i]);
		}
		head[1] = count;
		write_all(head, sizeof head);
		write_all(results, count * sizeof *results);
	}
}
