package observer_test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sca-probe/pkg/observer"
	"sca-probe/pkg/pyframes"
	"sca-probe/pkg/rc"
	"sca-probe/testenv"
)

// enterContainer makes $1, an empty folder, the root of a container, and runs what follows $5 in it. The
// file $4 is on an overlay there, as all of a container's files are; the folder $3 has what is in $2. $5 is
// the container's cgroup.
const enterContainer = `
root=$1 site=$2 shadowed=$3 file=$4 cgroup=$5; shift 5
echo 0 >"$cgroup/cgroup.procs"
mount --make-rprivate /
mount --rbind / "$root"
mount -t tmpfs none "$root/mnt"
mkdir "$root/mnt/lower" "$root/mnt/upper" "$root/mnt/work" "$root/mnt/service" "$root/mnt/old"
cp "$file" "$root/mnt/lower"
mount -t overlay none -o "lowerdir=$root/mnt/lower,upperdir=$root/mnt/upper,workdir=$root/mnt/work" "$root/mnt/service"
mount -t tmpfs none "$root$shadowed"
cp -r "$site/." "$root$shadowed"
pivot_root "$root" "$root/mnt/old"
umount -l /mnt/old
exec "$@"
`

// TestContainers has every command look at processes with mounts, PIDs, users and a root of their own, in
// which a path is that of another file on the node.
func TestContainers(t *testing.T) {
	static, shared := debian(t), sharedBuild(t)
	library, err := pyframes.OpenInterpreter(shared.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in   testenv.Interpreter
		file string
		run  []string
	}{
		"program": {static, static.Path, []string{"env", "PYTHONHOME=/usr"}},
		"library": {shared, library.Path, []string{"env", "LD_PRELOAD=/mnt/service/" + filepath.Base(library.Path)}},
	} {
		t.Run(name, func(t *testing.T) {
			site, shadowed := t.TempDir(), t.TempDir()
			write(t, site, parser)
			// The node has another release of the same distribution there.
			other := maps.Clone(parser)
			other["Fast_Parser-1.2.dist-info/METADATA"] = "Name: Fast.Parser\nVersion: 9.9\n"
			delete(other, "Fast_Parser-1.2.dist-info/RECORD")
			write(t, shadowed, other)
			id, cgroup := containerCgroup(t)
			in := c.in
			if name == "program" {
				in.Path = "/mnt/service/" + filepath.Base(c.file)
			}
			s := testenv.StartSubject(t, in,
				testenv.WithNamespaces(syscall.CLONE_NEWPID|syscall.CLONE_NEWNS|syscall.CLONE_NEWUSER|syscall.CLONE_NEWIPC|syscall.CLONE_NEWUTS|syscall.CLONE_NEWNET|syscall.CLONE_NEWCGROUP),
				testenv.WithPrefix(append([]string{"sh", "-ec", enterContainer, "sh", t.TempDir(), site, shadowed, c.file, cgroup}, c.run...)...),
				testenv.WithEnv("PYTHONPATH="+shadowed))
			s.Exec("import fp; fp.parse(1)")
			listed := observe(t, s)
			if listed.Path != "/mnt/service/"+filepath.Base(c.file) || listed.Container != id {
				t.Errorf("listed as %s in container %q, want it in %q", listed.Path, listed.Container, id)
			}
			if want := fmt.Sprint(s.Eval("os.getpid()")); fmt.Sprint(listed.NamespacePID) != want || listed.NamespacePID == s.PID() {
				t.Errorf("PID %d in its namespace; the process itself says %s, and this test %d", listed.NamespacePID, want, s.PID())
			}
			g := group(t, functionsOf(t, s, observer.FunctionQuery{Package: "fast-parser"}), "Fast.Parser 1.2")
			if g.Held != 6 || g.Executed == 0 {
				t.Errorf("held %d functions of which %d executed, want 6", g.Held, g.Executed)
			}
			resolved, err := observer.Resolve(t.Context(), s.PID(), []rc.Target{{Module: "fp", QualName: "Reader.read"}, {Module: "fp", QualName: "absent"}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if at := resolved[0].Location; at == nil || at.Code.String() != s.Eval("hex(id(fp.Reader.read.__code__))") || at.File != shadowed+"/fp/__init__.py" || at.FirstLine == 0 {
				t.Errorf("Reader.read resolves to %+v, %q", at, resolved[0].Error)
			}
			if resolved[1].Location != nil || resolved[1].Error == "" {
				t.Errorf("what is not there resolves to %+v", resolved[1])
			}
			following := follow(t, observer.FollowOptions{PID: s.PID(), Package: "fast-parser"})
			judged := verify(t, s, func() { s.Exec("fp.Reader().read()") }, "fp:parse", "fp:Reader.read")
			if judged[0].Verdict != observer.Executed || judged[1].Verdict != observer.Executed {
				t.Errorf("judged %+v, want that both executed", judged)
			}
			if told := following.stop(t); firsts(told, s.PID(), "fp", "Reader.read") != 1 {
				t.Errorf("follow told of %+v, want the first execution of Reader.read", told)
			}
			report := watch(t, s, observer.WatchOptions{Query: observer.FunctionQuery{Package: "fast-parser"}}, func() {
				s.Exec("fp.Reader().read()")
			})
			if len(report.Functions) != 1 || report.Functions[0].Package != "Fast.Parser 1.2" || report.Functions[0].Starts != 1 {
				t.Errorf("of the package watch counted %+v", report.Functions)
			}
		})
	}
}

// containerCgroup makes a cgroup of the form that container runtimes give a container, with its ID.
func containerCgroup(t *testing.T) (id, folder string) {
	t.Helper()
	top := "/sys/fs/cgroup"
	if _, err := os.Stat(top + "/cgroup.controllers"); err != nil {
		top += "/unified" // beside version 1
	}
	id = fmt.Sprintf("%x", sha256.Sum256([]byte(t.Name()+t.TempDir())))
	folder = filepath.Join(top, "sca-probe-test-"+id[:12], "docker-"+id+".scope")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		testenv.Missing(t, "no cgroup can be made: "+err.Error())
	}
	t.Cleanup(func() {
		for _, f := range []string{folder, filepath.Dir(folder)} {
			if err := os.Remove(f); err != nil && !strings.Contains(err.Error(), "busy") {
				t.Error(err)
			}
		}
	})
	return id, folder
}
