package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Files below the root. What containers run on is known from the database alone, so there is a copy of it for the day on which
// its disk returns something else.
const (
	databaseName = "metadata.db"
	copyName     = databaseName + ".copy"
	damagedName  = databaseName + ".damaged" // the last one that could not be read
	// lostName stands for what was in a database that was lost with its copy. As long as it is there, nothing is removed that
	// nobody seems to use.
	lostName = databaseName + ".lost"
)

// The copy is made copyDelay after a change, and no more often than every copyPause.
const (
	copyDelay = 500 * time.Millisecond
	copyPause = 2 * time.Second
)

// database is the metadata store, and what keeps the copy of it.
type database struct {
	*storage.MetaStore
	root    string
	log     *slog.Logger
	amnesia bool // snapshots may have been lost at this start or, all of them, at an earlier one

	changed chan struct{} // a token: the copy is old
	stop    context.CancelFunc
	running sync.WaitGroup
}

// openDatabase opens the database below root; one that is damaged is set aside, and its copy takes its place. ctx is for its
// values alone.
func openDatabase(ctx context.Context, root string, log *slog.Logger) (*database, error) {
	d := &database{root: root, log: log, changed: make(chan struct{}, 1)}
	err := d.missing()
	if err == nil {
		err = readable(ctx, d.path(databaseName))
	}
	if err != nil && systemError(err) {
		return nil, err
	}
	if err != nil {
		if err := d.recover(ctx, err); err != nil {
			return nil, fmt.Errorf("replace damaged %s: %w", d.path(databaseName), err)
		}
	}
	if _, err := os.Stat(d.path(lostName)); err == nil {
		d.amnesia = true
		log.Error("snapshots of an earlier time are lost: what their containers may use stays on disk; remove the file when they have ended", "file", d.path(lostName))
	}
	if d.MetaStore, err = storage.NewMetaStore(d.path(databaseName)); err != nil {
		return nil, err
	}
	if d.amnesia {
		if err := d.skipNumbers(ctx); err != nil {
			return nil, errors.Join(err, d.MetaStore.Close())
		}
	}
	ctx, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	d.changed <- struct{}{}
	d.running.Go(func() { d.keepCopy(ctx) })
	return d, nil
}

func (d *database) path(name string) string { return filepath.Join(d.root, name) }

// WithTransaction is MetaStore's; what is committed goes to the copy soon.
func (d *database) WithTransaction(ctx context.Context, writable bool, fn storage.TransactionCallback) error {
	err := d.MetaStore.WithTransaction(ctx, writable, fn)
	if writable && err == nil {
		select {
		case d.changed <- struct{}{}:
		default:
		}
	}
	return err
}

// Close closes the database.
func (d *database) Close() error {
	d.stop()
	d.running.Wait()
	return d.MetaStore.Close()
}

// missing says that the database is gone, or empty, although there is a copy of it.
func (d *database) missing() error {
	if st, err := os.Stat(d.path(databaseName)); err == nil && st.Size() > 0 {
		return nil
	}
	if _, err := os.Stat(d.path(copyName)); err == nil {
		return errors.New("it is gone")
	}
	return nil // there never was one
}

// readable reads everything in the database at path, which is made if it is not there. What bbolt makes of a damaged file may
// be a panic, and a fault where the file is shorter than it was.
func readable(ctx context.Context, path string) (err error) {
	m, err := storage.NewMetaStore(path)
	if err != nil {
		return err
	}
	defer func() {
		if v := recover(); v != nil {
			// A transaction is still open, and Close would wait for its end.
			err = fmt.Errorf("read %s: %v", path, v)
			return
		}
		err = errors.Join(err, m.Close())
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	err = m.WithTransaction(ctx, false, func(ctx context.Context) error {
		if _, err := storage.IDMap(ctx); err != nil {
			return err
		}
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			_, _, _, err := storage.GetInfo(ctx, info.Name)
			return err
		})
	})
	if errdefs.IsNotFound(err) { // before the first snapshot the database is empty
		return nil
	}
	return err
}

// systemError says whether an error is the system's, and not about what stands in the file.
func systemError(err error) bool {
	var no syscall.Errno
	return errors.As(err, &no)
}

// recover puts the copy, or nothing, in the place of a database that is damaged for the reason why.
func (d *database) recover(ctx context.Context, why error) error {
	d.amnesia = true
	if err := os.Rename(d.path(databaseName), d.path(damagedName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	from, err := os.Open(d.path(copyName))
	if err == nil {
		err = d.replace(databaseName, from.WriteTo)
		err = errors.Join(err, from.Close())
	}
	if err == nil {
		err = readable(ctx, d.path(databaseName))
	}
	if err == nil {
		d.log.Error("metadata database is damaged: its copy is used, and what changed in the last seconds is lost", "err", why)
		return nil
	}
	d.log.Error("metadata database is damaged, and no copy of it is usable: all snapshots are lost", "err", why, "copy", err)
	if err := os.Remove(d.path(databaseName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return d.replace(lostName, func(w io.Writer) (int64, error) {
		n, err := fmt.Fprintln(w, "Remove this file when no container runs that was made before", time.Now().Format(time.RFC3339))
		return int64(n), err
	})
}

// skipNumbers makes the numbers of new snapshots begin behind those of all directories that are there: they may be those of
// containers that the database does not know.
func (d *database) skipNumbers(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(d.root, "snapshots"))
	if err != nil {
		return err
	}
	last := uint64(0)
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 32); err == nil {
			last = max(last, n)
		}
	}
	const name = "mica/number"
	return d.MetaStore.WithTransaction(ctx, true, func(ctx context.Context) error {
		for {
			made, err := storage.CreateSnapshot(ctx, snapshots.KindActive, name, "")
			if err != nil {
				return err
			}
			if _, _, err := storage.Remove(ctx, name); err != nil {
				return err
			}
			if n, err := strconv.ParseUint(made.ID, 10, 64); err != nil || n >= last {
				return err
			}
		}
	})
}

// keepCopy copies the database after changes.
func (d *database) keepCopy(ctx context.Context) {
	for wait := copyDelay; ; wait = copyPause {
		select {
		case <-ctx.Done():
			return
		case <-d.changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err := d.copy(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("no copy of the metadata database", "err", err)
		}
	}
}

// copy writes the copy, of one moment.
func (d *database) copy(ctx context.Context) error {
	_, t, err := d.TransactionContext(ctx, false)
	if err != nil {
		return err
	}
	defer func() { _ = t.Rollback() }() // it has read only
	tx, ok := t.(io.WriterTo)
	if !ok {
		return fmt.Errorf("a transaction is a %T", t)
	}
	return d.replace(copyName, tx.WriteTo)
}

// replace writes a file below the root, durably: it is there whole, or as it was.
func (d *database) replace(name string, write func(io.Writer) (int64, error)) error {
	f, err := os.CreateTemp(d.root, name+"-")
	if err != nil {
		return err
	}
	_, err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), d.path(name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(d.root)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
