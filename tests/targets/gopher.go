// SPDX-License-Identifier: Apache-2.0
//
// Go: goroutines whose stacks grow and move, garbage collection all the time,
// panics and recovers; with the line protocol of harness.h.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const workers = 6

var (
	iterations, callsLeaf, callsGrow, callsFloat, callsRecover, callsBuild, callsShort int64

	stop, pause, parked int32
)

func check(what string, got, want interface{}) {
	if got != want {
		fmt.Printf("BAD %s got %v want %v\n", what, got, want)
		os.Exit(3)
	}
}

//go:noinline
func leaf(x uint64) uint64 {
	atomic.AddInt64(&callsLeaf, 1)
	return x*47 + 13
}

// grow needs more stack than a goroutine starts with: the stack is copied.
//
//go:noinline
func grow(depth int, x uint64) uint64 {
	atomic.AddInt64(&callsGrow, 1)
	var pad [256]byte
	pad[depth%256] = byte(x)
	if depth == 0 {
		return x + uint64(pad[0]) - uint64(byte(x))
	}
	return grow(depth-1, x+1) + uint64(pad[depth%256]) - uint64(byte(x))
}

//go:noinline
func float(a float64, b float32, c float64) float64 {
	atomic.AddInt64(&callsFloat, 1)
	return a*2 + float64(b) - c
}

//go:noinline
func recovers(x uint64) (result uint64) {
	atomic.AddInt64(&callsRecover, 1)
	defer func() {
		if value := recover(); value != nil {
			result = value.(uint64) + 1
		}
	}()
	panic(x)
}

type node struct {
	left, right *node
	value       int
}

//go:noinline
func build(depth int) *node {
	atomic.AddInt64(&callsBuild, 1)
	if depth == 0 {
		return &node{value: 1}
	}
	return &node{build(depth - 1), build(depth - 1), 1}
}

func (n *node) sum() int {
	if n == nil {
		return 0
	}
	return n.value + n.left.sum() + n.right.sum()
}

//go:noinline
func short(x uint64, out chan<- uint64) {
	atomic.AddInt64(&callsShort, 1)
	out <- grow(20, x)
}

func iteration(x uint64) {
	check("leaf", leaf(x), x*47+13)
	check("grow", grow(int(x%60), x), x+x%60)
	check("float", float(float64(x&0xffff), 0.5, 1), float64(x&0xffff)*2-0.5)
	check("recovers", recovers(x), x+1)
	check("build", build(6).sum(), 127)
	out := make(chan uint64)
	go short(x, out)
	go short(x+1, out)
	check("short", <-out+<-out, 2*x+41)
}

func worker(index int, done *sync.WaitGroup) {
	defer done.Done()
	for x := uint64(index) << 24; atomic.LoadInt32(&stop) == 0; x++ {
		if atomic.LoadInt32(&pause) != 0 {
			atomic.AddInt32(&parked, 1)
			for atomic.LoadInt32(&pause) != 0 && atomic.LoadInt32(&stop) == 0 {
				time.Sleep(time.Millisecond)
			}
			atomic.AddInt32(&parked, -1)
			continue
		}
		iteration(x)
		if x%64 == 0 {
			runtime.GC()
		}
		atomic.AddInt64(&iterations, 1)
	}
}

func counters() string {
	return fmt.Sprintf("calls_leaf=%d calls_grow=%d calls_float=%d calls_recovers=%d calls_build=%d calls_short=%d",
		atomic.LoadInt64(&callsLeaf), atomic.LoadInt64(&callsGrow), atomic.LoadInt64(&callsFloat),
		atomic.LoadInt64(&callsRecover), atomic.LoadInt64(&callsBuild), atomic.LoadInt64(&callsShort))
}

func setPause(value, want int32) {
	atomic.StoreInt32(&pause, value)
	for atomic.LoadInt32(&parked) != want {
		time.Sleep(time.Millisecond)
	}
}

func main() {
	var done sync.WaitGroup
	for i := 0; i < workers; i++ {
		done.Add(1)
		go worker(i, &done)
	}
	fmt.Printf("ready %d\n", os.Getpid())
	input := bufio.NewScanner(os.Stdin)
loop:
	for input.Scan() {
		words := strings.Fields(input.Text() + " 0")
		count, _ := strconv.ParseUint(words[1%len(words)], 10, 64)
		switch words[0] {
		case "quit":
			break loop
		case "calls":
			fmt.Printf("calls iterations=%d %s\n", atomic.LoadInt64(&iterations), counters())
		case "pause":
			setPause(1, workers)
			fmt.Println("paused")
		case "resume":
			setPause(0, 0)
			fmt.Println("resumed")
		case "burst":
			for i := uint64(0); i < count; i++ {
				check("leaf", leaf(i), i*47+13)
			}
			fmt.Printf("burst done %d\n", count)
		default:
			fmt.Printf("unknown %s\n", words[0])
		}
	}
	atomic.StoreInt32(&stop, 1)
	done.Wait()
	fmt.Printf("ok %d %s\n", iterations, counters())
}
