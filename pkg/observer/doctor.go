package observer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sca-probe/pkg/loader"
)

// A CheckState is the outcome of a check.
type CheckState string

// The outcomes.
const (
	Present CheckState = "ok"
	Limited CheckState = "limited" // something works less well
	Missing CheckState = "missing"
	Untold  CheckState = "unknown" // this user cannot find out
)

// A Check is one thing that commands need of this kernel and these privileges.
type Check struct {
	Name  string     `json:"name"`
	State CheckState `json:"state"`
	Found string     `json:"found"`
	// Lost says what is lost without it, Grant how to get it; both are "" when nothing is lost.
	Lost  string `json:"lost,omitempty"`
	Grant string `json:"grant,omitempty"`
}

// What needs what.
const (
	readOthers  = "ps, resolve, functions and all others see processes of this user only, if any"
	counts      = "watch and follow do not work, and verify does without the kernel's counts"
	probes      = "watch, follow and verify do not work; resolve and functions do"
	asRoot      = "run as root, or: setcap cap_sys_ptrace,cap_dac_read_search,cap_bpf,cap_perfmon+ep sca-probe; in a container add the capabilities SYS_PTRACE, DAC_READ_SEARCH, BPF and PERFMON"
	newerKernel = "a newer kernel"
)

// Doctor checks what this kernel and these privileges allow. progress, if it is not nil, is told now and then
// how much is done, of 1.
func Doctor(progress func(done float64)) []Check {
	if progress == nil {
		progress = func(float64) {}
	}
	capabilities := effectiveCapabilities()
	checks := []Check{checkMachine()}
	checks = append(checks, checkCapabilities(capabilities)...)
	checks = append(checks, checkPtraceScope(capabilities.has(unix.CAP_SYS_PTRACE)), checkLockdown(), checkNamespace())
	progress(0.1)
	for _, f := range loader.Features() {
		checks = append(checks, checkFeature(f))
	}
	progress(0.5)
	checks = append(checks, checkHitCost())
	progress(1)
	for i := range checks {
		if checks[i].State == Present {
			checks[i].Lost, checks[i].Grant = "", ""
		}
	}
	return checks
}

func state(ok bool) CheckState {
	if ok {
		return Present
	}
	return Missing
}

func checkMachine() Check {
	var name unix.Utsname
	release := "unknown"
	if err := unix.Uname(&name); err == nil {
		release = unix.ByteSliceToString(name.Release[:])
	}
	return Check{
		Name: "machine", State: state(runtime.GOARCH == "amd64"), Found: "Linux " + release + " on " + runtime.GOARCH,
		Lost: "everything: only x86-64 is supported", Grant: "a machine with x86-64",
	}
}

// A capabilitySet is the set of effective capabilities.
type capabilitySet [2]uint32

func effectiveCapabilities() (set capabilitySet) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) == nil {
		set = capabilitySet{data[0].Effective, data[1].Effective}
	}
	return set
}

func (s capabilitySet) has(capability int) bool { return s[capability/32]>>(capability%32)&1 != 0 }

func checkCapabilities(set capabilitySet) []Check {
	either := func(name string, lost string, capabilities ...int) Check {
		ok := slices.ContainsFunc(capabilities, set.has)
		found := "not effective"
		if ok {
			found = "effective"
		}
		return Check{Name: name, State: state(ok), Found: found, Lost: lost, Grant: asRoot}
	}
	replaced := either("CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN", "a libpython that was deleted or replaced on disk while it runs cannot be read",
		unix.CAP_CHECKPOINT_RESTORE, unix.CAP_SYS_ADMIN)
	if replaced.State == Missing {
		replaced.State, replaced.Grant = Limited, "add cap_checkpoint_restore"
	}
	return []Check{
		either("CAP_SYS_PTRACE", readOthers, unix.CAP_SYS_PTRACE),
		either("CAP_DAC_READ_SEARCH", "functions and watch see the functions of this user's processes only, and not every file of what is installed", unix.CAP_DAC_READ_SEARCH, unix.CAP_DAC_OVERRIDE),
		either("CAP_BPF or CAP_SYS_ADMIN", counts, unix.CAP_BPF, unix.CAP_SYS_ADMIN),
		either("CAP_PERFMON or CAP_SYS_ADMIN", counts, unix.CAP_PERFMON, unix.CAP_SYS_ADMIN),
		replaced,
	}
}

