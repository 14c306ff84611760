package main

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/mica-snapshotter/mica/cmd/mica/show"
)

// TestUsage: what is wrong with the command line ends mica with another code than what fails.
func TestUsage(t *testing.T) {
	for line, want := range map[string]int{
		"nonsense":                            show.Usage,
		"ps --nonsense":                       show.Usage,
		"mount":                               show.Usage,
		"index creat --push x":                show.Usage,
		"profile recor x":                     show.Usage,
		"index":                               0,
		"setup nonsense":                      show.Usage,
		"pull --platform no x":                show.Usage,
		"index create --push --span-size 3 x": show.Usage,
		"index inspect --give-up -1s x":       show.Usage,
		"index create":                        show.Usage,
		"ps --address /nowhere":               1,
		"help":                                0,
	} {
		root := rootCommand()
		root.SetArgs(strings.Fields(line))
		root.SetOut(t.Output())
		if err := execute(t.Context(), root); show.Code(err) != want {
			t.Errorf("mica %s: %v, %d", line, err, show.Code(err))
		}
	}
}

// TestLostOutput: what could not be written is an error, whichever command wrote it.
func TestLostOutput(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, line := range []string{"--version", "help", "doctor --json"} {
		root := rootCommand()
		root.SetArgs(strings.Fields(line))
		root.SetOut(full)
		if err := execute(t.Context(), root); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("mica %s: %v", line, err)
		}
	}
}
