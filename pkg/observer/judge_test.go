package observer

import (
	"strings"
	"testing"
)

func yes(n uint64) Statement { return count("kernel", n, n) }

func TestJudge(t *testing.T) {
	evidence := func(executed bool) Statement { return Statement{Witness: Evidence, Executed: &executed} }
	mute := Statement{Witness: Evidence, Detail: "cannot say"}
	loop := func(n uint64) Statement {
		s := count(EvalLoop, n, n)
		s.exact = true
		return s
	}
	watchpoint := func(n uint64) Statement { return count(Watchpoint, n, 0) }
	uncounted := yes(5)
	uncounted.hooked = nil
	cases := map[string]struct {
		findings findings
		want     Verdict
	}{
		"nothing ran":             {findings{statements: []Statement{evidence(false), yes(0)}}, Resolved},
		"no witness speaks":       {findings{statements: []Statement{mute}}, Unknown},
		"evidence alone":          {findings{statements: []Statement{evidence(true)}}, Executed},
		"counted alone":           {findings{statements: []Statement{mute, yes(1)}}, Executed},
		"patched and idle":        {findings{patchedBefore: true, patchedAfter: true, statements: []Statement{evidence(false), yes(0)}, engine: &bracket{}}, Patched},
		"patched and agreed":      {findings{patchedAfter: true, statements: []Statement{yes(7)}, engine: &bracket{7, 7}}, Executed},
		"calls at the edges":      {findings{patchedAfter: true, statements: []Statement{yes(7)}, engine: &bracket{5, 8}}, Executed},
		"the engine missed one":   {findings{patchedAfter: true, statements: []Statement{yes(7)}, engine: &bracket{6, 6}}, Contradicted},
		"the engine invented one": {findings{patchedAfter: true, statements: []Statement{yes(7)}, engine: &bracket{8, 9}}, Contradicted},
		"late witness":            {findings{patchedAfter: true, statements: []Statement{uncounted}, engine: &bracket{6, 6}}, Executed},
		"gone within the window":  {findings{patchedBefore: true, statements: []Statement{yes(3)}, engine: &bracket{3, 3}}, Reverted},
		"came and went":           {findings{revertSeen: true, statements: []Statement{yes(0)}}, Reverted},
		"hit once and gone":       {findings{patchedBefore: true, revertSeen: true, firstHit: true, statements: []Statement{evidence(false)}}, Executed},
		"gone, hit or not":        {findings{patchedBefore: true, hitUnseen: true, statements: []Statement{evidence(false)}}, Unknown},
		"hardware agrees":         {findings{statements: []Statement{loop(5), watchpoint(5)}}, Executed},
		"hardware came later":     {findings{statements: []Statement{loop(5), watchpoint(4)}}, Executed},
		"hardware saw more":       {findings{statements: []Statement{loop(5), watchpoint(6)}}, Contradicted},
		"the loop lost some":      {findings{statements: []Statement{count(EvalLoop, 5, 5), watchpoint(6)}}, Executed},
		"contradiction outranks":  {findings{patchedBefore: true, statements: []Statement{yes(3)}, engine: &bracket{0, 0}}, Contradicted},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, reason := judge(c.findings)
			if got != c.want {
				t.Errorf("judged %s (%s), want %s", got, reason, c.want)
			}
			if got == Contradicted && !strings.Contains(reason, " counted ") {
				t.Errorf("the contradiction's reason is %q", reason)
			}
		})
	}
}
