package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// libraryVariable names the folder that holds the Python side, where it is not beside the binary.
const libraryVariable = "SCA_PROBE_LIB"

// gates are the variables that must be true before the engine loads (python/sca_probe/__init__.py).
var gates = []string{"DD_SCA_DETECTION_ENABLED", "DD_APPSEC_ENABLED", "DD_APPSEC_SCA_ENABLED"}

func newRunCommand() *cobra.Command {
	var rcFile string
	cmd := &cobra.Command{
		Use:   "run [--rc-file FILE] -- COMMAND [ARG...]",
		Short: "Start a Python program with the engine available to it",
		Long: `Start a Python program with the engine available to it. The program needs no change.

The engine loads only when DD_SCA_DETECTION_ENABLED, DD_APPSEC_ENABLED and DD_APPSEC_SCA_ENABLED
are 1 or true; otherwise the program runs as if started without sca-probe. Once loaded it follows
the Remote Configuration file while the program runs. Where ddtrace is installed and no file is
named, it starts with ddtrace instead, by ddtrace's settings and with ddtrace's Remote Configuration.`,
		Example: `  DD_SCA_DETECTION_ENABLED=1 DD_APPSEC_ENABLED=1 DD_APPSEC_SCA_ENABLED=1 \
    sca-probe run --rc-file targets.json -- gunicorn app:app`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("no command given: write it after --, as in 'sca-probe run -- python app.py'")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := setEnvironment(rcFile); err != nil {
				return err
			}
			if off := closedGates(); len(off) > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "sca-probe: the engine stays off: set %s=1 to turn it on\n",
					strings.Join(off, "=1 "))
			}
			path, err := exec.LookPath(args[0])
			if err != nil {
				return fmt.Errorf("cannot run %s: %w", args[0], errors.Unwrap(err))
			}
			return fmt.Errorf("cannot run %s: %w", path, unix.Exec(path, args, os.Environ()))
		},
	}
	cmd.Flags().StringVar(&rcFile, "rc-file", "", "Remote Configuration file, or folder of them, to follow (default /etc/sca-probe/targets.json)")
	cmd.Flags().SetInterspersed(false) // what follows COMMAND is COMMAND's
	return cmd
}

// setEnvironment puts the engine's bootstrap first on PYTHONPATH, which the program and its
// children inherit.
func setEnvironment(rcFile string) error {
	library, err := pythonLibrary()
	if err != nil {
		return err
	}
	path := filepath.Join(library, "bootstrap")
	if existing := os.Getenv("PYTHONPATH"); existing != "" {
		path += string(os.PathListSeparator) + existing
	}
	if err := os.Setenv("PYTHONPATH", path); err != nil {
		return fmt.Errorf("setting PYTHONPATH: %w", err)
	}
	if rcFile == "" {
		return nil
	}
	absolute, err := filepath.Abs(rcFile)
	if err != nil {
		return fmt.Errorf("locating %s: %w", rcFile, err)
	}
	return os.Setenv("SCA_PROBE_RC_SOURCE", absolute)
}

// pythonLibrary finds the folder that holds bootstrap/ and sca_probe/.
func pythonLibrary() (string, error) {
	library := os.Getenv(libraryVariable)
	if library == "" {
		executable, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("locating this program: %w", err)
		}
		library = filepath.Join(filepath.Dir(executable), "..", "lib", "sca-probe", "python")
	}
	if _, err := os.Stat(filepath.Join(library, "bootstrap", "sitecustomize.py")); err != nil {
		return "", fmt.Errorf("the engine's Python files are not in %s: run 'make build', or set %s to where they are", library, libraryVariable)
	}
	return library, nil
}

// closedGates returns the variables that keep the engine off. Where ddtrace is the source, AppSec and SCA
// are for its settings to say.
func closedGates() []string {
	wanted := gates
	if os.Getenv("SCA_PROBE_RC_SOURCE") == "ddtrace" {
		wanted = gates[:1]
	}
	var off []string
	for _, gate := range wanted {
		if value := strings.ToLower(strings.TrimSpace(os.Getenv(gate))); value != "1" && value != "true" {
			off = append(off, gate)
		}
	}
	return off
}
