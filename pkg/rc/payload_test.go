package rc

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func payload(targets ...string) string {
	quoted := make([]string, 0, len(targets))
	for _, target := range targets {
		quoted = append(quoted, `"`+target+`"`)
	}
	return `{"sca_instrumentation": {"targets": [` + strings.Join(quoted, ", ") + `]}}`
}

func TestParsePayload(t *testing.T) {
	send := Target{Module: "requests.sessions", QualName: "Session.send"}
	load := Target{Module: "yaml", QualName: "load"}
	for _, c := range []struct {
		name, data string
		want       []Target
	}{
		{"one", payload("yaml:load"), []Target{load}},
		{"none", payload(), nil},
		{"order kept, repeats dropped", payload("yaml:load", "requests.sessions:Session.send", "yaml:load"), []Target{load, send}},
		{"unknown keys", `{"id": {"a": [1]}, "sca_instrumentation": {"version": 2, "targets": ["yaml:load"], "Targets": 1}, "SCA_INSTRUMENTATION": null}`, []Target{load}},
		{"escapes", `{"sca_instrumentation":{"targets":["yam\u006c:load"]}}` + "\n", []Target{load}},
		{"as many as may be", payload(numbered(MaxTargets)...), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParsePayload([]byte(c.data))
			if err != nil {
				t.Fatal(err)
			}
			if len(got) == MaxTargets {
				if got[MaxTargets-1].QualName != fmt.Sprintf("f%d", MaxTargets-1) {
					t.Errorf("the last of %d targets is %v", len(got), got[MaxTargets-1])
				}
				return
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func numbered(n int) []string {
	targets := make([]string, 0, n)
	for i := range n {
		targets = append(targets, fmt.Sprintf("m:f%d", i))
	}
	return targets
}

func TestParsePayloadRefusesWhole(t *testing.T) {
	for _, c := range []struct{ name, data, says string }{
		{"empty file", "", "unexpected end"},
		{"truncated", payload("yaml:load")[:40], "at byte 40 of 40"},
		{"trailing data", payload("yaml:load") + "{}", "after top-level value"},
		{"not an object", `["yaml:load"]`, "the payload is not an object"},
		{"null", `null`, "the payload is not an object"},
		{"no sca_instrumentation", `{}`, `no key "sca_instrumentation"`},
		{"key in another case", `{"SCA_Instrumentation": {"targets": []}}`, `no key "sca_instrumentation"`},
		{"sca_instrumentation twice", `{"sca_instrumentation": {"targets": []}, "sca_instrumentation": {"targets": []}}`, "twice"},
		{"sca_instrumentation a list", `{"sca_instrumentation": []}`, "sca_instrumentation is not an object"},
		{"no targets", `{"sca_instrumentation": {}}`, `no key "targets"`},
		{"targets null", `{"sca_instrumentation": {"targets": null}}`, "targets is not a list"},
		{"targets an object", `{"sca_instrumentation": {"targets": {}}}`, "targets is not a list"},
		{"targets twice", `{"sca_instrumentation": {"targets": [], "targets": []}}`, "twice"},
		{"a number among targets", `{"sca_instrumentation": {"targets": ["a:b", 1]}}`, "targets[1] is not a string"},
		{"null among targets", `{"sca_instrumentation": {"targets": [null]}}`, "targets[0] is not a string"},
		{"a list among targets", `{"sca_instrumentation": {"targets": [["a:b"]]}}`, "targets[0] is not a string"},
		{"one bad target", payload("a:b", "no colon"), `targets[1]: target "no colon" has no colon`},
		{"an empty target", payload(""), "targets[0]"},
		{"empty name in a path", payload("a..b:c"), "not a dotted module name"},
		{"a long target", payload("a:" + strings.Repeat("b", maxTargetLength)), "longer than the limit"},
		{"not UTF-8", payload("a:b\xff"), "not UTF-8"},
		{"too many", payload(numbered(MaxTargets + 1)...), "more than the limit of 10000 targets"},
		{"too long", payload("a:b") + strings.Repeat(" ", MaxPayload), "more than the limit of 4194304 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			targets, err := ParsePayload([]byte(c.data))
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("got %v, %v; want ErrMalformed", targets, err)
			}
			if targets != nil {
				t.Errorf("targets %v came with the error", targets)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
}

func TestDiff(t *testing.T) {
	a, b, c := Target{"m", "a"}, Target{"m", "b"}, Target{"m", "c"}
	for _, test := range []struct{ from, to, added, removed []Target }{
		{nil, nil, nil, nil},
		{nil, []Target{a, b}, []Target{a, b}, nil},
		{[]Target{a, b}, nil, nil, []Target{a, b}},
		{[]Target{a, b}, []Target{c, b}, []Target{c}, []Target{a}},
		{[]Target{a, b}, []Target{b, a}, nil, nil},
	} {
		got := Diff(DesiredSet{Targets: test.from}, DesiredSet{Targets: test.to})
		if !slices.Equal(got.Added, test.added) || !slices.Equal(got.Removed, test.removed) {
			t.Errorf("from %v to %v: got %v, want added %v, removed %v", test.from, test.to, got, test.added, test.removed)
		}
	}
}

func FuzzParsePayload(f *testing.F) {
	f.Add([]byte(payload("requests.sessions:Session.send", "yaml:load")))
	f.Add([]byte(payload("a:b")[:30]))
	f.Add([]byte(payload("a:<locals>.b", "é:ü")))
	f.Add([]byte(`{"sca_instrumentation":{"targets":["a:b",null,{"x":[]}],"targets":0}}`))
	f.Add([]byte(`{"sca_instrumentation":{"targets":["\ud800:b"]}} x`))
	f.Fuzz(func(t *testing.T, data []byte) {
		targets, err := ParsePayload(data)
		if err != nil {
			if targets != nil || !errors.Is(err, ErrMalformed) {
				t.Fatalf("%v, %v", targets, err)
			}
			return
		}
		seen := map[Target]bool{}
		for _, target := range targets {
			again, err := ParseTarget(target.String())
			if err != nil || again != target {
				t.Errorf("%v does not survive its wire form: %v, %v", target, again, err)
			}
			if seen[target] {
				t.Errorf("%v is there twice", target)
			}
			seen[target] = true
		}
	})
}
