package evalloop

import (
	"encoding/binary"
	"slices"
)

// branchedInto reports of each block whether any branch may land after its start, which would bring
// another instruction's execution past a probe at its end. It looks at every byte of the code as a
// possible branch, and drops those that lie within an instruction: a false alarm only costs speed.
//
// The one exception is a branch that ends a block of RESUME_CHECK (by its address in checks) and leads
// into RESUME's, when it brings along the same registers: the probe there tells it by the opcode.
func (img *image) branchedInto(blocks []*block, checks map[uint64]*block, resume uint8) []bool {
	entered := make([]bool, len(blocks))
	inside := map[uint64]int{} // addresses after a start, up to the branch, and whose block they are in
	low, high := ^uint64(0), uint64(0)
	for i, b := range blocks {
		for addr := b.start + 1; addr <= b.end().addr; addr++ {
			inside[addr] = i
		}
		low, high = min(low, b.start), max(high, b.end().addr)
	}
	for _, start := range img.handlers {
		if i, ok := inside[start]; ok {
			entered[i] = true
		}
	}
	for _, s := range img.code {
		for i := 0; i+6 <= len(s.bytes); i++ {
			b, pc := s.bytes[i], s.addr+uint64(i)
			var target uint64
			switch {
			case b == 0xe9:
				target = pc + 5 + uint64(int64(int32(binary.LittleEndian.Uint32(s.bytes[i+1:]))))
			case b == 0x0f && s.bytes[i+1]&0xf0 == 0x80:
				target = pc + 6 + uint64(int64(int32(binary.LittleEndian.Uint32(s.bytes[i+2:]))))
			case b == 0xeb || b&0xf0 == 0x70:
				target = pc + 2 + uint64(int64(int8(s.bytes[i+1])))
			default:
				continue
			}
			if target <= low || target > high {
				continue
			}
			n, ok := inside[target]
			if !ok || entered[n] {
				continue
			}
			if check := checks[pc]; check != nil && blocks[n].opcode == resume && blocks[n].agrees(target, check) {
				continue
			}
			entered[n] = img.maybeInstruction(pc)
		}
	}
	return entered
}

// agrees reports whether another block's branch to addr, within b, finds what b has there: the
// roles in the same registers.
func (b *block) agrees(addr uint64, other *block) bool {
	at := slices.IndexFunc(b.steps, func(s step) bool { return s.addr == addr })
	if at < 0 {
		return false
	}
	here, there := b.steps[at].state, other.end().state
	for _, role := range []value{b.roles.frame, b.roles.instr, b.roles.thread} {
		mine, ok := here.locate(role)
		if !ok {
			return false
		}
		if theirs, ok := there.locate(role); !ok || mine != theirs {
			return false
		}
	}
	return true
}

// maxSweep bounds how far from a known instruction another is looked for, in bytes.
const maxSweep = 64 << 10

// A sweep is the instructions from a handler's start up to the next handler.
type sweep struct {
	starts []bool // by the distance from the handler
	end    uint64 // how far they are known
}

// maybeInstruction reports whether an instruction may begin at pc: whether disassembling from the
// handler before it arrives there. Where that cannot be told it says yes.
func (img *image) maybeInstruction(pc uint64) bool {
	after, isHandler := slices.BinarySearch(img.handlers, pc)
	if isHandler || after == 0 || pc-img.handlers[after-1] > maxSweep {
		return true
	}
	start := img.handlers[after-1]
	s, ok := img.swept[start]
	if !ok { // once, since a file may have a possible branch in every few bytes
		s = img.sweep(start)
		if img.swept == nil {
			img.swept = map[uint64]sweep{}
		}
		img.swept[start] = s
	}
	return pc-start > s.end || s.starts[pc-start]
}

func (img *image) sweep(start uint64) sweep {
	s := sweep{starts: make([]bool, maxSweep+longestInstruction+1)}
	for code := img.at(start); s.end <= maxSweep; {
		s.starts[s.end] = true
		in, err := decode(code)
		if err != nil {
			break
		}
		code, s.end = code[in.Len:], s.end+uint64(in.Len)
	}
	return s
}
