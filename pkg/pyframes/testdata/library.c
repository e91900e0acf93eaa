/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What FuzzInterpreter starts from: a library of a few kilobytes that exports what pyframes looks for in
 * CPython 3.MINOR, and says to be of that release. No interpreter is in it.
 */
#include <stdint.h>

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

#define TYPE(name) char name[16] = { 1 }
TYPE(PyType_Type);
TYPE(PyDict_Type);
TYPE(PyUnicode_Type);
TYPE(PyTuple_Type);
TYPE(PyModule_Type);
TYPE(PyFunction_Type);
TYPE(PyCode_Type);
TYPE(PyCFunction_Type);
TYPE(PyMethod_Type);
TYPE(PyStaticMethod_Type);
TYPE(PyClassMethod_Type);
TYPE(PyProperty_Type);
TYPE(PyFrame_Type);
TYPE(PyMemberDescr_Type);
TYPE(PyLong_Type);
TYPE(PyBytes_Type);

#if MINOR >= 11
const uint32_t Py_Version = 0x030001f0 | MINOR << 16;
#endif

/* _Py_DebugOffsets begins with the cookie, the version and whether there is no GIL. */
struct {
	char cookie[8];
	uint64_t version, free_threaded;
} _PyRuntime = { "xdebugpy", 0x030001f0 | MINOR << 16, 0 };

static uint64_t interp_head;

uint64_t PyInterpreterState_Head(void)
{
	return *(volatile uint64_t *)&interp_head;
}

/* What is before the version is no digit. */
static const char version[] = "\0"
			      "3." TEXT(MINOR) ".1";

const char *Py_GetVersion(void)
{
	return version + 1;
}

void _PyEval_EvalFrameDefault(void)
{
}

/* A static probe as sys/sdt.h leaves one. */
__asm__(".pushsection .note.stapsdt,\"\",\"note\"\n"
	".balign 4\n.4byte 8,2f-1f,3\n.asciz \"stapsdt\"\n"
	"1: .8byte 0,0,0\n.asciz \"sca\"\n.asciz \"hit\"\n.asciz \"\"\n"
	"2: .balign 4\n.popsection\n");
