package loader

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// ErrClosed says that what is read from was closed.
var ErrClosed = os.ErrClosed

// A buffer is a kernel program's buffer of events, each an E.
type buffer[E any] struct{ reader *ringbuf.Reader }

func openBuffer[E any](m *ebpf.Map) (buffer[E], error) {
	reader, err := ringbuf.NewReader(m)
	if err != nil {
		return buffer[E]{}, fmt.Errorf("opening the buffer of events: %w", err)
	}
	return buffer[E]{reader}, nil
}

// next waits for the next event.
func (b buffer[E]) next() (event E, err error) {
	record, err := b.reader.Read()
	if err != nil {
		return event, err
	}
	if err := binary.Read(bytes.NewReader(record.RawSample), binary.LittleEndian, &event); err != nil {
		return event, fmt.Errorf("reading an event of %d bytes: %w", len(record.RawSample), err)
	}
	return event, nil
}

// SetDeadline makes Read give up at a time, with os.ErrDeadlineExceeded once all events until then are
// read. The zero time takes the deadline away.
func (b buffer[E]) SetDeadline(t time.Time) { b.reader.SetDeadline(t) }

// text returns the C string in an array.
func text(chars []int8) string {
	raw := make([]byte, len(chars))
	for i, c := range chars {
		raw[i] = byte(c)
	}
	return unix.ByteSliceToString(raw)
}
