package life

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"sca-probe/testenv"
)

func TestMemoryIsBounded(t *testing.T) {
	cycles := 40 // of 500 targets
	if all() {
		cycles = 400
	}
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		var kib struct {
			Engine, Targets            int
			Resident, Malloced, Blocks []int // after each cycle
		}
		program{name: "bounds.py", args: []string{strconv.Itoa(cycles)}, timeout: 10 * 60e9}.succeed(t, in, &kib)
		t.Logf("KiB: %+v", kib)
		for _, memory := range []struct {
			what  string
			sizes []int
			by    int
		}{
			{"KiB resident", kib.Resident, 1024},          // Go's heap, which is collected when it will
			{"KiB of malloc()", kib.Malloced, cycles / 3}, // two bytes a patch
			{"blocks", kib.Blocks, 50 * cycles / 3},       // writing the file leaves one to three, without the engine too
		} {
			if grows(memory.sizes, memory.by) {
				t.Errorf("with each cycle of 500 targets there was more memory in use: %v %s", memory.sizes, memory.what)
			}
		}
	})
}

// grows tells memory that goes on growing from memory that goes up and down as it is collected, and settles: the
// middle of each third of the sizes is above that of the third before, by more than so much.
func grows(sizes []int, by int) bool {
	third := len(sizes) / 3
	middle := func(sizes []int) int { return slices.Sorted(slices.Values(sizes))[len(sizes)/2] }
	first, second, last := middle(sizes[:third]), middle(sizes[third:2*third]), middle(sizes[2*third:])
	return second > first+by && last > second+by
}

func TestGrows(t *testing.T) {
	// Resident KiB of two runs on 3.8, after each 20 cycles. Some 100 bytes lost with each patch are 1000 KiB in that time.
	settled := []int{0, 320, 212, 768, 276, 368, 292, 672, 636, 1056, 356, 48, -56, 128, 616, 1212, 672, 600, 744, -348}
	settling := []int{0, -140, 260, -124, 1700, 632, 1424, 844, 1156, 1712, 1228, 2128, 2092, 1932, 1176, 1224, 1932, 1304, 1572, 1468}
	for _, noise := range [][]int{settled, settling} {
		leaking := slices.Clone(noise)
		for i := range leaking {
			leaking[i] += 1000 * i
		}
		if grows(noise, 1024) || !grows(leaking, 1024) {
			t.Errorf("%v grows: %v; %v grows: %v", noise, grows(noise, 1024), leaking, grows(leaking, 1024))
		}
	}
}

func TestTooManyTargetsAreRefusedOnce(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Engine), func(t *testing.T, in testenv.Interpreter) {
		o := program{name: "bounds.py", args: []string{"3"}, env: testenv.Gates}.run(t, in)
		if n := strings.Count(o.Stderr, "\n"); o.Code != 0 || n != 1 || !strings.Contains(o.Stderr, "refused") {
			t.Errorf("exit code %d, want 0 and one line that says refused:\n%s", o.Code, o.Stderr)
		}
	})
}
