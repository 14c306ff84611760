package layer

import "github.com/mica-snapshotter/mica/fs/line"

// Run is neighbouring spans that are missing.
type Run struct {
	Off, Size int64 // in the device, bytes; whole spans
	Bytes     int64 // in the blob
}

// Next returns the first run of missing spans that hold any of the device's bytes [off, end), no
// longer than one request of that priority brings. Size 0: nothing is missing. What is on its way
// counts as missing; Fetch joins it.
func (l *Layer) Next(off, end int64, prio line.Priority) (Run, error) {
	if l.store.AllPresent() {
		return Run{}, nil
	}
	spans, err := l.table()
	if err != nil {
		return Run{}, err
	}
	i, last := spans.Cut(off, end)
	for i < last && l.store.Present(i) {
		i++
	}
	if i == last {
		return Run{}, nil
	}
	e, request := extent{i, 1}, l.request(prio)
	for i++; i < last && !l.store.Present(i); i++ {
		longer := extent{e.first, e.n + 1}
		if !longer.joins(spans, request) {
			break
		}
		e = longer
	}
	first, final, at := &spans[e.first], &spans[e.first+e.n-1], e.blobRange(spans)
	run := Run{Off: first.Device, Size: final.Device + final.Size - first.Device, Bytes: at.size()}
	if spans.FromStart() {
		h := l.index.Header() // about
		run.Bytes = int64(float64(run.Size) / float64(max(h.DeviceSize, 1)) * float64(h.LayerSize))
	}
	return run, nil
}
