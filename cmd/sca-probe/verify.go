package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sca-probe/pkg/observer"
)

func newVerifyCommand() *cobra.Command {
	var pid int
	var asJSON bool
	var window time.Duration
	cmd := &cobra.Command{
		Use:   "verify --pid PID [--for 10s] TARGET...",
		Short: "Say whether targets execute, by which witnesses, and who calls them",
		Long: `Watch targets in a running process for a while, or until interrupted, and give a verdict on each:

  not-imported  its module is not imported
  unresolved    it does not resolve, and why
  resolved      it is there, and no witness saw it execute
  patched       the engine's hook is in place, and no witness saw it execute
  executed      it ran: the witnesses that saw it are listed
  reverted      the hook was in place and is gone
  contradicted  the counts of two witnesses exclude each other: one of them is wrong
  unknown       no witness could say

Witnesses: evidence (the marks CPython leaves in a code object, which also answer for the past),
eval-loop (starts of the function, counted by the kernel), and where the process runs the engine,
static-probe (its sca:hit probe, counted by the kernel) and engine (its own counter). On Python 3.12,
where evidence has gaps, hardware watchpoints count up to 4 targets besides.

Needs CAP_SYS_PTRACE, and for the kernel's counts CAP_BPF with CAP_PERFMON (or CAP_SYS_ADMIN): without
those, evidence and the engine's counter remain, and what is missing is said.
Exits 1 when a target does not resolve, 3 when a verdict is contradicted.`,
		Example: "  sca-probe verify --pid 4242 --for 30s requests.sessions:Session.send",
		Args:    needTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			targets, err := parseTargets(args)
			if err != nil {
				return err
			}
			if window <= 0 {
				return usageError{fmt.Errorf("--for %s: the window must be longer than nothing", window)}
			}
			ctx, stop := untilInterrupted(cmd)
			defer stop()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			tell, end := progress(cmd.ErrOrStderr(), "watching")
			shown := make(chan struct{})
			reports, err := observer.Verify(ctx, pid, targets, func() {
				fmt.Fprintf(cmd.ErrOrStderr(), "watching process %d for %s; interrupt to end sooner\n", pid, window)
				time.AfterFunc(window, cancel)
				go func() { showWindow(ctx, window, tell); end(); close(shown) }()
			})
			cancel()
			if err != nil {
				return err
			}
			<-shown
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), reports)
			} else {
				err = printReports(cmd.OutOrStdout(), reports)
			}
			if err != nil {
				return err
			}
			for _, r := range reports {
				if r.Verdict == observer.Contradicted {
					fmt.Fprintf(cmd.ErrOrStderr(), "sca-probe: CONTRADICTED: %s in process %d: %s\n", r.Target, r.PID, r.Reason)
				}
			}
			return verifyExit(reports)
		},
	}
	pidFlag(cmd, &pid)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().DurationVar(&window, "for", 10*time.Second, "how long to watch")
	return cmd
}

// showWindow tells how much of a window has passed, until its end.
func showWindow(ctx context.Context, window time.Duration, tell func(float64)) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for from := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			tell(min(time.Since(from).Seconds()/window.Seconds(), 1))
		}
	}
}

// verifyExit turns the worst verdict into the exit code.
func verifyExit(reports []observer.Report) error {
	code := 0
	for _, r := range reports {
		switch r.Verdict {
		case observer.Contradicted:
			code = exitContradicted
		case observer.NotImported, observer.Unresolved, observer.Unknown:
			code = max(code, exitFailure)
		}
	}
	if code != 0 {
		return exitError{code}
	}
	return nil
}

func printReports(w io.Writer, reports []observer.Report) error {
	for i, r := range reports {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s in process %d: %s\n", r.Target, r.PID, r.Verdict)
		if r.Reason != "" {
			fmt.Fprintf(w, "  %s\n", r.Reason)
		}
		fmt.Fprintf(w, "  from %s to %s\n", r.From.Format(time.TimeOnly), r.To.Format(time.TimeOnly))
		if l := r.Location; l != nil {
			fmt.Fprintf(w, "  code object %s, %s:%d, patched: %s\n", l.Code, l.File, l.FirstLine, yesNo(l.Patched))
		}
		table := newTable(w)
		for _, s := range r.Statements {
			fmt.Fprintf(table, "  %s\t%s\t%s\t%s\n", s.Witness, saw(s), seenIn(s), s.Detail)
		}
		if err := table.Flush(); err != nil {
			return err
		}
		for _, c := range r.Callers {
			fmt.Fprintf(w, "  called from %s:%d in %s\n", c.Path, c.Line, c.Symbol)
		}
	}
	return nil
}

// seenIn returns when a witness looked: "14:05:00–14:05:10".
func seenIn(s observer.Statement) string {
	if s.From == nil {
		return "-"
	}
	from := s.From.Format(time.TimeOnly)
	if s.To.Sub(*s.From) > 12*time.Hour {
		from = s.From.Format(time.DateTime)
	}
	return from + "–" + s.To.Format(time.TimeOnly)
}

func saw(s observer.Statement) string {
	switch {
	case s.Executed == nil:
		return "cannot say"
	case s.Count != nil:
		return fmt.Sprintf("%d starts", *s.Count)
	case *s.Executed:
		return "executed"
	default:
		return "not executed"
	}
}
