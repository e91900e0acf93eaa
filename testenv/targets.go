package testenv

import (
	"encoding/json"
	"fmt"
	"testing"
)

// A TargetCase is a target and the one right answer to it, from testenv/subjects/targets.py.
type TargetCase struct {
	Target  string
	Code    uint64 // address of the code object that it must resolve to; 0 when it must be refused
	Refused string // the kind of refusal: "not-imported", "not-found", "not-python-function", "ambiguous"
}

// TargetTable is the expression that has the table, once the module targets is imported.
const TargetTable = "sys.modules['targets'].table()"

// UnmarshalJSON reads a row of the table: target, code, refused.
func (c *TargetCase) UnmarshalJSON(row []byte) error {
	var cells [3]json.RawMessage
	if err := json.Unmarshal(row, &cells); err != nil {
		return err
	}
	for i, field := range []any{&c.Target, &c.Code, &c.Refused} {
		if err := json.Unmarshal(cells[i], field); err != nil {
			return fmt.Errorf("targets.py: %w", err)
		}
	}
	return nil
}

// TargetCases imports the module targets into a subject and returns its table. The addresses
// hold as long as nothing patches the subject's functions.
func TargetCases(t *testing.T, s *Subject) []TargetCase {
	t.Helper()
	s.Exec("import targets")
	table, err := json.Marshal(s.Eval(TargetTable))
	if err != nil {
		t.Fatal(err)
	}
	var cases []TargetCase
	if err := json.Unmarshal(table, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}
