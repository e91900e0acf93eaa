package rc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func payload(targets ...string) string {
	quoted := make([]string, 0, len(targets))
	for _, target := range targets {
		quoted = append(quoted, `"`+target+`"`)
	}
	return `{"sca_instrumentation": {"targets": [` + strings.Join(quoted, ", ") + `]}}`
}

// objects returns a payload with entries in JSON.
func objects(entries ...string) string {
	return `{"sca_instrumentation": {"targets": [` + strings.Join(entries, ", ") + `]}}`
}

func TestParsePayload(t *testing.T) {
	send := Instrumentation{Target: Target{Module: "requests.sessions", QualName: "Session.send"}, Mode: Count}
	load := Instrumentation{Target: Target{Module: "yaml", QualName: "load"}, Mode: Count}
	first := Instrumentation{Target: load.Target, Mode: FirstHit}
	why := Instrumentation{Target: load.Target, Mode: Count, Package: "PyYAML", Advisories: []string{"CVE-2020-1747", "GHSA-6757-jp84-gxfx"}}
	inner := Instrumentation{Target: Target{Module: "m", QualName: "outer.<locals>.inner"}, Mode: Count}
	for _, c := range []struct {
		name, data string
		want       []Instrumentation
	}{
		{"one", payload("yaml:load"), []Instrumentation{load}},
		{"none", payload(), []Instrumentation{}},
		{"order kept, repeats dropped", payload("yaml:load", "requests.sessions:Session.send", "yaml:load"), []Instrumentation{load, send}},
		{"unknown keys", `{"id": {"a": [1]}, "sca_instrumentation": {"version": 2, "targets": ["yaml:load"], "Targets": 1}, "SCA_INSTRUMENTATION": null}`, []Instrumentation{load}},
		{"escapes", `{"sca_instrumentation":{"targets":["yam\u006c:load"]}}` + "\n", []Instrumentation{load}},
		{"a function in a function", payload("m:outer.<locals>.inner"), []Instrumentation{inner}},
		{"an object", objects(`{"target": "yaml:load"}`), []Instrumentation{load}},
		{"both forms", objects(`{"target": "yaml:load", "mode": "first_hit"}`, `"requests.sessions:Session.send"`), []Instrumentation{first, send}},
		{
			"an object with everything",
			objects(`{"severity": 9, "mode": "count", "advisories": ["CVE-2020-1747", "GHSA-6757-jp84-gxfx"], "package": "PyYAML", "target": "yaml:load", "Mode": 1}`),
			[]Instrumentation{why},
		},
		{"an advisory twice", objects(`{"target": "yaml:load", "package": "PyYAML", "advisories": ["CVE-2020-1747", "GHSA-6757-jp84-gxfx", "CVE-2020-1747"]}`), []Instrumentation{why}},
		{"first hit, then count", objects(`{"target": "yaml:load", "mode": "first_hit"}`, `"yaml:load"`), []Instrumentation{load}},
		{"count, then first hit", objects(`"yaml:load"`, `{"target": "yaml:load", "mode": "first_hit"}`), []Instrumentation{load}},
		{"first hit twice", objects(`{"target": "yaml:load", "mode": "first_hit"}`, `{"target": "yaml:load", "mode": "first_hit"}`), []Instrumentation{first}},
		{
			"advisories united",
			objects(
				`{"target": "yaml:load", "advisories": ["CVE-2020-1747"], "mode": "first_hit"}`,
				`{"target": "yaml:load", "advisories": ["GHSA-6757-jp84-gxfx", "CVE-2020-1747"], "package": "PyYAML"}`,
			),
			[]Instrumentation{why},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParsePayload([]byte(c.data))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("want, got: %s", diff)
			}
		})
	}
}

func TestParsePayloadAtItsLimit(t *testing.T) {
	got, err := ParsePayload([]byte(payload(numbered(MaxTargets)...)))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != MaxTargets || got[MaxTargets-1].String() != fmt.Sprintf("m:f%d", MaxTargets-1) {
		t.Errorf("%d targets, the last %v", len(got), got[len(got)-1])
	}
}

