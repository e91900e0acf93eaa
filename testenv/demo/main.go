// Command demo closes the loop once on something real, and says at each step what it does: a Flask
// service runs under `sca-probe run`, Remote Configuration names requests.sessions:Session.send, the
// engine patches it, requests come in, the observer says from outside what ran, the target is
// withdrawn and the code is back. It exits 1 when the witnesses' numbers differ.
//
//	demo SCA_PROBE PYTHON APP
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

const (
	target   = "requests.sessions:Session.send"
	advisory = "GHSA-652x-xj99-gmcc (CVE-2024-35195)"
	requests = 200
	patience = 30 * time.Second
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: demo SCA_PROBE PYTHON APP")
		os.Exit(2)
	}
	d := &demo{probe: os.Args[1], python: os.Args[2], app: os.Args[3]}
	err := d.run()
	d.stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

type demo struct {
	probe, python, app string

	service *exec.Cmd
	log     bytes.Buffer
	url     string
	rcFile  string
}

// The parts of the observer's JSON that the demo reads.
type resolution struct {
	Error    string    `json:"error"`
	Location *location `json:"location"`
}

type location struct {
	Code     string `json:"code"`
	File     string `json:"file"`
	Line     int    `json:"first_line"`
	Patched  bool   `json:"patched"`
	Original string `json:"original"`
}

type report struct {
	Verdict   string `json:"verdict"`
	Reason    string `json:"reason"`
	Witnesses []struct {
		Witness  string  `json:"witness"`
		Executed *bool   `json:"executed"`
		Count    *uint64 `json:"count"`
		Detail   string  `json:"detail"`
	} `json:"witnesses"`
	Callers []struct {
		Path   string `json:"path"`
		Symbol string `json:"symbol"`
		Line   int    `json:"line"`
	} `json:"callers"`
}

func (d *demo) run() error {
	dir, err := os.MkdirTemp("", "sca-probe-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d.rcFile = filepath.Join(dir, "targets.json")

	step("A Flask service starts under `sca-probe run`. It has requests 2.31.0, and no target yet.")
	if err := d.start(); err != nil {
		return err
	}
	if err := d.request(5); err != nil {
		return err
	}
	before, err := d.resolve()
	if err != nil {
		return err
	}
	say("process %d; %s is code object %s, %s:%d, patched: %t", d.service.Process.Pid, target, before.Code, before.File, before.Line, before.Patched)

	step("Remote Configuration sends the target of " + advisory + ".")
	began := time.Now()
	if err := d.configure(target); err != nil {
		return err
	}
	patched, err := d.await(true)
	if err != nil {
		return err
	}
	say("the engine swapped the code object: %s stands for %s (seen from outside after %s)", patched.Code, patched.Original, time.Since(began).Round(time.Millisecond))

	step(fmt.Sprintf("The observer watches from the kernel while a client makes %d requests.", requests))
	during, err := d.watch(func() error { return d.request(requests) })
	if err != nil {
		return err
	}
	say("verdict: %s %s", during.Verdict, during.Reason)

	step(fmt.Sprintf("Remote Configuration withdraws the target; %d more requests.", requests))
	after, err := d.watch(func() error {
		if err := d.configure(); err != nil {
			return err
		}
		if _, err := d.await(false); err != nil {
			return err
		}
		return d.request(requests)
	})
	if err != nil {
		return err
	}
	say("verdict: %s %s", after.Verdict, after.Reason)
	restored, err := d.resolve()
	if err != nil {
		return err
	}
	say("the code object is %s again, patched: %t", restored.Code, restored.Patched)

	d.table(during, after, restored)
	return check(during, after, before, restored)
}

// table shows what each witness saw, side by side.
func (d *demo) table(during, after *report, restored *location) {
	step("What each witness saw")
	w := tabwriter.NewWriter(os.Stdout, 2, 8, 2, ' ', 0)
	fmt.Fprintln(w, "  witness\twhile patched\tafter the withdrawal")
	row := func(name, witness string) {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", name, during.says(witness), after.says(witness))
	}
	row("requests made", "")
	row("engine's counter", "engine")
	row("static probe sca:hit", "static-probe")
	row("eval-loop probe", "eval-loop")
	row("code object's own memory", "evidence")
	w.Flush()
	say("after the withdrawal the eval loop runs the original, %s; hooks count nothing", restored.Code)
	for _, c := range during.Callers {
		say("called from %s:%d in %s", c.Path, c.Line, c.Symbol)
	}
}

// check compares what the witnesses said.
func check(during, after *report, before, restored *location) error {
	var wrong []string
	expect := func(r *report, when, witness string, want uint64) {
		if got := r.says(witness); got != strconv.FormatUint(want, 10) {
			wrong = append(wrong, fmt.Sprintf("%s %s: %s instead of %d", witness, when, got, want))
		}
	}
	for _, witness := range []string{"engine", "static-probe", "eval-loop"} {
		expect(during, "while patched", witness, requests)
	}
	// Nothing holds the hook any more: when its memory is reused there is no counter left to read.
	if after.says("engine") != "-" {
		expect(after, "after the withdrawal", "engine", 0)
	}
	expect(after, "after the withdrawal", "static-probe", 0)
	expect(after, "after the withdrawal", "eval-loop", requests)
	if during.Verdict != "executed" {
		wrong = append(wrong, "the verdict while patched is "+during.Verdict)
	}
	if after.Verdict != "reverted" {
		wrong = append(wrong, "the verdict after the withdrawal is "+after.Verdict)
	}
	if restored.Patched || restored.Code != before.Code {
		wrong = append(wrong, "the code object is not the one from before")
	}
	if len(during.Callers) == 0 {
		wrong = append(wrong, "no caller was recorded")
	}
	if len(wrong) > 0 {
		return errors.New("the witnesses differ: " + strings.Join(wrong, "; "))
	}
	fmt.Printf("\nThe numbers are equal: %d calls, seen by three witnesses that do not know of each other.\n", requests)
	return nil
}

// says is one cell of the table. Without a witness it is what the client did.
func (r *report) says(witness string) string {
	if witness == "" {
		return strconv.Itoa(requests)
	}
	for _, s := range r.Witnesses {
		if s.Witness != witness {
			continue
		}
		switch {
		case s.Count != nil:
			return strconv.FormatUint(*s.Count, 10)
		case s.Executed == nil:
			return "cannot say: " + s.Detail
		case *s.Executed:
			return "executed (" + s.Detail + ")"
		}
		return "not executed"
	}
	return "-"
}

func (d *demo) start() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	d.url = fmt.Sprintf("http://127.0.0.1:%d", port)
	d.service = exec.Command(d.probe, "run", "--rc-file", d.rcFile, "--", d.python, d.app, strconv.Itoa(port))
	d.service.Env = append(os.Environ(), "DD_SCA_DETECTION_ENABLED=1", "DD_APPSEC_ENABLED=1", "DD_APPSEC_SCA_ENABLED=1")
	d.service.Stdout, d.service.Stderr = &d.log, &d.log
	if err := d.service.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if response, err := http.Get(d.url + "/upstream"); err == nil {
			response.Body.Close()
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the service did not answer within %s; it said:\n%s", patience, d.log.String())
		}
	}
}

