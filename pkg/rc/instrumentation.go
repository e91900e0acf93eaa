package rc

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Bounds of what may be said about one target.
const (
	MaxPackageLength  = 256 // bytes
	MaxAdvisoryLength = 128 // bytes
	MaxAdvisories     = 64
)

// A Mode is what is wanted of a target's calls.
type Mode string

// The modes. A payload that does not say means Count.
const (
	Count    Mode = "count"     // every call counts
	FirstHit Mode = "first_hit" // whether it was called, and from where; later calls may go uncounted
)

// An Instrumentation is a target with what is wanted of it and why. In a payload it is either the
// target alone, a string, or
//
//	{"target": "a.b:C.m", "package": "requests", "advisories": ["GHSA-…"], "mode": "first_hit"}
//
// of which all but the target may be left out.
//
// A target that is named more than once is one Instrumentation: it counts if any of them counts,
// which says more than the first hit does, and has the advisories of all. They may not name
// different packages, since an advisory is about one.
type Instrumentation struct {
	Target
	Mode Mode
	// Package is the distribution that the target is of, as a package index names it; empty if
	// the payload does not say.
	Package string
	// Advisories identify the vulnerabilities of Package that calling the target reaches.
	Advisories []string
}

// Equal reports whether both ask for the same, for the same reasons.
func (i Instrumentation) Equal(other Instrumentation) bool {
	return i.Target == other.Target && i.Mode == other.Mode && i.Package == other.Package &&
		slices.Equal(i.Advisories, other.Advisories)
}

// MarshalJSON returns the object form. Without it, Target's text form would be all there is.
func (i Instrumentation) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Target     Target   `json:"target"`
		Package    string   `json:"package,omitempty"`
		Advisories []string `json:"advisories,omitempty"`
		Mode       Mode     `json:"mode,omitempty"`
	}{i.Target, i.Package, i.Advisories, i.Mode})
}

// addAdvisory adds an advisory that is not there yet.
func (i *Instrumentation) addAdvisory(advisory string) error {
	switch {
	case advisory == "":
		return fmt.Errorf("an advisory of %s is empty", i.Target)
	case len(advisory) > MaxAdvisoryLength:
		return fmt.Errorf("an advisory of %s has %d bytes, the limit is %d", i.Target, len(advisory), MaxAdvisoryLength)
	case strings.ContainsFunc(advisory, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		return fmt.Errorf("advisory %q of %s has a character that identifiers do not have", advisory, i.Target)
	case slices.Contains(i.Advisories, advisory):
		return nil
	case len(i.Advisories) == MaxAdvisories:
		return fmt.Errorf("%s has more than the limit of %d advisories", i.Target, MaxAdvisories)
	}
	i.Advisories = append(i.Advisories, advisory)
	return nil
}

// checkPackage refuses what is no distribution's name: those have ASCII letters, digits, ".", "_"
// and "-" (packaging.python.org, "Names and normalization").
func checkPackage(name string) error {
	if len(name) > MaxPackageLength {
		return fmt.Errorf("a package name of %d bytes is longer than the limit of %d", len(name), MaxPackageLength)
	}
	strange := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	}
	if name == "" || strings.ContainsFunc(name, strange) {
		return fmt.Errorf("%q is not the name of a package", name)
	}
	return nil
}

// A union is a list of instrumentations in which each target stands once.
type union struct {
	targets []Instrumentation
	index   map[Target]int // nil while targets are somebody else's, whose they stay
}

func newUnion() *union { return &union{targets: []Instrumentation{}} }

// add adds an instrumentation, or unites it with the one of the same target.
func (u *union) add(added Instrumentation) error {
	u.own()
	united, err := u.united(added)
	if err == nil {
		u.put(united)
	}
	return err
}

// addAll adds instrumentations, of which no two have the same target, or leaves the union as it was.
// It does not copy the first ones: mostly there is one configuration, of which this is the union.
func (u *union) addAll(added []Instrumentation) error {
	if len(added) == 0 {
		return nil
	}
	if len(u.targets) == 0 {
		u.targets, u.index = added, nil
		return nil
	}
	u.own()
	united := make([]Instrumentation, 0, len(added))
	more := 0
	for _, instrumentation := range added {
		if _, found := u.index[instrumentation.Target]; !found {
			more++
		}
		result, err := u.united(instrumentation)
		if err != nil {
			return err
		}
		united = append(united, result)
	}
	if len(u.targets)+more > MaxTargets {
		return fmt.Errorf("together with the configurations before it, it has more than the limit of %d targets", MaxTargets)
	}
	for _, instrumentation := range united {
		u.put(instrumentation)
	}
	return nil
}

func (u *union) own() {
	if u.index != nil {
		return
	}
	u.targets, u.index = slices.Clone(u.targets), make(map[Target]int, len(u.targets))
	for i, instrumentation := range u.targets {
		u.index[instrumentation.Target] = i
	}
}

func (u *union) put(instrumentation Instrumentation) {
	if at, found := u.index[instrumentation.Target]; found {
		u.targets[at] = instrumentation
		return
	}
	u.index[instrumentation.Target] = len(u.targets)
	u.targets = append(u.targets, instrumentation)
}

// united returns what an instrumentation is together with the one of the same target, if any.
func (u *union) united(added Instrumentation) (Instrumentation, error) {
	at, found := u.index[added.Target]
	if !found {
		return added, nil
	}
	united := u.targets[at]
	if added.Mode != FirstHit {
		united.Mode = added.Mode
	}
	switch {
	case added.Package == "":
	case united.Package == "":
		united.Package = added.Package
	case united.Package != added.Package:
		return united, fmt.Errorf("%s is of package %q here and of %q elsewhere", added.Target, added.Package, united.Package)
	}
	united.Advisories = slices.Clip(united.Advisories)
	for _, advisory := range added.Advisories {
		if err := united.addAdvisory(advisory); err != nil {
			return united, err
		}
	}
	return united, nil
}
