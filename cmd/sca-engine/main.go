// Command sca-engine is the engine's reconciler: a C shared library that the engine's CPython
// extension (extension/) carries as data and loads when it starts. The two make one file, on the
// stable ABI; `make build` builds it as sca_probe/_engine.abi3.so.
//
// C owns what runs on every hit and what needs the GIL. Go decides, in the background (pkg/patch),
// what Remote Configuration (pkg/rc) asks for. host.h is the boundary between them.
package main

/*
#cgo CFLAGS: -O2 -Wall -Wextra
#include "host.h"
*/
import "C"

import (
	"context"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/sirupsen/logrus"

	"sca-probe/pkg/patch"
	"sca-probe/pkg/patch/bytecode"
	"sca-probe/pkg/rc"
)

// logLevelVariable names the environment variable that sets the engine's log level.
const logLevelVariable = "SCA_PROBE_LOG_LEVEL"

// runtimeHalt is what the runtime calls where it can no longer run (scripts/go-overlay).
//
//go:linkname runtimeHalt runtime.scaHalt
var runtimeHalt unsafe.Pointer

// scaReconcile follows Remote Configuration until the interpreter goes away. The extension calls it
// once, on a thread of its own.
//
//export scaReconcile
func scaReconcile(host *C.struct_sca_host) {
	// The application's processors and memory are the application's.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(50)
	runtimeHalt = unsafe.Pointer(host.halt)
	in := interpreter{host: host}
	in.loaded()
	version := bytecode.Version{Major: int(host.major), Minor: int(host.minor)}
	if err := bytecode.Supported(version, int(host.magic)); err != nil {
		in.refuse(err)
		return
	}
	var source rc.Source
	switch name := C.GoString(host.source); name {
	case C.SCA_SOURCE_PUSH:
		in.pushed = newPushedSource(in)
		source = in.pushed
	case C.SCA_SOURCE_AGENT:
		var err error
		if source, err = agentSource(); err != nil {
			in.refuse(err)
			return
		}
	default:
		source = rc.NewFileSource(name)
	}
	ctx := context.Background()
	patch.NewReconciler(in, version, newLogger(in)).Run(ctx, source.Watch(ctx))
	select {} // a thread that Go was entered on must not end before the process does
}

func newLogger(in interpreter) logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(&boundedWriter{to: in, dropped: in.number(C.SCA_N_LOG_LINES_DROPPED)})
	level, err := logrus.ParseLevel(os.Getenv(logLevelVariable))
	if err != nil {
		level = logrus.WarnLevel
	}
	log.SetLevel(level)
	return log.WithField("component", "sca-probe engine").WithField("pid", os.Getpid())
}

const (
	// maxLines is how many lines the engine logs in a logPeriod; then one line says that more were left out.
	maxLines  = 1000
	logPeriod = time.Minute
)

// boundedWriter drops the log lines of a period past a bound.
type boundedWriter struct {
	to      io.Writer
	dropped *uint64

	mu     sync.Mutex
	period time.Time
	lines  int
}

func (w *boundedWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); now.Sub(w.period) > logPeriod {
		w.period, w.lines = now, 0
	}
	w.lines++
	if w.lines > maxLines {
		atomic.AddUint64(w.dropped, 1)
		return len(line), nil
	}
	if _, err := w.to.Write(line); err != nil {
		return 0, err
	}
	if w.lines == maxLines {
		_, err := io.WriteString(w.to, "sca-probe engine: more lines than this are left out for up to a minute; "+
			"log_lines_dropped in sca_probe.stats() counts them\n")
		return len(line), err
	}
	return len(line), nil
}

func main() {}