func (d *demo) stop() {
	if d.service == nil || d.service.Process == nil {
		return
	}
	_ = d.service.Process.Signal(unix.SIGTERM)
	_ = d.service.Wait()
}

func (d *demo) request(n int) error {
	for range n {
		response, err := http.Get(d.url + "/fetch")
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("the service answered %s", response.Status)
		}
	}
	return nil
}

// configure replaces the Remote Configuration file, in one step as a deployment would.
func (d *demo) configure(targets ...string) error {
	payload := map[string]any{"sca_instrumentation": map[string]any{"targets": append([]string{}, targets...)}}
	data, err := json.Marshal(payload)
	if err != nil {
		return err
	}
	say("%s", data)
	next := d.rcFile + ".next"
	if err := os.WriteFile(next, data, 0o644); err != nil {
		return err
	}
	return os.Rename(next, d.rcFile)
}

// observe builds a call of the observer, which needs root.
func (d *demo) observe(args ...string) *exec.Cmd {
	args = append([]string{d.probe}, args...)
	if os.Geteuid() != 0 {
		args = append([]string{"sudo"}, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

func (d *demo) pid() string { return strconv.Itoa(d.service.Process.Pid) }

func (d *demo) resolve() (*location, error) {
	cmd := d.observe("resolve", "--json", "--pid", d.pid(), target)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	var resolutions []resolution
	if json.Unmarshal(out, &resolutions) != nil || len(resolutions) != 1 {
		return nil, fmt.Errorf("sca-probe resolve: %w: %s", err, complaint.String())
	}
	if resolutions[0].Location == nil {
		return nil, fmt.Errorf("sca-probe resolve: %s", resolutions[0].Error)
	}
	return resolutions[0].Location, nil
}

func (d *demo) await(patched bool) (*location, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		l, err := d.resolve()
		if err != nil {
			return nil, err
		}
		if l.Patched == patched {
			return l, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the target is still patched: %t after %s; the service said:\n%s", l.Patched, patience, d.log.String())
		}
	}
}

// watch runs work within a window of `sca-probe verify`.
func (d *demo) watch(work func() error) (*report, error) {
	cmd := d.observe("verify", "--json", "--for", "10m", "--pid", d.pid(), target)
	var out bytes.Buffer
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(stderr)
	first, _ := lines.ReadString('\n')
	if !strings.HasPrefix(first, "watching") {
		_ = cmd.Wait()
		return nil, fmt.Errorf("sca-probe verify: %s", strings.TrimSpace(first))
	}
	go func() { _, _ = io.Copy(os.Stderr, lines) }()
	workErr := work()
	_ = cmd.Process.Signal(os.Interrupt)
	waitErr := cmd.Wait()
	if workErr != nil {
		return nil, workErr
	}
	var reports []report
	if err := json.Unmarshal(out.Bytes(), &reports); err != nil || len(reports) != 1 {
		return nil, fmt.Errorf("sca-probe verify: %w: %s", waitErr, out.String())
	}
	return &reports[0], nil
}

func step(text string) { fmt.Printf("\n==> %s\n", text) }

func say(format string, args ...any) { fmt.Printf("    "+format+"\n", args...) }
