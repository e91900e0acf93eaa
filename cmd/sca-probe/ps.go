package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sca-probe/pkg/pyframes"
)

// processRow is what ps prints of one process.
type processRow struct {
	PID       int    `json:"pid"`
	Version   string `json:"version,omitempty"`
	Linkage   string `json:"linkage,omitempty"`
	Engine    bool   `json:"engine"`
	Supported bool   `json:"supported"`
	Reason    string `json:"reason,omitempty"` // why it is not supported
	Path      string `json:"path"`
	BuildID   string `json:"build_id,omitempty"`
}

func newPsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the Python processes on this node",
		Long: `List the Python processes on this node: version and build, how CPython is linked, whether the
engine is in it, and whether sca-probe supports it. Processes that this user may not read are left
out, and counted on standard error.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("ps takes no arguments, got %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, unreadable, err := listProcesses()
			if err != nil {
				return err
			}
			if unreadable > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "sca-probe: %d processes could not be read: run as root, or with CAP_SYS_PTRACE\n", unreadable)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), rows)
			}
			return printProcesses(cmd.OutOrStdout(), rows)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// listProcesses lists the Python processes, and counts those that this user may not read.
func listProcesses() (rows []processRow, unreadable int, err error) {
	summaries, err := pyframes.Processes()
	if err != nil {
		return nil, 0, err
	}
	rows = []processRow{} // an empty list in JSON, not null
	for _, s := range summaries {
		if errors.Is(s.Err, pyframes.ErrPermission) {
			unreadable++
			continue
		}
		rows = append(rows, describe(s))
	}
	return rows, unreadable, nil
}

func describe(s pyframes.Summary) processRow {
	row := processRow{PID: s.PID, Supported: s.Err == nil}
	if s.Err != nil {
		row.Reason = s.Err.Error()
	}
	if s.Interpreter != nil {
		row.Version = s.Interpreter.Version.String()
		row.Linkage, row.Path, row.BuildID = s.Interpreter.Linkage, s.Interpreter.Path, s.Interpreter.BuildID
	}
	if process, err := pyframes.OpenProcess(s.PID); err == nil {
		_, row.Engine = process.EnginePath()
		process.Close()
	}
	return row
}

func printProcesses(w io.Writer, rows []processRow) error {
	table := newTable(w)
	fmt.Fprintln(table, "PID\tPYTHON\tLINKAGE\tENGINE\tSUPPORTED\tPATH")
	for _, row := range rows {
		path := row.Path
		if row.Reason != "" { // at the line's end, where its length pushes nothing aside
			path += "  (" + row.Reason + ")"
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\n", row.PID, orDash(row.Version), orDash(row.Linkage),
			yesNo(row.Engine), yesNo(row.Supported), path)
	}
	return table.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
