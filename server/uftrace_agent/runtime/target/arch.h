/* arch.h - what the C of the target runtime needs to know of the machine. */
#ifndef UF_ARCH_H
#define UF_ARCH_H

#include <stdint.h>

#include "annex.h"

#if defined(__x86_64__)
static inline uint64_t uf_ticks(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return low | (uint64_t)high << 32;
}

/* The tid that the C library keeps beside the thread pointer. */
static inline const uint32_t *uf_tid_word(uint64_t key, int64_t offset)
{
	return (const uint32_t *)(key + offset);
}

#define UF_RT_SIGACTION 13
#define UF_RT_SIGPROCMASK 14
#define UF_GETPID 39
#define UF_GETTID 186
#define UF_TGKILL 234

static inline uint64_t uf_system_call(uint64_t number, uint64_t a, uint64_t b, uint64_t c,
				      uint64_t d)
{
	register uint64_t fourth __asm__("r10") = d;
	uint64_t result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
			 : "rcx", "r11", "memory");
	return result;
}

/* Words of struct ucontext (arch/x86/include/uapi/asm/sigcontext.h): 40 bytes
 * before the registers, among which rsp is the 16th and rip the 17th. */
#define UF_CONTEXT_SP 20
#define UF_CONTEXT_PC 21
/* Behind 40 + 256 bytes: the signals that were blocked before. */
#define UF_CONTEXT_MASK 37

/* Where the trap lies: int3 leaves the program counter behind itself. */
static inline uint64_t uf_trap_address(const void *context)
{
	return ((const uint64_t *)context)[UF_CONTEXT_PC] - 1;
}

/* Let the interrupted thread jump to `target`, or call it from before `return_to`. */
static inline void uf_go_on_at(void *context, uint64_t target, uint64_t return_to)
{
	uint64_t *words = context;

	if (return_to) {
		words[UF_CONTEXT_SP] -= 8;
		*(uint64_t *)words[UF_CONTEXT_SP] = return_to;
	}
	words[UF_CONTEXT_PC] = target;
}
#elif defined(__aarch64__)
static inline uint64_t uf_ticks(void)
{
	uint64_t ticks;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
	return ticks;
}

static inline const uint32_t *uf_tid_word(uint64_t key, int64_t offset)
{
	return (const uint32_t *)(key - UF_A64_TID_BIAS + offset);
}

#define UF_RT_SIGACTION 134
#define UF_RT_SIGPROCMASK 135
#define UF_GETPID 172
#define UF_GETTID 178
#define UF_TGKILL 131

static inline uint64_t uf_system_call(uint64_t number, uint64_t a, uint64_t b, uint64_t c,
				      uint64_t d)
{
	register uint64_t x8 __asm__("x8") = number;
	register uint64_t x0 __asm__("x0") = a;
	register uint64_t x1 __asm__("x1") = b;
	register uint64_t x2 __asm__("x2") = c;
	register uint64_t x3 __asm__("x3") = d;

	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}

/* Words of struct ucontext (arch/arm64/include/uapi/asm/ucontext.h): 176 bytes,
 * the fault address, x0 to x30, sp, pc. */
#define UF_CONTEXT_LR 53
#define UF_CONTEXT_PC 55
#define UF_CONTEXT_MASK 5

/* Where the trap lies: brk leaves the program counter on itself. */
static inline uint64_t uf_trap_address(const void *context)
{
	return ((const uint64_t *)context)[UF_CONTEXT_PC];
}

/* Let the interrupted thread jump to `target`, or call it from before `return_to`. */
static inline void uf_go_on_at(void *context, uint64_t target, uint64_t return_to)
{
	uint64_t *words = context;

	if (return_to)
		words[UF_CONTEXT_LR] = return_to;
	words[UF_CONTEXT_PC] = target;
}
#else
#error "no target runtime for this machine"
#endif

static inline uint64_t uf_saved_mask(const void *context)
{
	return ((const uint64_t *)context)[UF_CONTEXT_MASK];
}

static inline uint32_t uf_gettid(void)
{
	return (uint32_t)uf_system_call(UF_GETTID, 0, 0, 0, 0);
}

#endif
