package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sca-probe/pkg/observer"
)

func newWatchCommand() *cobra.Command {
	var pid, top int
	var asJSON bool
	options := observer.WatchOptions{MaxOverhead: 0.05}
	cmd := &cobra.Command{
		Use:   "watch --pid PID [--for 10s]",
		Short: "Count every call of a process's functions in a window",
		Long: `Count how often each Python function of a process starts, exactly, in a window of time. On a
terminal the table is live. A generator or coroutine counts when its body starts.

Every start costs the process a trap: some 1 µs, or 10 µs where the interpreter leaves no better
place. What it costs on this machine is measured first, on this program itself. The window ends early
once the traps take more than --max-overhead of a CPU's time; what was counted until then is exact, too.

Needs CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, and CAP_BPF with CAP_PERFMON (or CAP_SYS_ADMIN).`,
		Example: `  sca-probe watch --pid 4242 --for 10s
  sca-probe watch --pid 4242 --for 1m --package requests --max-overhead 20%`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if options.For <= 0 {
				return usageError{fmt.Errorf("--for %s: the window must be longer than nothing", options.For)}
			}
			if top < 0 {
				return usageError{fmt.Errorf("--top %d: it must be 0, for all, or more", top)}
			}
			ctx, stop := untilInterrupted(cmd)
			defer stop()
			report, err := watch(ctx, cmd, pid, options, asJSON)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), report)
			}
			return printWatch(cmd.OutOrStdout(), report, top)
		},
	}
	pidFlag(cmd, &pid)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().DurationVar(&options.For, "for", 10*time.Second, "how long to watch")
	cmd.Flags().StringVar(&options.Query.Package, "package", "", "only the functions of this distribution, as pip calls it")
	cmd.Flags().StringVar(&options.Query.Module, "module", "", "only the functions of this module and those in it")
	cmd.Flags().Var((*percentage)(&options.MaxOverhead), "max-overhead", "end the window when the probes take more of a CPU's time")
	cmd.Flags().IntVar(&top, "top", 40, "print this many functions, 0 for all")
	return cmd
}

// watch runs the window, and shows it live on a terminal.
func watch(ctx context.Context, cmd *cobra.Command, pid int, options observer.WatchOptions, asJSON bool) (*observer.WatchReport, error) {
	tell, end := progress(cmd.ErrOrStderr(), "reading the functions' names")
	options.Query.Progress = tell
	out := cmd.OutOrStdout()
	live := !asJSON && isTerminal(out)
	options.Attached = func() {
		end()
		if live {
			fmt.Fprint(out, alternateScreen)
		} else {
			fmt.Fprintf(cmd.ErrOrStderr(), "watching process %d for %s; interrupt to end sooner\n", pid, options.For)
		}
	}
	if live {
		options.Update = func(report *observer.WatchReport) { drawWatch(out, report, options.For) }
		defer func() { fmt.Fprint(out, mainScreen) }()
	}
	report, err := observer.Watch(ctx, pid, options)
	end()
	return report, err
}

// What switches a terminal to its second screen and back (xterm's control sequences, which all have).
const (
	alternateScreen = "\x1b[?1049h"
	mainScreen      = "\x1b[?1049l"
	clearScreen     = "\x1b[H\x1b[2J"
)

// drawWatch draws the table as far as it fits on the terminal.
func drawWatch(w io.Writer, report *observer.WatchReport, window time.Duration) {
	width, height := 80, 24
	if file, ok := w.(*os.File); ok {
		if columns, rows, err := term.GetSize(int(file.Fd())); err == nil && columns > 0 {
			width, height = columns, rows
		}
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "process %d (Python %s): %s of %s, overhead about %.1f %%\n", report.PID, report.Python,
		report.To.Sub(report.From).Round(time.Second), window, 100*report.Overhead)
	const head = 4 // lines beside the functions
	_ = printStarts(&text, report, max(height-head, 1))
	fmt.Fprint(w, clearScreen)
	for i, line := range strings.Split(strings.TrimRight(text.String(), "\n"), "\n") {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if runes := []rune(line); len(runes) > width {
			line = string(runes[:width])
		}
		fmt.Fprint(w, line)
	}
}

func printWatch(w io.Writer, report *observer.WatchReport, top int) error {
	if err := printStarts(w, report, top); err != nil {
		return err
	}
	exact := "exact"
	if report.Losses != "" {
		exact = "lower bounds: of the starts, " + report.Losses
	}
	fmt.Fprintf(w, "\nprocess %d (Python %s), from %s to %s: counts are %s; overhead about %.1f %% (a hit costs %v here, or %v)\n",
		report.PID, report.Python, report.From.Format(time.TimeOnly), report.To.Format(time.TimeOnly), exact, 100*report.Overhead, report.HitCost.Emulated, report.HitCost.Stepped)
	if report.Unnamed > 0 {
		fmt.Fprintf(w, "%d starts besides were of code that was freed before its name was read\n", report.Unnamed)
	}
	if report.EndedEarly != "" {
		fmt.Fprintf(w, "ended after %s: %s\n", report.To.Sub(report.From).Round(10*time.Millisecond), report.EndedEarly)
	}
	return nil
}

// printStarts prints the first functions of a report, all with top 0.
func printStarts(w io.Writer, report *observer.WatchReport, top int) error {
	table := newTable(w)
	fmt.Fprintln(table, "STARTS\tFUNCTION\tPACKAGE\tWHERE")
	for i, f := range report.Functions {
		if top > 0 && i == top {
			break
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s:%d\n", f.Starts, functionName(f.Module, f.QualName), orDash(f.Package), f.File, f.FirstLine)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if left := len(report.Functions) - top; top > 0 && left > 0 {
		fmt.Fprintf(w, "… and %d functions more\n", left)
	}
	return nil
}

// A percentage is a flag that is a share, written as "5%" or "5".
type percentage float64

func (p *percentage) String() string { return strconv.FormatFloat(100*float64(*p), 'g', 4, 64) + "%" }

func (p *percentage) Set(text string) error {
	value, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(text, "%")), 64)
	if err != nil || !(value > 0) {
		return fmt.Errorf("%q is no percentage above 0, as 5%% is", text)
	}
	*p = percentage(value / 100)
	return nil
}

func (p *percentage) Type() string { return "percentage" }
