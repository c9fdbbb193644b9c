// SPDX-License-Identifier: Apache-2.0
//
// Everything that unwinds the stack, continuously and in several threads:
// C++ exceptions over every kind of frame, forced unwinding (pthread_cancel,
// pthread_exit) and backtrace(). Every destructor is counted.
#include "harness.h"

// Recursions that end by unwinding only are the point here.
#pragma GCC diagnostic ignored "-Winfinite-recursion"

#include <exception>
#include <execinfo.h>
#include <stdexcept>
#include <string>

COUNTER(thrower);
COUNTER(catch_direct);
COUNTER(catch_above);
COUNTER(middle_one);
COUNTER(middle_two);
COUNTER(catch_and_rethrow);
COUNTER(catch_rethrown);
COUNTER(quiet_boundary);
COUNTER(catch_through_c);
COUNTER(deep_throw);
COUNTER(catch_deep);
COUNTER(catch_pointer);
COUNTER(throw_in_catch);
COUNTER(cancelled_loop);
COUNTER(exiting_frame);
COUNTER(trace_depth);
COUNTER(leaf);

struct Failure {
	long value;
	virtual ~Failure() = default;
	explicit Failure(long v) : value(v) {}
	Failure(const Failure &) = default;
};
struct Special : Failure {
	using Failure::Failure;
};

// Counts its destruction and checks that it happens while unwinding, or not.
struct Guard {
	long &count;
	int expected;
	Guard(long &c, int e) : count(c), expected(e) {}
	~Guard()
	{
		CHECK("uncaught_exceptions", std::uncaught_exceptions(), expected);
		count++;
	}
};

extern "C" {
TRACED long leaf(long x)
{
	KEEP();
	return x * 2 + 1;
}

TRACED long thrower(long kind, long value)
{
	KEEP();
	if (kind == 1)
		throw Failure(value);
	if (kind == 2)
		throw Special(value);
	if (kind == 3)
		throw std::runtime_error(std::to_string(value));
	return value;
}

// The handler is in the frame that made the call: the shortest unwinding.
TRACED long catch_direct(long value)
{
	try {
		return CALL(thrower, 1, value) + 1000000;
	} catch (const Failure &failure) {
		return failure.value + 1;
	}
}

TRACED long middle_two(long value, long *destroyed)
{
	Guard guard(*destroyed, 1);
	long got = CALL(thrower, 2, value);
	KEEP();
	return got;
}

TRACED long middle_one(long value, long *destroyed)
{
	Guard first(*destroyed, 1), second(*destroyed, 1);
	try {
		long got = CALL(middle_two, value, destroyed);
		KEEP();
		return got;
	} catch (const std::runtime_error &) { // not this one
		return -1;
	}
}

TRACED long catch_above(long value)
{
	long destroyed = 0;
	try {
		CALL(middle_one, value, &destroyed);
	} catch (const Special &special) {
		CHECK("destroyed", destroyed, 3);
		return special.value + 2;
	}
	return -2;
}

TRACED long catch_and_rethrow(long value)
{
	try {
		return CALL(thrower, 2, value);
	} catch (Failure &failure) {
		failure.value += 10;
		throw;
	}
}

TRACED long catch_rethrown(long value)
{
	try {
		return CALL(catch_and_rethrow, value);
	} catch (const Special &special) {
		return special.value + 3;
	}
}

// The exception stays inside a noexcept function.
TRACED long quiet_boundary(long value) noexcept
{
	try {
		return CALL(thrower, 3, value);
	} catch (const std::exception &error) {
		return std::stol(error.what()) + 4;
	}
}

static __thread long compare_left;
TRACED int compare_throwing(const void *a, const void *b)
{
	if (--compare_left < 0)
		CALL(thrower, 1, compare_left);
	int x = *static_cast<const int *>(a), y = *static_cast<const int *>(b);
	return (x > y) - (x < y);
}

// Through qsort: frames of C, compiled with unwind tables.
TRACED long catch_through_c(long value)
{
	int numbers[16];
	for (int i = 0; i < 16; i++)
		numbers[i] = (i * 7) % 16;
	compare_left = value % 12;
	try {
		qsort(numbers, 16, sizeof numbers[0], compare_throwing);
	} catch (const Failure &failure) {
		return failure.value;
	}
	return -5;
}

TRACED long deep_throw(long depth, long *destroyed)
{
	COUNT(deep_throw, 1);
	Guard guard(*destroyed, 1);
	if (depth == 0)
		CALL(thrower, 1, 77);
	long got = deep_throw(depth - 1, destroyed);
	KEEP();
	return got + 1;
}

TRACED long catch_deep(long depth)
{
	long destroyed = 0;
	try {
		deep_throw(depth, &destroyed);
	} catch (const Failure &failure) {
		CHECK("deep destroyed", destroyed, depth + 1);
		return failure.value;
	}
	return -6;
}

TRACED long catch_pointer(long value)
{
	std::exception_ptr kept;
	try {
		CALL(thrower, 1, value);
	} catch (...) {
		kept = std::current_exception();
	}
	try {
		std::rethrow_exception(kept);
	} catch (const Failure &failure) {
		return failure.value + 5;
	}
}

// A second exception is thrown and caught while the first is handled.
TRACED long throw_in_catch(long value)
{
	try {
		CALL(thrower, 1, value);
	} catch (const Failure &outer) {
		try {
			CALL(thrower, 3, outer.value + 1);
		} catch (const std::runtime_error &inner) {
			return std::stol(inner.what()) + outer.value;
		}
	}
	return -7;
}

// The number of frames that backtrace() sees from `depth` calls further in.
TRACED long trace_depth(long depth)
{
	COUNT(trace_depth, 1);
	if (depth == 0) {
		void *frames[128];
		return backtrace(frames, 128);
	}
	long found = trace_depth(depth - 1);
	KEEP();
	return found;
}

struct Forced {
	long *destroyed;
	~Forced() { ++*destroyed; }
};

TRACED long cancelled_loop(long depth, long *destroyed, int *entered)
{
	COUNT(cancelled_loop, 1);
	Forced guard{ destroyed };
	if (depth > 0) {
		long got = cancelled_loop(depth - 1, destroyed, entered);
		KEEP();
		return got + 1;
	}
	__atomic_store_n(entered, 1, __ATOMIC_RELEASE);
	for (long x = 0;; x++) {
		CHECK("leaf", CALL(leaf, x), x * 2 + 1);
		pthread_testcancel();
	}
}

TRACED long exiting_frame(long depth, long *destroyed)
{
	COUNT(exiting_frame, 1);
	Forced guard{ destroyed };
	if (depth == 0)
		pthread_exit(destroyed);
	long got = exiting_frame(depth - 1, destroyed);
	KEEP();
	return got + 1;
}
} // extern "C"

