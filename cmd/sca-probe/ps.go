package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sca-probe/pkg/observer"
)

func newPsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the Python processes on this node",
		Long: `List the Python processes on this node, those in containers and those of programs that embed
Python included.

  NSPID      the PID that the process itself sees, where it is another one
  WHERE      the container or systemd unit that it is in
  PYTHON     the version, and how it is linked: static (in the program) or shared (libpython)
  BUILD      which build of that version: the first digits of its build ID
  ENGINE     the state of the engine in it, and how many of its targets are patched; or none
  SUPPORTED  full, or memory (resolve, functions: its eval loop is not known, so that nothing can be
             counted), or no

Processes that this user may not read are left out, and counted on standard error. --json has the
build, the engine's numbers and the reasons besides.`,
		Example: "  sca-probe ps\n  sca-probe ps --json | jq '.[] | select(.engine == null) | .pid'",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilInterrupted(cmd)
			defer stop()
			tell, end := progress(cmd.ErrOrStderr(), "looking at processes")
			list, unreadable, err := observer.Processes(ctx, tell)
			end()
			if err != nil {
				return err
			}
			if unreadable > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "sca-probe: %d processes could not be read: run as root, or with CAP_SYS_PTRACE\n", unreadable)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			return printProcesses(cmd.OutOrStdout(), list)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printProcesses(w io.Writer, list []observer.PythonProcess) error {
	table := newTable(w)
	fmt.Fprintln(table, "PID\tNSPID\tWHERE\tPYTHON\tBUILD\tENGINE\tUP\tSUPPORTED\tPATH")
	for _, p := range list {
		supported, reason := supported(p)
		path := p.Path
		if reason != "" { // at the line's end, where its length pushes nothing aside
			path += "  (" + reason + ")"
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.PID, namespacePID(p), orDash(p.Where()),
			orDash(pythonOf(p)), orDash(p.BuildID[:min(len(p.BuildID), 8)]), engineOf(p), uptime(p), supported, path)
	}
	return table.Flush()
}

func namespacePID(p observer.PythonProcess) string {
	if p.NamespacePID == p.PID {
		return "-"
	}
	return fmt.Sprint(p.NamespacePID)
}

func pythonOf(p observer.PythonProcess) string {
	if p.Version == "" {
		return ""
	}
	return p.Version + " " + p.Linkage
}

// engineOf returns "running 3/4": three of four targets are patched.
func engineOf(p observer.PythonProcess) string {
	switch {
	case p.EngineProblem != "":
		return "unknown"
	case p.Engine == nil:
		return "none"
	}
	return fmt.Sprintf("%s %d/%d", p.Engine.State, p.Engine.Numbers["patched"], p.Engine.Numbers["targets"])
}

func uptime(p observer.PythonProcess) string {
	if p.Started == nil {
		return "-"
	}
	up := time.Duration(p.Uptime * float64(time.Second))
	const day = 24 * time.Hour
	if up >= day {
		return fmt.Sprintf("%dd%dh", up/day, up%day/time.Hour)
	}
	return up.Truncate(time.Second).String()
}

func supported(p observer.PythonProcess) (word, reason string) {
	switch {
	case !p.Memory.Supported:
		return "no", p.Memory.Reason
	case !p.EvalLoop.Supported:
		return "memory", p.EvalLoop.Reason
	}
	return "full", p.EngineProblem
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
