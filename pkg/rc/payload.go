package rc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Bounds of one payload. Past them it is refused whole.
const (
	MaxPayload = 4 << 20 // bytes
	MaxTargets = 10_000  // list entries, before repeated ones are dropped
)

// ErrMalformed is what a refused payload's error wraps.
var ErrMalformed = errors.New("malformed Remote Configuration payload")

// ParsePayload parses a payload, or refuses it whole. Keys that it does not know are left alone:
// newer senders may have more to say. Repeated targets count once; their order is kept.
func ParsePayload(data []byte) ([]Target, error) {
	targets, err := parsePayload(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return targets, nil
}

func parsePayload(data []byte) ([]Target, error) {
	if len(data) > MaxPayload {
		return nil, fmt.Errorf("more than the limit of %d bytes", MaxPayload)
	}
	// Decoding would replace what is not UTF-8, and so name another target.
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8 text")
	}
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("at byte %d of %d: %w", syntax.Offset, len(data), err)
		}
		return nil, err
	}
	sca, err := member(whole, "the payload", "sca_instrumentation")
	if err != nil {
		return nil, err
	}
	list, err := member(sca, "sca_instrumentation", "targets")
	if err != nil {
		return nil, err
	}
	return parseTargets(list)
}

// member returns the value of an object's key. It compares keys exactly and refuses one that is
// there twice; decoding into a struct would ignore case and let the last one win.
func member(object json.RawMessage, where, key string) (json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(object))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil, fmt.Errorf("%s is not an object", where)
	}
	var found json.RawMessage
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, err
		}
		if name != key {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s has the key %q twice", where, key)
		}
		found = value
	}
	if found == nil {
		return nil, fmt.Errorf("%s has no key %q", where, key)
	}
	return found, nil
}

func parseTargets(list json.RawMessage) ([]Target, error) {
	const where = "sca_instrumentation.targets"
	decoder := json.NewDecoder(bytes.NewReader(list))
	if token, err := decoder.Token(); err != nil || token != json.Delim('[') {
		return nil, errors.New(where + " is not a list")
	}
	targets := []Target{}
	seen := map[Target]bool{}
	for i := 0; decoder.More(); i++ {
		if i == MaxTargets {
			return nil, fmt.Errorf("%s has more than the limit of %d targets", where, MaxTargets)
		}
		token, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		text, ok := token.(string)
		if !ok {
			return nil, fmt.Errorf("%s[%d] is not a string", where, i)
		}
		target, err := ParseTarget(text)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", where, i, err)
		}
		if !seen[target] {
			seen[target] = true
			targets = append(targets, target)
		}
	}
	return targets, nil
}
