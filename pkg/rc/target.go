package rc

import (
	"fmt"
	"strings"
)

// A Target names a Python function as Remote Configuration does:
// "package.module:function" or "package.module:Class.method".
type Target struct {
	Module   string // dotted module name, the key in sys.modules
	QualName string // dotted path from the module's namespace to the function
}

// String returns the target in its wire form, "module:qualname".
func (t Target) String() string { return t.Module + ":" + t.QualName }

// MarshalText makes a Target a plain string in JSON.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// MaxTargetLength bounds what one target may occupy in memory and in a probe's
// argument, in bytes. The longest dotted path in the standard library has under 100 bytes.
const MaxTargetLength = 512

// ParseTarget parses the wire form. It says nothing about whether the target exists.
func ParseTarget(s string) (Target, error) {
	if len(s) > MaxTargetLength {
		return Target{}, fmt.Errorf("target of %d bytes is longer than the limit of %d", len(s), MaxTargetLength)
	}
	module, qualname, found := strings.Cut(s, ":")
	if !found {
		return Target{}, fmt.Errorf("target %q has no colon: write package.module:function or package.module:Class.method", s)
	}
	if !dottedPath(module) {
		return Target{}, fmt.Errorf("target %q: %q is not a dotted module name", s, module)
	}
	if !dottedPath(qualname) {
		return Target{}, fmt.Errorf("target %q: %q is not a dotted function name", s, qualname)
	}
	return Target{Module: module, QualName: qualname}, nil
}

// dottedPath reports whether s is a sequence of non-empty names between dots.
// Python accepts any string as an attribute name at run time ("<lambda>",
// non-ASCII identifiers), so only what would make the path ambiguous is refused.
func dottedPath(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || strings.ContainsAny(part, ": \t\r\n\x00") {
			return false
		}
	}
	return true
}
