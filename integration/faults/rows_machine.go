package faults

import (
	"context"
	"time"
)

// machineFaults are the rows of machines that end and start again.
func machineFaults() []Fault {
	reboot := func(powerCut bool) func(context.Context, *Stage) error {
		return func(ctx context.Context, s *Stage) error {
			if err := s.Node.Reboot(powerCut); err != nil {
				return err
			}
			_, err := s.Node.Boot(ctx)
			return err
		}
	}
	// micad starts again with the machine
	restore := func(ctx context.Context, s *Stage) error {
		if err := s.fault.Strike(ctx, s); err != nil {
			return err
		}
		if s.fault.Lift == nil {
			return nil
		}
		time.Sleep(s.fault.Hold)
		return s.fault.Lift(ctx, s)
	}
	return []Fault{
		{Name: "power cut", Options: ownDisk, Reboots: true, Strike: reboot(true),
			Restore: restore},
		{Name: "reboot", Reboots: true, Strike: reboot(false), Restore: restore},
		{
			Name: "reboot without registry", Reboots: true, Whole: true, Hold: outage, Restore: restore,
			Strike: func(ctx context.Context, s *Stage) error {
				ctx, cancel := context.WithTimeout(ctx, 2*grace)
				defer cancel()
				if err := s.Registry.Down(); err != nil {
					return err
				}
				if err := reboot(false)(ctx, s); err != nil {
					return err
				}
				// an image that is whole needs no registry
				err := s.run(ctx, Idle, "-offline")
				if err == nil {
					_, err = s.load(Idle).Finish(ctx)
				}
				s.trouble(Idle, err)
				return nil
			},
			Lift: func(_ context.Context, s *Stage) error { return s.Registry.Up() },
		},
	}
}
