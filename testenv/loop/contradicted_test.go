package loop

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"sca-probe/testenv"
)

// TestContradictionIsLoud has the engine's own counter forged in the process within a window: what the
// kernel counted then excludes it, and the command says so and exits with 3.
func TestContradictionIsLoud(t *testing.T) {
	in := testenv.Interpreters(testenv.Engine | testenv.Observer)[0]
	for name, want := range map[string]struct {
		forged, code int
		says         string
	}{
		"honest":   {0, 0, ""},
		"forged":   {100, 3, "sca-probe: CONTRADICTED: shapes:plain in process "},
		"withheld": {-2, 3, "sca-probe: CONTRADICTED: shapes:plain in process "},
	} {
		t.Run(name, func(t *testing.T) {
			s := startService(t, in, testenv.Gates...)
			s.patch("shapes:plain")
			cmd := exec.Command(testenv.ProbePath(t), "verify", "--pid", fmt.Sprint(s.PID()), "--for", "1m", "shapes:plain")
			pipe, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			messages := bufio.NewReader(pipe)
			if _, err := messages.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			s.Call("plain", 7)
			s.Exec(fmt.Sprintf(`import ctypes
hook, = [h for h in sys.modules["sca_probe._engine"].hooks() if h.target == "shapes:plain"]
counter = ctypes.c_uint64.from_address(ctypes.c_uint64.from_address(id(hook) + 32).value)
counter.value += %d`, want.forged))
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(messages)
			if err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if code := cmd.ProcessState.ExitCode(); code != want.code || !strings.Contains(string(rest), want.says) || want.says == "" && len(rest) > 0 {
				t.Errorf("exit code %d, %q; want %d, %q", code, rest, want.code, want.says)
			}
		})
	}
}
