package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sca-probe/pkg/observer"
)

// functionsFlags say which functions are listed, besides being counted.
type functionsFlags struct{ executed, never, unknown, all bool }

func newFunctionsCommand() *cobra.Command {
	var pid int
	var asJSON bool
	var query observer.FunctionQuery
	var list functionsFlags
	cmd := &cobra.Command{
		Use:   "functions --pid PID",
		Short: "Say of every function in a process whether it ever executed",
		Long: `Find every Python function that a process holds, and say whether it has ever executed, by
the marks that CPython itself leaves in a function that runs. This answers for all of the
process's life so far, and costs the process nothing: nothing is loaded, written or attached.

Functions are counted by the distribution they were installed with:

  executed  it has a mark: it ran at least once
  never     it has none, and on this version of Python whatever runs leaves one
  unknown   it has none, which means nothing on Python 3.12; 'sca-probe watch' and
            'sca-probe verify' say what runs from now on

What a forked child inherited from its parent counts as executed. The functions themselves are
listed with --executed, --never, --unknown or --all, and always with --json.

Needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, or to be the process's owner where the kernel allows that.
Exits 1 when a --package is not installed.`,
		Example: `  sca-probe functions --pid 4242
  sca-probe functions --pid 4242 --package requests --executed
  sca-probe functions --pid 4242 --module django.http --never`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilInterrupted(cmd)
			defer stop()
			var end func()
			query.Progress, end = progress(cmd.ErrOrStderr(), "reading functions")
			report, err := observer.Functions(ctx, pid, query)
			end()
			if err != nil {
				return err
			}
			if asJSON {
				list.keep(report)
				return writeJSON(cmd.OutOrStdout(), report)
			}
			for _, warning := range report.Warnings {
				fmt.Fprintf(cmd.ErrOrStderr(), "sca-probe: %s\n", warning)
			}
			return printFunctions(cmd.OutOrStdout(), report, list)
		},
	}
	pidFlag(cmd, &pid)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().StringVar(&query.Package, "package", "", "only the functions of this distribution, as pip calls it")
	cmd.Flags().StringVar(&query.Module, "module", "", "only the functions of this module and those in it")
	cmd.Flags().BoolVar(&list.executed, "executed", false, "list the functions that ran")
	cmd.Flags().BoolVar(&list.never, "never", false, "list those that never ran")
	cmd.Flags().BoolVar(&list.unknown, "unknown", false, "list those of which that is unknown")
	cmd.Flags().BoolVarP(&list.all, "all", "a", false, "list all of them")
	return cmd
}

// wants reports whether a function is to be listed.
func (f functionsFlags) wants(state observer.ExecutionState) bool {
	switch state {
	case observer.StateExecuted:
		return f.all || f.executed
	case observer.StateNever:
		return f.all || f.never
	}
	return f.all || f.unknown
}

// keep takes away the functions that are not wanted, if any are named. The counts stay.
func (f functionsFlags) keep(report *observer.FunctionReport) {
	if f == (functionsFlags{}) {
		return
	}
	for i := range report.Groups {
		g := &report.Groups[i]
		kept := []observer.HeldFunction{}
		for _, function := range g.Functions {
			if f.wants(function.State) {
				kept = append(kept, function)
			}
		}
		g.Functions = kept
	}
}

func printFunctions(w io.Writer, report *observer.FunctionReport, list functionsFlags) error {
	var total observer.FunctionGroup
	for i := range report.Groups {
		g := &report.Groups[i]
		total.Held, total.Executed = total.Held+g.Held, total.Executed+g.Executed
		total.Never, total.Unknown = total.Never+g.Never, total.Unknown+g.Unknown
		fmt.Fprintf(w, "%s: %s\n", g.Name(), executedOf(g))
		table := newTable(w)
		for _, f := range g.Functions {
			if list.wants(f.State) {
				fmt.Fprintf(table, "  %s\t%s\t%s:%d\t%s\n", f.State, functionName(f.Module, f.QualName), f.File, f.FirstLine, entries(f))
			}
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if total.Held == 0 {
		fmt.Fprintf(w, "process %d (Python %s) holds none of these functions: nothing of them is imported\n", report.PID, report.Python)
		return nil
	}
	fmt.Fprintf(w, "\nprocess %d (Python %s): %s\n", report.PID, report.Python, executedOf(&total))
	if total.Never > 0 && report.NeverMisses != "" {
		fmt.Fprintf(w, "never: left no mark until %s; %s\n", report.To.Format(time.TimeOnly), report.NeverMisses)
	}
	if total.Unknown > 0 && report.UnknownMisses != "" {
		fmt.Fprintf(w, "unknown: no mark, but on Python %s %s\n", report.Python, report.UnknownMisses)
	}
	return nil
}

// executedOf returns "41 of 312 functions executed, 3 unknown".
func executedOf(g *observer.FunctionGroup) string {
	s := fmt.Sprintf("%d of %d functions executed", g.Executed, g.Held)
	if g.Unknown > 0 {
		s += fmt.Sprintf(", %d unknown", g.Unknown)
	}
	return s
}

// functionName returns "requests.sessions:Session.send", which the other commands take as a target.
func functionName(module, qualName string) string {
	if module == "" {
		return qualName
	}
	return module + ":" + qualName
}

func entries(f observer.HeldFunction) string {
	switch {
	case f.Entries == 0:
		return ""
	case f.EntriesAtLeast:
		return fmt.Sprintf("entered %d times or more", f.Entries)
	case f.Entries == 1:
		return "entered once"
	}
	return fmt.Sprintf("entered %d times", f.Entries)
}
