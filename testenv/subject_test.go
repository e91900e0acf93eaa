package testenv

import (
	"encoding/json"
	"fmt"
	"testing"
)

func TestSubjectCallsWhatItIsAsked(t *testing.T) {
	EachInterpreter(t, Every, func(t *testing.T, in Interpreter) {
		s := StartSubject(t, in, WithEnv("SUBJECT_TEST=here"))
		for name, want := range map[string]string{
			"plain": "[2 2]", "generator": "[[0 1 2] [0 1 2]]", "coroutine": "[3 3]",
			"closure": "[31 31]", "wrapped": "[2 2]", "raises": "[ValueError: raises(1) ValueError: raises(1)]",
			"Shapes.class_method": "[5 5]", "Child.method": "[4 4]", "Shapes.attribute": "[6 6]",
			"async_generator": "[[0 1 2] [0 1 2]]", "keywords": "[15 15]",
		} {
			if got := fmt.Sprint(s.Call(name, 2)); got != want {
				t.Errorf("call %s twice: %s, want %s", name, got, want)
			}
		}
		s.Create("generator", 3)
		if got := s.Eval("len(KEPT)"); got != json.Number("3") {
			t.Errorf("3 generators created, %v kept", got)
		}
		s.CallThreads("plain", 10, 4)
		s.Exec("import os")
		if got := s.Eval("os.environ['SUBJECT_TEST']"); got != "here" {
			t.Errorf("environment addition: %v", got)
		}
		if got := s.Eval("plain.__code__ is ORIGINALS['plain'] and __name__ == 'shapes'"); got != true {
			t.Errorf("originals: %v", got)
		}
		if got := s.Eval("os.getpid()"); got != json.Number(fmt.Sprint(s.PID())) {
			t.Errorf("PID %d, Python says %v", s.PID(), got)
		}
		s.Exit(0)
	})
}

func TestTargetCasesHoldInPython(t *testing.T) {
	EachInterpreter(t, Every, func(t *testing.T, in Interpreter) {
		cases := TargetCases(t, StartSubject(t, in))
		kinds := map[string]int{}
		seen := map[string]bool{}
		for _, c := range cases {
			if (c.Code == 0) == (c.Refused == "") {
				t.Errorf("%s: %+v has no answer, or two", c.Target, c)
			}
			if seen[c.Target] {
				t.Errorf("%s is there twice", c.Target)
			}
			seen[c.Target] = true
			kinds[c.Refused]++
		}
		if len(cases) < 180 || kinds["not-imported"] == 0 || kinds["not-found"] == 0 || kinds["not-python-function"] == 0 || kinds["ambiguous"] == 0 {
			t.Errorf("%d cases, by kind %v", len(cases), kinds)
		}
	})
}
