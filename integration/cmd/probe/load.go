package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/mica-snapshotter/mica/integration/known"
)

// load reads a tree and prints reports (known.Report, JSON), one a line, ten a
// second. It reads random files from SIGUSR1 on, all files from SIGUSR2 on, and
// ends with its last report then. A program without a handler would end, or as
// first process of a container miss the signal: the first report tells that it
// can be sent.
func load(args []string) error {
	if len(args) != 4 {
		return errors.New("load: want TREE DIR READERS STEP")
	}
	tree, err := known.ParseTree(args[0])
	if err != nil {
		return err
	}
	readers, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	step, err := time.ParseDuration(args[3])
	if err != nil {
		return err
	}
	start, finish := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(start, syscall.SIGUSR1)
	signal.Notify(finish, syscall.SIGUSR2)
	l := known.New(tree, args[1], known.Options{Readers: readers, Step: step, Pause: pause})

	read := make(chan struct{})
	go func() {
		defer close(read)
		select {
		case <-start:
			ctx, cancel := context.WithCancel(context.Background())
			go func() { <-finish; cancel() }()
			l.Run(ctx)
		case <-finish:
		}
		l.Pass()
	}()
	out := json.NewEncoder(os.Stdout)
	tick := time.NewTicker(100 * time.Millisecond)
	for {
		if err := out.Encode(l.Report()); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-read:
			return out.Encode(l.Report())
		}
	}
}

// pause is what each reader waits between two reads, on average.
const pause = 10 * time.Millisecond
