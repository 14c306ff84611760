package main

import (
	"runtime"
	"testing"
	"time"
)

func TestGrowth(t *testing.T) {
	for inUse, want := range map[int64]int{
		0:         200,
		1 << 20:   200,
		8 << 20:   100,
		12 << 20:  50,
		16 << 20:  50,
		200 << 20: 50,
	} {
		if got := growth(inUse); got != want {
			t.Errorf("growth(%d) = %d %%, want %d", inUse, got, want)
		}
	}
}

// TestAfterCollection: it is called after every collection, not only the first.
func TestAfterCollection(t *testing.T) {
	called := make(chan struct{}, 100)
	afterCollection(func() { called <- struct{}{} })
	for i := range 3 {
		runtime.GC()
		select {
		case <-called:
		case <-time.After(10 * time.Second):
			t.Fatalf("not called after collection %d", i)
		}
	}
}
