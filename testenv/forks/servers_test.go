package forks

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"sca-probe/testenv"
)

const workers = 3

// servers returns the folder with the servers for an interpreter.
func servers(t *testing.T, in testenv.Interpreter) string {
	t.Helper()
	folder := filepath.Join(testenv.Root(), "build", "servers", fmt.Sprintf("%d.%d", in.Major, in.Minor))
	if _, err := os.Stat(filepath.Join(folder, "supplied")); err != nil {
		testenv.Missing(t, fmt.Sprintf("no servers in %s: run `make servers`", folder))
	}
	return folder
}

func gunicorn(in testenv.Interpreter, address string, args ...string) []string {
	args = append([]string{"-m", "gunicorn", "--bind", address, "--workers", strconv.Itoa(workers), "--worker-tmp-dir", "/dev/shm",
		"--graceful-timeout", "2", "service:app"}, args...)
	if in.Minor >= 11 { // the last gunicorn for older versions has no control socket yet
		args = append(args, "--no-control-socket")
	}
	return args
}

func uwsgi(_ testenv.Interpreter, address string, args ...string) []string {
	quoted, _ := json.Marshal(append([]string{"--http-socket", address, "--master", "--workers", strconv.Itoa(workers),
		"--module", "service:app", "--die-on-term", "--disable-logging"}, args...))
	return []string{"-c", "import pyuwsgi; pyuwsgi.run(" + string(quoted) + ")"}
}

// A service is a way to run subjects/service.py.
type service struct {
	name    string
	server  func(in testenv.Interpreter, address string, args ...string) []string
	args    []string
	preload bool // workers are forked after the application was imported
	often   bool // also in `make test`
	newest  int  // the newest minor version of CPython that it is to be had for; 0: all
}

// uwsgiNewest is the newest version that pyuwsgi has a wheel for.
const uwsgiNewest = 14

var services = []service{
	{name: "gunicorn-sync", server: gunicorn},
	{name: "gunicorn-sync-preload", server: gunicorn, args: []string{"--preload"}, preload: true, often: true},
	{name: "gunicorn-gthread", server: gunicorn, args: []string{"-k", "gthread", "--threads", "4"}, often: true},
	{name: "gunicorn-gthread-preload", server: gunicorn, args: []string{"-k", "gthread", "--threads", "4", "--preload"}, preload: true},
	{name: "gunicorn-gevent", server: gunicorn, args: []string{"-k", "gevent"}},
	{name: "gunicorn-gevent-preload", server: gunicorn, args: []string{"-k", "gevent", "--preload"}, preload: true, often: true},
	{name: "uwsgi", server: uwsgi, args: []string{"--enable-threads"}, preload: true, often: true, newest: uwsgiNewest},
	{name: "uwsgi-threads", server: uwsgi, args: []string{"--threads", "4"}, preload: true, newest: uwsgiNewest},
	{name: "uwsgi-lazy", server: uwsgi, args: []string{"--enable-threads", "--lazy-apps"}, newest: uwsgiNewest},
	{name: "uwsgi-fork-hooks", server: uwsgi, args: []string{"--enable-threads", "--py-call-uwsgi-fork-hooks"},
		preload: true, newest: uwsgiNewest},
	// It calls PyOS_AfterFork_Child without PyOS_BeforeFork, in which 3.13 and later find a mutex unlocked that was not
	// locked (github.com/unbit/uwsgi/issues/2710): every worker dies, engine or not.
	{name: "uwsgi-osafterfork", server: uwsgi, args: []string{"--enable-threads", "--py-call-osafterfork"}, preload: true, newest: 12},
}

// recycling are services whose workers end after some requests, and others take their place.
var recycling = []service{
	{name: "gunicorn", server: gunicorn, args: []string{"--max-requests", "100"}, often: true},
	{name: "gunicorn-preload", server: gunicorn, args: []string{"--max-requests", "100", "--preload"}, preload: true},
}

