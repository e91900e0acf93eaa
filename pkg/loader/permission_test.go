package loader

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"sca-probe/pkg/pyframes/evalloop"
)

const unprivileged = "SCA_TEST_UNPRIVILEGED"

// TestPermission tries in a user namespace of its own: still able to read every file, but without a
// capability that the kernel asks for.
func TestPermission(t *testing.T) {
	if path := os.Getenv(unprivileged); path != "" {
		table := &evalloop.Table{Sites: []evalloop.Site{{Offset: 4096}}}
		if _, err := NewEvalLoopCounter(os.Getpid(), "/bin/true", table, CodeLayout{}, nil); !errors.Is(err, ErrPermission) {
			t.Errorf("eval loop: %v, want ErrPermission", err)
		}
		if _, err := NewStaticProbes(os.Getpid(), path); !errors.Is(err, ErrPermission) {
			t.Errorf("static probes: %v, want ErrPermission", err)
		}
		return
	}
	eachProgram(t, func(t *testing.T, path string) {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		again := exec.Command(self, "-test.run=^TestPermission$", "-test.v")
		again.Env = append(os.Environ(), unprivileged+"="+path)
		again.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		}
		out, err := again.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}
