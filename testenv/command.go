package testenv

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A Command is a program that a test talks with by lines.
type Command struct {
	// Ready is the line that it printed when it was ready.
	Ready string

	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Reader
}

// StartCommand starts a command that prints a line when it is ready and ends with its standard input.
// The test's cleanup ends the command.
func StartCommand(t testing.TB, cmd *exec.Cmd) *Command {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		timer := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
	})
	patience := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer patience.Stop()
	c := &Command{t: t, cmd: cmd, stdin: stdin, lines: bufio.NewReader(stdout)}
	c.Ready = c.answer()
	return c
}

// Ask writes a line to the command, and returns the one that it answers.
func (c *Command) Ask(line any) string {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.stdin, line); err != nil {
		c.t.Fatalf("%v: %v", c.cmd.Args, err)
	}
	return c.answer()
}

func (c *Command) answer() string {
	c.t.Helper()
	line, err := c.lines.ReadString('\n')
	if err != nil {
		c.t.Fatalf("%v: %v", c.cmd.Args, err)
	}
	return strings.TrimSpace(line)
}
