package rc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Bounds of one payload. Past them it is refused whole.
const (
	MaxPayload = 4 << 20 // bytes
	MaxTargets = 10_000
)

// ErrMalformed is what a refused payload's error wraps.
var ErrMalformed = errors.New("malformed Remote Configuration payload")

// ParsePayload parses a payload, or refuses it whole. Keys that it does not know are left alone:
// newer senders may have more to say. Repeated targets count once; their order is kept.
func ParsePayload(data []byte) ([]Target, error) {
	if len(data) > MaxPayload {
		return nil, fmt.Errorf("%w: more than the limit of %d bytes", ErrMalformed, MaxPayload)
	}
	var payload struct {
		SCA *struct {
			Targets *[]string `json:"targets"`
		} `json:"sca_instrumentation"`
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&payload); err != nil {
		return nil, fmt.Errorf("%w: at byte %d: %w", ErrMalformed, decoder.InputOffset(), err)
	}
	end := decoder.InputOffset()
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: at byte %d: data after the payload's end", ErrMalformed, end)
	}
	if payload.SCA == nil {
		return nil, fmt.Errorf(`%w: no "sca_instrumentation" object`, ErrMalformed)
	}
	if payload.SCA.Targets == nil {
		return nil, fmt.Errorf(`%w: no "sca_instrumentation.targets" list`, ErrMalformed)
	}
	if n := len(*payload.SCA.Targets); n > MaxTargets {
		return nil, fmt.Errorf("%w: %d targets, more than the limit of %d", ErrMalformed, n, MaxTargets)
	}
	targets := make([]Target, 0, len(*payload.SCA.Targets))
	seen := map[Target]bool{}
	for i, text := range *payload.SCA.Targets {
		target, err := ParseTarget(text)
		if err != nil {
			return nil, fmt.Errorf("%w: targets[%d]: %w", ErrMalformed, i, err)
		}
		if !seen[target] {
			seen[target] = true
			targets = append(targets, target)
		}
	}
	return targets, nil
}
