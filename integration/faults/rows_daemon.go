package faults

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mica-snapshotter/mica/integration/node"
)

// daemonFaults are the rows of daemons that end. upgrade is the path of a micad
// whose version is UpgradedVersion.
func daemonFaults(upgrade string) []Fault {
	return []Fault{
		signalled("SIGKILL", syscall.SIGKILL),
		signalled("SIGTERM", syscall.SIGTERM),
		signalled("panic", syscall.SIGABRT),
		upgraded(upgrade),
		{
			Name: "containerd killed",
			Strike: func(ctx context.Context, s *Stage) error {
				s.Node.KillContainerd()
				return s.Node.StartContainerd(ctx)
			},
		},
	}
}

// signalled ends micad by a signal. A Go program ends by SIGABRT as it does by
// a panic: it prints its goroutines, and nothing is closed in order.
func signalled(name string, sig syscall.Signal) Fault {
	return Fault{
		Name: name,
		Strike: func(ctx context.Context, s *Stage) error {
			old, err := s.Node.SignalMicad(sig)
			if err != nil {
				return err
			}
			return s.Node.AwaitMicad(ctx, old, false)
		},
		Restore: func(ctx context.Context, s *Stage) error {
			for i := range 5 { // a restart that is struck a while after it began
				old, err := s.Node.SignalMicad(syscall.SIGKILL)
				if err != nil {
					return err
				}
				time.Sleep(time.Duration(i) * 20 * time.Millisecond)
				if pid := s.Node.MicadPID(); pid != 0 && pid != old {
					_ = syscall.Kill(pid, sig) // it may have ended
				}
				if err := s.Node.AwaitMicad(ctx, old, false); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// UpgradedVersion is what the micad of row upgrade says of itself.
const UpgradedVersion = "upgraded"

func upgraded(binary string) Fault {
	check := func(ctx context.Context, s *Stage) error {
		info, err := s.Node.Info(ctx)
		if err == nil && info.Version != UpgradedVersion {
			err = fmt.Errorf("micad's version is %s after the upgrade", info.Version)
		}
		return err
	}
	upgrade := func(ctx context.Context, s *Stage) error {
		if err := s.Node.Upgrade(ctx, binary); err != nil {
			return err
		}
		return check(ctx, s)
	}
	return Fault{
		Name: "upgrade",
		Options: func(o *node.Options) {
			o.MicadBinary = filepath.Join(filepath.Dir(binary), "installed", "micad")
		},
		Strike: upgrade,
		Restore: func(ctx context.Context, s *Stage) error {
			if _, err := s.Node.SignalMicad(syscall.SIGKILL); err != nil {
				return err
			}
			return upgrade(ctx, s)
		},
	}
}
