package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mica-snapshotter/mica/fs"
)

// collector reads the parts' counters whenever it is asked. No label has more than a handful of
// values: layers and images are not labels.
type collector struct {
	d     *daemon
	descs map[string]*prometheus.Desc
}

// help returns the metrics: name (without "mica_") and help.
func help() map[string]string {
	return map[string]string{
		"layers":                      "Layers mounted, by mode.",
		"layer_bytes":                 "Bytes of the mounted layers, uncompressed.",
		"layer_present_bytes":         "Bytes of the mounted layers that are on this node.",
		"cache_bytes":                 "Bytes that layers take on disk.",
		"cache_quota_bytes":           "Bytes that layers may take on disk; 0: no limit.",
		"cache_evicted_bytes_total":   "Bytes that went from the disk to make room.",
		"cache_refused_bytes_total":   "Bytes that were served from memory because there was no room for them.",
		"cache_corrupt_spans_total":   "Spans on disk that were wrong or could not be read, and were fetched again.",
		"cache_disk_faults_total":     "Writes that the disk refused.",
		"cache_held":                  "1 while nothing is fetched in the background, because the disk is at fault or the quota is reached.",
		"waiting_reads":               "Reads of containers that wait for a registry now.",
		"replay_requests_total":       "Requests of replays of profiles.",
		"replay_bytes_total":          "Compressed bytes that replays of profiles fetched.",
		"replay_brought_bytes":        "Uncompressed bytes that the latest replays brought.",
		"replay_read_bytes":           "Of these, bytes in spans that containers read.",
		"replay_missed_reads":         "Reads of starting containers that waited for something that no replay was going to bring.",
		"fill_requests_total":         "Requests of fills.",
		"fill_bytes_total":            "Compressed bytes that fills fetched.",
		"panics_total":                "Panics: each has failed one request.",
		"remote_requests_total":       "Requests sent to registries.",
		"remote_token_requests_total": "Of these, requests for tokens.",
		"remote_received_bytes_total": "Bytes of blobs and manifests received from registries.",
		"remote_retries_total":        "Requests sent again after a failure.",
		"remote_failovers_total":      "Of these, those sent to another host of the registry.",
		"snapshots_served_total":      "Layers served without unpacking since the start.",
		"snapshots_fallback_total":    "Layers that could not be served, and were left to containerd.",
		"snapshots_unannotated_total": "Layers that containerd prepared without naming their image.",
	}
}

func newCollector(d *daemon) *collector {
	c := &collector{d: d, descs: map[string]*prometheus.Desc{}}
	for name, text := range help() {
		var labels []string
		if name == "layers" {
			labels = []string{"mode"}
		}
		c.descs[name] = prometheus.NewDesc("mica_"+name, text, labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(name string, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], prometheus.GaugeValue, float64(v),
			labels...)
	}
	counter := func(name string, v int64) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], prometheus.CounterValue, float64(v))
	}
	modes := map[fs.Mode]int64{fs.EROFS: 0, fs.FUSE: 0, fs.Local: 0}
	var total, present, waiting int64
	for _, l := range c.d.table.Status() {
		if l.Mode != "" {
			modes[l.Mode]++
		}
		total += l.Total
		present += l.Present
		waiting += l.Waiting
	}
	for m, n := range modes {
		gauge("layers", n, string(m))
	}
	gauge("layer_bytes", total)
	gauge("layer_present_bytes", present)
	gauge("waiting_reads", waiting)
	var brought, read, missed int64
	for _, r := range c.d.table.Replays() {
		brought += r.Brought
		read += r.Read
		missed += r.Missed
	}
	gauge("replay_brought_bytes", brought)
	gauge("replay_read_bytes", read)
	gauge("replay_missed_reads", missed)
	disk := c.d.table.Cache().Status()
	gauge("cache_bytes", disk.Used)
	gauge("cache_quota_bytes", disk.Quota)
	counter("cache_evicted_bytes_total", disk.Evicted)
	counter("cache_refused_bytes_total", disk.Refused)
	counter("cache_corrupt_spans_total", disk.Corrupt)
	counter("cache_disk_faults_total", disk.Faults)
	held := int64(0)
	if disk.Full || disk.Fault != "" {
		held = 1
	}
	gauge("cache_held", held)
	f := c.d.table.FetchStats()
	counter("replay_requests_total", f.ReplayRequests)
	counter("replay_bytes_total", f.ReplayBytes)
	counter("fill_requests_total", f.FillRequests)
	counter("fill_bytes_total", f.FillBytes)
	counter("panics_total", c.d.table.Panics()+c.d.panics.Load())
	r := c.d.client.Stats()
	counter("remote_requests_total", int64(r.Requests))
	counter("remote_token_requests_total", int64(r.TokenRequests))
	counter("remote_received_bytes_total", int64(r.BytesDown))
	counter("remote_retries_total", int64(r.Retries))
	counter("remote_failovers_total", int64(r.Failovers))
	s := c.d.snapshotter.Stats()
	counter("snapshots_served_total", int64(s.Served))
	counter("snapshots_fallback_total", int64(s.Fallbacks))
	counter("snapshots_unannotated_total", int64(s.Unannotated))
}
