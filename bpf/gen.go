// Package bpf holds the kernel programs and their generated loaders.
//
// The programs are C (*.bpf.c). bpf2go compiles them and writes the Go beside them; both are
// committed, so that building needs no clang, and CI compiles them again and compares.
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64 -type location -type first -type short_first -type long_first -output-stem evalloop EvalLoop evalloop.bpf.c -- -O2 -g -Wall -Werror -I/usr/include/x86_64-linux-gnu -ffile-prefix-map=$PWD=.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64 -output-stem usdt StaticProbe usdt.bpf.c -- -O2 -g -Wall -Werror -I/usr/include/x86_64-linux-gnu -ffile-prefix-map=$PWD=.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64 -output-stem processes Processes processes.bpf.c -- -O2 -g -Wall -Werror -I/usr/include/x86_64-linux-gnu -ffile-prefix-map=$PWD=.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64 -output-stem watchpoint Watchpoint watchpoint.bpf.c -- -O2 -g -Wall -Werror -I/usr/include/x86_64-linux-gnu -ffile-prefix-map=$PWD=.
