package observer

import "fmt"

// findings are what a window brought to light about one target that resolved.
type findings struct {
	patchedBefore, patchedAfter bool
	revertSeen                  bool // sca:reverted fired for the target
	firstHit                    bool // a first-hit hook of it was hit and removed itself
	hitUnseen                   bool // nobody watched for hits of a first-hit hook
	// engine brackets what the hook counted: lower is between attaching and detaching, upper from
	// before the one to after the other. They are equal when nothing ran at the window's edges.
	engine     *bracket
	statements []Statement
}

type bracket struct{ lower, upper uint64 }

func (b bracket) contains(n uint64) bool { return b.lower <= n && n <= b.upper }

// judge turns findings into a verdict and, where it needs one, a reason.
func judge(f findings) (Verdict, string) {
	executed, silent := false, true
	for _, s := range f.statements {
		if s.Executed != nil {
			silent = false
			executed = executed || *s.Executed
		}
		if reason := contradiction(f.engine, s); reason != "" {
			return Contradicted, reason
		}
	}
	if reason := watchpointContradicts(f.statements); reason != "" {
		return Contradicted, reason
	}
	switch {
	case f.firstHit:
		return Executed, ""
	case !f.patchedAfter && f.hitUnseen && !executed:
		return Unknown, "its first-hit hook is gone: it was hit or taken back, and hits were not counted"
	case !f.patchedAfter && (f.patchedBefore || f.revertSeen):
		return Reverted, ""
	case executed:
		return Executed, ""
	case f.patchedAfter:
		return Patched, ""
	case silent:
		return Unknown, "no witness could say whether it executed"
	}
	return Resolved, ""
}

// contradiction compares a kernel witness's count with the engine's own.
func contradiction(engine *bracket, s Statement) string {
	if engine == nil || s.hooked == nil || engine.contains(*s.hooked) {
		return ""
	}
	return fmt.Sprintf("the engine counted %s, the %s witness %d", engine, s.Witness, *s.hooked)
}

// watchpointContradicts compares the hardware's count with the eval loop's. Its window lies within the
// other, so that it cannot count more.
func watchpointContradicts(statements []Statement) string {
	var loop, watched *uint64
	for _, s := range statements {
		switch {
		case s.Witness == EvalLoop && s.exact:
			loop = s.Count
		case s.Witness == Watchpoint:
			watched = s.Count
		}
	}
	if loop == nil || watched == nil || *watched <= *loop {
		return ""
	}
	return fmt.Sprintf("the %s witness counted %d, the %s witness only %d", Watchpoint, *watched, EvalLoop, *loop)
}

func (b bracket) String() string {
	if b.lower == b.upper {
		return fmt.Sprint(b.lower)
	}
	return fmt.Sprintf("%d to %d", b.lower, b.upper)
}
