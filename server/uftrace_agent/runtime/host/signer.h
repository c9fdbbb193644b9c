/* signer.h - signing return addresses as the target would (AArch64, pointer authentication).
 *
 * The keys are the target's and no program can read them; a tracer can. A child of this
 * process gets them, and signs: no thread of the target does anything for it.
 */
#ifndef UH_SIGNER_H
#define UH_SIGNER_H

#include <stdint.h>
#include <sys/types.h>

/* Have a child ready, traced by this thread; before the target is stopped, since it takes
 * a while. Without one, nothing is signed. */
void uh_start_signer(void);
void uh_stop_signer(void);

/* The word of thread `tid` at `at` is the signed address `from`: what it is for `to`, signed
 * with the same key and stack pointer. 0: cannot be told. */
uint64_t uh_sign_again(pid_t tid, uint64_t at, uint64_t word, uint64_t from, uint64_t to);

#endif
