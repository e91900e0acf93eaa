// Package rc is Remote Configuration: where targets come from.
//
// A [Source] yields the whole desired set each time it changes, never a change to it, so that a
// repeated, lost or reordered update does no harm: whoever acts on it compares the set with what
// is there. The payload is
//
//	{"sca_instrumentation": {"targets": [
//	    "module.submodule:function",
//	    {"target": "package.module:Class.method", "package": "requests", "advisories": ["GHSA-…"], "mode": "first_hit"}
//	]}}
package rc
