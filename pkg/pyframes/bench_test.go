package pyframes

import (
	"context"
	"os/exec"
	"testing"
	"time"

	"sca-probe/testenv"
)

// startPython runs statements in a Python process, and waits until they are done. The process ends
// with the benchmark.
func startPython(b *testing.B, path, statements string) *Process {
	b.Helper()
	cmd := exec.Command(path, "-c", statements+"\nimport sys; print('ready', flush=True); sys.stdin.read()")
	testenv.StartCommand(b, cmd)
	p, err := OpenProcess(cmd.Process.Pid)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// BenchmarkScan looks through a process of 512 MB, and beside it copies as many bytes within this
// process: the metric is how much of a copy's speed the scan has.
func BenchmarkScan(b *testing.B) {
	for _, in := range testenv.Interpreters(testenv.OnePerVersion(testenv.Observer)) {
		b.Run(in.Name, func(b *testing.B) {
			p := startPython(b, in.Path, "x = [b'%d' % i * 4000 for i in range(25000)]")
			var source []byte
			chunk := make([]byte, scanChunk)
			var scanned, copied time.Duration
			var bytes uint64
			for b.Loop() {
				s := &functionScan{FunctionScan: &FunctionScan{}, process: p, runBy: map[uint64]uint64{}, started: map[uint64]bool{}}
				began := time.Now()
				if err := s.collect(context.Background()); err != nil {
					b.Fatal(err)
				}
				scanned += time.Since(began)
				bytes += s.Bytes
				if source == nil {
					source = make([]byte, s.Bytes)
					for i := range source {
						source[i] = byte(i)
					}
				}
				began = time.Now()
				for rest := source; len(rest) > 0; rest = rest[min(len(rest), scanChunk):] {
					copy(chunk, rest)
				}
				copied += time.Since(began)
			}
			b.ReportMetric(float64(bytes)/scanned.Seconds()/1e9, "scan-GB/s")
			b.ReportMetric(float64(bytes)/copied.Seconds()/1e9, "copy-GB/s")
			b.ReportMetric(float64(copied)/float64(scanned), "of-a-copy")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkFunctions reads all functions of a process with as many modules as a web service has.
func BenchmarkFunctions(b *testing.B) {
	const modules = "asyncio, concurrent.futures, ctypes, _pydecimal, difflib, doctest, email.mime.text, html.parser, http.server, " +
		"imaplib, inspect, json, logging.handlers, mailbox, multiprocessing.pool, pdb, pickletools, pydoc, smtplib, socketserver, sqlite3, " +
		"ssl, statistics, tarfile, unittest.mock, urllib.request, xml.dom.minidom, xml.sax.saxutils, zipfile"
	for _, in := range testenv.Interpreters(testenv.OnePerVersion(testenv.Observer)) {
		b.Run(in.Name, func(b *testing.B) {
			p := startPython(b, in.Path, "import "+modules)
			n := 0
			for b.Loop() {
				for _, err := range p.Functions(context.Background(), nil) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			b.ReportMetric(float64(n)/float64(b.N), "functions")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/function")
		})
	}
}
