// Package wheel tests the engine's wheel beside real releases of ddtrace: what it installs, how it starts,
// when it stays off, and that it works with each line.
package wheel

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/csv"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"sca-probe/testenv"
)

type release = testenv.DdtraceRelease

var newest = testenv.DdtraceReleases[0]

// unknown is the last release of the line before those that the integration knows.
var unknown = release{Python: "3.11", Ddtrace: "1.20.19"}

// An environment is a virtual environment of a test's own.
type environment struct{ dir string }

func (e environment) bin(name string) string { return filepath.Join(e.dir, "bin", name) }

// packages is its site-packages folder.
func (e environment) packages(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(e.dir, "lib", "python3.*", "site-packages"))
	if err != nil || len(found) != 1 {
		t.Fatalf("site-packages of %s: %v, %v", e.dir, found, err)
	}
	return found[0]
}

// run runs one of its programs and returns what it prints.
func (e environment) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var output, errors bytes.Buffer
	cmd := exec.Command(e.bin(name), args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stdout, cmd.Stderr = &output, &errors
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v\n%s%s", name, args, err, output.String(), errors.String())
	}
	return output.String()
}

// pip runs pip on it. Not each environment has one, and not each pip runs everywhere.
func (e environment) pip(t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{"--python", e.bin("python"), "--disable-pip-version-check", "--no-input"}, args...)
	pip := exec.Command(filepath.Join(newest.Environment(t), "bin", "pip"), args...)
	if output, err := pip.CombinedOutput(); err != nil {
		t.Fatalf("pip %v: %v\n%s", args, err, output)
	}
}

