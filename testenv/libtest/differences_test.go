package libtest

// testsFailed is the exit status of a test runner that saw a test fail.
const testsFailed = "exit status 2"

// A difference is a test that ends otherwise when its functions are patched, for a reason that is
// not the engine's to remove.
type difference struct {
	module string
	versions
	with  string // how it ends with the engine
	tests []string
}

const failed, erred = "failed", "error"

var differences = []difference{
	// CPython's own code.replace() leaves out of what kind a parameter is, which these ask a code object for.
	{"test_code", versions{first: 14}, failed, []string{
		"CodeTest.test_local_kinds", "CodeTest.test_var_counts",
	}},
	// Looks at every constant of its own function, and the hook is one.
	{"test_compile", everywhere, failed, []string{
		"TestSpecifics.test_32_63_bit_values",
	}},
	// These disassemble functions of their own, or of dis, and compare the whole with what the compiler made.
	{"test_dis", everywhere, failed, []string{
		"BytecodeTests.test_disassembled", "BytecodeTests.test_explicit_first_line",
		"BytecodeTests.test_info", "CodeInfoTests.test_code_info", "CodeInfoTests.test_show_code",
		"DisTests.test_bug_1333982", "DisTests.test_bug_708901", "DisTests.test_dis",
		"DisTests.test_disassemble_bytes", "DisTests.test_disassemble_class",
		"DisTests.test_disassemble_class_method", "DisTests.test_disassemble_fstring",
		"DisTests.test_disassemble_instance_method", "DisTests.test_disassemble_instance_method_bytes",
		"DisTests.test_disassemble_recursive", "DisTests.test_disassemble_static_method",
		"DisWithFileTests.test_bug_1333982", "DisWithFileTests.test_bug_708901",
		"DisWithFileTests.test_dis", "DisWithFileTests.test_disassemble_bytes",
		"DisWithFileTests.test_disassemble_class", "DisWithFileTests.test_disassemble_class_method",
		"DisWithFileTests.test_disassemble_fstring", "DisWithFileTests.test_disassemble_instance_method",
		"DisWithFileTests.test_disassemble_instance_method_bytes",
		"DisWithFileTests.test_disassemble_recursive", "DisWithFileTests.test_disassemble_static_method",
		"InstructionTests.test_default_first_line", "InstructionTests.test_first_line_set_to_None",
		"InstructionTests.test_jumpy", "InstructionTests.test_outer",
	}},
	{"test_dis", versions{first: 9}, failed, []string{
		"DisTests.test_disassemble_try_finally", "DisWithFileTests.test_disassemble_try_finally",
	}},
	{"test_dis", versions{10, 10}, failed, []string{
		"BytecodeTests.test_source_line_in_disassembly", "DisTests.test_bug_42562",
		"DisWithFileTests.test_bug_42562",
	}},
	{"test_dis", versions{first: 11}, failed, []string{
		"DisTests.test_extended_arg_quick", "DisTests.test_loop_quicken",
		"DisTests.test_super_instructions", "DisWithFileTests.test_extended_arg_quick",
		"DisWithFileTests.test_loop_quicken", "DisWithFileTests.test_super_instructions",
		"TestFinderMethods.test_findlabels",
	}},
	{"test_dis", versions{first: 12}, failed, []string{
		"DisTests.test_disassemble_asyncwith", "DisTests.test_disassemble_with", "DisTests.test_kw_names",
		"DisWithFileTests.test_disassemble_asyncwith", "DisWithFileTests.test_disassemble_with",
		"DisWithFileTests.test_kw_names",
	}},
	{"test_dis", versions{first: 13}, failed, []string{
		"DisTests.test_dis_with_offsets", "DisWithFileTests.test_dis_with_offsets",
	}},
	{"test_dis", versions{first: 14}, erred, []string{
		"DisTests.test_dis_with_all_positions", "DisWithFileTests.test_dis_with_all_positions",
	}},
	// These marshal the code of their own functions. marshal takes exact built-in types only, and the hook is none.
	{"test_marshal", everywhere, erred, []string{
		"CodeTestCase.test_code", "CodeTestCase.test_many_codeobjects",
	}},
	{"test_marshal", versions{first: 11}, erred, []string{
		"CodeTestCase.test_minimal_linetable_with_no_debug_ranges",
	}},
	{"test_marshal", versions{first: 13}, erred, []string{
		"CodeTestCase.test_no_allow_code",
	}},
	{"test_marshal", versions{first: 14}, erred, []string{
		"SliceTestCase.test_slice",
	}},
	// These expect events of their own functions' instructions, by offset.
	{"test_monitoring", versions{first: 12}, failed, []string{
		"TestInstallIncrementally.test_call_then_instruction",
		"TestInstallIncrementally.test_instruction_then_call",
	}},
}

