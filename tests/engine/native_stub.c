/* native_stub.c - runs one stub on the real processor.
 *
 * argv[1]: an image: {u64 address, u64 size, u64 flags} and bytes, repeated;
 * argv[2]: the stub; argv[3]: where the stub goes on, argv[4]: how often.
 * Prints "ok" if after the stub, and again after the return through the thunk,
 * all vector registers are as before, and so is the red zone after the stub.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

uint8_t vectors_before[16][32], vectors_inside[16][32], vectors_after[16][32];
uint8_t red_before[128], red_inside[128];
uint64_t stub_address;

void enter(void);
void inside(void);

#define EACH(DO) \
	DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) \
	DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
#define LOAD(i) "vmovdqu vectors_before+32*" #i "(%rip), %ymm" #i "\n"
#define KEEP(i) "vmovdqu %ymm" #i ", vectors_inside+32*" #i "(%rip)\n"
#define STORE(i) "vmovdqu %ymm" #i ", vectors_after+32*" #i "(%rip)\n"
#define COPY "1: movb (%rsi), %al; movb %al, (%rdi); incq %rsi; incq %rdi; decl %ecx; jnz 1b\n"

__asm__(".globl enter\n"
	"enter: pushq %rbx\n"
	EACH(LOAD)
	"call traced\n"
	EACH(STORE)
	"popq %rbx\n"
	"ret\n"
	/* A leaf: its data lie below the stack pointer. */
	"traced:\n"
	"leaq red_before(%rip), %rsi; leaq -128(%rsp), %rdi; movl $128, %ecx\n" COPY
	"jmp *stub_address(%rip)\n"
	".globl inside\n"
	"inside:\n"
	EACH(KEEP)
	"leaq -128(%rsp), %rsi; leaq red_inside(%rip), %rdi; movl $128, %ecx\n" COPY
	"ret\n");

static void load_image(const char *path)
{
	uint64_t head[3];
	FILE *file = fopen(path, "rb");

	if (!file)
		abort();
	while (fread(head, sizeof head, 1, file) == 1) {
		size_t pages = (head[1] + 4095) & ~4095ull;
		void *at = mmap((void *)head[0], pages, PROT_READ | PROT_WRITE | PROT_EXEC,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);

		if (at != (void *)head[0] || fread(at, 1, head[2], file) != head[2])
			abort();
	}
	fclose(file);
}

static void check(const char *what, const void *a, const void *b, size_t size)
{
	if (!memcmp(a, b, size))
		return;
	printf("%s changed\n", what);
	exit(1);
}

int main(int argc, char **argv)
{
	uint8_t *resume = argc == 5 ? (uint8_t *)strtoull(argv[3], 0, 0) : 0;
	void (*const target)(void) = inside;

	if (!resume)
		return 2;
	load_image(argv[1]);
	stub_address = strtoull(argv[2], 0, 0);
	memcpy(resume, "\xff\x25\0\0\0\0", 6); /* jmp *0(%rip) */
	memcpy(resume + 6, &target, 8);
	srand(1);
	for (int turn = 0; turn < atoi(argv[4]); turn++) {
		for (int i = 0; i < 512; i++)
			vectors_before[i / 32][i % 32] = rand();
		for (int i = 0; i < 128; i++)
			red_before[i] = rand();
		enter();
		check("a vector register at entry", vectors_before, vectors_inside, 512);
		check("a vector register at exit", vectors_before, vectors_after, 512);
		check("the red zone", red_before, red_inside, 128);
	}
	puts("ok");
	return 0;
}
