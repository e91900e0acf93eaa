//go:build !agent

package main

import (
	"errors"

	"sca-probe/pkg/rc"
)

// agentSource is in the other build of the reconciler, which the extension loads where it is needed.
func agentSource() (rc.Source, error) {
	return nil, errors.New("this build of the reconciler has no client of the Datadog Agent")
}
