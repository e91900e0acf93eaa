package testenv

import (
	"encoding/json"
	"testing"
)

// A TargetCase is a target and the one right answer to it, from testenv/subjects/targets.py.
type TargetCase struct {
	Target  string
	Code    uint64 // address of the code object that it must resolve to; 0 when it must be refused
	Refused string // the kind of refusal: "not-imported", "not-found", "not-python-function", "ambiguous"
}

// TargetCases imports the module targets into a subject and returns its table. The addresses
// hold as long as nothing patches the subject's functions.
func TargetCases(t *testing.T, s *Subject) []TargetCase {
	t.Helper()
	s.Exec("import targets")
	rows := s.Eval("sys.modules['targets'].table()").([]any)
	cases := make([]TargetCase, len(rows))
	for i, row := range rows {
		cells := row.([]any)
		code, err := cells[1].(json.Number).Int64()
		if err != nil {
			t.Fatalf("targets.py, case %d: %v", i, err)
		}
		cases[i] = TargetCase{Target: cells[0].(string), Code: uint64(code), Refused: cells[2].(string)}
	}
	return cases
}
