package observer

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/prometheus/procfs"

	"sca-probe/pkg/pyframes"
)

// patience is how long a process is asked again that is not ready or in the middle of a change. Before it is
// as old as youth no other answer is believed to last either: it may have yet to execute Python, to load
// libpython, or to add what is installed to its sys.path.
const (
	patience = time.Second
	youth    = 3 * time.Second
)

// patiently tries until it succeeds, or the error is one that lasts.
func patiently(ctx context.Context, pid int, try func() error) error {
	end := time.Now().Add(patience)
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		err := try()
		switch {
		case err == nil, errors.Is(err, pyframes.ErrNoProcess), errors.Is(err, pyframes.ErrPermission):
			return err
		case (!notYet(err) || time.Now().After(end)) && age(pid) > youth:
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// age is how long ago a process began. One of which that cannot be told is old.
func age(pid int) time.Duration {
	const tick = time.Second / 100 // USER_HZ
	process, err := procfs.NewProc(pid)
	if err != nil {
		return math.MaxInt64
	}
	stat, err := process.Stat()
	if err != nil {
		return math.MaxInt64
	}
	now, err := bootTime()
	if err != nil {
		return math.MaxInt64
	}
	return now - time.Duration(stat.Starttime)*tick
}

// open opens a process, and waits for one that has just begun.
func open(ctx context.Context, pid int) (process *pyframes.Process, err error) {
	err = patiently(ctx, pid, func() error {
		process, err = pyframes.OpenProcess(pid)
		return err
	})
	return process, err
}

// orGone returns that the process is gone, where it is, in place of what came of that.
func orGone(process *pyframes.Process, err error) error {
	if gone := process.Gone(); errors.Is(gone, pyframes.ErrNoProcess) {
		return gone
	}
	return err
}

// notYet reports whether an error says to ask again.
func notYet(err error) bool {
	return errors.Is(err, pyframes.ErrNotReady) || errors.Is(err, pyframes.ErrTorn)
}
