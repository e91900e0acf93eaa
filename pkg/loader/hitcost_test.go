package loader

import "testing"

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
