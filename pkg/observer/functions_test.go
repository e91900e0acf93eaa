package observer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

// write makes files below a folder.
func write(t *testing.T, folder string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		file := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// parser is a distribution whose name is not that of its package, as installers leave it.
var parser = map[string]string{
	"Fast_Parser-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: Fast.Parser\nVersion: 1.2\n\nName: not a header\n",
	"Fast_Parser-1.2.dist-info/RECORD":   "fp/__init__.py,sha256=x,3\n\"fp/odd,name.py\",,\nFast_Parser-1.2.dist-info/METADATA,,\n../../bin/fp,,\n",
	"fp/__init__.py": `
def parse(n): return scan(n)
def scan(n): return n
def dump(n):
    def inner(): return n
    return inner
class Reader:
    def read(self): return 1
    def close(self): return 2
`,
}

func functionsOf(t *testing.T, s observed, query observer.FunctionQuery) *observer.FunctionReport {
	t.Helper()
	report, err := observer.Functions(context.Background(), s.PID(), query)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func group(t *testing.T, report *observer.FunctionReport, name string) observer.FunctionGroup {
	t.Helper()
	i := slices.IndexFunc(report.Groups, func(g observer.FunctionGroup) bool { return g.Name() == name })
	if i < 0 {
		t.Fatalf("no group %q: %q", name, report.Warnings)
	}
	return report.Groups[i]
}

func TestFunctionsByDistribution(t *testing.T) {
	testenv.EachInterpreter(t, testenv.OnePerVersion(testenv.Observer), func(t *testing.T, in testenv.Interpreter) {
		site := t.TempDir()
		write(t, site, parser)
		s := testenv.StartSubject(t, in, testenv.WithEnv("PYTHONPATH="+site))
		s.Exec("import fp, argparse; fp.parse(1); fp.Reader().read()")
		report := functionsOf(t, s, observer.FunctionQuery{})
		g := group(t, report, "Fast.Parser 1.2")
		var got []string
		for _, f := range g.Functions {
			got = append(got, fmt.Sprintf("%s:%s %s", f.Module, f.QualName, f.State))
			// Those that ran did so once.
			if ran := f.State == observer.StateExecuted; ran && in.Minor >= 8 && in.Minor <= 11 && (f.Entries != 1 || f.EntriesAtLeast) {
				t.Errorf("%s was entered %d times, want 1", f.QualName, f.Entries)
			}
		}
		slices.Sort(got)
		silent := observer.StateNever
		if in.Minor == 12 {
			silent = observer.StateUnknown
		}
		read, scan := observer.StateExecuted, observer.StateExecuted
		if in.Minor == 12 { // they reach no instruction with an inline cache
			read, scan = silent, silent
		}
		want := []string{
			"fp:Reader.close " + string(silent), "fp:Reader.read " + string(read), "fp:dump " + string(silent),
			"fp:dump.<locals>.inner " + string(silent), "fp:parse executed", "fp:scan " + string(scan),
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("held %q, want %q", got, want)
		}
		if g.Held != 6 || g.Executed+g.Never+g.Unknown != 6 || g.Executed != count(want, "executed") {
			t.Errorf("counted %+v", g)
		}
		if in.Minor == 12 && (report.UnknownMisses == "" || g.Never != 0) {
			t.Errorf("%d never ran, unknown because %q", g.Never, report.UnknownMisses)
		}
		if standard := group(t, report, "standard library"); standard.Held < 300 || standard.Executed < 20 {
			t.Errorf("%d of %d functions of the standard library executed", standard.Executed, standard.Held)
		}
		for _, f := range group(t, report, "standard library").Functions {
			if strings.Contains(f.File, "/subjects/") || strings.Contains(f.File, "/fp/") {
				t.Errorf("%s:%s is not the standard library's", f.File, f.QualName)
			}
		}
		ours := group(t, report, "no distribution")
		if !slices.ContainsFunc(ours.Functions, func(f observer.HeldFunction) bool { return f.Module == "shapes" }) {
			t.Error("the subject's own functions are in no group")
		}

		// The same narrowed down, with the package in another spelling.
		narrow := functionsOf(t, s, observer.FunctionQuery{Package: "fast-parser"})
		if len(narrow.Groups) != 1 || narrow.Groups[0].Held != 6 {
			t.Errorf("of the package alone: %+v", narrow.Groups)
		}
		argparse := functionsOf(t, s, observer.FunctionQuery{Module: "argparse"})
		if len(argparse.Groups) != 1 || argparse.Groups[0].Kind != observer.OfStandardLibrary || argparse.Groups[0].Held < 50 {
			t.Errorf("of argparse alone: %+v", argparse.Groups)
		}
	})
}

func count(lines []string, word string) int {
	n := 0
	for _, line := range lines {
		if strings.HasSuffix(line, word) {
			n++
		}
	}
	return n
}

func TestFunctionsOfAPackageThatIsNotImported(t *testing.T) {
	in := debian(t)
	site := t.TempDir()
	write(t, site, parser)
	s := testenv.StartSubject(t, in, testenv.WithEnv("PYTHONPATH="+site))
	report := functionsOf(t, s, observer.FunctionQuery{Package: "Fast.Parser"})
	if len(report.Groups) != 1 || report.Groups[0].Held != 0 {
		t.Errorf("of a package that is installed and not imported: %+v", report.Groups)
	}
	_, err := observer.Functions(context.Background(), s.PID(), observer.FunctionQuery{Package: "absent"})
	if !errors.Is(err, observer.ErrNoPackage) {
		t.Errorf("of a package that is not installed: %v", err)
	}
}

// TestDistributionsInEveryForm has one distribution in each form in which installers leave them, and
// metadata that must not lead anywhere.
func TestDistributionsInEveryForm(t *testing.T) {
	in := debian(t)
	site, project := t.TempDir(), t.TempDir()
	function := "def f(): pass\n"
	write(t, project, map[string]string{"src/edited/__init__.py": function})
	write(t, site, map[string]string{
		"egg_dir-1.egg-info/PKG-INFO":               "Name: egg-dir\nVersion: 1\n",
		"egg_dir-1.egg-info/top_level.txt":          "egg_one\negg_two\n",
		"egg_one/deep/__init__.py":                  function,
		"egg_one/__init__.py":                       "",
		"egg_two.py":                                function,
		"egg_list-2.egg-info/PKG-INFO":              "Name: egg-list\nVersion: 2\n",
		"egg_list-2.egg-info/installed-files.txt":   "../listed/__init__.py\n../listed/a.py\n",
		"listed/__init__.py":                        function,
		"egg-file-3.egg-info":                       "Name: egg_file\nVersion: 3\n",
		"egg_file.py":                               function,
		"edited-4.dist-info/METADATA":               "Name: edited\nVersion: 4\n",
		"edited-4.dist-info/RECORD":                 "edited.pth,,\n",
		"edited-4.dist-info/direct_url.json":        fmt.Sprintf(`{"url": "file://%s", "dir_info": {"editable": true}}`, project),
		"stray.py":                                  function,
		"broken-5.dist-info/METADATA":               "Nothing: here\n",
		"huge-6.dist-info/METADATA":                 "",
		"listed_twice-7.dist-info/METADATA":         "Name: outside\nVersion: 7\n",
		"listed_twice-7.dist-info/RECORD":           "/etc/../etc/passwd,,\n../../../../usr/lib/python3.11/nothing.py,,\n",
		"listed_twice-7.dist-info/direct_url.json":  `{"url": "file:///", "dir_info": {"editable": true}}`,
		"unclosed-8.dist-info/METADATA":             "Name: unclosed\nVersion: 8\n",
		"unclosed-8.dist-info/RECORD":               "\"unclosed.py,,\nunclosed2.py,,\n",
		"not_json-9.dist-info/METADATA":             "Name: not-json\n",
		"not_json-9.dist-info/direct_url.json":      "[",
		"linked-10.dist-info/placeholder_directory": "",
	})
	if err := os.Truncate(filepath.Join(site, "huge-6.dist-info", "METADATA"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(site, "pipe-11.dist-info"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(site, "pipe-11.dist-info", "METADATA"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(site, "linked-10.dist-info", "METADATA")); err != nil {
		t.Fatal(err)
	}
	s := testenv.StartSubject(t, in, testenv.WithEnv("PYTHONPATH="+site+":"+filepath.Join(project, "src")))
	s.Exec("import egg_one.deep, egg_two, listed, egg_file, edited, stray")
	report := functionsOf(t, s, observer.FunctionQuery{})
	got := map[string]string{}
	for _, g := range report.Groups {
		for _, f := range g.Functions {
			if f.QualName == "f" {
				got[f.Module] = g.Name()
			}
		}
	}
	for module, want := range map[string]string{
		"egg_one.deep": "egg-dir 1", "egg_two": "egg-dir 1", "listed": "egg-list 2", "egg_file": "egg_file 3",
		"edited": "edited 4", "stray": "no distribution",
	} {
		if got[module] != want {
			t.Errorf("%s is of %q, want %q", module, got[module], want)
		}
	}
	warnings := strings.Join(report.Warnings, "\n")
	for _, name := range []string{"broken-5", "huge-6", "linked-10", "pipe-11"} {
		if !strings.Contains(warnings, name) {
			t.Errorf("no warning of %s in %q", name, warnings)
		}
	}
}

// TestFunctionsInAnotherRoot has a process whose paths mean something else to the observer.
func TestFunctionsInAnotherRoot(t *testing.T) {
	in := debian(t)
	root := t.TempDir()
	site := t.TempDir()
	write(t, site, parser)
	// /srv is a link that is right inside only.
	script := fmt.Sprintf(`mount --rbind / %[1]s && mount -t tmpfs none %[1]s/opt && cp -r %[2]s %[1]s/opt/site && mount -t tmpfs none %[1]s/mnt && ln -s /opt/site %[1]s/mnt/site && PYTHONPATH=/mnt/site exec chroot %[1]s %[3]s -c 'import fp, sys; fp.parse(1); print(1, flush=True); sys.stdin.read()'`, root, site, in.Path)
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	testenv.StartCommand(t, cmd)
	report, err := observer.Functions(context.Background(), cmd.Process.Pid, observer.FunctionQuery{Package: "fast_parser"})
	if err != nil {
		t.Fatal(err)
	}
	if g := report.Groups[0]; g.Held != 6 || g.Executed != 2 {
		t.Errorf("%+v", g)
	}
}

func TestFunctionsOfAProcessThatEnds(t *testing.T) {
	in := debian(t)
	for name, end := range map[string]string{"exits": "os._exit(0)", "execs": "os.execv('/bin/sleep', ['sleep', '30'])"} {
		t.Run(name, func(t *testing.T) {
			s := testenv.StartSubject(t, in)
			s.Exec("import os, threading, time")
			done := false
			_, err := observer.Functions(context.Background(), s.PID(), observer.FunctionQuery{Progress: func(float64) {
				if !done {
					done = true
					s.Exec(fmt.Sprintf("threading.Timer(0.02, lambda: %s).start()", end))
					waitUntilGone(t, s.PID())
				}
			}})
			if !errors.Is(err, pyframes.ErrNoProcess) {
				t.Errorf("the answer is %v, want that there is no such process", err)
			}
		})
	}
}
