// SPDX-License-Identifier: Apache-2.0
//
// Rust: closures, generics, trait objects, recursion, and panics that
// catch_unwind stops; with the line protocol of harness.h.

use std::io::{BufRead, Write};
use std::panic::{catch_unwind, panic_any, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::thread;
use std::time::Duration;

static ITERATIONS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static PAUSE: AtomicBool = AtomicBool::new(false);
static PARKED: AtomicUsize = AtomicUsize::new(0);
const WORKERS: usize = 3;

macro_rules! counters {
    ($($name:ident),*) => {
        #[allow(non_upper_case_globals)]
        mod calls { $(pub static $name: super::AtomicU64 = super::AtomicU64::new(0);)* }
        fn report() -> String {
            let mut line = String::new();
            $(line += &format!(" calls_{}={}", stringify!($name), calls::$name.load(SeqCst));)*
            line
        }
    };
}
counters!(leaf, generic, apply, closure, recursive, area, panics, catches, passes, triple);

macro_rules! count {
    ($name:ident) => {
        calls::$name.fetch_add(1, Relaxed)
    };
}

// A value that the compiler knows nothing about; std::hint has such a function
// only since Rust 1.66, and Debian 12 comes with 1.63.
fn black_box<T: Copy>(value: T) -> T {
    unsafe { std::ptr::read_volatile(&value) }
}

fn check<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) {
    if got != want {
        println!("BAD {what} got {got:?} want {want:?}");
        std::process::exit(3);
    }
}

#[no_mangle]
#[inline(never)]
pub extern "C" fn leaf(x: u64) -> u64 {
    count!(leaf);
    black_box(x).wrapping_mul(43).wrapping_add(12)
}

#[inline(never)]
fn generic<T: Copy + std::ops::Add<Output = T>>(a: T, b: T) -> T {
    count!(generic);
    black_box(a) + black_box(b)
}

#[inline(never)]
fn apply<F: Fn(u64) -> u64>(function: F, x: u64) -> u64 {
    count!(apply);
    function(black_box(x)).wrapping_add(1)
}

#[inline(never)]
fn recursive(depth: u64) -> u64 {
    count!(recursive);
    if depth == 0 {
        return 1;
    }
    black_box(recursive(black_box(depth - 1))) + depth
}

trait Shape: Send {
    fn area(&self) -> f64;
}
struct Square(f64);
struct Circle(f64);
impl Shape for Square {
    #[inline(never)]
    fn area(&self) -> f64 {
        count!(area);
        black_box(self.0) * self.0
    }
}
impl Shape for Circle {
    #[inline(never)]
    fn area(&self) -> f64 {
        count!(area);
        black_box(self.0) * self.0 * 3.0
    }
}

struct Guard<'a>(&'a AtomicUsize);
impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
        check("panicking", thread::panicking(), true);
    }
}

#[inline(never)]
fn panics(value: u64) -> u64 {
    count!(panics);
    if black_box(value) != u64::MAX {
        panic_any(value);
    }
    value
}

#[inline(never)]
fn passes(value: u64, depth: u64, dropped: &AtomicUsize) -> u64 {
    count!(passes);
    let _guard = Guard(dropped);
    if depth == 0 {
        return black_box(panics(value)) + 1;
    }
    black_box(passes(value, depth - 1, dropped)) + 1
}

#[inline(never)]
fn catches(value: u64, depth: u64) -> u64 {
    count!(catches);
    let dropped = AtomicUsize::new(0);
    let result = catch_unwind(|| {
        // Caught, passed on, and caught again further up.
        match catch_unwind(|| passes(value, depth, &dropped)) {
            Ok(x) => x,
            Err(payload) => resume_unwind(payload),
        }
    });
    check("dropped", dropped.load(Relaxed) as u64, depth + 1);
    match result {
        Ok(_) => 0,
        Err(payload) => *payload.downcast_ref::<u64>().unwrap(),
    }
}

/// A result in memory and a slice argument in two registers.
#[inline(never)]
fn triple(values: &[u64], x: u64) -> (u64, f64, Option<u64>) {
    count!(triple);
    (values.iter().sum::<u64>() + x, x as f64 * 0.5, values.first().copied())
}

fn iteration(x: u64) {
    check("leaf", leaf(x), x.wrapping_mul(43).wrapping_add(12));
    check("generic u64", generic(x, 5), x + 5);
    check("generic f64", generic(x as f64, 0.5), x as f64 + 0.5);
    check("generic u8", generic((x & 63) as u8, 1), (x & 63) as u8 + 1);
    let add = x & 0xff;
    let function = move |y: u64| {
        count!(closure);
        black_box(y) * 2 + add
    };
    check("apply", apply(function, x), x * 2 + add + 1);
    check("recursive", recursive(10), 56);
    let side = (x & 0xff) as f64;
    let shapes: Vec<Box<dyn Shape>> = vec![Box::new(Square(side)), Box::new(Circle(side))];
    check("area", shapes.iter().map(|shape| shape.area()).sum(), side * side * 4.0);
    check("catches", catches(x, x % 8), x);
    check("triple", triple(&[1, 2, 3], x), (x + 6, x as f64 * 0.5, Some(1)));
}

fn worker(index: u64) {
    let mut x = index << 24;
    while !STOP.load(SeqCst) {
        if PAUSE.load(SeqCst) {
            PARKED.fetch_add(1, SeqCst);
            while PAUSE.load(SeqCst) && !STOP.load(SeqCst) {
                thread::park_timeout(Duration::from_millis(1));
            }
            PARKED.fetch_sub(1, SeqCst);
            continue;
        }
        iteration(x);
        x += 1;
        ITERATIONS.fetch_add(1, Relaxed);
    }
}

fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::sleep(Duration::from_millis(1));
    }
}

fn reply(line: String) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|_| out.flush()).expect("stdout");
}

fn main() {
    std::panic::set_hook(Box::new(|_| {})); // panics are expected here
    let started: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(0)));
    let workers: Vec<_> = (0..WORKERS as u64)
        .map(|index| {
            thread::spawn(move || {
                started.fetch_add(1, SeqCst);
                if catch_unwind(|| worker(index)).is_err() {
                    println!("BAD worker got a panic want none");
                    std::process::exit(3);
                }
            })
        })
        .collect();
    wait_until(|| started.load(SeqCst) == WORKERS);
    reply(format!("ready {}", std::process::id()));
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin");
        let mut words = line.split(' ');
        let name = words.next().unwrap_or("");
        let count: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match name {
            "quit" => break,
            "calls" => reply(format!("calls iterations={}{}", ITERATIONS.load(SeqCst), report())),
            "pause" => {
                PAUSE.store(true, SeqCst);
                wait_until(|| PARKED.load(SeqCst) == WORKERS);
                reply("paused".into());
            }
            "resume" => {
                PAUSE.store(false, SeqCst);
                wait_until(|| PARKED.load(SeqCst) == 0);
                reply("resumed".into());
            }
            "burst" => {
                for i in 0..count {
                    check("leaf", leaf(i), i * 43 + 12);
                }
                reply(format!("burst done {count}"));
            }
            _ => reply(format!("unknown {name}")),
        }
    }
    STOP.store(true, SeqCst);
    for worker in workers {
        worker.join().expect("worker");
    }
    reply(format!("ok {}{}", ITERATIONS.load(SeqCst), report()));
}
