//go:build !faults

package patch

// injectFault does nothing but in a build for tests (faults.go).
func injectFault(string) {}
