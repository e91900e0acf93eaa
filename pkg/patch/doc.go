// Package patch is the engine's logic: it keeps the functions of a Python process
// as Remote Configuration wants them.
//
// A [Reconciler] compares the desired set with what is in place and closes the
// difference, again and again. A late import, a reloaded module and a repeated or
// partial update are therefore one case, and applying the same set twice changes
// nothing. What it changes, it changes through a [Host], the running interpreter;
// the bytecode itself is rewritten by package bytecode.
package patch
