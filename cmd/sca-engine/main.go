// Command sca-engine is the engine: a CPython extension on the stable ABI, built as a C shared
// library with
//
//	go build -buildmode=c-shared -o sca_probe/_engine.abi3.so ./cmd/sca-engine
//
// Python imports it as sca_probe._engine. C owns what runs on every hit (hook.c) and what needs
// the GIL (host.c); Go decides, in the background (pkg/patch), what Remote Configuration
// (pkg/rc) asks for.
package main

// #include <stdlib.h>
import "C"

import (
	"context"
	"encoding/json"
	"os"
	"sync/atomic"

	"github.com/sirupsen/logrus"

	"sca-probe/pkg/patch"
	"sca-probe/pkg/patch/bytecode"
	"sca-probe/pkg/rc"
)

// logLevelVariable names the environment variable that sets the engine's log level.
const logLevelVariable = "SCA_PROBE_LOG_LEVEL"

var reconciler atomic.Pointer[patch.Reconciler]

//export scaStart
func scaStart(path *C.char, major, minor C.int) {
	log := newLogger()
	r := patch.NewReconciler(interpreter{}, bytecode.Version{Major: int(major), Minor: int(minor)}, log)
	reconciler.Store(r)
	updates := rc.NewFileSource(C.GoString(path)).Watch(context.Background())
	go func() {
		// An engine that fails must not take the application with it.
		defer func() {
			if failure := recover(); failure != nil {
				log.Errorf("the engine stopped: %v", failure)
			}
		}()
		r.Run(context.Background(), updates)
	}()
}

//export scaTargets
func scaTargets() *C.char {
	text := []byte("[]")
	if r := reconciler.Load(); r != nil {
		if encoded, err := json.Marshal(r.Statuses()); err == nil {
			text = encoded
		}
	}
	return C.CString(string(text))
}

func newLogger() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(os.Stderr)
	level, err := logrus.ParseLevel(os.Getenv(logLevelVariable))
	if err != nil {
		level = logrus.WarnLevel
	}
	log.SetLevel(level)
	return log.WithField("component", "sca-probe engine").WithField("pid", os.Getpid())
}

func main() {}
