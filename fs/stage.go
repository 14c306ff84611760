package fs

import (
	"github.com/mica-snapshotter/mica/fs/proof"
	"github.com/mica-snapshotter/mica/fs/store"
)

// stage is how far an open layer has come. The package comment has the events between them. From
// stageWhole on all spans are here, from stageProved on the layer is what its diffID names.
type stage int

const (
	stageClosed    stage = iota // the table has let go of it
	stageLazy                   // some spans are missing
	stageWhole                  // the index is the word of its vouchers
	stageDisproved              // the vouchers' word is false
	stageProved                 // micad serves it: its spans may go one by one
	stageLocal                  // the kernel may read it alone: it goes as a whole
)

// stage returns the layer's stage. It takes no time.
func (l *openLayer) stage() stage {
	if l.closed.Load() {
		return stageClosed
	}
	return stageOf(l.store)
}

// stageOf returns the stage of a layer by what is on disk.
func stageOf(s *store.Layer) stage {
	rec := s.Record() // before the spans: they may go meanwhile
	switch standing := proof.Of(&rec); {
	case !s.AllPresent():
		return stageLazy
	case standing == proof.Endorsed:
		return stageWhole
	case standing == proof.Disproved:
		return stageDisproved
	case rec.State != store.Verified:
		return stageProved
	}
	return stageLocal
}
