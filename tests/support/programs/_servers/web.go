// SPDX-License-Identifier: Apache-2.0
//
// An HTTP server on net/http; _loads/runtimes.py knows its answers.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"sort"
	"strconv"
	"strings"
)

func chain(seed uint32, count int) []uint32 {
	values := make([]uint32, count)
	for i := range values {
		seed = seed*1664525 + 1013904223
		values[i] = seed
	}
	return values
}

type node struct {
	left, right *node
	depth       int
}

func tree(depth int) *node {
	if depth == 0 {
		return nil
	}
	return &node{tree(depth - 1), tree(depth - 1), depth}
}

func (n *node) total() int {
	if n == nil {
		return 0
	}
	return n.left.total() + n.right.total() + n.depth
}

func fail(depth int) {
	if depth == 0 {
		panic("bottom")
	}
	defer func() { _ = strconv.Itoa(depth) }()
	fail(depth - 1)
}

// In a goroutine whose stack has to grow.
func failures(number int) int {
	caught := make(chan int)
	for turn := 0; turn < 10; turn++ {
		go func(turn int) {
			defer func() {
				recover()
				caught <- turn
			}()
			fail(turn * 20)
		}(turn)
	}
	for turn := 0; turn < 10; turn++ {
		number += <-caught
	}
	return number
}

func sorted(seed int) string {
	values := chain(uint32(seed), 100)
	sort.Slice(values, func(i, j int) bool { return values[i] < values[j] })
	words := make([]string, len(values))
	for i, value := range values {
		words[i] = strconv.FormatUint(uint64(value), 10)
	}
	return strings.Join(words, ",")
}

func get(path string, answer func(number int) string) {
	http.HandleFunc(path, func(response http.ResponseWriter, request *http.Request) {
		number, err := strconv.Atoi(request.FormValue("n"))
		if err != nil {
			panic(err)
		}
		io.WriteString(response, answer(number))
	})
}

func main() {
	get("/hash", func(n int) string {
		return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Repeat(strconv.Itoa(n)+",", 200))))
	})
	get("/sort", sorted)
	get("/tree", func(n int) string { return strconv.Itoa(n + tree(8).total()) })
	get("/fail", func(n int) string { return strconv.Itoa(failures(n)) })
	http.HandleFunc("/reverse", func(response http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			panic(err)
		}
		for i, j := 0, len(body)-1; i < j; i, j = i+1, j-1 {
			body[i], body[j] = body[j], body[i]
		}
		response.Write(body)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println("port", listener.Addr().(*net.TCPAddr).Port)
	panic(http.Serve(listener, nil))
}
