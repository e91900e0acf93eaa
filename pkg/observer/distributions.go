package observer

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A Distribution is a Python package as an installer put it in place.
type Distribution struct {
	Name    string `json:"name"`    // as its metadata spells it
	Version string `json:"version"` // "" when its metadata does not say
}

// String returns "requests 2.31.0".
func (d *Distribution) String() string { return strings.TrimSpace(d.Name + " " + d.Version) }

// isNamed reports whether a name, in any spelling, is the distribution's.
func (d *Distribution) isNamed(name string) bool { return normalised(d.Name) == normalised(name) }

// An origin is where the functions of a process come from, by the files of its distributions.
type origin struct {
	installed []*Distribution
	files     map[string]*Distribution // by path, as in co_filename
	folders   map[string]*Distribution // editable installs: what lies under a path
	packages  map[string]*Distribution // by path, without the file list of an installer
	standard  []string                 // folders and archives of the standard library
	search    []string                 // sys.path, without what is no absolute path
	bundle    string                   // of a program that PyInstaller made: what relative paths are relative to
	warnings  []string
}

// landmark is the file by which CPython itself knows the folder of its standard library.
const landmark = "os.py"

// readOrigin reads what is installed on the search path of a process, in the process's own view of
// the file system. What cannot be read is a warning, and its functions belong to no distribution.
func readOrigin(pid int, search []string, bundle string) *origin {
	o := &origin{
		bundle: bundle,
		files:  map[string]*Distribution{}, folders: map[string]*Distribution{}, packages: map[string]*Distribution{},
	}
	root, err := openRoot(pid)
	if err != nil {
		o.warn("what is installed cannot be told: %v", err)
		return o
	}
	defer root.Close()
	for _, folder := range search {
		if !path.IsAbs(folder) {
			continue // relative to a working folder that may have changed
		}
		folder = path.Clean(folder)
		if slices.Contains(o.search, folder) {
			continue
		}
		o.search = append(o.search, folder)
		if standardArchive.MatchString(path.Base(folder)) {
			o.standard = append(o.standard, folder)
			continue
		}
		o.readFolder(root, folder)
	}
	return o
}

// standardArchive is the name of the archive that may hold the standard library.
var standardArchive = regexp.MustCompile(`^python3[0-9]+\.zip$`)

func (o *origin) warn(format string, args ...any) {
	o.warnings = append(o.warnings, fmt.Sprintf(format, args...))
}

func (o *origin) readFolder(root *processRoot, folder string) {
	entries, err := root.readDir(folder)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case errors.Is(err, unix.ENOTDIR):
		o.readArchive(root, folder)
		return
	case err != nil:
		o.warn("what is installed in %s cannot be told: %v", folder, err)
		return
	}
	for _, entry := range entries {
		if entry.Name() == landmark {
			o.standard = append(o.standard, folder)
		}
		o.readEntry(root, folder, entry.Name())
	}
}

// readArchive reads what is installed in an archive that is imported from: a zipapp.
func (o *origin) readArchive(root *processRoot, path string) {
	a, err := root.openArchive(path)
	if err != nil {
		o.warn("what is installed in %s cannot be told: %v", path, err)
		return
	}
	defer a.Close()
	for _, name := range a.top() {
		o.readEntry(a, path, name)
	}
}

// readEntry reads a distribution, if that is what an entry of a folder or archive is.
func (o *origin) readEntry(in tree, folder, name string) {
	if !strings.HasSuffix(name, ".dist-info") && !strings.HasSuffix(name, ".egg-info") && name != "EGG-INFO" {
		return
	}
	if err := o.readMetadata(in, folder, name); err != nil {
		o.warn("%s cannot be told apart: %v", path.Join(folder, name), err)
	}
}

// readMetadata reads one distribution: the Core Metadata in METADATA, PKG-INFO or an egg-info that is
// a file, and its files from RECORD or installed-files.txt. One without either (Debian's) owns the
// packages in its top_level.txt, or the package of its own name.
func (o *origin) readMetadata(in tree, folder, name string) error {
	base := path.Join(folder, name)
	metadata, err := firstOf(in, path.Join(base, "METADATA"), path.Join(base, "PKG-INFO"), base)
	if err != nil {
		return err
	}
	distribution := parseMetadata(metadata)
	if distribution.Name == "" {
		return errors.New("its metadata has no name")
	}
	o.installed = append(o.installed, distribution)

	files, err := installedFiles(in, folder, base)
	if err != nil {
		return err
	}
	for _, file := range files {
		o.files[file] = distribution
	}
	if len(files) == 0 {
		names := []string{strings.ReplaceAll(normalised(distribution.Name), "-", "_")}
		if list, err := in.readFile(path.Join(base, "top_level.txt")); err == nil {
			names = strings.Fields(string(list))
		}
		for _, name := range names {
			o.packages[path.Join(folder, name)] = distribution
		}
	}
	if list, err := in.readFile(path.Join(base, "direct_url.json")); err == nil {
		if folder, ok := editableFolder(list); ok {
			o.folders[folder] = distribution
		}
	}
	return nil
}

