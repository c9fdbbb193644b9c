/* seccomp.c - the seccomp filters of one thread (H60).
 *
 * The kernel shows them only of a thread that is stopped. The stop itself may be
 * deadly: a call that the kernel goes on with by restart_syscall meets the filters
 * once more, under that number (kernel/signal.c, arch_do_signal_or_restart). So they
 * are asked here, before the thread runs again, and where they object the thread
 * enters its first call anew, which they let through before.
 */
#include "host.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>

#include "arch_host.h"

#ifndef PTRACE_SECCOMP_GET_FILTER
#define PTRACE_SECCOMP_GET_FILTER 0x420c
#endif

struct uh_filters {
	int32_t pid;
	int32_t tid;
	uint64_t deadline_nanos;
	struct sock_filter *instructions; /* out: all filters, one behind the other */
	uint32_t *sizes;		  /* out: instructions of each */
	uint32_t instruction_capacity;
	uint32_t size_capacity;
	uint32_t count; /* out: filters */
	uint32_t pad;
	uint64_t pause_nanos; /* out */
};

static int read_filters(struct uh_filters *f)
{
	uint32_t used = 0;

	for (f->count = 0; f->count < f->size_capacity; f->count++) {
		long size = ptrace(PTRACE_SECCOMP_GET_FILTER, f->tid, (long)f->count, 0);

		if (size < 0 && errno == ENOENT)
			return 0;
		if (size < 0)
			return -errno;
		if (used + size > f->instruction_capacity)
			return -E2BIG;
		if (ptrace(PTRACE_SECCOMP_GET_FILTER, f->tid, (long)f->count,
			   f->instructions + used) != size)
			return -EIO;
		f->sizes[f->count] = size;
		used += size;
	}
	return -E2BIG;
}

static int compare(uint16_t code, uint32_t a, uint32_t b)
{
	switch (BPF_OP(code)) {
	case BPF_JA:
		return 1;
	case BPF_JEQ:
		return a == b;
	case BPF_JGT:
		return a > b;
	case BPF_JGE:
		return a >= b;
	default:
		return (a & b) != 0;
	}
}

static uint32_t compute(uint16_t code, uint32_t a, uint32_t b)
{
	switch (BPF_OP(code)) {
	case BPF_ADD:
		return a + b;
	case BPF_SUB:
		return a - b;
	case BPF_MUL:
		return a * b;
	case BPF_DIV:
		return a / b;
	case BPF_OR:
		return a | b;
	case BPF_AND:
		return a & b;
	case BPF_XOR:
		return a ^ b;
	case BPF_LSH:
		return a << (b & 31);
	case BPF_RSH:
		return a >> (b & 31);
	default:
		return -a;
	}
}

/* What one filter says. The kernel has checked the program: jumps lead forward and
 * inside, offsets are inside and aligned (seccomp_check_filter, bpf_check_classic). */
static uint32_t run_filter(const struct sock_filter *program, uint32_t size,
			   const struct seccomp_data *data)
{
	uint32_t a = 0, x = 0, memory[BPF_MEMWORDS] = { 0 };

	for (uint32_t pc = 0; pc < size; pc++) {
		const struct sock_filter *i = &program[pc];
		uint32_t operand = BPF_SRC(i->code) == BPF_X ? x : i->k, loaded = i->k;

		switch (BPF_CLASS(i->code)) {
		case BPF_LD:
		case BPF_LDX:
			if (BPF_MODE(i->code) == BPF_ABS)
				memcpy(&loaded, (const char *)data + (i->k & 60), 4);
			else if (BPF_MODE(i->code) == BPF_MEM)
				loaded = memory[i->k & 15];
			else if (BPF_MODE(i->code) == BPF_LEN)
				loaded = sizeof *data;
			if (BPF_CLASS(i->code) == BPF_LD)
				a = loaded;
			else
				x = loaded;
			break;
		case BPF_ST:
			memory[i->k & 15] = a;
			break;
		case BPF_STX:
			memory[i->k & 15] = x;
			break;
		case BPF_ALU:
			if (BPF_OP(i->code) == BPF_DIV && !operand)
				return SECCOMP_RET_KILL_THREAD;
			a = compute(i->code, a, operand);
			break;
		case BPF_JMP:
			if (BPF_OP(i->code) == BPF_JA)
				pc += i->k;
			else
				pc += compare(i->code, a, operand) ? i->jt : i->jf;
			break;
		case BPF_RET:
			return BPF_RVAL(i->code) == BPF_A ? a : i->k;
		case BPF_MISC:
			if (BPF_MISCOP(i->code) == BPF_TAX)
				x = a;
			else
				a = x;
			break;
		}
	}
	return SECCOMP_RET_KILL_THREAD;
}

static int all_allow(const struct uh_filters *f, const struct seccomp_data *data)
{
	const struct sock_filter *program = f->instructions;

	for (uint32_t i = 0; i < f->count; program += f->sizes[i++]) {
		uint32_t action = run_filter(program, f->sizes[i], data) & SECCOMP_RET_ACTION_FULL;

		if (action != SECCOMP_RET_ALLOW && action != SECCOMP_RET_LOG)
			return 0;
	}
	return 1;
}

static int look_at_filters(void *argument)
{
	struct uh_filters *f = argument;
	struct uh_registers registers;
	struct seccomp_data data;
	struct uh_call_note note;
	int error, signal;
	uint64_t begin;

	uh_hurry(1);
	error = uh_seize(f->tid, PTRACE_O_TRACESYSGOOD);
	if (error)
		return error;
	uh_interrupt(f->pid, f->tid, &note);
	do
		error = uh_await_stop(f->tid, uh_now() + f->deadline_nanos, &signal);
	while (error == -EAGAIN);
	if (error) {
		uh_release_late(f->pid, f->tid, &note, uh_now() + UH_LATE_NANOS);
		return error;
	}
	begin = uh_now();
	error = read_filters(f);
	/* With a signal, the call ends as it would have ended without us. */
	if (!signal && !uh_get_registers(f->tid, &registers) &&
	    uh_restart_data(&registers, &note, &data) && (error || !all_allow(f, &data))) {
		uh_enter_anew(f->tid, &registers, &note);
	} else if (!signal) {
		uh_repair_interrupted_call(f->pid, f->tid, &note);
	}
	uh_detach(f->tid, signal);
	f->pause_nanos = uh_now() - begin;
	return error;
}

/* All filters of one thread. 0; -EACCES: this process may not see them (it takes
 * CAP_SYS_ADMIN in the first user namespace, and no filter of its own); -EINVAL: the
 * thread has none; -E2BIG: no room; -ETIMEDOUT, -ESRCH, -EPERM as for uh_stop_write. */
UH_API int uh_read_filters(struct uh_filters *filters)
{
	return uh_run_as_tracer(look_at_filters, filters);
}

/* What one filter says of the call. */
UH_API uint32_t uh_run_filter(const struct sock_filter *program, uint32_t size,
			      const struct seccomp_data *data)
{
	return run_filter(program, size, data);
}
