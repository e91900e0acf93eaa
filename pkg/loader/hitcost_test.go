package loader

import (
	"context"
	"runtime"
	"testing"
)

// TestHitCost measures with a program that must count every hit.
func TestHitCost(t *testing.T) {
	for _, kernel := range []struct {
		name    string
		without []*func() bool
	}{
		{"this kernel", nil},
		{"without uprobe_multi", []*func() bool{&multiSupported}},
		{"without attach cookies", []*func() bool{&multiSupported, &cookiesSupported}},
	} {
		t.Run(kernel.name, func(t *testing.T) {
			without(t, kernel.without...)
			cost, err := measureHitCost()
			if err != nil {
				t.Fatal(err)
			}
			// A trap costs more than a system call does, and stepping takes a second one.
			if cost.Emulated < 50 || cost.Stepped <= cost.Emulated {
				t.Errorf("a hit costs %v emulated and %v stepped", cost.Emulated, cost.Stepped)
			}
			t.Logf("%v emulated, %v stepped", cost.Emulated, cost.Stepped)
		})
	}
}

// TestHitCostBesideTheCollector measures on a large stack while the garbage collector runs: it moves the
// stack to a smaller one meanwhile, which nothing that the kernel looks at may lie on.
func TestHitCostBesideTheCollector(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		for ctx.Err() == nil {
			runtime.GC()
		}
	}()
	defer func() { stop(); <-collected }()
	for range 20 {
		measured := make(chan error)
		go func() {
			useStack(100)
			_, err := measureHitCost()
			measured <- err
		}()
		if err := <-measured; err != nil {
			t.Fatal(err)
		}
	}
}

// useStack makes its goroutine's stack a KiB larger for each call within a call.
//
//go:noinline
func useStack(calls int) byte {
	var used [1024]byte
	if calls > 0 {
		used[calls] = useStack(calls - 1)
	}
	return used[calls]
}
