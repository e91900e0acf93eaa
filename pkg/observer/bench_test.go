package observer_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"sca-probe/pkg/loader"
	"sca-probe/pkg/observer"
	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/pyframes/evalloop"
	"sca-probe/testenv"
)

// eachDjango runs f for one build of each version of CPython that the Django of testenv runs on.
func eachDjango(b *testing.B, f func(b *testing.B, in testenv.Interpreter)) {
	folder := filepath.Join(testenv.Root(), "build", "django")
	if _, err := os.Stat(filepath.Join(folder, "django")); err != nil {
		testenv.SkipBenchmark(b, "no Django: run `make django`")
	}
	b.Setenv("PYTHONPATH", folder)
	b.Setenv("PYTHONPYCACHEPREFIX", b.TempDir())
	for _, in := range testenv.Interpreters(testenv.OnePerVersion(testenv.Observer)) {
		if in.Minor >= 10 {
			b.Run(in.Name, func(b *testing.B) { f(b, in) })
		}
	}
}

// djangoSite is the command of a process that has Django's contrib apps, and answers requests as it is told.
func djangoSite(in testenv.Interpreter) *exec.Cmd {
	return exec.Command(in.Path, filepath.Join(testenv.Root(), "testenv", "subjects", "djangosite.py"))
}

// median is what is between the smaller and the larger half.
func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// BenchmarkFollowWarm measures how much longer a Django site that is warm takes to answer while it is followed,
// by its own processor time: each turn beside the mean of those before and after it, in which the same process is not
// followed. "unchanged" compares these two with each other: what differs there is the machine. "hits" are the
// follower's probes' own, which no load of the machine changes.
func BenchmarkFollowWarm(b *testing.B) {
	const turns, requests = 15, 20
	eachDjango(b, func(b *testing.B, in testenv.Interpreter) {
		cmd := djangoSite(in)
		site := testenv.StartCommand(b, cmd)
		answer := func() float64 {
			ns, err := strconv.ParseFloat(site.Ask(requests), 64)
			if err != nil {
				b.Fatal(err)
			}
			return ns / requests
		}
		for range 5 {
			answer()
		}
		var without, slowdown, unchanged []float64
		for b.Loop() {
			before := answer()
			for range turns {
				f := follow(b, observer.FollowOptions{PID: cmd.Process.Pid})
				with := answer()
				f.stop(b)
				after := answer()
				without = append(without, before)
				slowdown = append(slowdown, 2*with/(before+after))
				unchanged = append(unchanged, after/before)
				before = after
			}
		}
		b.ReportMetric(median(without)/1e3, "µs/request")
		b.ReportMetric(median(slowdown), "with/without")
		b.ReportMetric(median(unchanged), "unchanged")
		b.ReportMetric(followerHits(b, cmd.Process.Pid, cmd.Process.Pid, func() { answer() })/requests, "hits/request")
		b.ReportMetric(0, "ns/op")
	})
}

// followerHits counts how often a process comes by where a follower has its probes. sample is one of its build.
func followerHits(b *testing.B, sample, pid int, work func()) float64 {
	b.Helper()
	process, err := pyframes.OpenProcess(sample)
	if err != nil {
		b.Fatal(err)
	}
	defer process.Close()
	version := process.Interpreter().Version
	table, err := evalloop.Find(process.BinaryPath(), version.Major, version.Minor)
	if err != nil {
		b.Fatal(err)
	}
	table.Sites = slices.DeleteFunc(table.Sites, func(s evalloop.Site) bool { return s.Specialised })
	counter, err := loader.NewEvalLoopCounterOfAll(pid, process.BinaryPath(), table, loader.CodeLayout(process.CodeOffsets()), 0)
	if err != nil {
		b.Fatal(err)
	}
	defer counter.Close()
	work()
	hits, err := counter.Hits()
	if err != nil {
		b.Fatal(err)
	}
	return float64(hits)
}

