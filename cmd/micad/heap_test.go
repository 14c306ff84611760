package main

import (
	"runtime"
	"testing"
	"time"
)

func TestGrowth(t *testing.T) {
	for inUse, want := range map[int64]int{
		0:         400,
		1 << 20:   400,
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

func TestLimitFor(t *testing.T) {
	for held, want := range map[int64]int64{
		0: 96 << 20, 1: 104 << 20, 8 << 20: 104 << 20, 100 << 20: 200 << 20,
	} {
		if got := limitFor(held); got != want {
			t.Errorf("limitFor(%d) = %d, want %d", held, got, want)
		}
	}
}

// TestAfterCollection: it is called after collections again and again, not only after the first.
// One that begins before the last call has ended may go without.
func TestAfterCollection(t *testing.T) {
	called := make(chan struct{}, 1000)
	afterCollection(func() { called <- struct{}{} })
	for i, deadline := 0, time.Now().Add(10*time.Second); i < 3; {
		runtime.GC()
		select {
		case <-called:
			i++
		case <-time.After(10 * time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatalf("called %d times, and not after further collections", i)
			}
		}
	}
}
