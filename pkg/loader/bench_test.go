package loader

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/pyframes/evalloop"
	"sca-probe/testenv"
)

// calling measures the processor time of calls: count() of one warm function, first() of as many that never
// ran before.
const calling = `
import itertools, time
def _called(): pass
def count(n):
    began = time.process_time()
    for _ in itertools.repeat(None, n): _called()
    return round((time.process_time() - began) * 1e9)
def first(n):
    space = {}
    exec(compile("".join(map("def f{}(): pass\n".format, range(n))), "made", "exec"), space)
    made = [f for name, f in space.items() if name != "__builtins__"]
    began = time.process_time()
    for f in made: f()
    return round((time.process_time() - began) * 1e9)
`

// BenchmarkHit measures what a hit of each probe costs the process that is probed, in one run with what
// bpftrace's uprobes, which only count, cost at the same places: "count" is the eval-loop counter on warm code,
// "first" the follower on code that never ran, and "again" the follower on warm code, where that comes by. Of
// this very program the places are one instruction that the kernel emulates and one that it steps over.
func BenchmarkHit(b *testing.B) {
	if _, err := exec.LookPath("bpftrace"); err != nil {
		testenv.SkipBenchmark(b, fmt.Sprintf("%v: run `scripts/install-deps bench`", err))
	}
	b.Run("this-program", benchmarkOwnHits)
	for _, in := range testenv.Interpreters(testenv.Observer) {
		b.Run(in.Name, func(b *testing.B) { benchmarkHits(b, in) })
	}
}

func benchmarkHits(b *testing.B, in testenv.Interpreter) {
	s := testenv.StartSubject(b, in)
	s.Exec(calling)
	process, err := pyframes.OpenProcess(s.PID())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { process.Close() })
	binary, layout := process.BinaryPath(), CodeLayout(process.CodeOffsets())
	table, err := evalloop.Find(binary, in.Major, in.Minor)
	if err != nil {
		b.Fatal(err)
	}
	places := openPlaces(b, s.PID(), process.Interpreter().Path, binary)
	call := func(name string) func(int) time.Duration {
		return func(n int) time.Duration {
			ns, err := s.Eval(fmt.Sprintf("%s(%d)", name, n)).(json.Number).Int64()
			if err != nil {
				b.Fatal(err)
			}
			return time.Duration(ns)
		}
	}
	count := func() (prober, error) { return NewEvalLoopCounterOfAll(s.PID(), binary, table, layout, 0) }
	follow := func() (prober, error) {
		f, err := NewFollower(FollowOptions{})
		if err != nil {
			return nil, err
		}
		if err := f.Follow(s.PID(), binary, table, layout); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		go func() { // as who follows does: the kernel wakes whoever has read all
			for {
				f.SetDeadline(time.Now().Add(100 * time.Millisecond))
				if _, err := f.Read(); errors.Is(err, ErrClosed) {
					return
				}
			}
		}()
		return f, nil
	}
	var all, unspecialised []uint64 // offsets
	for _, site := range table.Sites {
		all = append(all, site.Offset)
		if !site.Specialised {
			unspecialised = append(unspecialised, site.Offset)
		}
	}
	b.Run("count", func(b *testing.B) { places.measure(b, binary, all, count, call("count"), 50_000) })
	b.Run("first", func(b *testing.B) { places.measure(b, binary, unspecialised, follow, call("first"), 10_000) })
	if len(all) == len(unspecialised) {
		b.Run("again", func(b *testing.B) { places.measure(b, binary, all, follow, call("count"), 50_000) })
	}
}

