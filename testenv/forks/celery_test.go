package forks

import (
	"strconv"
	"testing"

	"sca-probe/testenv"
)

// startCelery runs a worker of Celery with a pool of forked processes, which run subjects/tasks.py all the time.
func startCelery(t *testing.T, in testenv.Interpreter, args ...string) (*program, *traffic) {
	t.Helper()
	folder := servers(t, in)
	p := newProgram(t, "work:old")
	p.start(in, folder, append([]string{"-m", "celery", "--app", "tasks", "worker", "--pool", "prefork", "--concurrency",
		strconv.Itoa(workers), "--without-gossip", "--without-mingle", "--without-heartbeat"}, args...)...)
	l := newTraffic(t)
	read := 0
	l.more = func() []state {
		found := answers[state](p)
		fresh := found[read:]
		read = len(found)
		return fresh
	}
	return p, l
}

// The processes of Celery's pool have the patches that their parent has, count on their own, and follow Remote
// Configuration. None is killed: one that is while it waits for a task holds the lock that the others need.
func TestCelery(t *testing.T) {
	each(t, func(t *testing.T, in testenv.Interpreter) {
		p, l := startCelery(t, in)
		for pid, w := range l.await(workers, "that have the old target patched", nil, func(s state) bool { return s.Old }) {
			w.startsWith(t, pid, "old", 0)
		}
		p.configure("work:new")
		l.await(workers, "that follow the change", nil, followed)
	})
}

// Celery's --max-tasks-per-child has processes that come and go all the time.
func TestRecycledCelery(t *testing.T) {
	if !all {
		t.Skip("left to `make test-all`")
	}
	each(t, func(t *testing.T, in testenv.Interpreter) {
		p, l := startCelery(t, in, "--max-tasks-per-child", "3")
		recycled(p, l, 0)
	})
}