// parseMetadata reads the Core Metadata's headers, which end at an empty line.
func parseMetadata(content []byte) *Distribution {
	d := &Distribution{}
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() && lines.Text() != "" {
		name, value, _ := strings.Cut(lines.Text(), ":")
		switch strings.ToLower(name) {
		case "name":
			d.Name = strings.TrimSpace(value)
		case "version":
			d.Version = strings.TrimSpace(value)
		}
	}
	return d
}

// editableFolder returns the folder that an editable install leads to (PEP 610).
func editableFolder(content []byte) (string, bool) {
	var direct struct {
		URL     string `json:"url"`
		DirInfo struct {
			Editable bool `json:"editable"`
		} `json:"dir_info"`
	}
	if json.Unmarshal(content, &direct) != nil || !direct.DirInfo.Editable {
		return "", false
	}
	location, err := url.Parse(direct.URL)
	if err != nil || location.Scheme != "file" || location.Path == "" || location.Path == "/" {
		return "", false
	}
	return path.Clean(location.Path), true
}

// of returns the distribution that a file belongs to, nil when to none, and whether it is the standard
// library's.
func (o *origin) of(file string) (d *Distribution, standard bool) {
	if strings.HasPrefix(file, "<frozen ") {
		return nil, true
	}
	file = o.absolute(file)
	if d := o.files[file]; d != nil {
		return d, false
	}
	// A package without its file list is one file or a folder.
	if d := o.packages[strings.TrimSuffix(file, ".py")]; d != nil {
		return d, false
	}
	for folder := range ancestors(file) {
		if d := o.packages[folder]; d != nil {
			return d, false
		}
	}
	entry := o.entryOf(file)
	if slices.Contains(o.standard, entry) {
		return nil, true
	}
	if base := path.Base(entry); base == "site-packages" || base == "dist-packages" {
		return nil, false // such a folder may lie in the one of an editable install
	}
	for folder := range ancestors(file) {
		if d := o.folders[folder]; d != nil {
			return d, false
		}
	}
	return nil, false
}

// absolute is the path of a file in a bundle, whose code objects have it from there.
func (o *origin) absolute(file string) string {
	if o.bundle != "" && !path.IsAbs(file) {
		return path.Join(o.bundle, file)
	}
	return file
}

// ancestors are the folders that a file is in, the innermost first, without the root.
func ancestors(file string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for folder := path.Dir(file); folder != "/" && folder != "." && yield(folder); folder = path.Dir(folder) {
		}
	}
}

// entryOf returns the innermost entry of sys.path that a file is under, "" when it is under none.
func (o *origin) entryOf(file string) (entry string) {
	for _, folder := range o.search {
		rest, ok := strings.CutPrefix(file, strings.TrimSuffix(folder, "/")+"/")
		// What is in such a folder is not imported from the one around it.
		if ok && len(folder) > len(entry) && !strings.HasPrefix(rest, "site-packages/") && !strings.HasPrefix(rest, "dist-packages/") {
			entry = folder
		}
	}
	return entry
}

// module returns the module that a file is imported as, "" when it is under no entry of sys.path.
func (o *origin) module(file string) string {
	if name, ok := strings.CutPrefix(file, "<frozen "); ok {
		return strings.TrimSuffix(name, ">")
	}
	file = o.absolute(file)
	entry := o.entryOf(file)
	if entry == "" {
		return ""
	}
	name := strings.TrimSuffix(strings.TrimPrefix(file[len(entry):], "/"), ".py")
	return strings.TrimSuffix(strings.ReplaceAll(name, "/", "."), ".__init__")
}

var separators = regexp.MustCompile(`[-_.]+`)

// normalised is a distribution's name as names are compared (PEP 503).
func normalised(name string) string {
	return strings.ToLower(separators.ReplaceAllString(name, "-"))
}

// A tree is where files can be read by path: a process's root, or an archive in it.
type tree interface {
	readFile(name string) ([]byte, error)
}

// firstOf reads the first of some files that there is.
func firstOf(in tree, names ...string) (content []byte, err error) {
	for _, name := range names {
		content, err = in.readFile(name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return content, err
		}
	}
	return nil, err
}

// installedFiles returns the Python files that an installer noted down, as absolute paths.
func installedFiles(in tree, folder, base string) ([]string, error) {
	var files []string
	add := func(folder, file string) {
		if strings.HasSuffix(file, ".py") {
			if !path.IsAbs(file) {
				file = path.Join(folder, file)
			}
			files = append(files, path.Clean(file))
		}
	}
	record, err := in.readFile(path.Join(base, "RECORD"))
	if err == nil {
		rows := csv.NewReader(bytes.NewReader(record))
		rows.FieldsPerRecord, rows.LazyQuotes, rows.ReuseRecord = -1, true, true
		for {
			row, err := rows.Read()
			if errors.Is(err, io.EOF) {
				return files, nil
			}
			if err != nil {
				return nil, fmt.Errorf("reading RECORD: %w", err)
			}
			add(folder, row[0])
		}
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return nil, err
	}
	list, err := in.readFile(path.Join(base, "installed-files.txt"))
	if err != nil {
		return nil, nil // it has neither
	}
	for _, file := range strings.Split(string(list), "\n") {
		add(base, file)
	}
	return files, nil
}