// beside copies the environment of a release, as it is before the wheel is installed.
func beside(t *testing.T, r release, dir string) environment {
	t.Helper()
	from := r.Environment(t)
	if output, err := exec.Command("cp", "-a", from, dir).CombinedOutput(); err != nil {
		t.Fatalf("copying %s: %v: %s", from, err, output)
	}
	e := environment{dir}
	scripts, err := filepath.Glob(e.bin("*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, script := range scripts {
		content, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		if rest, ok := bytes.CutPrefix(content, []byte("#!"+from)); ok {
			if err := os.WriteFile(script, append([]byte("#!"+dir), rest...), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return e
}

// without makes an environment with the wheel and no ddtrace.
func without(t *testing.T) environment {
	t.Helper()
	e := environment{filepath.Join(t.TempDir(), "venv")}
	python := filepath.Join(newest.Environment(t), "bin", "python")
	if output, err := exec.Command(python, "-m", "venv", "--without-pip", e.dir).CombinedOutput(); err != nil {
		t.Fatalf("making a virtual environment: %v: %s", err, output)
	}
	e.install(t)
	return e
}

// install installs the wheel.
func (e environment) install(t *testing.T) {
	t.Helper()
	e.pip(t, "install", "--no-index", wheelPath(t))
}

// wheelPath is where `make wheel` puts it.
func wheelPath(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(testenv.Root(), "build", "dist", "sca_probe-*.whl"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the wheel: %v, %v: run `make wheel` first", found, err)
	}
	return found[0]
}

// installed are the environments with the wheel that tests share, by release. No test changes them.
var installed = struct {
	sync.Mutex
	dir          string
	environments map[string]environment
}{environments: map[string]environment{}}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "sca-probe-wheel")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	installed.dir = dir
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

// withWheel returns the environment of a release with the wheel installed.
func withWheel(t *testing.T, r release) environment {
	t.Helper()
	installed.Lock()
	defer installed.Unlock()
	e, ok := installed.environments[r.String()]
	if !ok {
		e = beside(t, r, filepath.Join(installed.dir, r.String()))
		e.install(t)
		installed.environments[r.String()] = e
	}
	return e
}

// withoutWheel returns the environment of a release as it is.
func withoutWheel(t *testing.T, r release) environment { return environment{r.Environment(t)} }

// contents is what lies in a folder: the hash of each file by its path, and "folder" for a folder.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			found[name] = "folder"
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found[name] = hash(content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// hash is a file's, as a wheel's RECORD has it.
func hash(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256=" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// record reads what a distribution says that it consists of: the hash by the path, "" where it has none.
func record(t *testing.T, packages, distribution string) map[string]string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(packages, distribution+"-*.dist-info", "RECORD"))
	if err != nil || len(found) != 1 {
		t.Fatalf("RECORD of %s: %v, %v", distribution, found, err)
	}
	file, err := os.Open(found[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]string{}
	for _, row := range rows {
		entries[row[0]] = row[1]
	}
	return entries
}

// modules are what the wheel is to have. ddtrace.appsec.sca's own __init__ is not among them.
var modules = []string{
	"sca_probe", "sca_probe.bootstrap",
	"ddtrace.appsec.sca.config", "ddtrace.appsec.sca.remote_config", "ddtrace.appsec.sca.resolver", "ddtrace.appsec.sca.runtime",
	"ddtrace.appsec.sca.instrumenter", "ddtrace.appsec.sca.instrumenter.patcher", "ddtrace.appsec.sca.instrumenter.registry",
}

// imported imports each module and says where the package that is ddtrace's comes from.
const imported = `
import importlib, sys
packages, *modules = sys.argv[1:]
for name in modules:
    assert importlib.import_module(name).__file__.startswith(packages + "/"), name
import ddtrace.appsec.sca
print(getattr(ddtrace.appsec.sca, "__file__", None))
`

// TestWheelBesideDdtrace installs the wheel beside each line of ddtrace and takes it away again.
func TestWheelBesideDdtrace(t *testing.T) {
	testenv.EachDdtraceRelease(t, func(t *testing.T, r release) {
		e := beside(t, r, filepath.Join(t.TempDir(), "venv"))
		packages := e.packages(t)
		before, ddtrace := contents(t, packages), record(t, packages, "ddtrace")
		if len(ddtrace) < 500 {
			t.Fatalf("ddtrace's RECORD has %d files", len(ddtrace))
		}
		// 2.21.12's RECORD lists files of its sources that it does not bring.
		unharmed := func(when string, then map[string]string) {
			for name, want := range ddtrace {
				got, there := then[name]
				if _, brought := before[name]; there != brought || there && want != "" && got != want {
					t.Errorf("%s: %s has %q, ddtrace's RECORD says %q", when, name, got, want)
				}
			}
		}
		unharmed("before the wheel", before)

		e.install(t)
		e.pip(t, "check")
		ours, after := record(t, packages, "sca_probe"), contents(t, packages)
		unharmed("with the wheel", after)
		for name := range ours {
			if _, there := before[name]; there {
				t.Errorf("the wheel overwrites %s", name)
			}
			if name == "ddtrace/appsec/sca/__init__.py" || strings.HasPrefix(name, "..") {
				t.Errorf("the wheel brings %s", name)
			}
		}
		for name, what := range after { // what is not of ddtrace
			if _, listed := ours[name]; before[name] != what && !listed && what != "folder" {
				t.Errorf("%s is new or another, and not of the wheel", name)
			}
		}

		init := strings.TrimSpace(e.run(t, "python", append([]string{"-c", imported, packages}, modules...)...))
		want := "None" // a namespace package: ddtrace has none of that name
		if r.Line() == "4" {
			want = filepath.Join(packages, "ddtrace", "appsec", "sca", "__init__.py")
			e.run(t, "python", "-c", "from ddtrace.appsec.sca import _cve_loader, _instrumenter, _registry, _resolver, _types")
		}
		if init != want {
			t.Errorf("ddtrace.appsec.sca is %s, want %s", init, want)
		}

		e.pip(t, "uninstall", "--yes", "sca-probe")
		e.pip(t, "check")
		gone := contents(t, packages)
		unharmed("after the wheel", gone)
		if diff := cmp.Diff(before, gone); diff != "" {
			t.Errorf("site-packages before the wheel and after (-before +after):\n%s", diff)
		}
	})
}

// TestUpgradeOfDdtrace has pip replace a line of ddtrace by the next under the wheel.
func TestUpgradeOfDdtrace(t *testing.T) {
	if os.Getenv("SCA_PROBE_TEST_ALL") == "" {
		t.Skip("pip fetches a release: `make test-all` covers this")
	}
	e := beside(t, testenv.DdtraceReleases[1], filepath.Join(t.TempDir(), "venv"))
	e.install(t)
	e.pip(t, "install", "--quiet", "--no-deps", "--only-binary=:all:", "ddtrace=="+newest.Ddtrace)
	packages := e.packages(t)
	init := strings.TrimSpace(e.run(t, "python", append([]string{"-c", imported, packages}, modules...)...))
	if want := filepath.Join(packages, "ddtrace", "appsec", "sca", "__init__.py"); init != want {
		t.Errorf("ddtrace.appsec.sca is %s, want %s", init, want)
	}
}

// TestWheelHoldsWhatItShould compares the wheel with the sources: nothing is missing, and nothing else is in it.
func TestWheelHoldsWhatItShould(t *testing.T) {
	e := without(t)
	packages := e.packages(t)
	var got []string
	for name := range record(t, packages, "sca_probe") {
		if !strings.Contains(name, ".dist-info/") && !strings.Contains(name, "__pycache__/") {
			got = append(got, name)
		}
	}
	want := []string{"sca_probe.pth", "sca_probe/_engine.abi3.so"}
	for _, module := range modules {
		path := strings.ReplaceAll(module, ".", "/")
		if slices.Contains([]string{"sca_probe", "ddtrace.appsec.sca.instrumenter"}, module) {
			path += "/__init__"
		}
		want = append(want, path+".py")
	}
	sort.Strings(got)
	sort.Strings(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the wheel holds (-want +got):\n%s", diff)
	}
	for _, name := range got {
		source := filepath.Join(testenv.Root(), "python", name)
		if strings.HasSuffix(name, ".so") {
			source = filepath.Join(testenv.Root(), "build", "lib", "sca-probe", "python", name)
		}
		if compared, err := exec.Command("cmp", source, filepath.Join(packages, name)).CombinedOutput(); err != nil {
			t.Errorf("%s: %s: run `make wheel`", name, compared)
		}
	}
}
