package loop

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sca-probe/testenv"
)

// measure runs a subject of measurements under the engine, and returns what it prints.
func measure(b *testing.B, in testenv.Interpreter, subject string, args ...string) map[string]float64 {
	b.Helper()
	rcFile := filepath.Join(b.TempDir(), "targets.json")
	argv := append([]string{"run", "--rc-file", rcFile, "--", in.Path,
		filepath.Join(testenv.Root(), "testenv", "subjects", subject), rcFile}, args...)
	return printed(b, exec.Command(testenv.ProbePath(b), argv...))
}

// printed runs a command with the engine on, and returns the measurements that it prints.
func printed(b *testing.B, cmd *exec.Cmd) map[string]float64 {
	b.Helper()
	cmd.Env = append(os.Environ(), testenv.Gates...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	var measured map[string]float64
	if err := json.Unmarshal(out, &measured); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	b.ReportMetric(0, "ns/op") // the process's own time says nothing
	return measured
}

// BenchmarkHook reports, of one process in one run, what each way of watching adds to a call of a
// one-line function, how long 100 functions take to instrument, and the median time from writing the
// Remote Configuration file to the swap.
func BenchmarkHook(b *testing.B) {
	for _, in := range testenv.Interpreters(testenv.Engine) {
		b.Run(in.Name, func(b *testing.B) {
			for b.Loop() {
				overhead(b, in)
			}
		})
	}
}

func overhead(b *testing.B, in testenv.Interpreter) {
	var args []string
	ddtrace := filepath.Join(testenv.Root(), "build", "ddtrace", fmt.Sprintf("%d.%d", in.Major, in.Minor))
	if _, err := os.Stat(filepath.Join(ddtrace, "ddtrace")); err == nil {
		args = append(args, ddtrace)
	}
	ns := measure(b, in, "overhead.py", args...)
	added := func(way string) float64 { return ns[way] - ns["bare"] }
	b.ReportMetric(ns["bare"], "bare-ns/call")
	b.ReportMetric(added("hook"), "hook-ns/call")
	b.ReportMetric(added("first_hit"), "first-hit-ns/call")
	b.ReportMetric(added("wrapper"), "wrapper-ns/call")
	b.ReportMetric(added("wrapper")/added("hook"), "wrapper/hook")
	if _, ok := ns["monitoring"]; ok {
		b.ReportMetric(added("monitoring"), "monitoring-ns/call")
	}
	b.ReportMetric(ns["engine_100_ms"], "engine-ms/100-functions")
	if _, ok := ns["ddtrace"]; ok {
		b.ReportMetric(added("ddtrace"), "ddtrace-ns/call")
		b.ReportMetric(added("ddtrace")/added("hook"), "ddtrace/hook")
		b.ReportMetric(ns["ddtrace_100_ms"], "ddtrace-ms/100-functions")
	}
	b.ReportMetric(ns["apply_ms"], "rc-to-patched-ms")
}

// BenchmarkPauses reports the pauses that a thread of the application sees while 1,000 targets are applied
// or withdrawn, beside those in as much time without a change, and the work for it.
func BenchmarkPauses(b *testing.B) {
	for _, in := range testenv.Interpreters(testenv.OnePerVersion(testenv.Engine)) {
		b.Run(in.Name, func(b *testing.B) {
			for b.Loop() {
				for name, value := range measure(b, in, "pauses.py") {
					b.ReportMetric(value, name)
				}
			}
		})
	}
}

// BenchmarkMemory reports the private memory that the engine and 10,000 targets take.
func BenchmarkMemory(b *testing.B) {
	b.Setenv("PYTHONPATH", filepath.Join(testenv.Root(), "build", "lib", "sca-probe", "python"))
	for _, in := range testenv.Interpreters(testenv.OnePerVersion(testenv.Engine)) {
		b.Run(in.Name, func(b *testing.B) {
			for b.Loop() {
				rcFile := filepath.Join(b.TempDir(), "targets.json")
				mib := printed(b, exec.Command(in.Path, filepath.Join(testenv.Root(), "testenv", "subjects", "memory.py"), rcFile))
				b.ReportMetric(mib["engine_mib"], "engine-MiB")
				b.ReportMetric(mib["targets_mib"], "targets-MiB")
			}
		})
	}
}

// BenchmarkFork reports how long os.fork() takes, until it returns in the parent and in the child, in a process with the
// engine, in one with an idle thread instead and in one with neither.
func BenchmarkFork(b *testing.B) {
	for _, in := range testenv.Interpreters(testenv.OnePerVersion(testenv.Engine)) {
		b.Run(in.Name, func(b *testing.B) {
			for b.Loop() {
				us := measure(b, in, "forklatency.py")
				for _, way := range []string{"bare", "thread", "engine"} {
					b.ReportMetric(us[way+"_parent"], way+"-µs")
					b.ReportMetric(us[way+"_child"], way+"-µs-to-child")
				}
				b.ReportMetric(us["engine_parent"]/us["bare_parent"], "engine/bare")
				b.ReportMetric(us["engine_parent"]/us["thread_parent"], "engine/thread")
			}
		})
	}
}
