// Command sca-probe answers whether Python functions that an advisory names are executed in
// running processes: where, how often, and called from what.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Exit codes besides 0.
const (
	exitFailure      = 1 // no answer, or a target that cannot be resolved
	exitUsage        = 2
	exitContradicted = 3 // witnesses exclude each other
)

// An exitError ends the program with a code of its own. What it means has been printed already.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// A usageError is a wrong argument.
type usageError struct{ error }

func main() {
	err := newRootCommand().Execute()
	if err == nil {
		return
	}
	var exit exitError
	if errors.As(err, &exit) {
		os.Exit(exit.code)
	}
	fmt.Fprintf(os.Stderr, "sca-probe: %v\n", err)
	if errors.As(err, new(usageError)) {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailure)
}

// untilInterrupted returns a command's context, which an interrupt or SIGTERM ends until stop is called.
func untilInterrupted(cmd *cobra.Command) (ctx context.Context, stop context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), os.Interrupt, unix.SIGTERM)
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "sca-probe",
		Short: "Is the vulnerable Python function really executed, where, and called from what?",
		Long: `sca-probe says of running Python processes whether the functions that an advisory names
are executed: where, how often, and called from what. It reads a process from outside and
loads nothing into it.

Targets are written package.module:function or package.module:Class.method.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())}
	})
	root.AddCommand(newPsCommand(), newFunctionsCommand(), newWatchCommand(), newFollowCommand(), newResolveCommand(), newVerifyCommand(), newDoctorCommand(), newRunCommand())
	for _, cmd := range root.Commands() {
		if cmd.Name() != "run" && cmd.ValidArgsFunction == nil { // no other takes a file
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
	}
	// An unknown command is wrong usage like an unknown flag.
	root.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError{fmt.Errorf("unknown command %q; see 'sca-probe --help'", args[0])}
		}
		return nil
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return root
}
