package wheel

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"sca-probe/testenv"
)

// timesOfClosedGate runs the line of the wheel's .pth file, has site read and run the file, as it does at an interpreter's
// start, and starts an interpreter. Prints how long each takes, in microseconds.
const timesOfClosedGate = `
import os, site, statistics, subprocess, sys, time
folder, name = os.path.split(sys.argv[1])
known = {folder}
def once(action):
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1e6
line = compile(open(sys.argv[1]).read(), name, "exec")
print(statistics.median(once(lambda: exec(line)) for _ in range(2000)),
      statistics.median(once(lambda: site.addpackage(folder, name, known)) for _ in range(2000)),
      statistics.median(once(lambda: subprocess.check_call([sys.executable, "-c", ""])) for _ in range(20)))
assert not [m for m in sys.modules if m.startswith("sca_probe")]
`

// BenchmarkClosedGate reports what the wheel costs the start of an interpreter where the engine is off.
func BenchmarkClosedGate(b *testing.B) {
	for b.Loop() {
		python := filepath.Join(newest.Environment(b), "bin", "python")
		output, err := exec.Command(python, "-c", timesOfClosedGate, filepath.Join(testenv.Root(), "python", "sca_probe.pth")).Output()
		if err != nil {
			b.Fatal(err)
		}
		var line, file, start float64
		if _, err := fmt.Sscan(string(output), &line, &file, &start); err != nil {
			b.Fatalf("%q: %v", output, err)
		}
		b.ReportMetric(0, "ns/op") // the test process's own time says nothing
		b.ReportMetric(line, "line-us")
		b.ReportMetric(file, "file-us")
		b.ReportMetric(start, "start-us")
		b.ReportMetric(file/start, "file/start")
	}
}
