package bytecode

import (
	"bytes"
)

func cloneCode(c Code) Code {
	c.Bytecode, c.LineTable, c.ExceptionTable = bytes.Clone(c.Bytecode), bytes.Clone(c.LineTable), bytes.Clone(c.ExceptionTable)
	return c
}

func equalCode(a, b Code) bool {
	return bytes.Equal(a.Bytecode, b.Bytecode) && bytes.Equal(a.LineTable, b.LineTable) &&
		bytes.Equal(a.ExceptionTable, b.ExceptionTable) && a.NumConsts == b.NumConsts && a.StackSize == b.StackSize
}
