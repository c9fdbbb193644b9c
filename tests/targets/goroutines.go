// SPDX-License-Identifier: Apache-2.0
//
// Go: functions that count their own calls, on goroutines that wait, move between
// threads, grow their stacks, panic, recover and end in the middle; with the line
// protocol of harness.h.
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
	"syscall"
	"time"
)

const (
	workers = 4
	// Goroutines of a burst.
	crowd = 50
)

var (
	iterations                                                      int64
	outerCalls, middleCalls, innerCalls, growCalls, sleepyCalls     int64
	recoversCalls, throwsCalls, deferredCalls, spinCalls, waysCalls int64
	leavesCalls, moved, rounds                                      int64
	stop, pause, parked                                             int32
)

func check(what string, got, want uint64) {
	if got != want {
		fmt.Printf("BAD %s got %v want %v\n", what, got, want)
		os.Exit(3)
	}
}

//go:noinline
func inner(x uint64, wait chan uint64) uint64 {
	atomic.AddInt64(&innerCalls, 1)
	wait <- x
	return <-wait + 1
}

//go:noinline
func middle(x uint64, wait chan uint64) uint64 {
	atomic.AddInt64(&middleCalls, 1)
	return inner(x, wait) + inner(x+1, wait)
}

//go:noinline
func outer(x uint64) uint64 {
	atomic.AddInt64(&outerCalls, 1)
	wait := make(chan uint64)
	go func() {
		for value := range wait {
			wait <- value * 2
		}
	}()
	result := middle(x, wait)
	close(wait)
	return result
}

// grow needs more stack than a goroutine starts with: the stack is copied while all
// its frames are open.
//
//go:noinline
func grow(depth int, x uint64) uint64 {
	atomic.AddInt64(&growCalls, 1)
	var pad [256]byte
	pad[depth%256] = byte(x)
	if depth == 0 {
		return x + uint64(pad[0]) - uint64(byte(x))
	}
	return grow(depth-1, x+1) + uint64(pad[depth%256]) - uint64(byte(x))
}

// sleepy waits 20 ms for another goroutine: what runs it then is any thread.
//
//go:noinline
func sleepy(x uint64) uint64 {
	atomic.AddInt64(&sleepyCalls, 1)
	before := syscall.Gettid()
	answer := make(chan uint64)
	go func() {
		time.Sleep(20 * time.Millisecond)
		answer <- x + 1
	}()
	result := <-answer
	if syscall.Gettid() != before {
		atomic.AddInt64(&moved, 1)
	}
	return result
}

//go:noinline
func deferred(result *uint64) {
	atomic.AddInt64(&deferredCalls, 1)
	if value := recover(); value != nil {
		*result = value.(uint64) + 1
	}
}

//go:noinline
func throws(x uint64) {
	atomic.AddInt64(&throwsCalls, 1)
	panic(x)
}

//go:noinline
func recovers(x uint64) (result uint64) {
	atomic.AddInt64(&recoversCalls, 1)
	defer deferred(&result)
	throws(x)
	return 0
}

// ways has several returns, one of them out of a table.
//
//go:noinline
func ways(x uint64) uint64 {
	atomic.AddInt64(&waysCalls, 1)
	switch x % 9 {
	case 0:
		return grow(1, x)
	case 1:
		return 2
	case 2:
		return grow(0, x) + 1
	case 3:
		return x * 3
	case 4:
		return 7
	case 5:
		return x + 5
	case 6:
		return x ^ 1
	case 7:
		return 9
	}
	return x
}

// spin is interrupted by the scheduler's signals.
//
//go:noinline
func spin(x uint64) uint64 {
	atomic.AddInt64(&spinCalls, 1)
	for i := uint64(0); i < 1<<22; i++ {
		x = x*6364136223846793005 + i
	}
	return grow(0, x)
}

// leaves never returns: its goroutine ends within it, and its g is used again.
//
//go:noinline
func leaves(done *sync.WaitGroup) {
	atomic.AddInt64(&leavesCalls, 1)
	defer done.Done()
	runtime.Goexit()
}

func waysWanted(x uint64) uint64 {
	return [...]uint64{x + 1, 2, x + 1, x * 3, 7, x + 5, x ^ 1, 9, x}[x%9]
}

func round(x uint64) {
	check("outer", outer(x), 4*x+4)
	check("grow", grow(int(x%100), x), x+x%100)
	check("recovers", recovers(x), x+1)
	check("ways", ways(x), waysWanted(x))
	if x%5 == 0 {
		check("sleepy", sleepy(x), x+1)
		var done sync.WaitGroup
		done.Add(1)
		go leaves(&done)
		done.Wait()
	}
	if x%16 == 0 {
		runtime.GC()
		spin(x)
	}
	atomic.AddInt64(&rounds, 1)
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
		round(x)
		atomic.AddInt64(&iterations, 1)
	}
}

func burst(count uint64) {
	var done sync.WaitGroup
	for i := uint64(0); i < crowd; i++ {
		done.Add(1)
		go func(first uint64) {
			defer done.Done()
			for x := first; x < first+count; x++ {
				round(x)
			}
		}(i * count)
	}
	done.Wait()
}

func counters() string {
	text := ""
	for _, counter := range []struct {
		name  string
		value *int64
	}{
		{"outer", &outerCalls}, {"middle", &middleCalls}, {"inner", &innerCalls},
		{"grow", &growCalls}, {"sleepy", &sleepyCalls}, {"recovers", &recoversCalls},
		{"throws", &throwsCalls}, {"deferred", &deferredCalls}, {"spin", &spinCalls},
		{"ways", &waysCalls}, {"leaves", &leavesCalls}, {"round", &rounds},
	} {
		text += fmt.Sprintf(" calls_%s=%d", counter.name, atomic.LoadInt64(counter.value))
	}
	return fmt.Sprintf("iterations=%d moved=%d%s",
		atomic.LoadInt64(&iterations), atomic.LoadInt64(&moved), text)
}

func setPause(value, want int32) {
	atomic.StoreInt32(&pause, value)
	for atomic.LoadInt32(&parked) != want {
		time.Sleep(time.Millisecond)
	}
}

func main() {
	runtime.GOMAXPROCS(4)
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
			fmt.Println("calls " + counters())
		case "pause":
			setPause(1, workers)
			fmt.Println("paused")
		case "resume":
			setPause(0, 0)
			fmt.Println("resumed")
		case "burst":
			burst(count)
			fmt.Printf("burst done %d\n", count)
		default:
			fmt.Printf("unknown %s\n", words[0])
		}
	}
	atomic.StoreInt32(&stop, 1)
	done.Wait()
	fmt.Printf("ok %d %s\n", iterations, counters())
}
