package observer_test

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/pyframes"
	"sca-probe/testenv"
)

// service calls fp:parse as often as it is told to.
const service = `
import os, sys, fp
def main():
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        for _ in range(int(line)):
            fp.parse(1)
        print("worked", flush=True)
main()
`

// A program is a running service.
type program struct {
	*testenv.Command
	pid int
}

// startProgram starts a service and waits until it is ready; its PID may be that of a child.
func startProgram(t *testing.T, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{Command: testenv.StartCommand(t, cmd)}
	pid, err := strconv.Atoi(p.Ready)
	if err != nil {
		t.Fatal(err)
	}
	p.pid = pid
	return p
}

// PID returns the process ID of the Python process.
func (p *program) PID() int { return p.pid }

func (p *program) parse(times int) { p.Ask(times) }

// observeService has commands look at a process that calls fp:parse as often as call is told to, and
// nothing else of fp. It returns the process as it is listed.
func observeService(t *testing.T, s observed, call func(times int)) observer.PythonProcess {
	t.Helper()
	listed := list(t, s)
	if !listed.Memory.Supported || !listed.EvalLoop.Supported {
		t.Fatalf("process %d is listed as %+v", s.PID(), listed)
	}
	call(1)
	report := functionsOf(t, s, observer.FunctionQuery{Package: "fast-parser"})
	if len(report.Warnings) > 0 {
		t.Errorf("warnings: %q", report.Warnings)
	}
	g := group(t, report, "Fast.Parser 1.2")
	for _, f := range g.Functions {
		want := observer.StateNever
		if f.QualName == "parse" || f.QualName == "scan" {
			want = observer.StateExecuted
		}
		if f.Module != "fp" || f.State != want && f.State != observer.StateUnknown {
			t.Errorf("%s:%s is %s, want fp and %s", f.Module, f.QualName, f.State, want)
		}
	}
	if g.Held != 6 {
		t.Errorf("holds %d functions of the package, want 6", g.Held)
	}
	counted := watch(t, s, observer.WatchOptions{Query: observer.FunctionQuery{Package: "fast-parser"}}, func() { call(55) })
	if starts(counted, "fp", "parse") != 55 || starts(counted, "fp", "scan") != 55 || len(counted.Functions) != 2 || counted.Losses != "" {
		t.Errorf("watch counts %+v, lost %q", counted.Functions, counted.Losses)
	}
	verified := verify(t, s, func() { call(44) }, "fp:parse", "fp:dump")
	for i, want := range []uint64{44, 0} {
		loop := statement(verified[i], observer.EvalLoop)
		if loop == nil || loop.Count == nil || *loop.Count != want || (verified[i].Verdict == observer.Executed) != (want > 0) {
			t.Errorf("verify says of %s %s (%s), %+v, want %d starts", verified[i].Target, verified[i].Verdict, verified[i].Reason, loop, want)
		}
	}
	return listed
}

// TestVirtualEnvironments has services run in them, with the interpreter behind a link and with a copy.
func TestVirtualEnvironments(t *testing.T) {
	in := debian(t)
	for name, options := range map[string][]string{"linked": nil, "copied": {"--copies"}} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			venv := exec.Command(in.Path, append([]string{"-m", "venv", "--without-pip"}, append(options, folder)...)...)
			if out, err := venv.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			write(t, filepath.Join(folder, "lib/python3.11/site-packages"), parser)
			write(t, folder, map[string]string{"service.py": service})
			s := startProgram(t, exec.Command(filepath.Join(folder, "bin/python"), filepath.Join(folder, "service.py")))
			listed := observeService(t, s, s.parse)
			want := in.Path
			if name == "copied" {
				want = filepath.Join(folder, "bin/python3.11")
			}
			if found, err := filepath.EvalSymlinks(listed.Path); err != nil || found != want && filepath.Dir(found) != filepath.Dir(want) {
				t.Errorf("listed as %s, want %s", listed.Path, want)
			}
		})
	}
}

// TestZipapps has a service run from an archive that also holds the distribution.
func TestZipapps(t *testing.T) {
	all := testenv.Interpreters(testenv.Observer)
	for _, in := range []testenv.Interpreter{all[0], debian(t), all[len(all)-1]} { // the oldest and the newest
		t.Run(in.Name, func(t *testing.T) {
			app := filepath.Join(t.TempDir(), "app.pyz")
			writeArchive(t, app, parser, map[string]string{"__main__.py": service})
			s := startProgram(t, exec.Command(in.Path, app))
			observeService(t, s, s.parse)
		})
	}
}

