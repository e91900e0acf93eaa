//go:build agent

package main

import (
	"os"

	"sca-probe/pkg/rc"
	"sca-probe/pkg/rc/agent"
)

// agentSource follows the Datadog Agent that the environment names.
func agentSource() (rc.Source, error) {
	config, err := agent.FromEnvironment(os.Getenv)
	if err != nil {
		return nil, err
	}
	return agent.NewSource(config)
}
