package loader

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUndisturbed(t *testing.T) {
	for _, c := range []struct {
		err   error
		times int // that it is returned
		calls int
		want  error
	}{
		{nil, 0, 1, nil},
		{fmt.Errorf("attaching: %w", unix.EINTR), 3, 4, nil},
		{unix.EAGAIN, 2, 3, nil},
		{unix.EAGAIN, 1000, 100, unix.EAGAIN}, // it is bounded
		{unix.EPERM, 1000, 1, unix.EPERM},
	} {
		calls := 0
		_, err := undisturbed(func() (int, error) {
			if calls++; calls <= c.times {
				return 0, c.err
			}
			return 0, nil
		})
		if calls != c.calls || !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%v, %d times: %v after %d calls, want %v after %d", c.err, c.times, err, calls, c.want, c.calls)
		}
	}
}
