package evalloop

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/arch/x86/x86asm"
)

// maxCopies bounds the copies of one handler. The build with the most has some dozens.
const maxCopies = 512

// promoted returns the copies of a handler that stand within other handlers. A profile-guided
// optimiser (BOLT) turns the dispatch of an instruction whose successor is often the same into
//
//	cmpq $handler, table(,%index,8)
//	jne  elsewhere
//	...the handler, inlined, or a call of it...
//
// Executions of a copy never pass the handler itself.
func (img *image) promoted(handler uint64) ([]uint64, error) {
	var bodies []uint64
	for _, s := range img.code {
		for i := 8; i+6 <= len(s.bytes); i++ {
			if loadsAddress(s, i, handler) {
				return nil, fmt.Errorf("%w: the code at %#x takes the handler's address", ErrUnknownBuild, s.addr+uint64(i))
			}
			if uint64(binary.LittleEndian.Uint32(s.bytes[i:])) != handler {
				continue
			}
			in, err := decode(s.bytes[i-8:])
			if err != nil || in.Op != x86asm.CMP || in.Len != 12 {
				continue // these four bytes are no such comparison
			}
			branch, err := decode(s.bytes[i+4:])
			if err != nil || branch.Op != x86asm.JNE {
				return nil, fmt.Errorf("%w: the comparison at %#x is not followed by jne", ErrUnknownBuild, s.addr+uint64(i)-8)
			}
			body := i + 4 + branch.Len
			if !calls(s, body, handler) {
				bodies = append(bodies, s.addr+uint64(body))
			}
			if len(bodies) > maxCopies {
				return nil, fmt.Errorf("%w: more than %d copies of a handler", ErrUnknownBuild, maxCopies)
			}
		}
	}
	return bodies, nil
}

// calls reports whether the instruction at i calls or jumps to the handler, which counts there.
func calls(s span, i int, handler uint64) bool {
	in, err := decode(s.bytes[i:])
	if err != nil || in.Op != x86asm.CALL && in.Op != x86asm.JMP {
		return false
	}
	rel, ok := in.Args[0].(x86asm.Rel)
	return ok && s.addr+uint64(i+in.Len)+uint64(int64(rel)) == handler
}

// loadsAddress recognises `lea handler(%rip), REG`, the form of a comparison in a
// position-independent build, which is not followed here.
func loadsAddress(s span, i int, handler uint64) bool {
	b := s.bytes[i-3 : i]
	return b[0]&0xf8 == 0x48 && b[1] == 0x8d && b[2]&0xc7 == 0x05 &&
		s.addr+uint64(i)+4+uint64(int64(int32(binary.LittleEndian.Uint32(s.bytes[i:])))) == handler
}
