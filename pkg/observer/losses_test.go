package observer_test

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sca-probe/pkg/observer"
	"sca-probe/testenv"
)

// many is more code objects than the kernel's maps have room for.
const many = 70_000

// lostCount reads how many the sentence on losses says of what could not be kept.
func lostCount(t *testing.T, sentence, what string) int {
	t.Helper()
	parts := regexp.MustCompile(`(\d+) had no room in the kernel's ` + what).FindStringSubmatch(sentence)
	if parts == nil {
		return 0
	}
	n, err := strconv.Atoi(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestWatchSaysWhatItLost starts more functions than the kernel's map has room for. What has room is
// counted exactly, the rest is told of.
func TestWatchSaysWhatItLost(t *testing.T) {
	s := testenv.StartSubject(t, debian(t))
	s.MakeFunctions(many)
	report := watch(t, s, observer.WatchOptions{}, func() { s.Exec("for f in made: f(); f()") })
	counted := 0
	for _, f := range report.Functions {
		if strings.HasPrefix(f.QualName, "made_") {
			counted++
			if f.Starts != 2 {
				t.Fatalf("%s started %d times, want 2", f.QualName, f.Starts)
			}
		}
	}
	lost := lostCount(t, report.Losses, "map")
	if all := 2*counted + lost; counted == 0 || all < 2*many || all > 2*many+200 {
		t.Errorf("%d of %d functions counted, lost %q", counted, many, report.Losses)
	}
}

// TestFollowSaysWhatItLost starts more functions at once than the kernel's buffer, and in all than its
// map, has room for.
func TestFollowSaysWhatItLost(t *testing.T) {
	s := testenv.StartSubject(t, debian(t))
	s.MakeFunctions(many)
	f := follow(t, observer.FollowOptions{PID: s.PID()})
	s.Exec("for f in made: f()")
	s.Exit(0)
	if err := <-f.ended; err != nil {
		t.Fatal(err)
	}
	told, losses := 0, ""
	for _, e := range f.events {
		switch {
		case e.Kind == observer.EventsLost:
			losses = e.Detail
		case e.Kind == observer.FirstExecution && strings.HasPrefix(e.Function.QualName, "made_"):
			told++
		}
	}
	lost := lostCount(t, losses, "map") + lostCount(t, losses, "buffer")
	// A function called once is told of or lost. Few others start.
	if all := told + lost; told == 0 || lost == 0 || all < many || all > many+1000 {
		t.Errorf("%d of %d functions told, lost %q", told, many, losses)
	}
	t.Logf("told %d, lost: %s", told, losses)
}