// BenchmarkFollowCold measures how much longer a Django site takes from its start to its first answer and its end
// while all processes are followed, each beside one just before that is not: by its own processor time, and by the clock.
// "kernel" is what its time in the kernel, where all of the probes' work is done, grew by, as a share of all its time:
// of the three it varies least with what else the machine does.
func BenchmarkFollowCold(b *testing.B) {
	const turns = 7
	eachDjango(b, func(b *testing.B, in testenv.Interpreter) {
		type run struct {
			pid                int
			cpu, kernel, clock float64
		}
		start := func() run {
			cmd := djangoSite(in)
			began := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			kernel := cmd.ProcessState.SystemTime()
			return run{cmd.Process.Pid, (cmd.ProcessState.UserTime() + kernel).Seconds(), kernel.Seconds(), time.Since(began).Seconds()}
		}
		start()                               // compiles what it imports
		sample := testenv.StartSubject(b, in) // so that the build is known
		var without, slowdown, byTheClock, kernel []float64
		told, lost := 0, 0
		for b.Loop() {
			for range turns {
				alone := start()
				f := follow(b, observer.FollowOptions{})
				followed := start()
				events := f.stop(b)
				without = append(without, alone.cpu)
				slowdown = append(slowdown, followed.cpu/alone.cpu)
				byTheClock = append(byTheClock, followed.clock/alone.clock)
				kernel = append(kernel, (followed.kernel-alone.kernel)/alone.cpu)
				for _, e := range events {
					switch e.Kind {
					case observer.FirstExecution:
						if e.PID == followed.pid {
							told++
						}
					case observer.EventsLost:
						lost++
					}
				}
			}
		}
		b.ReportMetric(coldHits(b, in, sample.PID()), "hits")
		b.ReportMetric(1000*median(without), "CPU-ms")
		b.ReportMetric(median(slowdown), "with/without")
		b.ReportMetric(median(byTheClock), "with/without-by-the-clock")
		b.ReportMetric(median(kernel), "kernel")
		b.ReportMetric(float64(told)/float64(len(slowdown)), "functions")
		b.ReportMetric(float64(lost), "losses")
		b.ReportMetric(0, "ns/op")
	})
}

// coldHits counts the hits of a process that becomes the site once it is probed.
func coldHits(b *testing.B, in testenv.Interpreter, sample int) float64 {
	b.Helper()
	cmd := exec.Command("sh", append([]string{"-c", `echo waiting; read -r line; exec "$@"`, "sh"}, djangoSite(in).Args...)...)
	site := testenv.StartCommand(b, cmd)
	return followerHits(b, sample, cmd.Process.Pid, func() { site.Ask("") })
}

// BenchmarkFunctionsOfDjango measures the command on a Django site, until all is printed.
func BenchmarkFunctionsOfDjango(b *testing.B) {
	eachDjango(b, func(b *testing.B, in testenv.Interpreter) {
		site := djangoSite(in)
		testenv.StartCommand(b, site)
		var clock, cpu []float64
		var held int
		for b.Loop() {
			for range 5 {
				cmd := exec.Command(testenv.ProbePath(b), "functions", "--json", "--pid", fmt.Sprint(site.Process.Pid))
				began := time.Now()
				out, err := cmd.Output()
				clock = append(clock, time.Since(began).Seconds())
				if err != nil {
					b.Fatal(err)
				}
				cpu = append(cpu, (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds())
				var report observer.FunctionReport
				if err := json.Unmarshal(out, &report); err != nil {
					b.Fatal(err)
				}
				held = 0
				for _, group := range report.Groups {
					held += group.Held
				}
			}
		}
		b.ReportMetric(1000*median(clock), "ms")
		b.ReportMetric(1000*median(cpu), "CPU-ms")
		b.ReportMetric(float64(held), "functions")
		b.ReportMetric(0, "ns/op")
	})
}

// crowd is how many processes the observer's own use of memory and processor is measured with, and window for
// how long.
const (
	crowd  = 100
	window = 10 * time.Second
)

// A busy process answers ten requests a second, each with some functions of the standard library.
const busy = `
import decimal, json, select, string, sys
import _pydecimal
class Item:
    def __init__(self, number): self.number = number
    def encode(self): return json.dumps({"number": str(_pydecimal.Decimal(self.number) + 1)})
def handle():
    return [json.loads(Item(i).encode()) for i in range(3)]
handle()
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.1)[0]:
    handle()
`

// startCrowd starts busy processes, which end with the benchmark.
func startCrowd(b *testing.B) (pids []int) {
	in := debian(b)
	for range crowd {
		cmd := exec.Command(in.Path, "-c", busy)
		testenv.StartCommand(b, cmd)
		pids = append(pids, cmd.Process.Pid)
	}
	return pids
}

// An observing is a sca-probe that runs beside the crowd.
type observing struct {
	cmd    *exec.Cmd
	lines  *bufio.Reader // of its standard error
	out    bytes.Buffer
	before time.Duration // its processor time until its probes were in place
	memory float64       // its largest resident set until then, in MiB
}

// startProbe starts the command.
func startProbe(b *testing.B, args ...string) *observing {
	b.Helper()
	o := &observing{cmd: exec.Command(testenv.ProbePath(b), args...)}
	o.cmd.Stdout = &o.out
	messages, err := o.cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	o.lines = bufio.NewReader(messages)
	if err := o.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { o.cmd.Process.Kill() })
	return o
}

