package main

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"time"
)

// results is all that a run of this program has measured, as bench.json holds it
// (docs/bench.md). Within a version fields are added, never renamed or removed.
type results struct {
	Version   int           `json:"version"` // 1
	Mica      string        `json:"mica"`
	Began     time.Time     `json:"began"`
	Seconds   float64       `json:"seconds"` // that the program ran
	Machine   machineInfo   `json:"machine"`
	Networks  []networkInfo `json:"networks"`
	Images    []imageInfo   `json:"images"`
	Starts    []start       `json:"starts"`
	Medians   []median      `json:"medians"`
	Waterfall *waterfall    `json:"waterfall,omitempty"`
	Files     []fileResult  `json:"files,omitempty"`
}

type machineInfo struct {
	Processors int    `json:"processors"`
	Memory     int64  `json:"memory_bytes"`
	Kernel     string `json:"kernel"`
}

type networkInfo struct {
	Name       string  `json:"name"`
	About      string  `json:"about"`
	RTT        float64 `json:"rtt_seconds"`
	Rate       float64 `json:"bytes_per_second"`
	Connection float64 `json:"connection_bytes_per_second"` // 0: as the whole
}

type imageInfo struct {
	Workload     string  `json:"workload"`
	About        string  `json:"about"`
	Layers       int     `json:"layers"`
	Compressed   int64   `json:"compressed_bytes"`
	Unpacked     int64   `json:"unpacked_bytes"`
	IndexSeconds float64 `json:"index_seconds"`      // mica index create --push
	Profile      int64   `json:"profile_bytes"`      // compressed, of the spans that hold what the profile names; 0: none was recorded
	ProfileRead  int64   `json:"profile_read_bytes"` // that the profile names, uncompressed
}

// metrics is what is measured of a start. Times are seconds; 0: not measured.
type metrics struct {
	Pull   float64 `json:"pull"`   // ctr images pull
	Create float64 `json:"create"` // ctr containers create
	Start  float64 `json:"start"`  // ctr tasks start, until the program's first line
	Ready  float64 `json:"ready"`  // from there to its last
	Total  float64 `json:"total"`  // the sum of these four
	Local  float64 `json:"local"`  // from the pull's begin until all layers are complete and served by the kernel alone

	Bytes       float64 `json:"bytes"`       // downloaded until ready
	Requests    float64 `json:"requests"`    // sent until ready
	Connections float64 `json:"connections"` // made until ready

	ContainerdCPU      float64 `json:"containerd_cpu"` // until ready
	MicadCPU           float64 `json:"micad_cpu"`
	ContainerdWholeCPU float64 `json:"containerd_whole_cpu"` // until local
	MicadWholeCPU      float64 `json:"micad_whole_cpu"`
	ContainerdPeak     float64 `json:"containerd_peak_bytes"`
	MicadPeak          float64 `json:"micad_peak_bytes"`

	Strangers float64 `json:"strangers"` // part of the machine's CPU time that other processes had until ready, 0 to 1
}

// fields are the metrics one by one.
func (m *metrics) fields() []*float64 {
	return []*float64{
		&m.Pull, &m.Create, &m.Start, &m.Ready, &m.Total, &m.Local,
		&m.Bytes, &m.Requests, &m.Connections,
		&m.ContainerdCPU, &m.MicadCPU, &m.ContainerdWholeCPU, &m.MicadWholeCPU, &m.ContainerdPeak, &m.MicadPeak,
		&m.Strangers,
	}
}

// subject is what was measured.
type subject struct {
	Workload string `json:"workload"`
	Network  string `json:"network"`
	Way      string `json:"snapshotter"`
}

// start is one measurement.
type start struct {
	subject
	Run   int    `json:"run"`
	Error string `json:"error,omitempty"`
	metrics
}

// median is the medians of the starts of one subject.
type median struct {
	subject
	Runs   int `json:"runs"`   // that the medians are of
	Failed int `json:"failed"` // that ended in an error
	metrics
	B           float64 `json:"b,omitempty"`
	OfB         float64 `json:"total_of_b,omitempty"`         // Total / B
	OfOverlayfs float64 `json:"total_of_overlayfs,omitempty"` // Total / overlayfs's Total for the same
}

// disturbed is the share of strangers above which a start is left out of
// medians, where there are others.
const disturbed = 0.1

// summarise computes the medians, a line for each network, workload and way of
// the plan, in this order.
func (r *results) summarise(p plan) {
	r.Medians = nil
	for _, n := range p.networks {
		for _, w := range p.workloads {
			first := len(r.Medians)
			for _, y := range p.rows() {
				if m := r.median(subject{w.name, n.name, y}); m.Runs+m.Failed > 0 {
					r.Medians = append(r.Medians, m)
				}
			}
			r.compare(n, r.Medians[first:])
		}
	}
}

func (r *results) median(of subject) median {
	m := median{subject: of}
	var all, calm []metrics
	for _, s := range r.Starts {
		switch {
		case s.subject != of:
		case s.Error != "":
			m.Failed++
		default:
			all = append(all, s.metrics)
			if s.Strangers <= disturbed {
				calm = append(calm, s.metrics)
			}
		}
	}
	if len(calm) > 0 {
		all = calm
	}
	m.Runs = len(all)
	for i, field := range m.fields() {
		values := make([]float64, len(all))
		for j := range all {
			values[j] = *all[j].fields()[i]
		}
		*field = round(middle(values))
	}
	return m
}

// compare fills in B and the ratios of one workload's medians over one network.
func (r *results) compare(n network, medians []median) {
	total := map[string]float64{}
	for _, m := range medians {
		if m.Runs > 0 {
			total[m.Way] = m.Total
		}
	}
	for i := range medians {
		m := &medians[i]
		if m.Runs == 0 {
			continue
		}
		full := overlayfs
		if m.Way == overlayfsRead || m.Way == micaRead {
			full = overlayfsRead // B says nothing of these
		} else if size := r.profileOf(m.Workload); total[again] > 0 && size > 0 {
			m.B = round(bound(total[again], n.profile, size))
			m.OfB = round(m.Total / m.B)
		}
		if total[full] > 0 {
			m.OfOverlayfs = round(m.Total / total[full])
		}
	}
}

func (r *results) profileOf(workload string) int64 {
	for _, i := range r.Images {
		if i.Workload == workload {
			return i.Profile
		}
	}
	return 0
}

// find returns the medians of a subject; Runs is 0 where there are none.
func (r *results) find(of subject) median {
	i := slices.IndexFunc(r.Medians, func(m median) bool { return m.subject == of })
	if i < 0 {
		return median{}
	}
	return r.Medians[i]
}

// middle is the median of values; 0 of none.
func middle(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	switch {
	case n == 0:
		return 0
	case n%2 == 0:
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[n/2]
}

// round cuts to thousandths: of a second, of a ratio.
func round(v float64) float64 { return math.Round(v*1000) / 1000 }

// write writes the results as JSON.
func (r *results) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
