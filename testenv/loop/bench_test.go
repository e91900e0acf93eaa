package loop

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sca-probe/testenv"
)

// BenchmarkHook reports, of one process in one run, what each way of watching adds to a call of a
// one-line function, and the median time from writing the Remote Configuration file to the swap.
func BenchmarkHook(b *testing.B) {
	for _, in := range testenv.Interpreters() {
		b.Run(in.Name, func(b *testing.B) {
			for b.Loop() {
				overhead(b, in)
			}
		})
	}
}

func overhead(b *testing.B, in testenv.Interpreter) {
	rcFile := filepath.Join(b.TempDir(), "targets.json")
	cmd := exec.Command(filepath.Join(testenv.Root(), "build", "bin", "sca-probe"), "run", "--rc-file", rcFile, "--",
		in.Path, filepath.Join(testenv.Root(), "testenv", "subjects", "overhead.py"), rcFile)
	cmd.Env = append(os.Environ(), gates...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	var ns map[string]float64
	if err := json.Unmarshal(out, &ns); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	b.ReportMetric(0, "ns/op") // the process's own time says nothing
	b.ReportMetric(ns["bare"], "bare-ns/call")
	b.ReportMetric(ns["hook"]-ns["bare"], "hook-ns/call")
	b.ReportMetric(ns["wrapper"]-ns["bare"], "wrapper-ns/call")
	if monitoring, ok := ns["monitoring"]; ok {
		b.ReportMetric(monitoring-ns["bare"], "monitoring-ns/call")
	}
	b.ReportMetric((ns["wrapper"]-ns["bare"])/(ns["hook"]-ns["bare"]), "wrapper/hook")
	b.ReportMetric(ns["apply_ms"], "rc-to-patched-ms")
}