// attached waits for the line that begins so, which it prints once its probes are in place.
func (o *observing) attached(b *testing.B, begin string) {
	b.Helper()
	for {
		line, err := o.lines.ReadString('\n')
		if err != nil {
			b.Fatalf("%v ended: %v", o.cmd.Args, err)
		}
		if strings.HasPrefix(line, begin) {
			break
		}
	}
	process, err := procfs.NewProc(o.cmd.Process.Pid)
	if err != nil {
		b.Fatal(err)
	}
	stat, err := process.Stat()
	if err != nil {
		b.Fatal(err)
	}
	status, err := process.NewStatus()
	if err != nil {
		b.Fatal(err)
	}
	o.before = time.Duration(stat.CPUTime() * float64(time.Second))
	o.memory = float64(status.VmHWM) / (1 << 20)
}

// ended waits for its end, and returns its processor time.
func (o *observing) ended(b *testing.B) time.Duration {
	b.Helper()
	for {
		line, err := o.lines.ReadString('\n')
		if err != nil {
			break
		}
		if strings.Contains(line, "lost") {
			b.Errorf("%v: %s", o.cmd.Args, line)
		}
	}
	if err := o.cmd.Wait(); err != nil {
		b.Fatalf("%v: %v", o.cmd.Args, err)
	}
	return o.cmd.ProcessState.UserTime() + o.cmd.ProcessState.SystemTime()
}

// BenchmarkFollowOfACrowd measures what `follow --all` itself takes for a hundred processes that work: processor time
// until they are followed, the share of a processor from then on, and memory, of which 64 MiB are the kernel's buffer of
// events, mapped twice. It follows whatever other Python processes there are, too: how many functions it told of says how
// many of those started.
func BenchmarkFollowOfACrowd(b *testing.B) {
	startCrowd(b)
	for b.Loop() {
		o := startProbe(b, "follow", "--all", "--json", "--for", window.String())
		o.attached(b, "following ")
		cpu := o.ended(b)
		followed, told := 0, 0
		for line := range bytes.Lines(o.out.Bytes()) {
			var e observer.FollowEvent
			if err := json.Unmarshal(line, &e); err != nil {
				b.Fatal(err)
			}
			switch e.Kind {
			case observer.ProcessFollowed:
				followed++
			case observer.FirstExecution:
				told++
			}
		}
		if followed < crowd {
			b.Fatalf("%d of %d processes are followed", followed, crowd)
		}
		b.ReportMetric(float64(o.before.Milliseconds()), "CPU-ms-to-attach")
		b.ReportMetric(100*(cpu-o.before).Seconds()/window.Seconds(), "%CPU")
		b.ReportMetric(o.memory, "MiB")
		b.ReportMetric(float64(followed), "processes")
		b.ReportMetric(float64(told)/window.Seconds(), "functions/s")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkWatchOfACrowd measures what `watch` takes when it watches each of a hundred processes that work, at once.
func BenchmarkWatchOfACrowd(b *testing.B) {
	pids := startCrowd(b)
	for b.Loop() {
		var all []*observing
		for _, pid := range pids {
			all = append(all, startProbe(b, "watch", "--json", "--for", window.String(), "--pid", fmt.Sprint(pid)))
		}
		var before, inWindow time.Duration
		var memory, largest float64
		var starts uint64
		for _, o := range all {
			o.attached(b, "watching ")
			before += o.before
		}
		for _, o := range all {
			inWindow += o.ended(b) - o.before
			memory, largest = memory+o.memory, max(largest, o.memory)
			var report observer.WatchReport
			if err := json.Unmarshal(o.out.Bytes(), &report); err != nil {
				b.Fatal(err)
			}
			if report.EndedEarly != "" || report.Losses != "" {
				b.Fatalf("a window ended early: %q; lost: %q", report.EndedEarly, report.Losses)
			}
			for _, f := range report.Functions {
				starts += f.Starts
			}
		}
		b.ReportMetric(float64(before.Milliseconds())/crowd, "CPU-ms-to-attach/process")
		b.ReportMetric(100*inWindow.Seconds()/window.Seconds()/crowd, "%CPU/process")
		b.ReportMetric(memory/crowd, "MiB/process")
		b.ReportMetric(largest, "largest-MiB")
		b.ReportMetric(float64(starts)/window.Seconds()/crowd, "starts/s")
	}
	b.ReportMetric(0, "ns/op")
}
