#include "textflag.h"

// The instructions that MeasureHitCost probes, each a function of its own. The kernel emulates the
// branch, and steps over the other out of line.

TEXT branch<>(SB), NOSPLIT|NOFRAME, $0
	BYTE $0x74; BYTE $0x00 // je, to the next instruction
	RET

TEXT ordinary<>(SB), NOSPLIT|NOFRAME, $0
	ADDQ $1, R10
	RET

// func probedAddresses() (branch, ordinary uintptr)
TEXT ·probedAddresses(SB), NOSPLIT, $0-16
	LEAQ branch<>(SB), AX
	MOVQ AX, branch+0(FP)
	LEAQ ordinary<>(SB), AX
	MOVQ AX, ordinary+8(FP)
	RET

// func passes(instruction uintptr, frame *madeFrame, times int)
TEXT ·passes(SB), NOSPLIT, $8-24
	MOVQ instruction+0(FP), R11
	MOVQ frame+8(FP), R8
	MOVQ times+16(FP), R9
again:
	CALL R11
	DECQ R9
	JNZ  again
	RET
