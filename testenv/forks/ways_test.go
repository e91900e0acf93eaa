package forks

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sca-probe/testenv"
)

// left is what a process holds: sizes in KiB, and numbers.
type left struct {
	RSS          int `json:"rss"`
	PSS          int `json:"pss"`
	PrivateDirty int `json:"private_dirty"`
	Mappings     int `json:"mappings"`
	Threads      int `json:"threads"`
	FDs          int `json:"fds"`
	Reconcilers  int `json:"reconcilers"` // copies of the engine's Go half that are mapped, those of its ancestors among them
}

// life is what a process of subjects/forking.py says of itself.
type life struct {
	Stage     string         `json:"stage"` // "born", "changed", "grace", or "late" when no change came
	PID       int            `json:"pid"`
	Forks     int            `json:"forks"`
	Patched   bool           `json:"patched"`
	Inherited int            `json:"inherited"`
	Hits      int            `json:"hits"`
	Old       int            `json:"old"`
	Before    left           `json:"before"` // what the parent held
	Left      left           `json:"left"`
	Stats     map[string]any `json:"stats"`
}

// ways are the ways to make processes, with how many each makes. The program itself is none of them.
var ways = []struct {
	name      string
	processes int
	often     bool // also in `make test`
}{
	{"fork", 3, true},
	{"thread", 1, true},
	{"grace", 1, true},
	{"generations", 20, true},
	{"multiprocessing_fork", 2, false},
	{"multiprocessing_forkserver", 2, true},
	{"multiprocessing_spawn", 2, false},
	{"pool", 2, true},
	{"subprocess", 1, false},
	{"subprocess_preexec", 1, true},
	{"exec", 1, false},
	{"fork_exec", 1, true},
	{"daemon", 1, true},
	{"daemon_late", 1, false},
	{"close", 1, true},
}

// Whatever made a process: the patches are there, it counts from 0, and Remote Configuration goes on.
func TestEveryWayToMakeAProcess(t *testing.T) {
	each(t, func(t *testing.T, in testenv.Interpreter) {
		for _, way := range ways {
			if !way.often && !all {
				continue
			}
			t.Run(way.name, func(t *testing.T) {
				lived := lives(t, in, way.name, way.processes)
				if check := checks[way.name]; check != nil {
					check(t, lived)
				}
			})
		}
	})
}

// checks are what is checked of some ways besides.
var checks = map[string]func(t *testing.T, lives []life){"grace": checkGrace, "generations": checkGenerations}

// A child that execs within the grace has loaded no reconciler; one that lives on has one more than its parent.
func checkGrace(t *testing.T, lives []life) {
	var early []life
	for _, l := range lives {
		switch {
		case l.Stage == "grace":
			early = append(early, l)
			if l.Left.Reconcilers != l.Before.Reconcilers || l.Left.FDs > l.Before.FDs || l.Left.Threads > 2 {
				t.Errorf("the parent holds %+v; its child within the grace %+v, want no more and the engine's one thread", l.Before, l.Left)
			}
		case l.Left.Reconcilers != 2:
			t.Errorf("a child that lives on has %d reconcilers mapped, want its own and its parent's", l.Left.Reconcilers)
		}
	}
	if len(early) != 1 || early[0].Before.Reconcilers != 1 {
		t.Errorf("%d children spoke within the grace, want one, whose parent has one reconciler: %+v", len(early), early)
	}
}

// What each generation leaves to the next is bounded: of its reconciler, which ends with the fork, the memory that was
// touched, the mappings and the descriptors.
func checkGenerations(t *testing.T, lives []life) {
	slices.SortFunc(lives, func(a, b life) int { return a.Forks - b.Forks })
	for _, l := range lives {
		t.Logf("generation %2d: RSS %6d KiB, PSS %5d, private dirty %5d, %3d mappings, %d threads, %d descriptors",
			l.Forks, l.Left.RSS, l.Left.PSS, l.Left.PrivateDirty, l.Left.Mappings, l.Left.Threads, l.Left.FDs)
	}
	// Neither the first, which the program itself left less to, nor the last, which shares nothing with a child.
	first, last := lives[1], lives[len(lives)-2]
	for _, grown := range []struct {
		what        string
		first, last int
		bound       float64 // a generation
	}{
		{"KiB of RSS", first.Left.RSS, last.Left.RSS, 2048},
		{"KiB of PSS", first.Left.PSS, last.Left.PSS, 512},
		{"KiB of private dirty memory", first.Left.PrivateDirty, last.Left.PrivateDirty, 256},
		{"mappings", first.Left.Mappings, last.Left.Mappings, 40},
		{"threads", first.Left.Threads, last.Left.Threads, 0.2},
		{"descriptors", first.Left.FDs, last.Left.FDs, 0},
	} {
		added := float64(grown.last-grown.first) / float64(last.Forks-first.Forks)
		t.Logf("a generation adds %.1f %s", added, grown.what)
		if added > grown.bound {
			t.Errorf("a generation adds %.1f %s, want at most %v", added, grown.what, grown.bound)
		}
	}
}

// lives runs a way through the change and returns what each process said at the end, and what others said within the grace.
func lives(t *testing.T, in testenv.Interpreter, way string, processes int) []life {
	t.Helper()
	p := newProgram(t, "work:old")
	p.start(in, "", filepath.Join(subjects(), "forking.py"), way)
	at := func(stage string) []life {
		var found []life
		for _, l := range answers[life](p) {
			if l.Stage == "late" {
				t.Fatalf("process %d saw no change: %v", l.PID, l.Stats)
			}
			if l.Stage == stage {
				found = append(found, l)
			}
		}
		return found
	}
	await(t, "every process is born", func() bool { return len(at("born")) == processes })
	p.configure("work:new")
	await(t, "every process changed", func() bool { return len(at("changed")) == processes })
	select {
	case <-p.ended:
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("the program ended with %v", p.cmd.ProcessState)
		}
	case <-time.After(patience):
		t.Errorf("the program did not end")
	}

	forks := map[int]int{}
	for _, l := range at("born") {
		forks[l.PID] = l.Forks
		if !l.Patched || l.Inherited != 0 || l.Hits != 7 {
			t.Errorf("process %d is born with the patch: %t, %d hits before the first call and %d after the seventh",
				l.PID, l.Patched, l.Inherited, l.Hits)
		}
	}
	changed := at("changed")
	for i, l := range changed {
		changed[i].Forks = forks[l.PID]
		if l.Hits != 5 || l.Old != 7 {
			t.Errorf("process %d: the new target has %d hits, want 5; the old one %d, want 7 still", l.PID, l.Hits, l.Old)
		}
	}
	return append(changed, at("grace")...)
}