struct Cancelled {
	long destroyed;
	int entered;
};

static void *cancelled_start(void *argument)
{
	Cancelled *state = static_cast<Cancelled *>(argument);
	cancelled_loop(5, &state->destroyed, &state->entered);
	return nullptr;
}

static void *exiting_start(void *argument)
{
	exiting_frame(7, static_cast<long *>(argument));
	return nullptr;
}

static void check_thread_ends()
{
	Cancelled state = { 0, 0 };
	pthread_t thread;
	void *result = nullptr;
	REQUIRE("create", pthread_create(&thread, nullptr, cancelled_start, &state) == 0);
	while (!__atomic_load_n(&state.entered, __ATOMIC_ACQUIRE))
		harness_milliseconds(1);
	REQUIRE("cancel", pthread_cancel(thread) == 0);
	pthread_join(thread, &result);
	REQUIRE("cancelled", result == PTHREAD_CANCELED);
	CHECK("cancelled destructors", state.destroyed, 6);

	long destroyed = 0;
	REQUIRE("create", pthread_create(&thread, nullptr, exiting_start, &destroyed) == 0);
	pthread_join(thread, &result);
	REQUIRE("exited", result == &destroyed);
	CHECK("exit destructors", destroyed, 8);
}

static void throwing_worker(long index)
{
	for (long x = index * 1000000; harness_running(); x++) {
		CHECK("catch_direct", CALL(catch_direct, x), x + 1);
		CHECK("catch_above", CALL(catch_above, x), x + 2);
		CHECK("catch_rethrown", CALL(catch_rethrown, x), x + 13);
		CHECK("quiet_boundary", CALL(quiet_boundary, x), x + 4);
		CHECK("catch_through_c", CALL(catch_through_c, x), -1);
		CHECK("catch_deep", CALL(catch_deep, x % 40), 77);
		CHECK("catch_pointer", CALL(catch_pointer, x), x + 5);
		CHECK("throw_in_catch", CALL(throw_in_catch, x), x + 1 + x);
		// One frame per call: hijacked return addresses must not hide any.
		long shallow = trace_depth(2), deep = trace_depth(9);
		CHECK("backtrace", deep - shallow, 7);
		CHECK("no exception", std::uncaught_exceptions(), 0);
		harness_iterated();
	}
}

static void ending_worker(long)
{
	while (harness_running()) {
		check_thread_ends();
		harness_iterated();
	}
}

static void burst(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("leaf", CALL(leaf, i), i * 2 + 1);
	harness_reply("burst done %ld", n);
}

// Exactly n exceptions, each caught in the direct caller.
static void throws(long n)
{
	for (long i = 0; i < n; i++)
		CHECK("catch_direct", CALL(catch_direct, i), i + 1);
	harness_reply("throws done %ld", n);
}

int main()
{
	static const harness_command commands[] = { { "burst", burst }, { "throws", throws }, { nullptr, nullptr } };
	harness_spawn(3, throwing_worker);
	harness_spawn(1, ending_worker);
	return harness_main(commands, nullptr);
}
