package agent

// The shapes of the Agent's /v0.7/config, in JSON as encoding/json has it: bytes are base64.
// Source: datadog-agent's pkg/proto/datadog/remoteconfig/remoteconfig.proto, messages
// ClientGetConfigsRequest and ClientGetConfigsResponse.

type request struct {
	Client            client       `json:"client"`
	CachedTargetFiles []cachedFile `json:"cached_target_files"`
}

type client struct {
	ID           string      `json:"id"`
	Products     []string    `json:"products"`
	State        clientState `json:"state"`
	IsTracer     bool        `json:"is_tracer"`
	Tracer       Tracer      `json:"client_tracer"`
	Capabilities []byte      `json:"capabilities"`
}

type clientState struct {
	RootVersion    int64         `json:"root_version"`
	TargetsVersion int64         `json:"targets_version"`
	ConfigStates   []configState `json:"config_states"`
	HasError       bool          `json:"has_error"`
	Error          string        `json:"error,omitempty"`
	BackendState   []byte        `json:"backend_client_state,omitempty"`
}

type configState struct {
	ID         string `json:"id"`
	Version    uint64 `json:"version"`
	Product    string `json:"product"`
	ApplyState uint64 `json:"apply_state"`
	ApplyError string `json:"apply_error,omitempty"`
}

type cachedFile struct {
	Path   string     `json:"path"`
	Length uint64     `json:"length"`
	Hashes []fileHash `json:"hashes"`
}

type fileHash struct {
	Algorithm string `json:"algorithm"`
	Hash      string `json:"hash"` // hexadecimal: the Agent refuses a request that has another
}

// A Tracer is what a client says about the program that it is in. The backend chooses by it which
// configurations to send.
type Tracer struct {
	RuntimeID  string   `json:"runtime_id"`
	Language   string   `json:"language"`
	Version    string   `json:"tracer_version"`
	Service    string   `json:"service"`
	Env        string   `json:"env"`
	AppVersion string   `json:"app_version"`
	Tags       []string `json:"tags"` // "key:value"
}

type response struct {
	Roots         [][]byte     `json:"roots"`
	Targets       []byte       `json:"targets"`
	TargetFiles   []targetFile `json:"target_files"`
	ClientConfigs []string     `json:"client_configs"`
}

type targetFile struct {
	Path string `json:"path"`
	Raw  []byte `json:"raw"`
}