// expectedDifferences returns how tests of a module end with the engine, of those that end otherwise.
func expectedDifferences(minor int, module string) map[string]string {
	expected := map[string]string{}
	for _, d := range differences {
		if d.module == module && d.within(minor) {
			for _, test := range d.tests {
				expected["test."+module+"."+test] = d.with
			}
		}
	}
	return expected
}

// A selection is tests that a version is to treat apart.
type selection struct {
	module string
	versions
	tests []string
}

var exclusions = []selection{
	// A child process recurses without end until a signal that comes a second later, or, on a busy
	// machine, for ever: without the engine as with it.
	{"test_threading", everywhere, []string{"test_print_exception_gh_102056"}},
}

func excluded(minor int, module string) []string {
	var tests []string
	for _, s := range exclusions {
		if s.module == module && s.within(minor) {
			tests = append(tests, s.tests...)
		}
	}
	return tests
}

// notCounted are tests that pass while the function that their name leads to does not start, or its
// start is not counted, in the runner's process.
var notCounted = []selection{
	// A generator function, which the runner calls and nobody starts.
	{"test_asyncio", versions{last: 8}, []string{
		"test_events.EPollEventLoopTests.test_subprocess_wait_no_same_group",
		"test_events.PollEventLoopTests.test_subprocess_wait_no_same_group",
		"test_events.SelectEventLoopTests.test_subprocess_wait_no_same_group",
	}},
	// Run in a process of its own.
	{"test_class", versions{first: 14}, []string{"TestInlineValues.test_detach_materialized_dict_no_memory"}},
	// A tracer jumps away as the first line begins. Before 3.10 a prologue cannot have no line: it is of the
	// first one, and is jumped over with it.
	{"test_sys_settrace", versions{last: 9}, []string{
		"JumpTestCase.test_jump_over_async_for_block_before_else",
		"JumpTestCase.test_jump_over_for_block_before_else", "JumpTestCase.test_jump_simple_forwards",
		"JumpTestCase.test_jump_to_codeless_line",
		"JumpTestCase.test_no_jump_forwards_into_async_for_block",
		"JumpTestCase.test_no_jump_forwards_into_async_with_block",
		"JumpTestCase.test_no_jump_forwards_into_for_block",
		"JumpTestCase.test_no_jump_forwards_into_try_except_block",
		"JumpTestCase.test_no_jump_forwards_into_try_finally_block",
		"JumpTestCase.test_no_jump_forwards_into_with_block",
		"JumpTestCase.test_no_jump_into_bare_except_block",
		"JumpTestCase.test_no_jump_into_qualified_except_block",
	}},
	{"test_sys_settrace", versions{last: 8}, []string{"JumpTestCase.test_no_jump_into_finally_block"}},
	{"test_sys_settrace", versions{9, 9}, []string{"JumpTestCase.test_jump_into_finally_block"}},
}

// uncounted returns the tests of a module that are listed as not counted.
func uncounted(minor int, module string) map[string]bool {
	tests := map[string]bool{}
	for _, s := range notCounted {
		if s.module == module && s.within(minor) {
			for _, test := range s.tests {
				tests["test."+module+"."+test] = true
			}
		}
	}
	return tests
}
