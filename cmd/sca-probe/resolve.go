package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sca-probe/pkg/observer"
)

func newResolveCommand() *cobra.Command {
	var pid int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "resolve --pid PID TARGET...",
		Short: "Find targets in a running process, by reading its memory",
		Long: `Find targets in a running process by reading its memory: where the code object is, from which
file and line it comes, and whether the engine has patched it. Nothing is loaded or written.

Needs CAP_SYS_PTRACE, or to be the process's owner where the kernel allows that.
Exits 1 when a target does not resolve.`,
		Example: "  sca-probe resolve --pid 4242 requests.sessions:Session.send",
		Args:    needTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			targets, err := parseTargets(args)
			if err != nil {
				return err
			}
			ctx, stop := untilInterrupted(cmd)
			defer stop()
			tell, end := progress(cmd.ErrOrStderr(), "resolving")
			resolutions, err := observer.Resolve(ctx, pid, targets, tell)
			end()
			if err != nil {
				return err
			}
			if err := printResolutions(cmd.OutOrStdout(), resolutions, asJSON); err != nil {
				return err
			}
			for _, r := range resolutions {
				if r.Location == nil {
					return exitError{exitFailure}
				}
			}
			return nil
		},
	}
	pidFlag(cmd, &pid)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printResolutions(w io.Writer, resolutions []observer.Resolution, asJSON bool) error {
	if asJSON {
		return writeJSON(w, resolutions)
	}
	table := newTable(w)
	fmt.Fprintln(table, "TARGET\tCODE\tPATCHED\tWHERE")
	for _, r := range resolutions {
		if r.Location == nil {
			fmt.Fprintf(table, "%s\t-\t-\tunresolved: %s\n", r.Target, r.Error)
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s:%d\n", r.Target, r.Location.Code, yesNo(r.Location.Patched),
			r.Location.File, r.Location.FirstLine)
	}
	return table.Flush()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
