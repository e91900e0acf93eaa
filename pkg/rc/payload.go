package rc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"
)

// Bounds of one payload. Past them it is refused whole.
const (
	MaxPayload = 4 << 20 // bytes
	MaxTargets = 10_000  // list entries, before repeated ones are united
)

// ErrMalformed is what a refused payload's error wraps.
var ErrMalformed = errors.New("malformed Remote Configuration payload")

// ParsePayload parses a payload, or refuses it whole. Keys that it does not know are left alone:
// newer senders may have more to say. Targets keep their order; one that is named more than once
// counts once, see [Instrumentation].
func ParsePayload(data []byte) ([]Instrumentation, error) {
	targets, err := parsePayload(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return targets, nil
}

func parsePayload(data []byte) ([]Instrumentation, error) {
	if len(data) > MaxPayload {
		return nil, fmt.Errorf("more than the limit of %d bytes", MaxPayload)
	}
	// Decoding would replace what is not UTF-8, and so name another target.
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8 text")
	}
	if err := json.Unmarshal(data, &skipped{}); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, fmt.Errorf("at byte %d of %d: %w", syntax.Offset, len(data), err)
		}
		return nil, err
	}
	sca, err := member(data, "the payload", "sca_instrumentation")
	if err != nil {
		return nil, err
	}
	list, err := member(sca, "sca_instrumentation", "targets")
	if err != nil {
		return nil, err
	}
	return parseTargets(list)
}

func parseTargets(list json.RawMessage) ([]Instrumentation, error) {
	const where = "sca_instrumentation.targets"
	set := newUnion()
	err := elements(list, where, func(i int, value json.RawMessage) error {
		if i == MaxTargets {
			return fmt.Errorf("%s has more than the limit of %d targets", where, MaxTargets)
		}
		instrumentation, err := parseInstrumentation(value, fmt.Sprintf("%s[%d]", where, i))
		if err != nil {
			return err
		}
		if err := set.add(instrumentation); err != nil {
			return fmt.Errorf("%s[%d]: %w", where, i, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return set.targets, nil
}

// parseInstrumentation parses one entry of the list, in either of its forms.
func parseInstrumentation(value json.RawMessage, where string) (Instrumentation, error) {
	result := Instrumentation{Mode: Count}
	name := value
	var optional map[string]json.RawMessage
	switch value[0] {
	case '"':
	case '{':
		var err error
		if optional, err = members(value, where, "target", "package", "advisories", "mode"); err != nil {
			return result, err
		}
		if name = optional["target"]; name == nil {
			return result, fmt.Errorf("%s has no key %q", where, "target")
		}
	default:
		return result, fmt.Errorf("%s is neither a string nor an object", where)
	}
	target, err := text(name, where)
	if err != nil {
		return result, err
	}
	if result.Target, err = ParseTarget(target); err != nil {
		return result, fmt.Errorf("%s: %w", where, err)
	}
	if value := optional["package"]; value != nil {
		if result.Package, err = text(value, where+".package"); err != nil {
			return result, err
		}
		if err := checkPackage(result.Package); err != nil {
			return result, fmt.Errorf("%s: %w", where, err)
		}
	}
	if value := optional["advisories"]; value != nil {
		err := elements(value, where+".advisories", func(i int, value json.RawMessage) error {
			advisory, err := text(value, fmt.Sprintf("%s.advisories[%d]", where, i))
			if err != nil {
				return err
			}
			if err := result.addAdvisory(advisory); err != nil {
				return fmt.Errorf("%s: %w", where, err)
			}
			return nil
		})
		if err != nil {
			return result, err
		}
	}
	if value := optional["mode"]; value != nil {
		mode, err := text(value, where+".mode")
		if err != nil {
			return result, err
		}
		if result.Mode = Mode(mode); result.Mode != Count && result.Mode != FirstHit {
			return result, fmt.Errorf("%s: mode %q is neither %q nor %q", where, mode, Count, FirstHit)
		}
	}
	return result, nil
}

// member returns the value of a key that an object must have.
func member(object json.RawMessage, where, key string) (json.RawMessage, error) {
	found, err := members(object, where, key)
	if err != nil {
		return nil, err
	}
	if found[key] == nil {
		return nil, fmt.Errorf("%s has no key %q", where, key)
	}
	return found[key], nil
}

// members returns the values of those of an object's keys that are wanted. It compares keys
// exactly and refuses one that is there twice; decoding into a struct would ignore case and let
// the last one win.
func members(object json.RawMessage, where string, wanted ...string) (map[string]json.RawMessage, error) {
	decoder := json.NewDecoder(bytes.NewReader(object))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil, fmt.Errorf("%s is not an object", where)
	}
	found := make(map[string]json.RawMessage, len(wanted))
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		value, err := next(decoder, object)
		if err != nil {
			return nil, err
		}
		key, _ := token.(string)
		if !slices.Contains(wanted, key) {
			continue
		}
		if found[key] != nil {
			return nil, fmt.Errorf("%s has the key %q twice", where, key)
		}
		found[key] = value
	}
	return found, nil
}

// skipped is any value. Decoding it copies nothing, where a [json.RawMessage] copies all of it, at each level that a
// value is nested in.
type skipped struct{}

// UnmarshalJSON implements [json.Unmarshaler].
func (*skipped) UnmarshalJSON([]byte) error { return nil }

// next returns the value that a decoder of an object or a list comes to next, as a part of that.
func next(decoder *json.Decoder, whole json.RawMessage) (json.RawMessage, error) {
	start := decoder.InputOffset()
	if err := decoder.Decode(&skipped{}); err != nil {
		return nil, err
	}
	return bytes.TrimLeft(whole[start:decoder.InputOffset()], " \t\r\n:,"), nil
}

// elements calls visit with each element of a list, until one fails.
func elements(list json.RawMessage, where string, visit func(int, json.RawMessage) error) error {
	decoder := json.NewDecoder(bytes.NewReader(list))
	if token, err := decoder.Token(); err != nil || token != json.Delim('[') {
		return fmt.Errorf("%s is not a list", where)
	}
	for i := 0; decoder.More(); i++ {
		value, err := next(decoder, list)
		if err != nil {
			return err
		}
		if err := visit(i, value); err != nil {
			return err
		}
	}
	return nil
}

func text(value json.RawMessage, where string) (string, error) {
	var text string
	if value[0] != '"' || json.Unmarshal(value, &text) != nil {
		return "", fmt.Errorf("%s is not a string", where)
	}
	return text, nil
}
