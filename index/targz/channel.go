package targz

import (
	"context"
	"errors"
	"io"
)

// send passes v on, unless ctx ends before there is room.
func send[T any](ctx context.Context, to chan<- T, v T) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case to <- v:
		return nil
	}
}

// receive waits for what comes next; io.EOF where from is closed and empty.
func receive[T any](ctx context.Context, from <-chan T) (v T, err error) {
	select {
	case <-ctx.Done():
		return v, ctx.Err()
	case v, ok := <-from:
		if !ok {
			return v, io.EOF
		}
		return v, nil
	}
}

// ended is err, unless that says that all has come.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
