//go:build faults

package patch

import "os"

// injectFault fails as a bug would where SCA_PROBE_FAULT names the place: a build for tests has it.
func injectFault(place string) {
	if os.Getenv("SCA_PROBE_FAULT") == place {
		var nowhere *int
		*nowhere = 1
	}
}
