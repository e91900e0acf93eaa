package forks

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"testing"
	"time"
)

// state is what a process of subjects/service.py says of itself.
type state struct {
	PID       int    `json:"pid"`
	Engine    string `json:"engine"`
	Old       bool   `json:"old"` // work:old is patched
	New       bool   `json:"new"`
	Inherited int    `json:"inherited"` // hits of work:old before the process's first answer
	Late      int    `json:"late"`      // imports that the engine let go on unpatched, after 1 s
	Calls     [2]int `json:"calls"`     // of patched functions, as the process counted them itself
	Hits      [2]int `json:"hits"`      // as the engine counted them
}

// A worker is what one process said first and last.
type worker struct{ first, last state }

// traffic is what all workers of a service said.
type traffic struct {
	t    *testing.T
	more func() []state // nil, or asked for what workers have said since

	mu      sync.Mutex
	workers map[int]worker
	wrong   int
	fails   int
}

func newTraffic(t *testing.T) *traffic { return &traffic{t: t, workers: map[int]worker{}} }

// load asks the service over and over, a few requests at a time, until the test ends.
func load(t *testing.T, url string) *traffic {
	l := newTraffic(t)
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			// Without keep-alive each request goes to whichever worker accepts it.
			client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			for ctx.Err() == nil {
				l.ask(client, url)
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		clients.Wait()
	})
	return l
}

func (l *traffic) ask(client *http.Client, url string) {
	var s state
	response, err := client.Get(url)
	if err == nil {
		err = json.NewDecoder(response.Body).Decode(&s)
		response.Body.Close()
	}
	if err != nil { // as it must while the service starts, and when a worker is killed
		l.mu.Lock()
		l.fails++
		l.mu.Unlock()
		return
	}
	l.heard(s)
}

// heard takes in what a worker said. Its own count and the engine's must be the same at all times.
func (l *traffic) heard(s state) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w, known := l.workers[s.PID]
	if !known {
		w.first = s
	}
	w.last = s
	l.workers[s.PID] = w
	if s.Calls != s.Hits && l.wrong < 10 {
		l.wrong++
		l.t.Errorf("worker %d: the engine counts %v, the process itself %v", s.PID, s.Hits, s.Calls)
	}
}

func (l *traffic) failures() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fails
}

// all returns every worker that was ever heard of.
func (l *traffic) all() map[int]worker {
	if l.more != nil {
		for _, s := range l.more() {
			l.heard(s)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.workers)
}

// await waits for n workers that are not among known and last said that they are in a state, and returns them.
func (l *traffic) await(n int, what string, known map[int]worker, is func(state) bool) map[int]worker {
	l.t.Helper()
	var found map[int]worker
	await(l.t, fmt.Sprintf("%d workers %s", n, what), func() bool {
		found = l.all()
		maps.DeleteFunc(found, func(pid int, w worker) bool {
			_, old := known[pid]
			return old || !is(w.last)
		})
		return len(found) >= n
	})
	return found
}
