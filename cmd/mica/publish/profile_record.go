package publish

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mica-snapshotter/mica/cmd/mica/reach"
	"github.com/mica-snapshotter/mica/cmd/mica/rootfs"
	"github.com/mica-snapshotter/mica/cmd/mica/show"
	"github.com/mica-snapshotter/mica/fs"
	"github.com/mica-snapshotter/mica/fs/fetch"
	"github.com/mica-snapshotter/mica/fs/profile"
	"github.com/mica-snapshotter/mica/remote"
)

// calmPoll is how often mica profile record looks whether reads have calmed down.
const calmPoll = 50 * time.Millisecond

// Why a recorded container is ended.
var (
	errCalm    = errors.New("its reads have calmed down")
	errTimeout = errors.New("its time was up")
)

// profileRecord is one run of `mica profile record`.
type profileRecord struct {
	talk
	registry reach.Registry
	push     bool
	merge    bool
	output   string
	timeout  time.Duration
	calm     time.Duration
	said     io.Writer // what the container writes to its standard output
}

func profileRecordCommand() *cobra.Command {
	r := &profileRecord{}
	cmd := &cobra.Command{
		Use:   "record [flags] REF [-- ARG...]",
		Short: "Run a container of an image once and record what it reads",
		Long: `Runs a container of an image, without containerd, and records what it reads and in
which order. Arguments after -- take the place of the image's command (CMD); its
entrypoint stays. The container ends by itself, or when it has written something
and then has read nothing new for --calm, or after --timeout. It has the network of
this machine, and no limits. The image needs an index (mica index create --push).

Ends with 0: recorded; 1: failed; 2: wrong usage; 3: no layer has an index.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := r.begin(cmd); err != nil {
				return err
			}
			if r.calm <= 0 || r.timeout <= 0 {
				return show.WithCode(show.Usage,
					errors.New("--calm and --timeout must be positive durations"))
			}
			r.said = cmd.OutOrStdout()
			return r.run(cmd.Context(), args[0], args[1:])
		},
	}
	r.add(cmd)
	r.registry.AddImage(cmd)
	cmd.Flags().BoolVar(&r.push, "push", false, "publish the profile beside the image")
	cmd.Flags().BoolVar(&r.merge, "merge", true,
		"with --push: merge with the profile that is published; false: replace it")
	cmd.Flags().StringVarP(&r.output, "output", "o", "",
		"write the profile to a file, as JSON if its name ends so")
	cmd.Flags().DurationVar(&r.timeout, "timeout", time.Minute, "how long the container may run")
	cmd.Flags().DurationVar(&r.calm, "calm", 5*time.Second,
		"how long nothing new is read, after the first output, until the container is ended")
	return cmd
}

func (r *profileRecord) run(ctx context.Context, name string, args []string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("mounting needs root: run it with sudo")
	}
	r.registry.Stderr = r.bars
	client, err := r.registry.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	im, err := rootfs.Open(ctx, client, name, r.registry.Platform)
	if err != nil {
		return err
	}
	p, total, err := r.record(ctx, client, im, args)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(r.stdout, "%s: recorded %d ranges of %d layers, %s (%.1f%% of %s)\n",
		im.Ref(), len(p.Ranges), p.Layers(), show.Bytes(p.Bytes()),
		100*float64(p.Bytes())/float64(max(total, 1)), show.Bytes(total)); err != nil {
		return err
	}
	if r.output != "" {
		if err := writeProfile(r.output, p); err != nil {
			return err
		}
	}
	if r.push {
		return pushProfile(ctx, r.stdout, im.Image, im.Manifest, p, r.merge)
	}
	return nil
}

// record runs the container, and returns its profile and the image's bytes, uncompressed.
func (r *profileRecord) record(
	ctx context.Context, client *remote.Client, im *rootfs.Image, args []string,
) (p *profile.Profile, total int64, err error) {
	dir, err := os.MkdirTemp("", "mica-record-")
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	recorder := profile.NewRecorder(im.Manifest.Desc.Digest, nil)
	level := slog.LevelWarn
	if r.verbose {
		level = slog.LevelDebug
	}
	// Nothing but demand is fetched: a layer that completes before it is mounted needs no reads
	// that could be recorded.
	table, err := fs.Open(ctx, fs.Options{
		Root: filepath.Join(dir, "layers"), Remote: client, Mode: fs.Auto, Record: recorder.Read,
		Fetch: fetch.Options{Fill: fetch.None},
		Log:   slog.New(slog.NewTextHandler(r.stderr, &slog.HandlerOptions{Level: level})),
	})
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	below, unmount, err := rootfs.Mount(ctx, table, im.Layers)
	defer func() { err = errors.Join(err, unmount()) }()
	if err != nil {
		return nil, 0, err
	}
	for _, l := range table.Status() {
		total += l.Total
	}
	if err := r.start(ctx, below, dir, im.Config, args, recorder); err != nil {
		return nil, 0, err
	}
	if p = recorder.Profile(); len(p.Ranges) == 0 {
		return nil, 0, show.WithCode(show.Nothing, fmt.Errorf("nothing was recorded: layers "+
			"without an index are downloaded whole; make one with mica index create --push %s",
			im.Ref()))
	}
	return p, total, nil
}

// start runs the container over the layers until it or its time ends. What it writes goes to dir.
func (r *profileRecord) start(
	ctx context.Context, below []fs.Below, dir string, config ocispec.ImageConfig, args []string,
	recorder *profile.Recorder,
) (err error) {
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"empty", "upper", "work", "rootfs", "container"} {
		if err := os.Mkdir(at(name), 0o755); err != nil {
			return err
		}
	}
	o := rootfs.Overlay{Lower: below, Empty: at("empty"), Upper: at("upper"), Work: at("work")}
	if err := o.Mount(at("rootfs")); err != nil {
		return fmt.Errorf("%w: set TMPDIR to a folder on an ordinary file system", err)
	}
	defer func() {
		if e := unix.Unmount(at("rootfs"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", at("rootfs"), e))
		}
	}()
	c, err := newContainer(at("container"), at("rootfs"))
	if err != nil {
		return err
	}
	spec, err := c.spec(ctx, config, args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var first atomic.Pointer[time.Time]
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		r.watch(ctx, cancel, &first, recorder)
	}()
	err = c.run(ctx, spec, config.User, noting{&first, r.said},
		noting{&first, r.stderr})
	cancel(nil)
	<-watched
	var exit *exec.ExitError
	switch {
	case errors.Is(err, errCalm), errors.Is(err, errTimeout):
		r.sayf("the container was ended: %v", err)
		return nil
	case errors.As(err, &exit):
		return fmt.Errorf("the container has failed (%w): its profile is of no use", err)
	}
	return err
}

// watch ends the container when its reads have calmed down, or its time is up.
func (r *profileRecord) watch(
	ctx context.Context, end context.CancelCauseFunc, first *atomic.Pointer[time.Time],
	recorder *profile.Recorder,
) {
	tick := time.NewTicker(calmPoll)
	defer tick.Stop()
	timeout := time.NewTimer(r.timeout)
	defer timeout.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timeout.C:
			end(errTimeout)
			return
		case now := <-tick.C:
			if at := first.Load(); at != nil && now.Sub(*at) >= r.calm &&
				recorder.Quiet(r.calm) {
				end(errCalm)
				return
			}
		}
	}
}

// noting is a writer that notes when something was first written to it.
type noting struct {
	first *atomic.Pointer[time.Time]
	io.Writer
}

// Write implements io.Writer.
func (w noting) Write(p []byte) (int, error) {
	if w.first.Load() == nil {
		now := time.Now()
		w.first.CompareAndSwap(nil, &now)
	}
	return w.Writer.Write(p)
}
