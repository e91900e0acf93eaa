package pyframes_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"sca-probe/testenv"
)

func TestSearchPath(t *testing.T) {
	testenv.EachInterpreter(t, testenv.Observer, func(t *testing.T, in testenv.Interpreter) {
		s := testenv.StartSubject(t, in)
		s.Exec("sys.path[1:1] = ['/opt/ünïcode', b'no text', '']")
		var want []string
		for _, entry := range s.Eval("[e for e in sys.path if type(e) is str]").([]any) {
			want = append(want, entry.(string))
		}
		got, err := open(t, s).SearchPath()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("sys.path (-want +got):\n%s", diff)
		}
		file, err := open(t, s).MainFile()
		if want := s.Eval("sys.modules['__main__'].__file__"); err != nil || file != want {
			t.Errorf("__main__ is in %q, want %q: %v", file, want, err)
		}
		s.Exec("del sys.modules['__main__'].__file__")
		if file, err := open(t, s).MainFile(); err != nil || file != "" {
			t.Errorf("without __file__, %q: %v", file, err)
		}
		if bundle, err := open(t, s).Bundle(); err != nil || bundle != "" {
			t.Errorf("in the bundle %q: %v", bundle, err)
		}
		s.Exec("sys._MEIPASS = '/tmp/ünïcode'")
		if bundle, err := open(t, s).Bundle(); err != nil || bundle != "/tmp/ünïcode" {
			t.Errorf("in the bundle %q: %v", bundle, err)
		}
		s.Exec("sys.path = None")
		if got, err := open(t, s).SearchPath(); err == nil {
			t.Errorf("of None, %q", got)
		}
	})
}
