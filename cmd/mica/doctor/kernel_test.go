package doctor

import (
	"errors"
	"strings"
	"testing"

	"github.com/mica-snapshotter/mica/fs/erofs"
)

// kernelOf is what can be tried on a kernel: EROFS by the backing, "" where it does not work.
func kernelOf(by erofs.Backing, resend bool) erofs.Support {
	s := erofs.Support{Resend: resend, Checks: []erofs.Check{{Mode: erofs.ModeFuse}}}
	for _, mode := range []erofs.Mode{erofs.ModeLocal, erofs.ModeErofs} {
		for _, b := range []erofs.Backing{erofs.File, erofs.Loop} {
			c := erofs.Check{Mode: mode, Backing: b}
			if by == erofs.Auto || by == erofs.Loop && b == erofs.File {
				c.Err = errors.New("no such device")
			}
			s.Checks = append(s.Checks, c)
		}
	}
	return s
}

func TestKernel(t *testing.T) {
	for name, tc := range map[string]struct {
		support erofs.Support
		release string
		says    []string // "status: text", each of them in a finding
		not     []string // in none
	}{
		"new": {kernelOf(erofs.File, true), "6.18.44",
			[]string{"ok: mode erofs works (by file)", "ok: mode fuse works"},
			[]string{"warning: ", "error: "}},
		"before files": {kernelOf(erofs.Loop, true), "6.9.3-200.fc40.x86_64",
			[]string{"ok: mode erofs works, by two loop devices a layer (from Linux 6.12 on"},
			[]string{"warning: "}},
		"before resend": {kernelOf(erofs.Loop, false), "6.8.0-31-generic",
			[]string{"warning: 6.8.0-31-generic does not hand out", "reads of lazy layers fail",
				"Linux 6.9"},
			[]string{"exchange a mount"}},
		"resend by a distribution": {kernelOf(erofs.File, true), "5.14.0-503.el9.x86_64",
			[]string{"ok: mode erofs works"}, []string{"does not hand out"}},
		"before beneath": {kernelOf(erofs.Loop, false), "6.1.0-18-amd64",
			[]string{"warning: 6.1.0-18-amd64 cannot exchange a mount", "Linux 6.5 or later",
				"Linux 6.9"}, nil},
		"no modules": {kernelOf(erofs.Auto, false), "6.1.0-18-amd64",
			[]string{"warning: mode erofs", "Load the modules erofs and loop"}, nil},
		"no module": {kernelOf(erofs.Auto, true), "6.14",
			[]string{"Load the module erofs"}, []string{"loop ("}},
		"before devices": {kernelOf(erofs.Auto, false), "5.15.0-105-generic",
			[]string{"Linux 5.15 has no EROFS with several devices: Linux 5.16",
				"stay served by micad", "FUSE alone"},
			[]string{"Load the module", "ok: mode erofs"}},
		"no release": {kernelOf(erofs.File, true), "unknown", []string{"error: kernel release"},
			nil},
	} {
		t.Run(name, func(t *testing.T) {
			var f Findings
			f.kernel(tc.support, tc.release)
			var all strings.Builder
			for _, x := range f {
				all.WriteString(x.Status + ": " + x.Detail + "\n" + x.Fix + "\n")
			}
			for _, want := range tc.says {
				if !strings.Contains(all.String(), want) {
					t.Errorf("it does not say %q:\n%s", want, &all)
				}
			}
			for _, want := range tc.not {
				if strings.Contains(all.String(), want) {
					t.Errorf("it says %q:\n%s", want, &all)
				}
			}
		})
	}
}
