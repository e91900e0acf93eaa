package pyframes_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

// oldAndNew runs f on one build that has the table's layout and one that publishes its own.
func oldAndNew(t *testing.T, f func(t *testing.T, s *testenv.Subject, p *pyframes.Process)) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		if in.Minor != 10 && in.Minor != 14 {
			t.Skip("one old and one new build are enough")
		}
		s := testenv.StartSubject(t, in)
		f(t, s, open(t, s))
	})
}

func TestFunctionsOfALargeProcess(t *testing.T) {
	oldAndNew(t, func(t *testing.T, s *testenv.Subject, p *pyframes.Process) {
		const many = 200_000
		s.Exec(fmt.Sprintf("import types; c = never.__code__; many = [types.FunctionType(c.replace(co_name='many%%d' %% i), {'__name__': 'many'}) for i in range(%d)]", many))
		s.Exec("[f(1) for f in many[::2]]")
		if os.Getenv("SCA_PROBE_TEST_ALL") != "" {
			s.Exec("big = b'x' * (2 << 30)")
		}
		// A terabyte of which three pages were ever touched.
		s.Exec("import mmap; sparse = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)")
		s.Exec("sparse[0] = sparse[1 << 39] = sparse[(1 << 40) - 1] = 1")
		began := time.Now()
		ran := map[bool]int{}
		scan := &pyframes.FunctionScan{Match: func(module string, _ pyframes.Code) bool { return module == "many" }}
		for f, err := range p.Functions(context.Background(), scan) {
			if err != nil {
				t.Fatal(err)
			}
			ran[f.Evidence.Executed]++
			if odd := strings.TrimRight(f.Name, "13579") != f.Name; odd == f.Evidence.Executed {
				t.Fatalf("%s: %+v", f.Name, f.Evidence)
			}
		}
		if ran[true] != many/2 || ran[false] != many/2 {
			t.Errorf("%d functions ran and %d did not, want %d each", ran[true], ran[false], many/2)
		}
		t.Logf("%v, %d MiB, %d rejected", time.Since(began).Round(time.Millisecond), scan.Bytes>>20, scan.Rejected)
	})
}

func TestFunctionsOfAProcessThatMakesAndDropsThem(t *testing.T) {
	oldAndNew(t, func(t *testing.T, s *testenv.Subject, p *pyframes.Process) {
		s.Exec(`
import threading, time
def churn():
    while not stop.is_set():
        names = {}
        exec("def never_called(x):\n  def never_made(): return x\n  return never_made\ndef called(): return 1", names)
        names["called"]()
        time.sleep(0)
stop = threading.Event()
threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads: thread.start()
`)
		steady := resolve(t, p, "shapes:plain").Code
		for range 5 {
			found := false
			for f, err := range p.Functions(context.Background(), nil) {
				if err != nil {
					t.Fatal(err)
				}
				found = found || f.SameAs(steady)
				if strings.HasPrefix(f.Name, "never") && f.Evidence.Executed {
					t.Errorf("%s is said to have run: %+v", f.QualName, f.Evidence)
				}
			}
			if !found {
				t.Error("a function that is there all the time is missing")
			}
		}
		s.Exec("stop.set()\nfor thread in threads: thread.join()")
	})
}
