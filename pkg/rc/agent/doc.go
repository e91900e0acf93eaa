// Package agent is Remote Configuration from a Datadog Agent: a client of its /v0.7/config, as
// the tracers have one.
//
// The client names the product that it wants, and with each poll what it has already: the
// version of the targets file, the files by their hashes, and what became of each configuration.
// The Agent answers with what is new. TUF signatures are the Agent's to verify, not its clients'
// (no tracer does); versions, lengths and hashes are checked, and an answer in which they do not
// match is refused whole.
//
// It is a package of its own for its size: what it needs (net/http and TLS above all) is larger
// than the engine.
package agent