func writeArchive(t *testing.T, path string, contents ...map[string]string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	z := zip.NewWriter(file)
	for _, files := range contents {
		for name, content := range files {
			w, err := z.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestArchivesThatMeanHarm has entries of sys.path that are archives of the wrong kind.
func TestArchivesThatMeanHarm(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, map[string]string{"no.zip": "no archive"})
	at := func(name string) string { return filepath.Join(folder, name) }
	writeArchive(t, at("bomb.zip"), map[string]string{
		"bomb-1.dist-info/METADATA": "Name: bomb\nVersion: 1\n" + strings.Repeat("\n", maxFileOfMetadata+1),
		"fine-2.dist-info/METADATA": "Name: fine\nVersion: 2\n",
	})
	if err := os.Truncate(at("no.zip"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(at("pipe.zip"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := testenv.StartSubject(t, debian(t))
	s.Exec(fmt.Sprintf("sys.path += [%q, %q, %q]", at("no.zip"), at("bomb.zip"), at("pipe.zip")))
	report := functionsOf(t, s, observer.FunctionQuery{Package: "fine"})
	if len(report.Groups) != 1 {
		t.Errorf("%+v", report.Groups)
	}
	warnings := strings.Join(report.Warnings, "\n")
	for _, name := range []string{"no.zip", "bomb-1.dist-info", "pipe.zip"} {
		if !strings.Contains(warnings, name) {
			t.Errorf("no warning of %s in %q", name, warnings)
		}
	}
}

// maxFileOfMetadata is the most that is read of one file, in bytes.
const maxFileOfMetadata = 32 << 20

// TestFrozenPrograms has a service that PyInstaller made one file of, and one that it made a folder of.
func TestFrozenPrograms(t *testing.T) {
	installer := filepath.Join(testenv.Root(), "build", "frozen-venv", "bin", "pyinstaller")
	if _, err := os.Stat(installer); err != nil {
		testenv.Missing(t, "no PyInstaller: run `make frozen`")
	}
	for _, form := range []string{"--onefile", "--onedir"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			site := filepath.Join(folder, "site")
			write(t, site, parser)
			write(t, folder, map[string]string{"service.py": service})
			freeze := exec.Command(installer, "--log-level", "ERROR", form, "--paths", site, "--copy-metadata", "Fast.Parser", "service.py")
			freeze.Dir, freeze.Env = folder, append(os.Environ(), "PYTHONPATH="+site, "PYINSTALLER_CONFIG_DIR="+filepath.Join(folder, "cache"))
			if out, err := freeze.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			frozen := filepath.Join(folder, "dist", "service")
			if form == "--onedir" {
				frozen = filepath.Join(frozen, "service")
			}
			s := startProgram(t, exec.Command(frozen))
			if listed := observeService(t, s, s.parse); listed.Linkage != "shared" || !strings.HasPrefix(listed.Version, "3.11.") {
				t.Errorf("listed as %+v", listed)
			}
		})
	}
}

// TestModWSGI has an application in an Apache, on loopback and with nothing of the system's own.
func TestModWSGI(t *testing.T) {
	const modules, user = "/usr/lib/apache2/modules", "www-data"
	if _, err := os.Stat(modules + "/mod_wsgi.so"); err != nil {
		testenv.Missing(t, "no Apache with mod_wsgi: run `make pythons`")
	}
	folder := t.TempDir()
	for _, f := range []string{folder, filepath.Dir(folder)} { // for its user
		if err := os.Chmod(f, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	address := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	write(t, filepath.Join(folder, "site"), parser)
	write(t, folder, map[string]string{
		"app.wsgi": `
import os, fp
def application(environ, start_response):
    for _ in range(int(environ["QUERY_STRING"])):
        fp.parse(1)
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
`,
		"apache.conf": strings.NewReplacer("MODULES", modules, "FOLDER", folder, "ADDRESS", address, "USER", user).Replace(`
ServerRoot FOLDER
ServerName localhost
Listen ADDRESS
PidFile FOLDER/pid
ErrorLog FOLDER/log
User USER
Group USER
LoadModule mpm_event_module MODULES/mod_mpm_event.so
LoadModule authz_core_module MODULES/mod_authz_core.so
LoadModule wsgi_module MODULES/mod_wsgi.so
WSGISocketPrefix FOLDER/wsgi
WSGIDaemonProcess service processes=1 threads=2 python-path=FOLDER/site
WSGIProcessGroup service
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias / FOLDER/app.wsgi
`)})
	apache := exec.Command("/usr/sbin/apache2", "-f", filepath.Join(folder, "apache.conf"), "-DFOREGROUND")
	if err := apache.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		apache.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { apache.Process.Kill() })
		apache.Wait()
		timer.Stop()
		if log, err := os.ReadFile(filepath.Join(folder, "log")); err == nil && t.Failed() {
			t.Logf("%s", log)
		}
	})
	get := func(times int) (string, error) {
		answer, err := http.Get(fmt.Sprintf("http://%s/?%d", address, times))
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", answer.Status, body)
		}
		return string(body), err
	}
	var s program
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		body, err := get(0)
		if err == nil {
			if s.pid, err = strconv.Atoi(body); err != nil {
				t.Fatal(err)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	listed := observeService(t, &s, func(times int) {
		if _, err := get(times); err != nil {
			t.Error(err)
		}
	})
	if listed.Linkage != "shared" {
		t.Errorf("listed as %+v", listed)
	}
	// The server itself has loaded libpython, and runs no Python.
	if _, err := observer.Functions(t.Context(), apache.Process.Pid, observer.FunctionQuery{}); !errors.Is(err, pyframes.ErrNotReady) {
		t.Errorf("of the server: %v, want that it has no sys.modules", err)
	}
}
