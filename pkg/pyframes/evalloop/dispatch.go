package evalloop

import (
	"encoding/binary"
	"fmt"
)

// findDispatch finds the table of the 256 opcodes' handlers: the computed-goto table, or the
// tail-call interpreter's table of functions. It is known by its holes: the undefined opcodes of
// the version, and no others, share one handler.
func (img *image) findDispatch(undefined []byte) ([256]uint64, error) {
	hole := [256]bool{}
	for _, opcode := range undefined {
		hole[opcode] = true
	}
	var found *[256]uint64
	for _, s := range img.data {
		words := len(s.bytes) / 8
		start := int((8 - s.addr%8) % 8)
		run := 0 // words in a row that are code addresses
		for i := 0; i < words && start+8*i+8 <= len(s.bytes); i++ {
			if img.at(binary.LittleEndian.Uint64(s.bytes[start+8*i:])) == nil {
				run = 0
				continue
			}
			if run++; run < 256 {
				continue
			}
			table, ok := holesMatch(s.bytes[start+8*(i-255):], &hole, undefined[0])
			if ok && found != nil && table != *found {
				return [256]uint64{}, fmt.Errorf("%w: several tables of handlers match", ErrUnknownBuild)
			}
			if ok {
				found = &table
			}
		}
	}
	if found == nil {
		return [256]uint64{}, fmt.Errorf("%w: no table of 256 handlers has the undefined opcodes of this version", ErrUnknownBuild)
	}
	return *found, nil
}

func holesMatch(words []byte, hole *[256]bool, someHole byte) (table [256]uint64, ok bool) {
	unknown := binary.LittleEndian.Uint64(words[8*int(someHole):])
	count := make(map[uint64]int, 256)
	for opcode := range table {
		table[opcode] = binary.LittleEndian.Uint64(words[8*opcode:])
		if hole[opcode] != (table[opcode] == unknown) {
			return table, false
		}
		count[table[opcode]]++
	}
	for handler, n := range count {
		if handler != unknown && n >= count[unknown] {
			return table, false
		}
	}
	return table, true
}
