package loader_test

import (
	"bufio"
	"fmt"
	"log"
	"os/exec"

	"sca-probe/pkg/loader"
	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/pyframes/evalloop"
	"sca-probe/pkg/rc"
)

// A program that calls its function when it is told to.
const program = `
import sys
def work(): pass
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)): work()
    print("worked", flush=True)
`

// Example counts how often a function starts in a running process. The process is not changed and not
// stopped, and loads nothing.
func Example() {
	python := exec.Command("/usr/bin/python3.11", "-c", program)
	orders, err := python.StdinPipe()
	check(err)
	output, err := python.StdoutPipe()
	check(err)
	check(python.Start())
	answers := bufio.NewScanner(output)
	answers.Scan()

	// Where is the function, and where does the interpreter start functions?
	process, err := pyframes.OpenProcess(python.Process.Pid)
	check(err)
	defer process.Close()
	function, err := process.Resolve(rc.Target{Module: "__main__", QualName: "work"})
	check(err)
	version := process.Interpreter().Version
	table, err := evalloop.Find(process.BinaryPath(), version.Major, version.Minor)
	check(err)

	code := loader.Code{Addr: function.Code.Addr, Name: function.Code.NameAddr, FirstLine: uint32(function.Code.FirstLine)}
	counter, err := loader.NewEvalLoopCounter(process.PID(), process.BinaryPath(), table, loader.CodeLayout(process.CodeOffsets()), []loader.Code{code})
	check(err)
	defer counter.Close()

	fmt.Fprintln(orders, 1234)
	answers.Scan()
	starts, err := counter.Starts()
	check(err)
	losses, err := counter.Losses()
	check(err)
	fmt.Printf("%d starts, %q lost\n", starts[code], losses)

	check(orders.Close())
	check(python.Wait())
	// Output: 1234 starts, "" lost
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
