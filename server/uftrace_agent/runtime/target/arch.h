/* arch.h - what the C of the target runtime needs to know of the machine. */
#ifndef UF_ARCH_H
#define UF_ARCH_H

#include <stdint.h>

#if defined(__x86_64__)
static inline uint64_t uf_ticks(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return low | (uint64_t)high << 32;
}

static inline uint32_t uf_gettid(void)
{
	uint64_t result;

	__asm__ volatile("syscall" : "=a"(result) : "0"(186) : "rcx", "r11", "memory");
	return (uint32_t)result;
}
#elif defined(__aarch64__)
static inline uint64_t uf_ticks(void)
{
	uint64_t ticks;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
	return ticks;
}

static inline uint32_t uf_gettid(void)
{
	register uint64_t number __asm__("x8") = 178;
	register uint64_t result __asm__("x0");

	__asm__ volatile("svc #0" : "=r"(result) : "r"(number) : "memory");
	return (uint32_t)result;
}
#else
#error "no target runtime for this machine"
#endif
#endif
