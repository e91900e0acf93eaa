package agent

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/DataDog/datadog-agent/pkg/remoteconfig/state"

	"sca-probe/pkg/rc"
)

const (
	// maxCached bounds the files of all configurations together, in bytes.
	maxCached = 32 << 20
	// maxReason bounds an error that goes back to the Agent, in bytes.
	maxReason = 1024
)

// panicked begins the error of an answer that the Repository could not take.
const panicked = "the answer cannot be read"

// stored is the product under which the Repository has our files. It refuses products that it
// does not know, DEBUG among them, and decodes some of those that it knows; this one it stores
// as it comes.
const stored = state.ProductTesting1

// A repository is what the client has of one product, and what it says about that.
type repository struct {
	product string
	state   *state.Repository
	err     error // why the last answer was refused
}

func newRepository(product string) (*repository, error) {
	unverified, err := state.NewUnverifiedRepository()
	if err != nil {
		return nil, err
	}
	return &repository{product: product, state: unverified}, nil
}

// update takes an answer, or refuses it whole.
func (r *repository) update(answer response) error {
	r.err = r.take(answer)
	return r.err
}

func (r *repository) take(answer response) (err error) {
	// What the Agent sent is read by code that is not ours, in a process that is not ours.
	defer func() {
		if failure := recover(); failure != nil {
			err = fmt.Errorf("%s: %v", panicked, failure)
		}
	}()
	if len(answer.Targets) == 0 && len(answer.ClientConfigs) == 0 {
		return nil // nothing new
	}
	var wanted []string
	for _, path := range answer.ClientConfigs {
		if product, _ := cutProduct(path); product == r.product {
			wanted = append(wanted, path)
		}
	}
	if len(wanted) > rc.MaxConfigurations {
		return fmt.Errorf("%d configurations are more than the limit of %d", len(wanted), rc.MaxConfigurations)
	}
	targets, err := storedTargets(answer.Targets, wanted)
	if err != nil {
		return fmt.Errorf("the targets file: %w", err)
	}
	update := state.Update{TUFRoots: answer.Roots, TUFTargets: targets, TargetFiles: map[string][]byte{}}
	for _, path := range wanted {
		update.ClientConfigs = append(update.ClientConfigs, withProduct(path, stored))
	}
	for _, file := range answer.TargetFiles {
		if slices.Contains(wanted, file.Path) {
			update.TargetFiles[withProduct(file.Path, stored)] = file.Raw
		}
	}
	_, err = r.state.Update(update)
	return err
}

// storedTargets returns a targets file with the wanted files alone, under the product that they
// are stored under.
func storedTargets(raw []byte, wanted []string) ([]byte, error) {
	var file struct {
		Signed map[string]json.RawMessage `json:"signed"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if list := file.Signed["targets"]; list != nil {
		if err := json.Unmarshal(list, &all); err != nil {
			return nil, err
		}
	}
	ours := map[string]json.RawMessage{}
	var total int64
	for _, path := range wanted {
		target, found := all[path]
		if !found {
			return nil, fmt.Errorf("%s is not in it", path)
		}
		var meta struct {
			Length int64 `json:"length"`
		}
		if err := json.Unmarshal(target, &meta); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if meta.Length < 0 || meta.Length > maxCached-total {
			return nil, fmt.Errorf("its configurations have more than the limit of %d bytes", maxCached)
		}
		total += meta.Length
		ours[withProduct(path, stored)] = target
	}
	list, err := json.Marshal(ours)
	if err != nil {
		return nil, err
	}
	if file.Signed == nil {
		file.Signed = map[string]json.RawMessage{}
	}
	file.Signed["targets"] = list
	return json.Marshal(file)
}

// files returns the configurations by their paths.
func (r *repository) files() map[string][]byte {
	files := map[string][]byte{}
	for path, config := range r.state.GetConfigs(stored) {
		files[withProduct(path, r.product)] = config.Config
	}
	return files
}

// describe returns what the client says of itself: what it has, and what became of that.
func (r *repository) describe(states map[string]rc.State) (clientState, []cachedFile, error) {
	for path, s := range states {
		status := state.ApplyStatus{State: state.ApplyStateUnacknowledged}
		switch {
		case s.Err != nil:
			status = state.ApplyStatus{State: state.ApplyStateError, Error: reason(s.Err)}
		case s.Applied:
			status.State = state.ApplyStateAcknowledged
		}
		r.state.UpdateApplyStatus(withProduct(path, stored), status)
	}
	current, err := r.state.CurrentState()
	if err != nil {
		return clientState{}, nil, err
	}
	said := clientState{
		RootVersion:    current.RootsVersion,
		TargetsVersion: current.TargetsVersion,
		ConfigStates:   []configState{},
		BackendState:   current.OpaqueBackendState,
	}
	if r.err != nil {
		said.HasError, said.Error = true, reason(r.err)
	}
	for _, config := range current.Configs {
		said.ConfigStates = append(said.ConfigStates, configState{
			ID: config.ID, Version: config.Version, Product: r.product,
			ApplyState: uint64(config.ApplyStatus.State), ApplyError: config.ApplyStatus.Error,
		})
	}
	cached := []cachedFile{}
	for _, file := range current.CachedFiles {
		hashes := []fileHash{}
		for _, algorithm := range slices.Sorted(maps.Keys(file.Hashes)) {
			hashes = append(hashes, fileHash{Algorithm: algorithm, Hash: hex.EncodeToString(file.Hashes[algorithm])})
		}
		cached = append(cached, cachedFile{Path: withProduct(file.Path, r.product), Length: file.Length, Hashes: hashes})
	}
	return said, cached, nil
}

func reason(err error) string {
	text := err.Error()
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "…"
	}
	return text
}

// cutProduct returns the product of a configuration's path, and where it stands among the path's
// parts: "datadog/ORG/PRODUCT/ID/NAME" or "employee/PRODUCT/ID/NAME". Others have none.
func cutProduct(path string) (product string, at int) {
	parts := strings.Split(path, "/")
	switch {
	case parts[0] == "datadog" && len(parts) == 5:
		return parts[2], 2
	case parts[0] == "employee" && len(parts) == 4:
		return parts[1], 1
	}
	return "", 0
}

// withProduct returns the path with another product.
func withProduct(path, product string) string {
	if _, at := cutProduct(path); at > 0 {
		parts := strings.Split(path, "/")
		parts[at] = product
		return strings.Join(parts, "/")
	}
	return path
}
