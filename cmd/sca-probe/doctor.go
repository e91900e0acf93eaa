package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sca-probe/pkg/observer"
)

func newDoctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this kernel and these privileges allow",
		Long: `Try out what sca-probe needs of this kernel and of this user's privileges. For whatever is
missing it says what is lost without it, and how to grant it. Nothing is left behind.

Exits 1 when a command cannot work.`,
		Example: "  sudo sca-probe doctor\n  sca-probe doctor --json | jq '.[] | select(.state != \"ok\")'",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tell, end := progress(cmd.ErrOrStderr(), "trying out the kernel")
			checks := observer.Doctor(tell)
			end()
			var err error
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), checks)
			} else {
				err = printChecks(cmd.OutOrStdout(), checks)
			}
			if err != nil {
				return err
			}
			for _, c := range checks {
				if c.State == observer.Missing || c.State == observer.Untold {
					return exitError{exitFailure}
				}
			}
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printChecks(w io.Writer, checks []observer.Check) error {
	table := newTable(w)
	for _, c := range checks {
		fmt.Fprintf(table, "%s\t%s\t%s\n", c.State, c.Name, c.Found)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	said := map[string]bool{}
	for _, c := range checks {
		if c.State == observer.Present {
			continue
		}
		fmt.Fprintf(w, "\n%s is %s\n", c.Name, c.State)
		if c.Lost != "" {
			fmt.Fprintf(w, "  lost without it: %s\n", c.Lost)
		}
		switch {
		case said[c.Grant]:
			fmt.Fprintln(w, "  to get it: as above")
		case c.Grant != "":
			fmt.Fprintf(w, "  to get it: %s\n", c.Grant)
			said[c.Grant] = true
		}
	}
	return nil
}
