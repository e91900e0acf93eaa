package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/rc"
)

func writeJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false) // names such as <lambda> stay readable
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 2, ' ', 0) }

// parseTargets parses a command's arguments.
func parseTargets(args []string) ([]rc.Target, error) {
	targets := make([]rc.Target, 0, len(args))
	for _, arg := range args {
		target, err := rc.ParseTarget(arg)
		if err != nil {
			return nil, usageError{err}
		}
		targets = append(targets, target)
	}
	return targets, nil
}

// needTargets refuses a call without any.
func needTargets(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{fmt.Errorf("no target given: name at least one, as package.module:function; see '%s --help'", cmd.CommandPath())}
	}
	return nil
}

// pidFlag adds the required --pid.
func pidFlag(cmd *cobra.Command, pid *int) {
	cmd.Flags().IntVarP(pid, "pid", "p", 0, "process to look at (required)")
	completePID(cmd)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if *pid <= 0 {
			return usageError{fmt.Errorf("no process given: name one with --pid; 'sca-probe ps' lists them")}
		}
		return nil
	}
}

// completePID lets the shell complete --pid with the processes that there are.
func completePID(cmd *cobra.Command) {
	err := cmd.RegisterFlagCompletionFunc("pid", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		processes, err := pyframes.Processes()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var list []cobra.Completion
		for _, p := range processes {
			if p.Interpreter != nil {
				list = append(list, cobra.CompletionWithDesc(strconv.Itoa(p.PID), fmt.Sprintf("Python %s, %s", p.Interpreter.Version, p.Interpreter.Path)))
			}
		}
		return list, cobra.ShellCompDirectiveNoFileComp
	})
	if err != nil {
		panic(err) // there is no such flag
	}
}

func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "write JSON instead of text")
}

// noArguments refuses arguments that are no flags.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q; see '%s --help'", cmd.Name(), args[0], cmd.CommandPath())}
	}
	return nil
}
