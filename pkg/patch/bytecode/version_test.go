package bytecode

import (
	"errors"
	"testing"
)

func TestUnsupportedVersion(t *testing.T) {
	for _, v := range []Version{{}, {2, 7}, {3, 10}, {3, 99}, {4, 11}} {
		code := []byte{151, 0, 124, 0, 83, 0}
		_, err := InsertPrologue(v, Code{Bytecode: code, LineTable: locations(code)})
		if !errors.Is(err, ErrUnsupportedVersion) {
			t.Errorf("%s: got %v, want ErrUnsupportedVersion", v, err)
		}
	}
}