// start runs the service under load.
func (s service) start(t *testing.T, in testenv.Interpreter) (*program, *traffic) {
	t.Helper()
	folder := servers(t, in)
	p := newProgram(t, "work:old")
	address := fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	p.start(in, folder, s.server(in, address, s.args...)...)
	return p, load(t, "http://"+address+"/")
}

// inherited is how many hits of work:old a worker has before its first answer: service.py calls it three times
// when it is imported.
func (s service) inherited() int {
	if s.preload {
		return 0
	}
	return 3
}

// eachService runs f with every service that a test covers on every interpreter.
func eachService(t *testing.T, services []service, f func(t *testing.T, in testenv.Interpreter, s service)) {
	t.Helper()
	each(t, func(t *testing.T, in testenv.Interpreter) {
		for _, s := range services {
			if !s.often && !all || s.newest != 0 && in.Minor > s.newest {
				continue
			}
			t.Run(s.name, func(t *testing.T) { f(t, in, s) })
		}
	})
}

// followed says that a worker acted on the change from work:old to work:new.
func followed(s state) bool { return s.New && !s.Old && s.Engine == "running" }

// Under load, each worker has the patch from its first answer on, counts on its own, and follows Remote
// Configuration; so do the workers that come after one was killed and after a reload.
func TestServers(t *testing.T) {
	eachService(t, services, func(t *testing.T, in testenv.Interpreter, s service) {
		p, l := s.start(t, in)
		born := l.await(workers, "that have the old target patched", nil, func(s state) bool { return s.Old && !s.New })
		for pid, w := range born {
			w.startsWith(t, pid, "old", s.inherited())
		}
		failures := l.failures()
		p.configure("work:new")
		l.await(workers, "that follow the change", nil, followed)
		if more := l.failures() - failures; more > 0 {
			t.Errorf("%d requests failed while the targets changed", more)
		}

		for pid := range born {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			break
		}
		successors := l.await(1, "in the place of the one that was killed", born, followed)

		_ = p.cmd.Process.Signal(syscall.SIGHUP)
		for pid, w := range successors {
			born[pid] = w
		}
		for pid, w := range l.await(workers, "after the reload", born, followed) {
			successors[pid] = w
		}
		for pid, w := range successors {
			if w.first.Inherited != 0 { // work:old is no target any more when they are forked
				t.Errorf("worker %d counts from %d, want 0", pid, w.first.Inherited)
			}
		}
	})
}

// Each of the workers that come and go all the time has, from its first answer on, what is desired when it is forked.
func TestRecycledWorkers(t *testing.T) {
	eachService(t, recycling, func(t *testing.T, in testenv.Interpreter, s service) {
		p, l := s.start(t, in)
		recycled(p, l, s.inherited())
	})
}

// recycled checks workers that come and go: each starts in the state that is desired, and counts from what is inherited.
func recycled(p *program, l *traffic, inherited int) {
	heard := func(state) bool { return true }
	for pid, w := range l.await(3*workers, "that have come and gone", nil, heard) {
		w.startsWith(p.t, pid, "old", inherited)
	}
	p.configure("work:new")
	l.await(1, "that follows the change", nil, followed)
	time.Sleep(time.Second) // their parent has followed by now, and who was forked before it did has answered
	for pid, w := range l.await(2*workers, "that came after the change", l.all(), heard) {
		w.startsWith(p.t, pid, "new", 0)
	}
}

// startsWith checks a worker's first answer: which function is patched, and how many hits of work:old came before. On
// a machine that is too busy an import goes on before its targets are patched, as the worker then says.
func (w worker) startsWith(t *testing.T, pid int, patched string, inherited int) {
	t.Helper()
	first := w.first
	if first.Late > 0 {
		t.Logf("worker %d was late: %+v", pid, first)
		return
	}
	if first.Old != (patched == "old") || first.New != (patched == "new") || first.Inherited != inherited {
		t.Errorf("worker %d starts as %+v; want work:%s patched and %d hits of work:old", pid, first, patched, inherited)
	}
}
