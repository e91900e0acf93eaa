package observer

import (
	"context"
	"errors"
	"fmt"

	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/rc"
)

// A Resolution is where a target is in a process, or why it is nowhere.
type Resolution struct {
	Target rc.Target `json:"target"`
	// Error says why the target does not resolve; Location is missing then.
	Error    string    `json:"error,omitempty"`
	Location *Location `json:"location,omitempty"`
}

// Resolve finds targets in a process, by reading its memory. progress, if it is not nil, is told now and
// then how much is done, of 1. A target that the process changes each time it is read does not resolve; the
// others stand.
func Resolve(ctx context.Context, pid int, targets []rc.Target, progress func(done float64)) ([]Resolution, error) {
	process, err := open(ctx, pid)
	if err != nil {
		return nil, err
	}
	defer process.Close()
	resolutions := make([]Resolution, 0, len(targets))
	for i, target := range targets {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r := Resolution{Target: target}
		var function *pyframes.Function
		var unresolved *pyframes.UnresolvedError
		err := patiently(ctx, pid, func() (err error) {
			function, err = process.Resolve(target)
			if errors.As(err, &unresolved) { // an answer of now, however young the process is
				return nil
			}
			return err
		})
		switch {
		case unresolved != nil:
			r.Error = unresolved.Reason
		case unclear(err):
			r.Error = err.Error()
		case err != nil:
			return nil, fmt.Errorf("resolving %s: %w", target, err)
		default:
			r.Location = Locate(function)
		}
		resolutions = append(resolutions, r)
		if progress != nil {
			progress(float64(i+1) / float64(len(targets)))
		}
	}
	return resolutions, nil
}