// checkPtraceScope looks at Yama, which restricts who may read another process (Documentation/
// admin-guide/LSM/Yama.rst in the kernel).
func checkPtraceScope(privileged bool) Check {
	const file = "/proc/sys/kernel/yama/ptrace_scope"
	c := Check{Name: "ptrace scope (Yama)", State: Present, Found: "not restricted"}
	content, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return c
	}
	scope := strings.TrimSpace(string(content))
	c.Found = "kernel.yama.ptrace_scope is " + scope
	switch {
	case err != nil:
		c.State, c.Found = Untold, err.Error()
	case scope == "0", privileged && (scope == "1" || scope == "2"):
	case scope == "3":
		c.State, c.Lost, c.Grant = Missing, "no process can be read, as root neither", "set it to less in the system's sysctl settings, and reboot"
	default:
		c.State, c.Lost, c.Grant = Missing, "without CAP_SYS_PTRACE no process can be read, your own neither", asRoot
	}
	return c
}

func checkLockdown() Check {
	c := Check{Name: "kernel lockdown", State: Present, Found: "off"}
	content, err := os.ReadFile("/sys/kernel/security/lockdown")
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			c.State, c.Found = Untold, err.Error()
		}
		return c // a kernel without it, or securityfs is not mounted here
	}
	for _, mode := range strings.Fields(string(content)) {
		if strings.HasPrefix(mode, "[") {
			c.Found = strings.Trim(mode, "[]")
		}
	}
	if c.Found == "confidentiality" {
		c.State, c.Lost, c.Grant = Limited, "kernel programs may not read the kernel's memory, so that follow --all cannot hear of processes", "lockdown=integrity on the kernel's command line"
	}
	return c
}

// initialNamespace is the inode of the initial PID namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h).
const initialNamespace = 0xEFFFFFFC

func checkNamespace() Check {
	c := Check{Name: "PID namespace", State: Present, Found: "the node's"}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		c.State, c.Found = Untold, err.Error()
		return c
	}
	if st.Ino != initialNamespace {
		c.State, c.Found = Limited, "a container's own"
		c.Lost = "processes outside this container are not seen, and follow cannot name those within"
		c.Grant = "share the node's PID namespace: --pid=host, or hostPID: true in Kubernetes"
	}
	return c
}

// checkHitCost measures what watch rests its bound on.
func checkHitCost() Check {
	c := Check{Name: "cost of a probe's hit", State: Present, Lost: "watch does not work", Grant: newerKernel}
	cost, err := loader.MeasureHitCost()
	switch {
	case err == nil:
		c.Found = fmt.Sprintf("%v, %v where the kernel single-steps", cost.Emulated, cost.Stepped)
	case errors.Is(err, loader.ErrPermission):
		c.State, c.Found, c.Grant = Untold, "not permitted to try", asRoot
	default:
		c.State, c.Found = Missing, err.Error()
	}
	return c
}

// featureLosses says what is lost without a kernel feature; nothing but time without some.
var featureLosses = map[loader.Feature]struct {
	lost, grant string
	limited     bool
}{
	loader.Programs:       {probes, newerKernel, false},
	loader.Uprobes:        {probes, "a kernel with CONFIG_UPROBE_EVENTS", false},
	loader.RingBuffer:     {"follow does not work, nor verify of a process with the engine", "Linux 5.8", false},
	loader.KernelTypes:    {"follow --all does not work", "a kernel with CONFIG_DEBUG_INFO_BTF", false},
	loader.ProcessTracing: {"follow --all does not work", newerKernel, false},
	loader.Breakpoints:    {"verify has no watchpoints, which close the gaps of evidence on Python 3.12", "hardware or a virtual machine with debug registers", true},
	loader.AttachCookies:  {"nothing: each probe loads a program of its own", "Linux 5.15", true},
	loader.UprobeMulti:    {"nothing: probes are attached one by one, and detached slowly", "Linux 6.6", true},
}

func checkFeature(f loader.FeatureState) Check {
	losses := featureLosses[f.Feature]
	c := Check{Name: string(f.Feature), State: Present, Found: "works", Lost: losses.lost, Grant: losses.grant}
	switch {
	case f.Err == nil:
	case errors.Is(f.Err, loader.ErrPermission):
		c.State, c.Found, c.Grant = Untold, "not permitted to try", asRoot
	case losses.limited:
		c.State, c.Found = Limited, fmt.Sprint(f.Err)
	default:
		c.State, c.Found = Missing, fmt.Sprint(f.Err)
	}
	return c
}
