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
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Files below the root.
const (
	databaseName = "metadata.db"
	copyName     = databaseName + ".copy"
	damagedName  = databaseName + ".damaged" // the last one that could not be read
	// lostName stands for what was in a database that was lost with its copy. As long as it is
	// there, nothing is removed that nobody seems to use.
	lostName = databaseName + ".lost"
)

// copyDelay is how long after a change the copy is made.
const copyDelay = time.Second

// database is the metadata store, of which there is a copy for the day on which its disk returns
// something else. containerd notes the names of snapshots in a database of its own, and asks for
// them as long as it has their image: without the copy, no image that is here could start a
// container before it was removed and pulled again.
type database struct {
	*storage.MetaStore
	root    string
	log     *slog.Logger
	changed chan struct{} // a token: the copy is old
	// snapshots may have been lost: now or, all of them, at an earlier start
	mayHaveForgotten bool
}

// openDatabase opens the database below root; one that is damaged is set aside, and its copy takes
// its place. ctx is for its values alone.
func openDatabase(ctx context.Context, root string, log *slog.Logger) (*database, error) {
	d := &database{root: root, log: log, changed: make(chan struct{}, 1)}
	d.changed <- struct{}{}
	err := d.check(ctx)
	if err != nil && errors.As(err, new(syscall.Errno)) { // it is not about what stands in the file
		return nil, err
	}
	if err != nil {
		if err := d.recover(ctx, err); err != nil {
			return nil, fmt.Errorf("replace damaged %s: %w", d.path(databaseName), err)
		}
	}
	if _, err := os.Stat(d.path(lostName)); err == nil {
		d.mayHaveForgotten = true
		log.Error("snapshots of an earlier time are lost: what their containers may use stays on "+
			"disk; remove the file when they have ended", "file", d.path(lostName))
	}
	if d.MetaStore, err = storage.NewMetaStore(d.path(databaseName)); err != nil {
		return nil, err
	}
	if d.mayHaveForgotten {
		if err := d.skipNumbers(ctx); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return d, nil
}

func (d *database) path(name string) string { return filepath.Join(d.root, name) }

// WithTransaction is MetaStore's; what is committed goes to the copy soon.
func (d *database) WithTransaction(
	ctx context.Context, writable bool, fn storage.TransactionCallback,
) error {
	err := d.MetaStore.WithTransaction(ctx, writable, fn)
	if writable && err == nil {
		select {
		case d.changed <- struct{}{}:
		default:
		}
	}
	return err
}

// check returns why the database cannot be used, nil also where there never was one.
func (d *database) check(ctx context.Context) error {
	st, err := os.Stat(d.path(databaseName))
	if err != nil || st.Size() == 0 {
		if _, err := os.Stat(d.path(copyName)); err == nil {
			return errors.New("it is gone")
		}
	}
	return readable(ctx, d.path(databaseName))
}

// readable reads everything in the database at path, which is made if it is not there. What bbolt
// makes of a damaged file may be a panic, and a fault where the file is shorter than it was.
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

// recover puts the copy, or nothing, in the place of a database that is damaged for the reason why.
func (d *database) recover(ctx context.Context, why error) error {
	d.mayHaveForgotten = true
	_, lost := os.Stat(d.path(copyName))
	if lost == nil {
		lost = readable(ctx, d.path(copyName))
	}
	if lost != nil {
		d.log.Error("metadata database is damaged, and no copy of it is usable: "+
			"all snapshots are lost", "err", why, "copy", lost)
		text := fmt.Appendln(nil, "Remove this file when no container runs that was made before",
			time.Now().Format(time.RFC3339))
		if err := os.WriteFile(d.path(lostName), text, 0o600); err != nil {
			return err
		}
	}
	err := os.Rename(d.path(databaseName), d.path(damagedName))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil && lost == nil {
		d.log.Error("metadata database is damaged: its copy is used, "+
			"and what changed in the last seconds is lost", "err", why)
		err = os.Rename(d.path(copyName), d.path(databaseName))
	}
	return err
}

// skipNumbers makes the numbers of new snapshots begin behind those of all directories that are
// there: they may be those of containers that the database does not know.
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

// keepCopy copies the database after changes, until ctx ends.
func (d *database) keepCopy(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(copyDelay):
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
	f, err := os.OpenFile(d.path(copyName)+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = tx.WriteTo(f)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), d.path(copyName))
}
