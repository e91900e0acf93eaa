package rc

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDiff(t *testing.T) {
	named := func(name string) Instrumentation {
		return Instrumentation{Target: Target{"m", name}, Mode: Count}
	}
	a, b, c := named("a"), named("b"), named("c")
	first := Instrumentation{Target: b.Target, Mode: FirstHit}
	why := Instrumentation{Target: b.Target, Mode: Count, Package: "p", Advisories: []string{"CVE-1"}}
	more := Instrumentation{Target: b.Target, Mode: Count, Package: "p", Advisories: []string{"CVE-1", "CVE-2"}}
	type list = []Instrumentation
	for _, test := range []struct {
		from, to list
		want     Difference
	}{
		{nil, nil, Difference{}},
		{nil, list{a, b}, Difference{Added: list{a, b}}},
		{list{a, b}, nil, Difference{Removed: list{a, b}}},
		{list{a, b}, list{c, b}, Difference{Added: list{c}, Removed: list{a}}},
		{list{a, b}, list{b, a}, Difference{}},
		{list{a, b}, list{a, first}, Difference{Changed: list{first}}},
		{list{a, b}, list{why, c}, Difference{Added: list{c}, Removed: list{a}, Changed: list{why}}},
		{list{why}, list{more}, Difference{Changed: list{more}}},
	} {
		got := Diff(DesiredSet{Targets: test.from}, DesiredSet{Targets: test.to})
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("from %v to %v, want, got: %s", test.from, test.to, diff)
		}
	}
}