// benchmarkOwnHits measures as MeasureHitCost does, on which watch relies.
func benchmarkOwnHits(b *testing.B) {
	path, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	places := openPlaces(b, os.Getpid(), path, path)
	branch, ordinary := probedAddresses()
	for _, kind := range []struct {
		name    string
		address uintptr
		passes  int
		cost    func(HitCost) time.Duration
	}{
		{"emulated", branch, emulatedPasses, func(c HitCost) time.Duration { return c.Emulated }},
		{"stepped", ordinary, steppedPasses, func(c HitCost) time.Duration { return c.Stepped }},
	} {
		b.Run(kind.name, func(b *testing.B) {
			var ours, theirs best
			for b.Loop() {
				for range rounds {
					cost, err := measureHitCost()
					if err != nil {
						b.Fatal(err)
					}
					ours.add(kind.cost(cost))
					stop := places.bpftrace(b, []uint64{uint64(kind.address)})
					theirs.add(median(func() time.Duration { return pass(kind.address, &probedFrame, kind.passes) }))
					if hits := stop(); hits != measurements*kind.passes {
						b.Fatalf("bpftrace counted %d hits of %d passes", hits, measurements*kind.passes)
					}
				}
			}
			b.ReportMetric(float64(ours.time), "ns/hit")
			b.ReportMetric(float64(theirs.time), "bpftrace-ns/hit")
			b.ReportMetric(float64(ours.time)/float64(theirs.time), "of-bpftrace")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// A prober is one of the probes that are measured.
type prober interface {
	stats() (hits, stepped uint64, lost Losses, err error)
	Close() error
}

// rounds is how often each way of probing is measured, in turns; the best of each counts, so that a noisy machine
// disturbs all alike.
const rounds = 3

// hitPlaces are places in one file that one process passes.
type hitPlaces struct {
	pid     int
	path    string
	buildID string // "" where the file has none: then bpftrace cannot be told of the places
}

// openPlaces is told the path of the file, and where it can be read.
func openPlaces(b *testing.B, pid int, path, file string) *hitPlaces {
	b.Helper()
	places := &hitPlaces{pid: pid, path: path}
	binary, err := elf.Open(file)
	if err != nil {
		b.Fatal(err)
	}
	defer binary.Close()
	if note := binary.Section(".note.gnu.build-id"); note != nil {
		data, err := note.Data()
		if err != nil || len(data) < 16 {
			b.Fatalf("the build ID of %s: %d bytes, %v", path, len(data), err)
		}
		places.buildID = fmt.Sprintf("%x", data[16:]) // after the sizes and "GNU"
	}
	return places
}

// measure passes the places so many times bare, with a probe of ours and with bpftrace's.
func (p *hitPlaces) measure(b *testing.B, binary string, offsets []uint64, attach func() (prober, error), pass func(int) time.Duration, times int) {
	addresses := addressesOf(b, binary, offsets)
	pass(times) // warm
	var bare, ours, theirs best
	var stepped float64
	for b.Loop() {
		for range rounds {
			bare.add(pass(times))

			probe, err := attach()
			if err != nil {
				b.Fatal(err)
			}
			before, steppedBefore, _, err := probe.stats()
			if err != nil {
				b.Fatal(err)
			}
			ours.add(pass(times))
			after, steppedAfter, lost, err := probe.stats()
			if err := errors.Join(err, probe.Close()); err != nil {
				b.Fatal(err)
			}
			// The subject's own functions come by, too.
			if hits := after - before; hits < uint64(times) || hits > uint64(times)+500 || lost.Any() {
				b.Fatalf("%d hits of %d passes; lost: %s", hits, times, lost)
			}
			stepped = float64(steppedAfter-steppedBefore) / float64(after-before)

			if p.buildID == "" {
				continue
			}
			stop := p.bpftrace(b, addresses)
			theirs.add(pass(times))
			if hits := stop(); hits < times {
				b.Fatalf("bpftrace counted %d hits of %d passes", hits, times)
			}
		}
	}
	perHit := func(with best) float64 { return float64(with.time-bare.time) / float64(times) }
	b.ReportMetric(perHit(ours), "ns/hit")
	b.ReportMetric(stepped, "stepped")
	if p.buildID != "" {
		b.ReportMetric(perHit(theirs), "bpftrace-ns/hit")
		b.ReportMetric(perHit(ours)/perHit(theirs), "of-bpftrace")
	}
	b.ReportMetric(0, "ns/op")
}

// best is the shortest of some times.
type best struct {
	time  time.Duration
	known bool
}

func (b *best) add(t time.Duration) {
	if !b.known || t < b.time {
		b.time, b.known = t, true
	}
}

// addressesOf returns where the file says that its offsets are mapped.
func addressesOf(b *testing.B, path string, offsets []uint64) []uint64 {
	b.Helper()
	file, err := elf.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	var addresses []uint64
	for _, offset := range offsets {
		for _, part := range file.Progs {
			if part.Type == elf.PT_LOAD && offset >= part.Off && offset-part.Off < part.Filesz {
				addresses = append(addresses, part.Vaddr+offset-part.Off)
			}
		}
	}
	if len(addresses) != len(offsets) {
		b.Fatalf("%d of %d places are mapped", len(addresses), len(offsets))
	}
	return addresses
}

// bpftrace attaches bpftrace's uprobes to the places. What it returns ends it, and returns the hits it counted.
//
// Debian's bpftrace takes no address within a function: it is given symbols there, in a file of debug symbols.
func (p *hitPlaces) bpftrace(b *testing.B, addresses []uint64) func() int {
	b.Helper()
	folder := b.TempDir()
	var symbols, script strings.Builder
	for i, address := range addresses {
		fmt.Fprintf(&symbols, ".globl place%d\n.type place%[1]d, @function\n.set place%[1]d, %#x\n.size place%[1]d, 1\n", i, address)
		if i > 0 {
			script.WriteByte(',')
		}
		fmt.Fprintf(&script, "uprobe:%s:place%d", p.path, i)
	}
	// What it prints comes once all is attached.
	script.WriteString(` { @ = count(); } interval:ms:100 { printf("attached\n"); }`)
	if err := os.MkdirAll(filepath.Join(folder, filepath.Dir(p.path)), 0o700); err != nil {
		b.Fatal(err)
	}
	link := exec.Command("gcc", "-nostdlib", "-shared", "-Wl,--build-id=0x"+p.buildID, "-o", filepath.Join(folder, p.path), "-x", "assembler", "-")
	link.Stdin = strings.NewReader(symbols.String())
	if out, err := link.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command("bpftrace", "-B", "line", "-p", fmt.Sprint(p.pid), "-e", script.String())
	cmd.Env = append(os.Environ(), "BCC_SYMFS="+folder)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	var messages bytes.Buffer
	cmd.Stderr = &messages
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Kill() })
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && lines.Text() != "attached" {
	}
	return func() int {
		b.Helper()
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			// bpftrace misses a signal that comes while it does not wait for events.
			for again := time.Duration(0); ; again = 3 * time.Second {
				select {
				case <-ended:
					return
				case <-time.After(again):
					cmd.Process.Signal(os.Interrupt)
				}
			}
		}()
		hits := -1
		for lines.Scan() {
			if count, ok := strings.CutPrefix(lines.Text(), "@: "); ok {
				fmt.Sscan(count, &hits)
			}
		}
		if err := cmd.Wait(); err != nil || hits < 0 {
			b.Fatalf("bpftrace counted nothing: %v\n%s", err, &messages)
		}
		return hits
	}
}
