package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"sca-probe/pkg/observer"
)

func newFollowCommand() *cobra.Command {
	var options observer.FollowOptions
	var all, asJSON bool
	var window time.Duration
	cmd := &cobra.Command{
		Use:   "follow (--pid PID | --all)",
		Short: "Tell of functions as they execute for the first time",
		Long: `Tell of each function when it starts for the first time, a line each, until interrupted. With
--all every Python process on this node is followed, and those that start meanwhile from their
beginning where their build is known by then.

On 3.11 and from 3.13 on, CPython itself takes functions that ran out of the probes' way, so that a
warm process pays nothing. On other versions every start costs a trap of some 1 µs, and what ran
before is told of when it starts again. --pid follows one process without its forked children.

Events that the kernel had no room for are counted, and told of on standard error.
Needs CAP_SYS_PTRACE, and CAP_BPF with CAP_PERFMON (or CAP_SYS_ADMIN).`,
		Example: `  sca-probe follow --pid 4242
  sca-probe follow --all --package requests
  sca-probe follow --all --json | jq -c 'select(.event == "first-execution")'`,
		Args: noArguments,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			named := cmd.Flags().Changed("pid")
			if named == all {
				return usageError{fmt.Errorf("name one process with --pid, or all with --all; 'sca-probe ps' lists them")}
			}
			if named && options.PID <= 0 {
				return usageError{fmt.Errorf("--pid %d: a process ID is above 0", options.PID)}
			}
			if window < 0 {
				return usageError{fmt.Errorf("--for %s: it must be 0, for no end, or more", window)}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilInterrupted(cmd)
			defer stop()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			out, messages := cmd.OutOrStdout(), cmd.ErrOrStderr()
			options.Attached = func(processes int) {
				fmt.Fprintf(messages, "following %s; interrupt to end\n", plural(processes, "process", "processes"))
				if window > 0 {
					time.AfterFunc(window, cancel)
				}
			}
			lines := json.NewEncoder(out)
			lines.SetEscapeHTML(false)
			var failed error
			options.Tell = func(e observer.FollowEvent) {
				var err error
				if asJSON {
					err = lines.Encode(e)
				} else {
					err = printEvent(out, messages, e)
				}
				if err != nil { // nobody reads any more
					failed = fmt.Errorf("writing: %w", err)
					cancel()
				}
			}
			if err := observer.Follow(ctx, options); err != nil {
				return err
			}
			return failed
		},
	}
	cmd.Flags().IntVarP(&options.PID, "pid", "p", 0, "process to follow")
	completePID(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "follow every Python process on this node")
	cmd.Flags().StringVar(&options.Package, "package", "", "only the functions of this distribution, as pip calls it")
	cmd.Flags().StringVar(&options.Module, "module", "", "only the functions of this module and those in it")
	cmd.Flags().DurationVar(&window, "for", 0, "end after this time (default: when interrupted)")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// printEvent writes a first execution to out, and whatever else happens to messages.
func printEvent(out, messages io.Writer, e observer.FollowEvent) error {
	at := e.Time.Format("15:04:05.000")
	switch e.Kind {
	case observer.FirstExecution:
		f := e.Function
		_, err := fmt.Fprintf(out, "%s  %d  %s  %s  %s:%d\n", at, e.PID, functionName(f.Module, f.QualName), orDash(f.Package), f.File, f.FirstLine)
		return err
	case observer.ProcessFollowed:
		fmt.Fprintf(messages, "%s  %d  followed: %s\n", at, e.PID, e.Detail)
	case observer.ProcessRefused:
		fmt.Fprintf(messages, "%s  %d  not followed: %s\n", at, e.PID, e.Detail)
	case observer.ProcessEnded:
		fmt.Fprintf(messages, "%s  %d  ended: %s\n", at, e.PID, e.Detail)
	case observer.EventsLost:
		fmt.Fprintf(messages, "%s  lost: of the events so far, %s\n", at, e.Detail)
	}
	return nil
}

func plural(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, more)
}
