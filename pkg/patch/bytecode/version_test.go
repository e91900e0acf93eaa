package bytecode

import (
	"errors"
	"strings"
	"testing"
)

func TestUnsupportedVersion(t *testing.T) {
	for _, v := range []Version{{}, {2, 7}, {3, 7}, {3, 16}, {4, 11}} {
		code := []byte{151, 0, 124, 0, 83, 0}
		if _, err := InsertPrologue(v, Code{Bytecode: code, LineTable: locations(code)}); !errors.Is(err, ErrUnsupportedVersion) {
			t.Errorf("%s: got %v, want ErrUnsupportedVersion", v, err)
		}
		for _, magic := range []int{0, 3495} {
			if err := Supported(v, magic); !errors.Is(err, ErrUnsupportedVersion) || v.Magic() != 0 {
				t.Errorf("%s with the magic number %d: got %v, want ErrUnsupportedVersion", v, magic, err)
			}
		}
	}
}

// TestSupported has the magic numbers of the last pre-release whose bytecode differs, of the final
// releases, and of the next version's first pre-release. (That of an interpreter here TestInterpreters compares.)
func TestSupported(t *testing.T) {
	tests := []struct {
		v                   Version
		before, final, next int
	}{
		{Version{3, 8}, 3412, 3413, 3420},
		{Version{3, 9}, 3424, 3425, 3430},
		{Version{3, 10}, 3438, 3439, 3450},
		{Version{3, 11}, 3494, 3495, 3500},
		{Version{3, 12}, 3530, 3531, 3550},
		{Version{3, 13}, 3570, 3571, 3600},
		{Version{3, 14}, 3626, 3627, 3650},
		{Version{3, 15}, 3665, 3666, 3700},
	}
	for _, test := range tests {
		if err := Supported(test.v, test.final); err != nil || test.v.Magic() != test.final {
			t.Errorf("%s: %v, magic number %d, want %d", test.v, err, test.v.Magic(), test.final)
		}
		for _, magic := range []int{0, test.before, test.next} {
			if err := Supported(test.v, magic); !errors.Is(err, ErrUnsupportedVersion) || !strings.Contains(err.Error(), test.v.String()) {
				t.Errorf("%s with the magic number %d: got %v, want ErrUnsupportedVersion", test.v, magic, err)
			}
		}
	}
}