// advisories returns a list of n identifiers, from the given number on.
func advisories(from, n int) string {
	quoted := make([]string, 0, n)
	for i := range n {
		quoted = append(quoted, fmt.Sprintf(`"CVE-%d"`, from+i))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
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
		{"a number among targets", `{"sca_instrumentation": {"targets": ["a:b", 1]}}`, "targets[1] is neither a string nor an object"},
		{"null among targets", `{"sca_instrumentation": {"targets": [null]}}`, "targets[0] is neither a string nor an object"},
		{"a list among targets", `{"sca_instrumentation": {"targets": [["a:b"]]}}`, "targets[0] is neither a string nor an object"},
		{"one bad target", payload("a:b", "no colon"), `targets[1]: target "no colon" has no colon`},
		{"an empty target", payload(""), "targets[0]"},
		{"empty name in a path", payload("a..b:c"), "not a dotted module name"},
		{"a long target", payload("a:" + strings.Repeat("b", MaxTargetLength)), "longer than the limit"},
		{"an object without a target", objects(`{"package": "requests"}`), `targets[0] has no key "target"`},
		{"an object with a bad target", objects(`"a:b"`, `{"target": "a"}`), `targets[1]: target "a" has no colon`},
		{"an object's target no string", objects(`{"target": ["a:b"]}`), "targets[0] is not a string"},
		{"an object's key twice", objects(`{"target": "a:b", "mode": "count", "mode": "count"}`), `targets[0] has the key "mode" twice`},
		{"an unknown mode", objects(`{"target": "a:b", "mode": "sample"}`), `mode "sample" is neither "count" nor "first_hit"`},
		{"mode null", objects(`{"target": "a:b", "mode": null}`), "targets[0].mode is not a string"},
		{"package a number", objects(`{"target": "a:b", "package": 1}`), "targets[0].package is not a string"},
		{"package empty", objects(`{"target": "a:b", "package": ""}`), `"" is not the name of a package`},
		{"package with a version", objects(`{"target": "a:b", "package": "requests==2.31"}`), "is not the name of a package"},
		{"a long package", objects(`{"target": "a:b", "package": "` + strings.Repeat("p", MaxPackageLength+1) + `"}`), "longer than the limit of 256"},
		{"two packages", objects(`{"target": "a:b", "package": "x"}`, `"c:d"`, `{"target": "a:b", "package": "y"}`), `targets[2]: a:b is of package "y" here and of "x" elsewhere`},
		{"advisories a string", objects(`{"target": "a:b", "advisories": "CVE-1"}`), "targets[0].advisories is not a list"},
		{"an advisory no string", objects(`{"target": "a:b", "advisories": ["CVE-1", 2]}`), "targets[0].advisories[1] is not a string"},
		{"an empty advisory", objects(`{"target": "a:b", "advisories": [""]}`), "an advisory of a:b is empty"},
		{"an advisory with a line end", objects(`{"target": "a:b", "advisories": ["CVE-1\n"]}`), "a character that identifiers do not have"},
		{"a long advisory", objects(`{"target": "a:b", "advisories": ["` + strings.Repeat("A", MaxAdvisoryLength+1) + `"]}`), "has 129 bytes, the limit is 128"},
		{"too many advisories", objects(`{"target": "a:b", "advisories": ` + advisories(0, MaxAdvisories+1) + `}`), "more than the limit of 64 advisories"},
		{
			"too many advisories when united",
			objects(`{"target": "a:b", "advisories": `+advisories(0, MaxAdvisories)+`}`, `{"target": "a:b", "advisories": `+advisories(MaxAdvisories, 1)+`}`),
			"targets[1]: a:b has more than the limit of 64 advisories",
		},
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

func FuzzParsePayload(f *testing.F) {
	f.Add([]byte(payload("requests.sessions:Session.send", "yaml:load")))
	f.Add([]byte(payload("a:b")[:30]))
	f.Add([]byte(payload("a:<locals>.b", "é:ü")))
	f.Add([]byte(`{"sca_instrumentation":{"targets":["a:b",null,{"x":[]}],"targets":0}}`))
	f.Add([]byte(objects(`{"target":"a:b","package":"p","advisories":["x","y","x"],"mode":"first_hit"}`, `"a:b"`)))
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
		entries := make([]string, 0, len(targets))
		for _, target := range targets {
			if seen[target.Target] {
				t.Errorf("%v is there twice", target)
			}
			seen[target.Target] = true
			entry, err := json.Marshal(target)
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, string(entry))
		}
		again, err := ParsePayload([]byte(objects(entries...)))
		if err != nil {
			t.Fatalf("%v does not survive its wire form: %v", targets, err)
		}
		if diff := cmp.Diff(targets, again); diff != "" {
			t.Errorf("the wire form says something else: %s", diff)
		}
	})
}

func TestDocumentedPayload(t *testing.T) {
	page, err := os.ReadFile("../../docs/remote-configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```json\n")
	example, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("the page has no example")
	}
	targets, err := ParsePayload([]byte(example))
	if err != nil || len(targets) != 3 || targets[2].Mode != FirstHit || len(targets[2].Advisories) != 2 {
		t.Errorf("%+v, %v", targets, err)
	}
}
