package libtest

// versions are minor versions of Python 3, from first to last; 0 is no bound.
type versions struct{ first, last int }

func (v versions) within(minor int) bool {
	return minor >= v.first && (v.last == 0 || minor <= v.last)
}

var everywhere versions

// A module is one part of CPython's test suite.
type module struct {
	name string
	versions
	quick bool // `make test` runs it too
}

const quick, long = true, false

// modules test the language, what looks at frames, code objects and bytecode, and the part of the
// library that is written in Python. Those that are left out of the versions that have them are
// doctests alone there, of which the runner reports no outcomes, but for test_atexit: up to 3.10 it
// clears what is registered with atexit in its own process, by which the engine's state is saved.
var modules = []module{
	{"test_generators", everywhere, quick},
	{"test_coroutines", everywhere, quick},
	{"test_asyncgen", everywhere, long},
	{"test_exceptions", everywhere, long},
	{"test_traceback", everywhere, long},
	{"test_dis", everywhere, long},
	{"test_sys_settrace", everywhere, long},
	{"test_inspect", everywhere, long},
	{"test_dataclasses", everywhere, long},
	{"test_functools", everywhere, long},
	{"test_json", everywhere, long},
	{"test_re", everywhere, long},
	{"test_decimal", everywhere, long},
	{"test_threading", everywhere, long},
	{"test_asyncio", everywhere, long},
	{"test_code", everywhere, long},
	{"test_sys_setprofile", everywhere, long},
	{"test_sys", everywhere, long},
	{"test_contextlib", everywhere, long},
	{"test_contextlib_async", everywhere, long},
	{"test_collections", everywhere, long},
	{"test_enum", everywhere, long},
	{"test_typing", everywhere, long},
	{"test_descr", everywhere, long},
	{"test_super", everywhere, long},
	{"test_scope", everywhere, long},
	{"test_with", everywhere, long},
	{"test_raise", everywhere, long},
	{"test_except_star", versions{first: 11}, long},
	{"test_patma", versions{first: 10}, long},
	{"test_monitoring", versions{first: 12}, long},
	{"test_bdb", everywhere, long},
	{"test_pdb", everywhere, long},
	{"test_doctest", everywhere, long},
	{"test_unittest", everywhere, long},
	{"test_pickle", everywhere, long},
	{"test_copy", everywhere, long},
	{"test_weakref", everywhere, long},
	{"test_gc", everywhere, long},
	{"test_frame", everywhere, long},
	{"test_compile", everywhere, long},
	{"test_extcall", versions{first: 11}, long},
	{"test_types", everywhere, long},
	{"test_yield_from", everywhere, long},
	{"test_grammar", everywhere, long},
	{"test_class", everywhere, long},
	{"test_property", everywhere, long},
	{"test_decorators", everywhere, long},
	{"test_metaclass", versions{first: 11}, long},
	{"test_argparse", everywhere, long},
	{"test_configparser", everywhere, long},
	{"test_fractions", everywhere, long},
	{"test_queue", everywhere, long},
	{"test_importlib", everywhere, long},
	{"test_import", everywhere, long},
	{"test_textwrap", everywhere, long},
	{"test_urlparse", everywhere, long},
	{"test_email", everywhere, long},
	{"test_ast", everywhere, long},
	{"test_tempfile", everywhere, long},
	{"test_signal", everywhere, long},
	{"test_faulthandler", everywhere, long},
	{"test_trace", everywhere, long},
	{"test_cprofile", versions{last: 14}, long},
	{"test_profile", everywhere, long},
	{"test_atexit", versions{first: 11}, long},
	{"test_http_cookies", everywhere, long},
	{"test_csv", everywhere, long},
	{"test_abc", everywhere, long},
	{"test_marshal", everywhere, long},
	{"test_runpy", everywhere, long},
	{"test_site", everywhere, long},
	{"test_warnings", everywhere, long},
	{"test_context", everywhere, long},
	{"test_fork1", everywhere, long},
	{"test_builtin", everywhere, quick},
	{"test_call", everywhere, long},
	{"test_optparse", everywhere, long},
	{"test_tokenize", everywhere, long},
	{"test_named_expressions", everywhere, long},
	{"test_fstring", everywhere, long},
	{"test_opcodes", everywhere, long},
	{"test_type_params", versions{first: 12}, long},
	{"test_genexps", versions{first: 11}, long},
	{"test_pkgutil", everywhere, long},
	{"test_sqlite3", versions{first: 11}, long},
	{"test_heapq", everywhere, long},
}
